"""SpatialVLA and OpenVLA behind a socket and before an evaluation: both at their tiny checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refinevla_kit.conventions import WIDOWX, Conventions, robot_of
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, line_up, load_records
from refinevla_kit.evaluation.preflight import preflight
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.conversion import mismatches
from refinevla_kit.policies.remote import RemotePolicy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.vlas import load_vla
from tests.vlas.reference import FOLDER, facts

MODELS = ("spatialvla", "openvla")
CARROT = "widowx_carrot_on_plate"
SMALL: dict[str, Any] = {"width": 160, "height": 120, "workers": 0, "progress": False}
IMAGE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def serving(model: str) -> Iterator[str]:
    """The address of `refinevla serve` with this checkpoint, in a process of its own."""
    command = [sys.executable, "-m", "refinevla_kit.cli", "serve", str(FOLDER / model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "the server ended"
            found = re.search(r"ws://\S+", line)
        yield found[0]
    finally:
        process.kill()
        process.communicate()


def test_a_served_model_says_over_a_socket_what_it_says_here(model: str) -> None:
    """Step by step of two episodes, so that what a policy remembers of one is gone in the next."""
    here = load_policy(FOLDER / model)
    with serving(model) as address:
        there = RemotePolicy(address)
        assert there.conventions == here.conventions
        assert there.checkpoint_hash == here.checkpoint_hash
        for instruction in ("put the carrot on the plate", "stack the blocks"):
            here.reset(instruction)
            there.reset(instruction)
            for shift in range(3):
                image = np.roll(IMAGE, 9 * shift, axis=1)
                answer = there.act(image)
                found = answer.processed if hasattr(answer, "processed") else np.asarray(answer)
                np.testing.assert_allclose(np.ravel(found)[:7], here.act(image).processed, atol=1e-6)


@pytest.mark.slow
def test_a_served_model_is_evaluated_like_the_one_here(model: str, tmp_path: Path) -> None:
    one = evaluate(load_policy(FOLDER / model), CARROT, 1, output=tmp_path / "here.parquet", **SMALL)
    with serving(model) as address:
        other = evaluate(RemotePolicy(address), CARROT, 1, output=tmp_path / "there.parquet", **SMALL)
    (here,), (there,) = load_records(one), load_records(other)
    assert (here.steps, here.success_last, here.reason) == (there.steps, there.success_last, there.reason)


# --- before the first episode ---


def declaring(policy: VLAPolicy, **other: Any) -> VLAPolicy:
    """The policy, declaring something else of what its numbers mean."""

    class Declaring(VLAPolicy):
        @property
        def conventions(self) -> Conventions:
            return replace(super().conventions, **other)

    return Declaring(policy.vla, policy.name, "abc")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normalisation", "fractal20220817_data/0.1.0"),
        ("normalisation", "rt_1"),
        ("gripper", "relative_closing+1"),
        ("gripper", "open-1_closed+1"),
        ("resize", "pad"),
    ],
)
def test_what_a_checkpoint_declares_wrongly_is_found_before_an_episode(
    model: str, field: str, value: str, tmp_path: Path
) -> None:
    """Whose statistics, which way the gripper, and what becomes of the camera's picture."""
    policy = declaring(load_policy(FOLDER / model), **{field: value})
    (found,) = mismatches(policy, CARROT)
    assert (found.field, found.policy_says) == (field, value)
    with pytest.raises(KitError, match=f"{field} is {re.escape(value)}, here"):
        evaluate(policy, CARROT, 1, output=tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


def test_the_other_robots_statistics_are_found_by_preflight(model: str) -> None:
    google = facts(model)["statistics_keys"][1]
    report = preflight(load_policy(FOLDER / model, dataset=google), CARROT, 1)
    fields = {each.field for each in report.mismatches}
    assert {"robot", "normalisation", "added_to", "control_hz", "camera"} <= fields
    assert "refuses this policy" in str(report) and report.ceiling is not None
    assert not mismatches(load_policy(FOLDER / model, dataset=google).on("widowx"), CARROT)


@pytest.mark.parametrize("changed", ["picture", "patches"])
def test_files_that_differ_about_the_size_of_the_picture_are_refused(
    model: str, changed: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FOLDER / model, tmp_path / "one"))
    file = folder / ("preprocessor_config.json" if changed == "picture" else "config.json")
    settings = json.loads(file.read_text())
    if changed == "patches":
        sizes = settings.get("vision_config") or settings["timm_model_args"][0]
        sizes["patch_size"] = 28
        says = "are not those of its config.json"
    else:
        says = "pictures of 448 x 448 in preprocessor_config.json and of 56 x 56 in config.json"
        if model == "spatialvla":
            settings["size"] = {"height": 448, "width": 448}
        else:
            settings["input_sizes"] = [[3, 448, 448]] * 2
    file.write_text(json.dumps(settings))
    with pytest.raises(KitError, match=says):
        load_vla(folder)


