"""How closely the Google Robot's tasks follow the original SimplerEnv: its recorded episodes are replayed and
compared step by step.

python -m scripts.google_robot_agreement FOLDER_OF_EPISODES ASSETS [PART_OF_A_NAME ...]

An episode is `TASK.vm|va.VARIANT.eSTART.expert|wave.npz`; tests/reference/google_robot/README.md says what it
holds. Prints a row an episode and what all of them give.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from refinevla_kit.simulator import make
from refinevla_kit.tasks import SETTINGS

Array = NDArray[Any]
STAND_INS = ("bottle", "redbull")  # which the recorded pictures show as plain shapes


@dataclass(frozen=True)
class Agreement:
    """Differences of one episode from the original's, step by step.

    Attributes:
        name: of the episode's file.
        tool_mm, tool_degrees: of the tool's pose, (T + 1,), the start among them.
        targets: largest of any joint's target, (T,), rad.
        joints: largest of any joint's position, (T + 1,), rad.
        settled_mm, settled_degrees: of the objects at the start, (n,).
        objects_mm: largest of any object, (T + 1,).
        drawers_mm: largest of any drawer, (T + 1,).
        successes: the original's and the replay's, (2, T).
        flags_equal: share of all flags of all steps.
    """

    name: str
    tool_mm: Array
    tool_degrees: Array
    targets: Array
    joints: Array
    settled_mm: Array
    settled_degrees: Array
    objects_mm: Array
    drawers_mm: Array
    successes: Array
    flags_equal: float

    @property
    def first_successes(self) -> tuple[int | None, int | None]:
        """Step (from 1) of the first success, of the original and of the replay."""
        first = [int(np.argmax(row)) + 1 if row.any() else None for row in self.successes]
        return first[0], first[1]

    @property
    def success_agrees(self) -> bool:
        """Whether both succeed at some step, or neither."""
        return bool(self.successes.any(axis=1)[0] == self.successes.any(axis=1)[1])


def open_episode(path: Path, assets: str | Path, width: int = 64, height: int = 48) -> tuple[Any, Any, int]:
    """The recorded arrays, a simulator of the episode's task and variant, and the number of its start."""
    task, setting, variant, start, _ = path.stem.split(".")
    chosen = SETTINGS[("vm", "va").index(setting)]
    arguments = {"setting": chosen, "variant": variant, "backend": "maniskill"}
    simulator = make(f"google_robot_{task}", assets, width, height, True, **arguments)  # type: ignore[arg-type]
    return np.load(path), simulator, int(start[1:])


def to_euler(action: Array) -> Array:
    """The kit's action of a recorded one, whose [3:6] is a rotation vector."""
    turn = Rotation.from_rotvec(action[3:6]).as_euler("xyz")
    return np.concatenate([action[:3], turn, action[6:]]).astype(np.float32)


def replay(path: Path, assets: str | Path) -> Agreement:
    """Replay one episode's actions and compare."""
    episode, simulator, start = open_episode(path, assets)
    meta = json.loads(str(episode["meta"]))
    simulator.reset(start)
    states = [_state(simulator)]
    targets, flags = [], []
    for action in episode["actions"]:
        simulator.step(to_euler(action))
        states.append(_state(simulator))
        targets.append(simulator.joint_targets)
        flags.append([simulator.flags[name] for name in meta["flags"]])
    simulator.close()
    tools, joints, objects, drawers = (np.array(each) for each in zip(*states, strict=True))
    positions = np.linalg.norm(objects[..., :3] - episode["objects"][..., :3], axis=-1) * 1000  # T + 1 x n
    success = meta["flags"].index("success")
    recorded = episode["flags"].astype(bool)
    return Agreement(
        name=path.stem,
        tool_mm=np.linalg.norm(tools[:, :3] - episode["tcp"][:, :3], axis=1) * 1000,
        tool_degrees=_turns(tools[:, 3:], episode["tcp"][:, 3:]),
        targets=np.abs(np.array(targets) - episode["target_qpos"][1:]).max(axis=1),
        joints=np.abs(joints - episode["qpos"]).max(axis=1),
        settled_mm=positions[0],
        settled_degrees=_turns(objects[0, :, 3:], episode["objects"][0, :, 3:]),
        objects_mm=positions.max(axis=1, initial=0.0),
        drawers_mm=1000 * np.abs(drawers - episode["drawers"]).max(axis=1, initial=0.0)
        if drawers.size
        else np.zeros(len(states)),
        successes=np.stack([recorded[:, success], np.array(flags, bool)[:, success]]),
        flags_equal=float((np.array(flags, bool) == recorded).mean()),
    )


