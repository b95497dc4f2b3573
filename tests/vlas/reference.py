"""What the authors' own code computes from tiny random checkpoints in their layout; see
tests/reference/vlas/README.md.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "reference" / "vlas"


@cache
def arrays(model: str) -> dict[str, Tensor]:
    """The authors' arrays, by name."""
    return load_file(FOLDER / f"{model}_golden" / "golden.safetensors")


@cache
def facts(model: str) -> dict[str, Any]:
    """The authors' numbers and texts, by name."""
    facts: dict[str, Any] = json.loads((FOLDER / f"{model}_golden" / "golden.json").read_text("utf-8"))
    return facts


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; shapes have to agree."""
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs.double()).abs().max())
