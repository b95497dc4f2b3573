"""Widgets for notebooks, and what they are given: thin shells over pure functions. Only this package imports
ipywidgets, when one of its names is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refinevla_kit.widgets.attention_explorer import (
        AttentionExplorer,
        attribution_methods,
        capture_words,
    )
    from refinevla_kit.widgets.live_curves import LiveCurves
    from refinevla_kit.widgets.rationale_reviewer import RationaleReviewer
    from refinevla_kit.widgets.rollout_viewer import FrameSlider, RolloutViewer

__all__ = [
    "AttentionExplorer",
    "FrameSlider",
    "LiveCurves",
    "RationaleReviewer",
    "RolloutViewer",
    "attribution_methods",
    "capture_words",
]
MODULES = {
    "AttentionExplorer": "attention_explorer",
    "FrameSlider": "rollout_viewer",
    "LiveCurves": "live_curves",
    "RationaleReviewer": "rationale_reviewer",
    "RolloutViewer": "rollout_viewer",
    "attribution_methods": "attention_explorer",
    "capture_words": "attention_explorer",
}


def __getattr__(name: str) -> Any:
    """One of `__all__`, when it is first asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
