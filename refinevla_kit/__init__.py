"""ReFineVLA kit: reasoning-aware fine-tuning of vision-language-action policies, measured.

The package behind the numbered notebooks. Importing it is cheap: neither torch nor SAPIEN is loaded until a module that
needs them is.
"""

__version__ = "0.1.0"