@dataclass(frozen=True)
class Likeness:
    """How like the original's picture one frame is.

    Attributes:
        name: of the picture's file.
        overlap: intersection over union of robot, things and cabinet.
        colour: mean absolute difference of all pixels, of 255 (but those of things that were recorded as
            plain shapes, and around them).
        foreground: the same of what is robot, thing or cabinet in both.
    """

    name: str
    overlap: float
    colour: float
    foreground: float


def compare_pictures(path: Path, assets: str | Path, output: Path | None = None) -> list[Likeness]:
    """Draw the states of one episode that there are pictures of, and compare.

    Args:
        output: folder for the pictures drawn.
    """
    episode, simulator, start = open_episode(path, assets, 640, 512)
    simulator.reset(start)
    likenesses = []
    for file in sorted(path.parent.glob(f"{path.stem}.step??.png")):
        step = int(file.stem[-2:])
        _restore(simulator, episode, step)
        ours, theirs = simulator.observe().image, np.asarray(Image.open(file).convert("RGB"))
        names = json.loads(file.with_suffix(".segmentation.json").read_text())
        bodies = np.asarray(Image.open(file.with_suffix(".segmentation.png")))
        kept = [int(number) for number, name in names.items() if name != "arena"]
        plain = [int(number) for number, name in names.items() if any(word in name for word in STAND_INS)]
        apart = np.abs(ours.astype(int) - theirs)
        compared = (
            ~binary_dilation(np.isin(bodies, plain), iterations=12) if plain else np.ones_like(bodies, bool)
        )
        shown, drawn = np.isin(bodies, kept) & compared, ~simulator.masks()["background"] & compared
        overlap = float((shown & drawn).sum() / (shown | drawn).sum())
        likenesses.append(
            Likeness(file.stem, overlap, float(apart[compared].mean()), float(apart[shown & drawn].mean()))
        )
        if output is not None:
            both = np.concatenate([theirs, ours, np.clip(8 * apart, 0, 255).astype(np.uint8)], axis=1)
            Image.fromarray(both).save(output / f"{file.stem}.png")
    simulator.close()
    return likenesses


def _restore(simulator: Any, episode: Any, step: int) -> None:
    """Put robot, things and drawers where the original had them at `step`."""
    drawers = episode["drawers"][step] if "drawers" in episode else np.zeros(0)
    simulator.set_state(episode["qpos"][step], episode["objects"][step], drawers)


def _state(simulator: Any) -> tuple[Array, Array, Array, Array]:
    objects = np.array(list(simulator.objects.values())).reshape(-1, 7)
    return simulator.tool, simulator.joints, objects, simulator.drawers


def _turns(ours: Array, theirs: Array) -> Array:
    """Angles between quaternions (w, x, y, z), degrees, (n,)."""
    if not len(ours):
        return np.zeros(0)
    one, other = (Rotation.from_quat(each[:, [1, 2, 3, 0]]) for each in (ours, theirs))
    return np.asarray(np.rad2deg((one * other.inv()).magnitude()))


def row(found: Agreement) -> str:
    """One line of the table."""
    settled = f"{found.settled_mm.max(initial=0):.2f} mm {found.settled_degrees.max(initial=0):.2f} deg"
    first, ours = found.first_successes
    targets = 1000 * found.targets.max()
    return (
        f"{found.name:58} tool {np.median(found.tool_mm):6.2f} {found.tool_mm.max():7.2f} mm "
        f"{found.tool_degrees.max():6.2f} deg  targets {targets:8.2f} mrad  settled {settled}"
        f"  objects {found.objects_mm.max():7.2f} drawers {found.drawers_mm.max():7.2f} mm"
        f"  success {first} / {ours}  flags {found.flags_equal:.3f}"
    )


def main(folder: Path, assets: str, parts: list[str]) -> None:
    """Replay what the folder holds."""
    files = [path for path in sorted(folder.glob("*.npz")) if not parts or any(p in path.stem for p in parts)]
    results = []
    for path in files:
        results.append(replay(path, assets))
        print(row(results[-1]), flush=True)
    for path in files:
        for likeness in compare_pictures(path, assets) if any(folder.glob(f"{path.stem}.step*.png")) else ():
            print(
                f"{likeness.name:58} overlap {likeness.overlap:.4f}  colour {likeness.colour:.2f} of 255,"
                f" foreground {likeness.foreground:.2f}"
            )
    experts = [found for found in results if found.name.endswith("expert")]
    waves = [found for found in results if found.name.endswith("wave")]
    print(f"success agrees in {sum(found.success_agrees for found in experts)} of {len(experts)} experts")
    if waves:
        print(
            f"free motion: at most {max(found.tool_mm.max() for found in waves):.2f} mm,"
            f" {max(found.tool_degrees.max() for found in waves):.3f} degrees,"
            f" targets {1000 * max(found.targets.max() for found in waves):.2f} mrad"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
