"""What is sent to the browser: outlines that follow the masks, pictures that decode to themselves, values
packed without loss that matters.
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.widgets import explorer_page
from refinevla_kit.widgets.exploration import Exploration
from refinevla_kit.widgets.explorer_page import data_uri, edge_path, head_bytes, packed, write_page
from tests.widgets.explored import CAPTURES, CHOICE, FRAMES


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_outlines_are_all_borders_of_the_mask_and_nothing_else(mask) -> None:
    drawn = set()
    for x, y, kind, end in re.findall(r"M(\d+) (\d+)([HV])(\d+)", edge_path(mask)):
        across = kind == "H"
        drawn |= {
            (across, int(y) if across else int(x), at) for at in range(int(x) if across else int(y), int(end))
        }
    below = {(True, row + 1, column) for row, column in zip(*np.nonzero(mask[1:] != mask[:-1]), strict=True)}
    beside = {
        (False, column + 1, row) for row, column in zip(*np.nonzero(mask[:, 1:] != mask[:, :-1]), strict=True)
    }
    assert drawn == below | beside


@pytest.mark.parametrize(("shape", "off"), [((60, 80, 3), 0), ((480, 640, 3), 3)])
def test_a_small_picture_is_sent_as_it_is_and_a_large_one_nearly(shape: tuple[int, ...], off: int) -> None:
    image = np.zeros(shape, np.uint8)
    image[..., :] = np.linspace(0, 255, shape[1], dtype=np.uint8)[:, None]
    sent = Image.open(io.BytesIO(base64.b64decode(data_uri(image).split(",")[1])))
    assert np.abs(np.asarray(sent, int) - image).max() <= off


def test_packed_attention_is_what_it_was() -> None:
    maps = np.random.default_rng(0).random((2, 3, 4, 48)).astype(np.float32) ** 6
    sent = {name: base64.b64decode(text) for name, text in packed(maps).items()}
    back = (
        np.frombuffer(sent["values"], "<u2").reshape(maps.shape)
        / 65535
        * np.frombuffer(sent["largest"], "<f4").reshape(2, 3, 4, 1)
    )
    assert (np.abs(back - maps) <= maps.max(-1, keepdims=True) / 131_000).all()


@pytest.mark.parametrize(
    "name", ["SCRIPT", "STORE", "TITLE", "</script><script>alert(1)</script>", "<!--<script>"]
)
def test_a_policys_name_stays_a_name_in_the_exported_page(tmp_path: Path, name: str) -> None:
    hostile = {name: [replace(one, policy=name) for one in CAPTURES["action_only"]]}
    page = write_page(tmp_path / "page.html", Exploration(FRAMES, hostile), CHOICE).read_text()
    plain = write_page(tmp_path / "plain.html", Exploration(FRAMES, {"x": hostile[name]}), CHOICE).read_text()
    store, code = (text.split('id="store">')[1].split("</script>", 1) for text in (page, plain))
    assert json.loads(store[0])[0]["policies"][0]["name"] == name and store[1] == code[1], (
        "the same code, whatever the policy is called"
    )
    assert page.count("<script") == 2


def test_a_page_keeps_as_many_frames_as_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exploration, path = Exploration(FRAMES, CAPTURES), tmp_path / "page.html"
    monkeypatch.setattr(explorer_page, "EASY_PAGE", 0)
    monkeypatch.setattr(explorer_page, "LARGEST_PAGE", head_bytes(exploration, range(0, 5, 2)))
    text = write_page(path, exploration, CHOICE | {"step": 2}).read_text()
    state, choice = json.loads(text.split('id="store">')[1].split("</script>")[0])
    assert [frame["index"] for frame in state["frames"]] == [0, 2, 4]
    assert state["held"] == "mean" and choice["step"] == 0
    with pytest.raises(KitError, match="larger every="):
        write_page(path, exploration, CHOICE, every=1)
