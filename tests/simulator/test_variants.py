"""Variant aggregation changes what is seen, one thing at a time, and nothing of what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array, Simulator
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.simulator.geometry import project
from refinevla_kit.tasks import BASE, VARIANT_AGGREGATION, WIDOWX_TASKS, Task, find_task

CARROT, EGGPLANT = find_task("widowx_carrot_on_plate"), find_task("widowx_put_eggplant_in_basket")
VARIANTS = {variant.name: variant for variant in CARROT.protocol(VARIANT_AGGREGATION).variants}
Make = Callable[..., Simulator]


@pytest.fixture
def dressed() -> Iterator[Make]:
    """Makes simulators in variant aggregation, and closes them."""
    made: list[Simulator] = []

    def one(task: Task, variant: str, width: int = 80, height: int = 60) -> Simulator:
        made.append(
            make(
                task,
                width=width,
                height=height,
                privileged=True,
                setting=VARIANT_AGGREGATION,
                variant=variant,
            )
        )
        return made[-1]

    yield one
    for simulator in made:
        simulator.close()


def path(simulator: Simulator, episode: int, steps: int = 16) -> Array:
    """Where source, target and tool are while the demonstrator plays: float32 (steps, 21)."""
    seen, demonstrator, places = simulator.reset(episode), Demonstrator(simulator.task), []
    for _ in range(steps):
        assert seen.state is not None
        places.append(np.concatenate([seen.state.source, seen.state.target, seen.state.tcp]))
        seen = simulator.step(demonstrator.act(seen.state)).observation
    return np.stack(places)


@pytest.mark.slow
@pytest.mark.parametrize("task", [CARROT, EGGPLANT], ids=lambda task: task.name)
def test_what_happens_is_the_same_in_every_variant_as_before_the_photograph(
    task: Task, dressed: Make
) -> None:
    matching = make(task, width=16, height=12, privileged=True)
    expected = path(matching, 5)
    matching.close()
    for name in (BASE, "more_distractors", "lighting_darker", "camera_1"):
        assert np.array_equal(path(dressed(task, name, 16, 12), 5), expected), name


@pytest.mark.slow
def test_each_variant_looks_different_and_the_same_every_time(dressed: Make) -> None:
    images = {name: dressed(CARROT, name).reset(5).image for name in VARIANTS}
    for name, image in images.items():
        assert np.array_equal(dressed(CARROT, name).reset(5).image, image), f"{name} is not the same twice"
        if name != BASE:
            changed = (np.abs(image.astype(int) - images[BASE]).max(axis=2) > 8).mean()
            assert changed > 0.005, f"{name} changes {changed:.1%} of the picture"


@pytest.mark.slow
def test_a_variant_changes_its_own_thing_alone(dressed: Make) -> None:
    simulators = {
        name: dressed(CARROT, name)
        for name in (BASE, "background_1", "table_1", "lighting_darker", "lighting_brighter")
    }
    images = {name: simulator.reset(5).image.astype(int) for name, simulator in simulators.items()}
    masks = simulators[BASE].masks()
    things = masks["carrot"] | masks["plate"]
    assert np.abs(images["background_1"] - images[BASE])[things].max() <= 2, (
        "a wall behind is not seen on the carrot"
    )
    assert np.abs(images["table_1"] - images[BASE])[things].max() <= 2
    assert images["lighting_darker"].mean() < images[BASE].mean() < images["lighting_brighter"].mean()


@pytest.mark.slow
def test_distractors_are_named_in_masks_and_keep_clear_of_what_matters(dressed: Make) -> None:
    plain = dressed(CARROT, BASE, 160, 120)
    for name, count in (("distractors", 2), ("more_distractors", 4)):
        simulator = dressed(CARROT, name, 160, 120)
        for episode in (0, 9, 17):
            simulator.reset(episode), plain.reset(episode)
            masks, without = simulator.masks(), plain.masks()
            others = set(masks) - set(without)
            assert len(others) == count and (sum(mask.astype(int) for mask in masks.values()) == 1).all()
            assert sum(masks[other].any() for other in others) >= count - 1, (
                "they stand in the picture (the arm may hide one)"
            )
            for thing in ("carrot", "plate"):
                assert masks[thing].sum() > 0.6 * without[thing].sum(), (
                    f"{thing} is hidden in episode {episode}"
                )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.axis == "camera"])
def test_a_moved_camera_still_sees_everything_and_points_follow_it(name: str, dressed: Make) -> None:
    for task in WIDOWX_TASKS:
        simulator = dressed(task, name, 160, 120)
        for episode in (0, 11, 23):
            state = simulator.reset(episode).state
            masks = simulator.masks()
            assert state is not None and all(
                masks[thing].sum() > 20 for thing in (task.source, task.target, "gripper")
            )
            rows, columns = np.nonzero(masks[task.source])
            x, y = project(task, state.source[None, :3], 160, 120, VARIANTS[name])[0]
            assert columns.min() - 2 < x < columns.max() + 3 and rows.min() - 2 < y < rows.max() + 3
    assert not VARIANTS[name].scored, "as in SIMPLER"


def test_an_unknown_variant_is_one_line() -> None:
    with pytest.raises(KitError, match=r"unknown variant 'fog'.*choose one of base, background_1"):
        make(CARROT, setting=VARIANT_AGGREGATION, variant="fog")
