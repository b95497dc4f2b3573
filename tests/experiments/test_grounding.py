"""Grounding: places come from the simulator's state, and the tower learns them from real pictures."""

from pathlib import Path

import numpy as np
import pytest

from experiments.grounding import THINGS, ground_tower, load_places, things_of
from refinevla_kit.episodes import open_dataset
from refinevla_kit.rollouts.recording import record
from refinevla_kit.teacher.audit import named_masks
from refinevla_kit.training.examples import load_examples
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grounding") / "dataset"
    record(path, ["widowx_carrot_on_plate", "widowx_stack_cube"], 1, seed=3, progress=False)
    return path


@pytest.mark.slow
def test_a_place_lies_on_the_thing_it_belongs_to(dataset: Path) -> None:
    places, source = load_places(dataset), open_dataset(dataset)
    masks = source.masks(0)
    assert masks is not None
    for name in ("carrot", "plate"):
        x, y = places.pixels[0, THINGS.index(name)] * (160, 120)
        ys, xs = np.nonzero(masks[name][0])
        assert (
            np.hypot(xs.mean() + 0.5 - x, ys.mean() + 0.5 - y) < 4
        )  # pixels; the visible centroid is not quite the origin's projection
    assert not places.present[0, THINGS.index("eggplant")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "count", "told"),
    [
        ("widowx_language_carrot_on_plate", 5, {"carrot", "plate", "gripper"}),
        ("google_robot_move_near", 4, {"gripper"}),
    ],
)
def test_what_no_task_asks_for_has_a_place_too_where_it_is_seen(
    task: str, count: int, told: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "several"
    record(path, [task], 1, seed=3, progress=False)
    things, source = things_of([path]), open_dataset(path)
    assert told <= set(things) and len(things) == count
    places = load_places(path, things)
    start = 0
    for item in source.episodes:
        masks = named_masks(item.instruction, source.masks(item.index))
        here = {name for name in things if name in masks}
        for number, name in enumerate(things):
            assert places.present[start, number] == (name in here and masks[name][0].sum() >= 4), name
            if not places.present[start, number] or (name == "gripper" and "carrot" in told):
                continue  # the WidowX's gripper is where its fingers meet
            height, width = masks[name].shape[1:]
            ys, xs = np.nonzero(masks[name][0])
            x, y = places.pixels[start, number] * (width, height)
            assert np.hypot(xs.mean() + 0.5 - x, ys.mean() + 0.5 - y) < 6, name
        start += item.length
    first = places.known[0]
    assert {things[number] for number in np.flatnonzero(first)} == told


@pytest.mark.slow
def test_the_tower_learns_where_things_are(dataset: Path) -> None:
    examples = load_examples(dataset)
    small = CompactConfig(layers=1, hidden=64, heads=2, feedforward=64, channels=16)
    vla = build(small, train_vocabulary(examples.instructions), UniformBins.fit(examples.actions), 0)
    history = ground_tower(vla, examples.images, load_places(dataset), steps=100, batch_size=16)
    assert history[-1]["cell_accuracy"] > 0.9 and history[-1]["pixel_error"] < history[0]["pixel_error"]
