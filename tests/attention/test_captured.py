"""A file of captures gives back what was written, and is not taken for another checkpoint's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refinevla_kit.attention.captured import KINDS, Capture, image_hash, load_captures, save_captures
from refinevla_kit.attention.forward import capture
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array

from .conftest import INSTRUCTION, small_policy


@pytest.fixture
def captures(policy: VLAPolicy, image: Array) -> list[Capture]:
    """Of different length, as those of different rationales are."""
    first = capture(policy, image, INSTRUCTION, rationale="the carrot", queries=KINDS)
    return [first, capture(policy, image[::-1], INSTRUCTION)]


def test_what_is_written_is_read(captures: list[Capture], tmp_path: Path) -> None:
    for wrote, read in zip(
        captures,
        load_captures(save_captures(captures, tmp_path / "seen.safetensors"), captures[0].checkpoint_hash),
        strict=True,
    ):
        for name in [
            field.name for field in fields(Capture) if field.name not in ("patches", "others", "action")
        ]:
            assert getattr(read, name) == getattr(wrote, name), name
        np.testing.assert_array_equal(read.patches, wrote.patches)
        np.testing.assert_array_equal(read.others, wrote.others)
        assert read.action.rationale == wrote.action.rationale
        for name in ("processed", "normalised", "tokens", "log_probability"):
            np.testing.assert_array_equal(getattr(read.action, name), getattr(wrote.action, name))


def test_a_capture_knows_its_picture(captures: list[Capture], image: Array) -> None:
    assert [one.image_hash for one in captures] == [image_hash(image), image_hash(image[::-1])]
    assert image_hash(image) != image_hash(image.reshape(160, 120, 3))


def test_another_checkpoints_file_is_refused(captures: list[Capture], image: Array, tmp_path: Path) -> None:
    path = save_captures(captures, tmp_path / "seen.safetensors")
    with pytest.raises(
        KitError, match=r"attention of small \(hash-0\+decoding=greedy\), not of the checkpoint hash-1"
    ):
        load_captures(path, "hash-1")
    with pytest.raises(KitError, match="one file a policy"):
        save_captures([*captures, capture(small_policy(1), image, INSTRUCTION)], tmp_path / "two.safetensors")
    with pytest.raises(KitError, match="0 policies"):
        save_captures([], tmp_path / "none.safetensors")


def test_what_is_no_file_of_captures_says_so(captures: list[Capture], tmp_path: Path) -> None:
    path = save_captures(captures, tmp_path / "seen.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    for wrong, says in (
        (path, "cannot be read"),
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "model.safetensors", "has format None"),
    ):
        with pytest.raises(KitError, match=says):
            load_captures(wrong)


def test_the_room_has_two_functions_and_loads_torch_only_for_them() -> None:
    code = """
import sys
import refinevla_kit.attention, refinevla_kit.attention.captured, refinevla_kit.attention.grounding
assert "torch" not in sys.modules
from refinevla_kit.attention import attribute, capture
assert attribute.__module__.endswith("attribution") and capture.__module__.endswith("forward")
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ImportError, match="nothing"):
        exec("from refinevla_kit.attention import nothing")
