"""The experiment's pictures and the paper's own figures and tables: marks lie at the numbers, cells are those
of the statistics.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.seeds import compare_seeds
from refinevla_kit.attention.captured import choose_frames
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.published import load_published
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.training_seeds import WEIGHT
from refinevla_kit.figures.illustrations import OVERVIEW, annotated_segment, moments, overview
from refinevla_kit.figures.overlays import attention_over_time
from refinevla_kit.figures.published import experiments_table, peaks, table_1, table_2, table_3
from refinevla_kit.figures.sensitivity import of_experiment, sensitivity, sweeps
from refinevla_kit.figures.style import save_table
from refinevla_kit.figures.training_curves import training_curves
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import GOOGLE_TASKS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS
from refinevla_kit.teacher import load_rationales
from refinevla_kit.training.examples import find_rationales
from tests.evaluation.rows import row

DEMO, PUBLISHED = REPOSITORY / "data" / "demo", load_published()


def played(arm: str, wins: int, seed: int = 0, variant: str = "base") -> list[EpisodeRecord]:
    return [
        replace(
            row(arm, number, number < wins, task=task.name, variant=variant),
            seed=seed,
            checkpoint_hash=f"{arm}{seed}",
            start="dense",
        )
        for task in WIDOWX_TASKS
        for number in range(8)
    ]


RECORDS = [
    *(
        one
        for seed, (a, b) in enumerate([(4, 2), (6, 5), (3, 3)])
        for one in played("with_reasoning", a, seed) + played("action_only", b, seed)
    ),
    *played("with_reasoning", 5, 0, "lighting_darker"),
    *played("action_only", 4, 0, "lighting_darker"),
]


def test_a_sweep_is_drawn_at_its_values_with_the_paper_beside_it() -> None:
    arms = {
        name: {WEIGHT: weight, "freeze_layers": 3, "share": 1.0}
        for name, weight in (("action_only", 0.0), ("with_reasoning", 0.3))
    }
    arms["lambda_1"] = arms["with_reasoning"] | {WEIGHT: 1.0}
    records = [one for one in RECORDS if one.setting == VISUAL_MATCHING] + played("lambda_1", 7)
    varied = sweeps(records, arms)
    assert list(varied) == [WEIGHT]
    figure = sensitivity(varied, peaks(PUBLISHED))
    drawn = {
        tuple(np.asarray(line.get_ydata()))
        for line in figure.axes[0].lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert drawn == {(2 / 8, 4 / 8, 7 / 8)}
    assert any(
        "+9.7 points" in text.get_text() and "secondary" in text.get_text() for text in figure.axes[0].texts
    )
    assert sweeps(records[:64], {name: arms[name] for name in ("action_only", "with_reasoning")}) == {}, (
        "nothing was varied"
    )


def test_the_shipped_experiment_gives_a_figure_and_a_line() -> None:
    figure = of_experiment(REPOSITORY / "data" / "experiment", peaks(PUBLISHED))
    assert figure is not None and figure.axes
    table = experiments_table(REPOSITORY / "data")
    assert list(table.index) == ["experiment", "experiment_2"]
    seeds = [re.fullmatch(r"(\d+) of (\d+)", said) for said in table["seeds, of those planned"]]
    assert all(found and 1 < int(found[1]) <= int(found[2]) for found in seeds)
    assert table.loc["experiment", "seeds, of those planned"] == "6 of 6"


def test_table_1_has_grasps_beside_successes_as_the_paper_has_them() -> None:
    table = table_1(PUBLISHED, played("action_only", 2))
    assert (
        table.loc["ReFineVLA", ("spoon on towel", "grasp")] == "42.9"
        and table.loc["ReFineVLA", ("mark", "")] == "secondary"
    )
    assert (
        table.loc["actions only", ("carrot on plate", "success")].startswith("25.0 %")
        and len(table.columns) == 10
    )
    assert table.loc["actions only", ("mark", "")] == "this kit, 32 episodes"


def test_table_2_is_as_printed_in_both_settings() -> None:
    table = table_2(PUBLISHED)
    assert (
        table.loc["ReFineVLA", ("visual matching", "average")] == "76.6"
        and table.loc["ReFineVLA", ("variant aggregation", "average")] == "68.8"
    )


def test_table_2_takes_the_kits_own_google_robot_alone_with_the_published_weights() -> None:
    own = [
        row("demonstrator", number, "pick" not in task.name or number < 2, task=task.name)
        for task in GOOGLE_TASKS
        for number in range(4)
    ]
    table = table_2(PUBLISHED, [*own, *played("action_only", 2)])
    assert "actions only" not in table.index
    cells = table.loc["demonstrator", "visual matching"]
    assert cells["pick coke can"].startswith("50.0 %") and cells["move near"].startswith("100.0 %")
    assert cells["average"].startswith("75.0 %"), "3 : 1 : 2"
    counted = [record for record in own if "apple" not in record.task]  # the average leaves the apple out
    assert table.loc["demonstrator", ("mark", "")] == f"this kit, {len(counted)} episodes"


def test_table_3_gives_our_difference_its_interval_over_training_runs() -> None:
    table = table_3(PUBLISHED, RECORDS)
    found = compare_seeds(RECORDS, "with_reasoning", "action_only", setting=VISUAL_MATCHING).estimate
    cell = table.loc["with reasoning loss (WidowX)", ("visual matching", "minus actions only")]
    assert cell == f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    assert (
        table.loc["with reasoning loss (WidowX)", ("variant aggregation", "minus actions only")] == "+12.5"
    ), "one training run has no interval"
    assert (
        table.loc["with reasoning loss (WidowX)", ("mark", "")] == "this kit, 3 training runs, 128 episodes"
    )
    assert VARIANT_AGGREGATION in {one.setting for one in RECORDS}


def test_a_saved_table_carries_what_made_it(tmp_path: Path) -> None:
    table = table_2(PUBLISHED)
    text = save_table(table, tmp_path / "table_2", {"published": "data/paper/published.json"}).read_text()
    assert len(text.splitlines()) == 2 + len(table) and "| ReFineVLA | 83.0 | 95.3 |" in text
    made = json.loads((tmp_path / "table_2.json").read_text())
    (ours,) = (cells for cells in made["cells"] if cells["row"] == "ReFineVLA")
    assert ours["visual matching average"] == "76.6"
    assert made["made_from"] == {"published": "data/paper/published.json"}


def test_rows_of_one_name_are_all_saved(tmp_path: Path) -> None:
    table = pd.DataFrame({"gain": [1, 2]}, index=["a|b", "a|b"])
    text = save_table(table, tmp_path / "gains", {"seed": np.int64(3)}).read_text()
    assert text.count("a\\|b") == 2
    made = json.loads((tmp_path / "gains.json").read_text())
    assert [cells["gain"] for cells in made["cells"]] == ["1", "2"] and made["made_from"] == {"seed": 3}


def test_what_holds_no_experiment_or_history_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"is no experiment .*study.json"):
        of_experiment(tmp_path, {})
    with pytest.raises(KitError, match="no training history to draw"):
        training_curves({})


def test_table_1_counts_its_own_tasks_alone() -> None:
    own = played("action_only", 2)
    others = [row("action_only", number, True, task="widowx_language_carrot_on_plate") for number in range(3)]
    assert table_1(PUBLISHED, [*own, *others]).equals(table_1(PUBLISHED, own))
    one = [record for record in own if record.task == own[0].task]
    cells = table_1(PUBLISHED, one).loc["actions only"]
    assert cells[("average", "success")] == "" != cells[("mark", "")]


def test_figure_2_shows_the_teachers_own_words_and_the_segments_frames() -> None:
    data = open_dataset(DEMO)
    answer = next(one for one in load_rationales(find_rationales(DEMO)) if one.rationale)
    assert answer.rationale is not None
    (axes,) = annotated_segment(data, answer).axes
    said = " ".join(" ".join(text.get_text().split()) for text in axes.texts)
    assert answer.rationale.observation in said and "oracle" in said and "0.3 L_reasoning" in said
    np.testing.assert_array_equal(
        np.asarray(axes.images[0].get_array()), data.images(answer.episode, [answer.start])[0]
    )
    assert "sum of actions" in said
    (axes,) = annotated_segment(open_dataset(DEMO, deltas=False), answer).axes
    assert "change of actions" in " ".join(" ".join(text.get_text().split()) for text in axes.texts)


def test_figures_1_and_6_put_each_policys_heat_under_the_moment_it_is_of() -> None:
    every = choose_frames(open_dataset(DEMO), "widowx_carrot_on_plate", 1)
    shown = [every[number] for number in moments(len(every), 3)]
    assert shown[0].step == 0 and shown[-1].step == every[-1].step
    maps = {
        name: [np.eye(6, 8) * (column + 1) for column in range(3)]
        for name in ("action_only", "with_reasoning")
    }
    axes = attention_over_time(shown, maps, "put carrot on plate").axes
    np.testing.assert_array_equal(np.asarray(axes[0].images[0].get_array()), shown[0].image)
    heat = np.asarray(axes[3].images[1].get_array())  # second row, first column
    assert heat.mean() == pytest.approx(1) and heat[5, 5] > 4 and heat[-1, 0] == 0


def test_three_pictures_with_their_proportions(tmp_path: Path) -> None:
    sizes = dict(zip(OVERVIEW, ((300, 400), (800, 200), (600, 260)), strict=True))
    for name, size in sizes.items():
        assert overview(tmp_path) is None, "a picture is missing"
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(tmp_path / name)
    figure = overview(tmp_path)
    assert figure is not None
    shown = [axes.images[0] for axes in figure.axes]
    assert [image.get_array().shape[:2] for image in shown] == [
        (height, width) for width, height in sizes.values()
    ]
    assert all(axes.get_aspect() == 1 for axes in figure.axes)
