"""What a teacher is asked and what it answers. The four parts are ReFineVLA's (v2, secondary source):
Observation, Situation Analysis, Spatial Reasoning, Task Planning. The facts beside them are this kit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from refinevla_kit.episodes.columns import is_open
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import PHASES, Array, SceneState

PARTS = ("observation", "situation_analysis", "spatial_reasoning", "task_planning")
LABELS = ("Observation", "Situation", "Spatial", "Plan")

MOTIONS = ("forward", "backward", "left", "right", "up", "down")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
ZONES = tuple(f"{row} {column}".strip() or "centre" for row in ROWS for column in COLUMNS)
SIDES = ("left", "right", "higher", "lower")
WORDS: dict[str, tuple[str, ...]] = {
    "source_zone": ZONES,
    "target_zone": ZONES,
    "gripper_zone": ZONES,
    "gripper": ("open", "half open", "closed"),
    "reach_side": SIDES,
    "goal_side": SIDES,
    "sub_task": PHASES,
    "next_sub_task": (*PHASES, "end"),
    "motion": MOTIONS,
}
"""The words that a field of `Facts` may hold; fields that are not in here hold names, numbers or a bool."""


@dataclass(frozen=True)
class Facts:
    """What a rationale says of its first frame, field by field, so that each can be checked. None: not said.

    Attributes:
        source, target: names of the object to move and of where it goes.
        source_zone, target_zone, gripper_zone: where they are in the picture, one of `ZONES`.
        gripper: "open", "half open" or "closed".
        held: name of the object between the fingers, or "nothing".
        reach_cm, reach_height_cm: from the source to the gripper, horizontally and upwards (below: negative).
        reach_side: where the gripper is in the picture, seen from the source: the larger offset of the two.
        goal_cm, goal_height_cm, goal_side: likewise from the target to the source.
        sub_task, next_sub_task: of `PHASES`; nothing follows the last one but "end".
        motion: main direction of the first action in the robot's frame, one of `MOTIONS`.
        done: the whole task is done.
    """

    source: str | None = None
    target: str | None = None
    source_zone: str | None = None
    target_zone: str | None = None
    gripper_zone: str | None = None
    gripper: str | None = None
    held: str | None = None
    reach_cm: float | None = None
    reach_height_cm: float | None = None
    reach_side: str | None = None
    goal_cm: float | None = None
    goal_height_cm: float | None = None
    goal_side: str | None = None
    sub_task: str | None = None
    next_sub_task: str | None = None
    motion: str | None = None
    done: bool | None = None


def read_facts(value: Any) -> Facts | None:
    """Facts from JSON, a table or a teacher of somebody else's.

    A field that is missing counts as not said, and so does one that holds what it cannot: another type, an
    unknown word, NaN. An answer is never lost for its facts. Without any field there are none.
    """
    given = asdict(value) if isinstance(value, Facts) else value
    if not isinstance(given, dict):
        return None
    known = {field.name: _fact(field.name, given.get(field.name)) for field in fields(Facts)}
    return Facts(**known) if any(item is not None for item in known.values()) else None


def _fact(name: str, value: Any) -> Any:
    if name == "done":
        return value if isinstance(value, bool) else None
    if name.endswith("_cm"):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1000
        return float(value) if number and (value >= 0 or "height" in name) else None
    if not isinstance(value, str):
        return None
    # half a surrogate pair fits no file
    word = " ".join(value.encode("utf-8", "replace").decode().lower().replace("-", " ").split())
    if name in WORDS:
        return word if word in WORDS[name] else None
    return word if word != "unknown" and 0 < len(word) <= 60 else None


@dataclass(frozen=True)
class Rationale:
    """A teacher's explanation of one segment: four parts, which policies are trained to write, and facts.

    Attributes:
        facts: the same in fields, to be checked for truth; None where the teacher gave none.
        instruction_matches: False when the teacher finds that the robot does something else than the
            instruction says; `mismatch` says what. Such a rationale is kept, counted in reports, and left out
            of training.
    """

    observation: str
    situation_analysis: str
    spatial_reasoning: str
    task_planning: str
    instruction_matches: bool = True
    mismatch: str = ""
    facts: Facts | None = None

    def text(self) -> str:
        """The rationale as the policy is trained to write it: one labelled line a part."""
        return "\n".join(f"{label}: {getattr(self, part)}" for label, part in zip(LABELS, PARTS, strict=True))


@dataclass(frozen=True)
class Request:
    """A segment of an episode that a teacher is asked about.

    Attributes:
        dataset: name of the dataset.
        episode: episode index.
        start, end: first frame and one past the last, within the episode.
        instruction: the robot's instruction.
        keyframes: uint8 (K, H, W, 3).
        keyframe_indices: their frame numbers within the episode.
        actions: float32 (end - start, A), as recorded.
        state: privileged state of the segment's first frame, for teachers that know the simulator.
        masks: masks of the segment's first frame, {name: bool (H, W)}.
        action_names: of the A dimensions.
        deltas: actions are displacements, not positions; None where that is not known.
        metric: displacements are a tool's, in metres and radians a step.
        fps: control steps a second.
        gripper: value of the gripper's command that means open, None where that is not known;
            `gripper_dimension` is where it stands.
        proprioception: float32 (end - start, P) as recorded, None where there is none; `proprioception_names`
            of its P dimensions.
        granularity: "step", "segment" or "trajectory".
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
    action_names: tuple[str, ...] = ()
    deltas: bool | None = True
    fps: float = 5.0
    proprioception: Array | None = None
    proprioception_names: tuple[str, ...] = ()
    granularity: str = "segment"
    metric: bool = True
    gripper: float | None = 1.0
    gripper_dimension: int | None = 6

    @property
    def tool(self) -> bool:
        """The actions are seven numbers that tell in metres, radians and a gripper's command how the tool
        moves.
        """
        return bool(self.deltas) and self.metric and self.actions.shape[1] == 7

    @property
    def open(self) -> Array | None:
        """bool (end - start,): the gripper is commanded to be open; None where the actions do not tell."""
        place = self.gripper_dimension
        if self.gripper is None or place is None or place >= self.actions.shape[1]:
            return None
        return is_open(self.actions[:, place], self.gripper)

    @property
    def span(self) -> tuple[int, int, int]:
        """(episode, start, end): what tells one request of a run from another."""
        return self.episode, self.start, self.end


