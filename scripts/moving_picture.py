"""Draw one episode as a moving picture: what the camera sees, and where the policy looks while it acts.

    python -m scripts.moving_picture [CHECKPOINT] [TASK] [--output figures/episode.gif]

The defaults are the shipped policy with the reasoning loss and the carrot task. Nothing is drawn after the
object has lain at its place for a second.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.figures.overlays import attention_overlay
from refinevla_kit.figures.style import save_source
from refinevla_kit.files import replacing
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import Array

WIDTH, HEIGHT = 400, 300  # pixels of each of the two pictures
COLOURS = 96
MILLISECONDS = 200  # of a frame, as the robot acts
LARGEST = 3e6  # bytes that a page should have to load


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", nargs="?", default=str(REPOSITORY / "data" / "checkpoints" / "with_reasoning")
    )
    parser.add_argument("task", nargs="?", default="widowx_carrot_on_plate")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "figures" / "episode.gif")
    given = parser.parse_args()
    try:
        policy = load_policy(given.checkpoint)
        frames = filmed(policy, given.task)
        size = write_gif(frames, given.output)
        made_from = {"policy": policy.name, "checkpoint": policy.checkpoint_hash, "task": given.task}
        save_source({"picture": given.output.name}, given.output, made_from | {"episode": 0})
    except KitError as error:
        raise SystemExit(f"moving_picture: {error}") from None
    print(f"{given.output}: {len(frames)} frames, {size / 1e6:.2f} MB")


def filmed(policy: Any, task: str) -> list[Image.Image]:
    """The frames of the first episode, plain at the left and with the policy's attention at the right."""
    look = attention_overlay(policy)
    with tempfile.TemporaryDirectory() as folder:
        records = evaluate(
            policy,
            task,
            1,
            workers=0,
            width=WIDTH,
            height=HEIGHT,
            output=Path(folder),
            videos=Path(folder),
            overlay=lambda seen, answer: beside(seen.image, look(seen, answer)),
        )
        [record] = load_records(records)
        if not record.success_last:
            raise KitError(f"{policy.name} does not solve the first episode of {task}", "film another task")
        with av.open(str(next(Path(folder).rglob("*.mp4")))) as film:
            frames = [frame.to_image() for frame in film.decode(video=0)]
    return frames[: last_motion(frames) + 1000 // MILLISECONDS]


def beside(picture: Array, drawn: Array) -> Array:
    """Two pictures (uint8, H, W, 3) side by side, the second at the size of the first."""
    size = picture.shape[1], picture.shape[0]
    return np.concatenate([picture, np.asarray(Image.fromarray(drawn).resize(size))], 1)


def last_motion(frames: list[Image.Image]) -> int:
    """The number of the last frame in which much has changed since the one before."""
    small = np.stack([np.asarray(frame.resize((80, 30)), np.float32) for frame in frames])
    changes = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    return int(np.flatnonzero(changes > changes.max() / 4)[-1]) + 1


def write_gif(frames: list[Image.Image], path: Path) -> int:
    """Bytes of the file; all frames share the colours of one in the middle.

    Raises:
        KitError: it is too large for a page.
    """
    palette = frames[len(frames) // 2].quantize(COLOURS)
    few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with replacing(path) as part:
        few[0].save(
            part, "GIF", save_all=True, append_images=few[1:], duration=MILLISECONDS, loop=0, optimize=True
        )
        size = part.stat().st_size
        if size > LARGEST:
            raise KitError(f"{size / 1e6:.1f} MB are too large for a page", "film a shorter episode")
    return size


if __name__ == "__main__":
    main()
