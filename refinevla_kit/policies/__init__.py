"""Policies and what they are made of. Import the module you need; torch is loaded by those that use it, and
by `load_policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refinevla_kit.policies.vla_policy import load_policy

__all__ = ["load_policy"]


def __getattr__(name: str) -> Any:
    """`load_policy`, when it is first asked for: a policy server's client needs no torch."""
    if name != "load_policy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from refinevla_kit.policies.vla_policy import load_policy

    return load_policy
