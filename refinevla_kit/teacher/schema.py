"""What a teacher is asked and what it answers. The four parts are ReFineVLA's (v2, secondary source): Observation, Situation Analysis, Spatial
Reasoning, Task Planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from refinevla_kit.simulator.contract import SceneState

Array = NDArray[Any]

PARTS = ("observation", "situation_analysis", "spatial_reasoning", "task_planning")


@dataclass(frozen=True)
class Rationale:
    """A teacher's explanation of one segment, in four parts."""

    observation: str
    situation_analysis: str
    spatial_reasoning: str
    task_planning: str

    def text(self) -> str:
        """The rationale as the policy is trained to write it: one labelled line a part."""
        labels = ("Observation", "Situation", "Spatial", "Plan")
        return "\n".join(f"{label}: {getattr(self, part)}" for label, part in zip(labels, PARTS, strict=True))


@dataclass(frozen=True)
class Request:
    """A segment of an episode that a teacher is asked about.

    Attributes:
        dataset: name of the dataset. episode: episode index. start, end: first frame and one past the last, within the episode.
        instruction: the robot's instruction.
        keyframes: uint8 (K, H, W, 3). keyframe_indices: their frame numbers within the episode.
        actions: float32 (end - start, A), as recorded.
        state: privileged state of the segment's first frame, for teachers that know the simulator.
        masks: masks of the segment's first frame, {name: bool (H, W)}.
    """

    dataset: str
    episode: int
    start: int
    end: int
    instruction: str
    keyframes: Array
    keyframe_indices: Sequence[int]
    actions: Array
    state: SceneState | None = None
    masks: dict[str, Array] | None = None


@dataclass(frozen=True)
class Refusal:
    """A reply that is no rationale. `kind` is counted in reports; `reason` is for a person."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Reply:
    """What came back: a rationale or a typed refusal, with the raw text, token counts and cost (in the user's currency; 0 for local teachers)."""

    result: Rationale | Refusal
    raw: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Teacher(Protocol):
    """`name`, `version` and `prompt_hash` (of the prompt, or of the grammar and its seed) are stored with every rationale."""

    name: str
    version: str
    prompt_hash: str

    def annotate(self, request: Request) -> Reply: ...
