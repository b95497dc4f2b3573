"""The policy contract. What others' policies have and return instead is asked for and read in
`policies.answers`, so anyone's drops in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Action:
    """One action, raw and processed.

    Attributes:
        processed: float32 (7,), what `Simulator.step` takes (metres, radians, absolute gripper +1 open / -1
            closed; robot base frame).
        normalised: float32 (7,), the same in the policy's own range [-1, 1].
        tokens: int64 (T,), the action tokens as vocabulary ids; empty for a policy without tokens.
        log_probability: float32 (T,), log-probability of each token under the policy.
        rationale: the text the policy wrote before acting, "" when it wrote none.
        terminate: the policy says that it has finished: a long-horizon task goes on to its next sub-task, any
            other episode ends after this step.
    """

    processed: Array
    normalised: Array
    tokens: Array
    log_probability: Array
    rationale: str = ""
    terminate: bool = False


class Policy(Protocol):
    """Anything that acts. `name` and `checkpoint_hash` go into every evaluation record, and tell which
    episodes are played already.

    `checkpoint_hash` is the policy's identity: it changes with everything that changes what the policy does.
    Those of the kit begin with the hash of the checkpoint's files, and "+name=value" follows for each setting
    that is not the checkpoint's own.

    A policy may have more, which is used where it is found:
        conventions: `refinevla_kit.conventions.Conventions`, what its numbers mean; compared with the task's
        before an evaluation. round_trip(actions): processed actions, float (N, 7), encoded as the policy's
        tokens (or otherwise) and decoded again, float32 (N, 7): what is
            left of a demonstration when the policy repeats it without an error. For `evaluation.preflight`.
        needs_proprioception: True when `act(image, proprioception)` and `act_batch(images, instructions,
        proprioception)` have to be given the
            robot's own state too: `Observation.proprioception`, float32 (15,) a picture.
        action_range: (lowest, highest) action the encoding can say, float (7,) each.
    """

    name: str
    checkpoint_hash: str

    def reset(self, instruction: str) -> None:
        """Start an episode with this instruction."""
        ...

    def act(self, image: Array) -> Action:
        """image: uint8 (H, W, 3) RGB."""
        ...

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Action]:
        """images: uint8 (B, H, W, 3); one instruction an image. Stateless twin of `act`."""
        ...