# --- one checkpoint, several robots ---


def test_each_robots_tasks_are_played_with_that_robots_statistics(model: str) -> None:
    policy = load_policy(FOLDER / model)
    entries = line_up([policy, DemonstratorPolicy()], [CARROT, "pick_coke_can", "widowx_stack_cube"])
    widowx, scripted, google, google_scripted = entries
    assert [task.name for task in widowx[1]] == [CARROT, "widowx_stack_cube"] and widowx[0] is policy
    assert isinstance(scripted[0], DemonstratorPolicy) and isinstance(google_scripted[0], DemonstratorPolicy)
    assert {task.robot for task in google[1]} == {"google_robot"}
    assert google[0].vla.model is policy.vla.model, "one copy of the weights"
    assert google[0].checkpoint_hash != policy.checkpoint_hash
    assert not [each for player, tasks in entries for task in tasks for each in mismatches(player, task)]


def test_datasets_tell_their_robot_by_name() -> None:
    names = {
        "bridge_orig/1.0.0": "widowx",
        "fractal20220817_data": "google_robot",
        "RT_1": "google_robot",
        "refinevla_google_robot": "google_robot",
        "refinevla": None,
        "kuka": None,
        "bridge_and_fractal": None,
    }
    assert {name: robot_of(name) for name in names} == names
    assert robot_of(str(WIDOWX.normalisation)) == "widowx"


def test_what_can_be_said_lies_between_the_quantiles(model: str) -> None:
    """Their datasets move further one way than the other."""
    policy = load_policy(FOLDER / model)
    low, high = policy.action_range
    assert (np.abs(low + high)[:6] > 1e-3).any()
    assert (low[6], high[6]) == (-1, 1)
    quantiles = policy.vla.bins.quantiles  # statistics without a mask scale the fingers too
    scaled = replace(quantiles, low=(*low[:6], 0.0), high=(*high[:6], 1.0), scaled=(True,) * 7)
    policy.vla = replace(policy.vla, bins=replace(policy.vla.bins, quantiles=scaled))
    assert (policy.action_range[0][6], policy.action_range[1][6]) == (-1, 1)
    far = np.where(np.arange(7) == np.arange(3)[:, None], 10.0, 0.0).astype(np.float32)  # one way each
    if model == "openvla":  # SpatialVLA says directions, which all three make together
        np.testing.assert_allclose(np.diagonal(policy.round_trip(far)), high[:3], rtol=0.01)
        np.testing.assert_allclose(np.diagonal(policy.round_trip(-far)), low[:3], rtol=0.01)


def test_fingers_that_are_told_a_motion_are_not_replayed_as_places(model: str) -> None:
    """ "Stay" would become "open" or "close": a ceiling that is none."""
    policy = load_policy(FOLDER / model, dataset=facts(model)["statistics_keys"][1])
    found = preflight(policy, "google_robot_open_top_drawer", episodes=1)
    assert found.ceiling is None and "a motion of the robot's fingers is no place" in found.note
