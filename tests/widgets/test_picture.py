"""What is sent to the browser: outlines that follow the masks, pictures that decode to themselves, values
packed without loss that matters.
"""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from refinevla_kit.figures.overlays import View
from refinevla_kit.widgets.explorer_page import packed
from refinevla_kit.widgets.picture import data_uri, edge_path, payload
from tests.widgets.explored import FRAMES


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


def test_a_picture_without_attention_has_no_panels() -> None:
    shown = payload(View(FRAMES[0].image, {}, FRAMES[0].masks))
    assert shown["panels"] == [] and len(shown["outlines"]) == 4 and shown["shares"]["things"] == []
