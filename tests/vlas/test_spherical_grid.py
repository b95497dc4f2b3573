"""SpatialVLA's grid: every one of its 8194 words says an action that is written with that word again, also at
the poles and across the seam.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.action_tokens import ActionTokens, UniformBins, check_actions
from refinevla_kit.vlas.compact import read_action_tokens
from refinevla_kit.vlas.spatial_words import SPANS
from refinevla_kit.vlas.spherical_grid import CELLS, SphericalGrid, _coordinates

LIMITS = np.array([0.04, 0.03, 0.05, 0.01, 0.02, 0.3, 1.0])
DATA = np.random.default_rng(0).normal(0, 0.4, (4000, 7)).clip(-1, 1) * LIMITS
STILL = np.zeros((10, 7))  # every deviation at its floor
GRIDS = {
    "moving": SphericalGrid.fit(DATA),
    "still": SphericalGrid.fit(STILL),
    "one way": SphericalGrid.fit(np.tile(LIMITS, (10, 1))),
}
ACTIONS = hnp.arrays(np.float64, (7,), elements=st.floats(-1, 1)).map(lambda unit: unit * LIMITS)


def all_words() -> np.ndarray:
    """int64 (4096, 3): every translation, every rotation, both grippers."""
    each = np.arange(4096)
    return np.stack([each, 4096 + each, 8192 + each % 2], axis=1)


def translation_error(grid: SphericalGrid, r: float) -> float:
    """Bound, in multiples of the limits, on how far a decoded translation can be from one of length
    `r`: half a shell along it, and across it the outer radius times half the widest cell's angle.
    """
    shell = int(np.digitize(r, grid.edges[2][1:-1]))
    # phi turns by no more than its angle, theta by its own
    angle = sum(float(np.diff(each).max()) / 2 for each in grid.edges[:2])
    low, high = grid.edges[2][shell : shell + 2]
    return (high - low) / 2 + 2 * high * float(np.sin(min(angle, np.pi) / 2))


@pytest.mark.parametrize("name", GRIDS)
def test_encoding_inverts_decoding_for_every_word(name: str) -> None:
    grid = GRIDS[name]
    assert (grid.words, len(grid.ranges), grid.ranges[0]) == (8194, 3, (0, 4096))
    assert np.array_equal(grid.encode(grid.decode(all_words())), all_words())


@given(
    hnp.arrays(np.int64, (4, 3), elements=st.integers(0, 4095)).map(
        lambda x: x % [4096, 4096, 2] + [0, 4096, 8192]
    )
)
def test_encoding_inverts_decoding_for_words_in_any_company(words: np.ndarray) -> None:
    assert np.array_equal(GRIDS["moving"].encode(GRIDS["moving"].decode(words)), words)


@given(ACTIONS)
def test_a_decoded_action_lies_in_the_cell_of_the_encoded_one(action: np.ndarray) -> None:
    grid = SphericalGrid(tuple(LIMITS), GRIDS["moving"].edges)
    said = grid.decode_normalised(grid.encode(action)).astype(np.float64)
    for index, edges in enumerate(grid.edges):
        cells = [np.digitize(_coordinates(unit)[index], edges[1:-1]) for unit in (action / LIMITS, said)]
        assert cells[0] == cells[1], [*SPANS][index]
    r = np.linalg.norm(action[:3] / LIMITS[:3])
    assert np.linalg.norm(said[:3] - action[:3] / LIMITS[:3]) <= translation_error(grid, float(r)) + 1e-6
    assert said[6] == (1 if action[6] >= 0 else -1)


def test_what_can_be_said_about_rest() -> None:
    grid = GRIDS["moving"]
    rest = grid.decode_normalised(grid.encode(np.zeros(7)))
    assert (rest[3:6] == 0).all()  # the orientation is kept
    assert (
        np.linalg.norm(rest[:3]) == pytest.approx(grid.centres[2][0], abs=1e-6) and grid.centres[2][0] > 0
    )  # standing still is not to be had
    assert np.array_equal(grid.encode(np.zeros(7)), grid.encode(-np.zeros(7)))
    assert translation_error(grid, 1.5) > 2 * translation_error(grid, 0.1)


def test_the_poles_and_the_seam_have_their_cells() -> None:
    grid = GRIDS["moving"]
    for unit in ([0, 0, 1], [0, 0, -1], [-1, 0.0, 0], [-1, -0.0, 0], [-1, 1e-9, 0], [-1, -1e-9, 0]):
        action = np.array([*unit, 0, 0, 0, 1]) * np.array(grid.limits)
        said = grid.decode_normalised(grid.encode(action))[:3]
        assert np.linalg.norm(said - unit) <= translation_error(grid, 1.0)
    forward, back = (_coordinates(np.array([-1, y, 0, 0, 0, 0, 1.0]))[1] for y in (0.0, -0.0))
    assert forward == back == np.pi


def test_beyond_the_ball_the_direction_stays() -> None:
    grid = GRIDS["moving"]
    near, far = (np.array([*unit, 0, 0, 0, 1]) * grid.limits for unit in ((0.9, 0.6, -1.2), (9, 6, -12)))
    assert np.array_equal(grid.encode(near), grid.encode(far))


def test_edges_are_equally_probable_under_the_fitted_gaussian() -> None:
    grid = GRIDS["moving"]
    assert [len(edges) - 1 for edges in grid.edges] == list(CELLS)
    for edges, (low, high) in zip(grid.edges, SPANS.values(), strict=True):
        assert (edges[0], edges[-1]) == (low, high) and (np.diff(edges) > 0).all()
    rolls = DATA[:, 3] / grid.limits[3]
    counts = np.histogram(rolls[np.abs(rolls) < 0.98], grid.edges[3])[0] / len(rolls)
    assert np.allclose(counts, 1 / 16, atol=0.02)


@pytest.mark.parametrize("tokens", [GRIDS["moving"], UniformBins(tuple(LIMITS))])
def test_statistics_round_trip_through_json_by_kind(tokens: ActionTokens) -> None:
    assert read_action_tokens(json.loads(json.dumps(tokens.to_dict()))) == tokens


def test_statistics_of_another_scheme_or_without_cells_are_refused() -> None:
    with pytest.raises(KitError, match="'fast'"):
        read_action_tokens({"kind": "fast"})
    with pytest.raises(KitError, match="cannot be read"):
        read_action_tokens({"kind": "spherical", "limits": [1.0] * 7})
    broken = GRIDS["moving"].to_dict()
    broken["edges"]["phi"][3] = broken["edges"]["phi"][2]
    with pytest.raises(KitError, match="edges of phi do not ascend"):
        read_action_tokens(broken)
    with pytest.raises(KitError, match="16 x 32 x 8"):
        SphericalGrid(tuple(LIMITS), GRIDS["moving"].edges[::-1])


def test_a_word_of_another_place_is_an_error() -> None:
    with pytest.raises(KitError, match=r"place 1 is outside 4096\.\.8191"):
        GRIDS["moving"].decode(np.array([5, 5, 8193]))


@pytest.mark.parametrize("tokens", [SphericalGrid.fit(DATA), UniformBins.fit(DATA)])
def test_data_the_tokens_were_made_for_pass_and_others_are_named(tokens: ActionTokens) -> None:
    check_actions(tokens.limits, DATA)
    check_actions(tokens.limits, np.full((3, 7), np.nan))  # frames that are only spoken about
    with pytest.raises(KitError, match=r"x: \d+ of 4000 outside ±0.0\d+, up to 1.\d+e\+03 times that; y: "):
        check_actions(tokens.limits, DATA * 1000)  # millimetres
    spun = DATA.copy()
    spun[:100, 5] = 3 * tokens.limits[5]  # 2.5 %
    with pytest.raises(KitError, match=r"tokens \(yaw: \d+ of 4000 outside ±0.\d+, up to 3 times that\)"):
        check_actions(tokens.limits, spun)
    with pytest.raises(KitError, match="actions of 6 numbers"):
        check_actions(tokens.limits, DATA[:, :6])


@pytest.mark.parametrize("frames", [1, 10, 24, 300])
def test_data_always_fit_the_tokens_fitted_to_them(frames: int) -> None:
    wild = np.random.default_rng(frames).standard_cauchy((frames, 7))  # tails as heavy as they come
    for tokens in (SphericalGrid.fit(wild), UniformBins.fit(wild)):
        check_actions(tokens.limits, wild)
