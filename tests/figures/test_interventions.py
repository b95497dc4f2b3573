"""Effects by layer: a panel for each thing that was tried, controls hollow, intervals drawn."""

from __future__ import annotations

import pandas as pd

from refinevla_kit.figures.interventions import by_layer


def test_a_panel_for_each_thing_and_a_dot_for_each_effect() -> None:
    rows = [
        (policy, read, layers, control, 1.0 + control, 0.5, 2.5, 4)
        for policy in ("action_only", "with_reasoning")
        for read in ("image", "instruction")
        for layers in ("0", "1", "0-1")
        for control in (False, True)
    ]
    columns = ["policy", "read", "layers", "control", "divergence", "low", "high", "episodes"]
    figure = by_layer(pd.DataFrame(rows, columns=columns), "read", "layers", "two frames")
    panels = figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == ["the picture", "the instruction"]
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["1", "2", "1-2"]
    dots = [line for line in panels[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(dots) == 2 * 3 * 2
    assert sum(line.get_markerfacecolor() == "white" for line in dots) == 6
    assert panels[0].get_ylabel() == "the action moves by (nats)"