REPAIRABLE = ("truncated", "not_json", "wrong_shape", "other_language", "boilerplate", "echo")
"""Refusal kinds that one follow-up request may mend: the teacher answered, but not what was asked for. See
`answers.repairable`.
"""


@dataclass(frozen=True)
class Refusal:
    """A reply that is no rationale.

    Attributes:
        kind: counted in reports. Of answers: one of `REPAIRABLE`, "empty", "blocked" (the prompt) or "safety"
        (the
            answer). Of the oracle: "no_state", without simulator state. How calls failed for good:
            "bad_request" (400), "unauthorised" (401, 403), "not_found" (404), "quota" and "daily_quota"
            (429), "server" (5xx), "timeout", "connection" (it broke off), "unreachable" (there was none).
            "gave_up" is of earlier kits.
        reason: for a person, one line, without any key.
    """

    kind: str
    reason: str


@dataclass(frozen=True)
class Reply:
    """What came back from one call that was answered, and is paid for: a rationale or a typed refusal."""

    result: Rationale | Refusal
    raw: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of one call."""

    input_tokens: int = 0
    output_tokens: int = 0


class CallFailed(Exception):
    """A call that brought no answer. Pickles whole.

    Args:
        kind: as in `Refusal.kind`.
        reason: one line, without any key.
        retry_after: seconds the server asked to wait, None when it did not say.
    """

    def __init__(self, kind: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(kind, reason, retry_after)
        self.kind, self.reason, self.retry_after = kind, reason, retry_after

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later. Wrong keys and wrong requests will not; they stop the
        run.
        """
        return self.kind in ("quota", "server", "timeout", "connection", "unreachable")


class RunFailed(KitError):
    """A run that ended without what it was paid for; answers had by then are kept. `path`: of the table,
    which need not exist.
    """

    path: Path | None = None


class Teacher(Protocol):
    """Answers one request with one call; retries, limits, budget and storage are the run's (`annotation`).

    `name`, `version` (of the model) and `prompt_hash` (of the prompt's files, or of the grammar and its seed)
    are stored with every rationale. Picklable, so that a run can spread over processes: a client is made when
    it is first needed, its key read from the environment there.
    """

    name: str
    version: str
    prompt_hash: str

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """One call. With `previous`, a repairable refusal of the same request, the follow-up that asks to
        mend it. Raises `CallFailed`.
        """

    def worst_case(self, request: Request) -> Usage:
        """The most tokens a call about `request` (or its follow-up) can use: what a budget reserves before it
        is made.
        """
