"""Policies and what they are made of. Import the module you need; torch is loaded by those that use it, and
by `load_policy` and `load_policies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refinevla_kit.policies.vla_policy import load_policies, load_policy

__all__ = ["load_policies", "load_policy"]


def __getattr__(name: str) -> Any:
    """One of `__all__`, when it is first asked for: a policy server's client needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from refinevla_kit.policies import vla_policy

    return getattr(vla_policy, name)
