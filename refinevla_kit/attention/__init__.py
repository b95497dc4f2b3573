"""Where a policy's action tokens and words look, exactly as the model computed it, and how much of that falls
on the things that matter.

Two functions stand for the room, and load torch when they are first asked for:

- `capture(policy, image, instruction)` reads the attention of chosen tokens on one picture (`forward`).
- `attribute(policy, frame, target, method)` tells where in a picture an answer comes from (`attribution`).

`captured` and `grounding` are NumPy and pandas alone: saved captures can be looked at and scored anywhere.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refinevla_kit.attention.attribution import attribute
    from refinevla_kit.attention.forward import capture

__all__ = ["attribute", "capture"]
MODULES = {"attribute": "attribution", "capture": "forward"}


def __getattr__(name: str) -> Any:
    """One of `__all__`, from the module that has it."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
