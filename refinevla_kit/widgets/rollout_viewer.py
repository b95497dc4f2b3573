"""The rollout viewer: evaluation records as a table with filters; an episode chosen from it is played again
and can be gone through step by step.

Each step shows the picture, the rationale where the policy writes one, the actions as curves and, of a policy
whose attention can be read, where it looks and how its attention was shared among the objects over the
episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from refinevla_kit.attention.captured import Capture, Frame, upper_middle
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.replay import Replayer, Rollout
from refinevla_kit.figures.episodes import action_plots, episode_title, outcome
from refinevla_kit.figures.overlays import View, comparison
from refinevla_kit.figures.style import FORMATS, label, save_figure
from refinevla_kit.files import file_name
from refinevla_kit.tasks import find_task
from refinevla_kit.widgets.exploration import ACTIONS, Exploration
from refinevla_kit.widgets.picture import Picture, payload

ALL = "all"
OUTCOMES: dict[str, Callable[[EpisodeRecord], bool]] = {
    ALL: lambda _: True,
    "solved": lambda one: one.success_last,
    "not solved": lambda one: not one.success_last,
    "solved, then lost": lambda one: one.success_any and not one.success_last,
    "held, not placed": lambda one: one.grasped and not one.success_any,
}
COLUMNS = "{:<24}{:<20}{:<22}{:>8}  {}"
TABLE = "refinevla-rollouts"


class RolloutViewer:
    """Widget over evaluation records.

    Attributes:
        box: what to display.
        policy, task, variant, outcome: the filters.
        row: the table; its value is the record's number in `records`.
        replay: the button that plays the chosen episode again (seconds, once each).
        step, layer, heat, think: what is shown of it; layers count
            from 1; `think` has a policy that acts first write its rationale for the step on show. form, save:
            as in the attention explorer.
        picture: what is on show.
        message: how the replay ended, or why there is none.

    Args:
        records: of `load_records`.
        policies: those that played them, by name or not; an episode of a policy that is not here stays a row
            of the table.
        folder: where `save` writes.

    Raises:
        KitError: no records.
    """

    def __init__(
        self,
        records: Sequence[EpisodeRecord],
        policies: Iterable[Any] | Mapping[str, Any] = (),
        folder: str | Path = ".",
    ) -> None:
        if not records:
            raise KitError("there are no episodes to view", "give the records of an evaluation (notebook 03)")
        players = policies.values() if isinstance(policies, Mapping) else policies
        self.records, self._replayer, self._folder = list(records), Replayer(players), Path(folder)
        self._played: dict[int, tuple[Rollout, Exploration | None]] = {}
        self._thoughts: dict[tuple[int, int], str] = {}
        narrow: dict[str, Any] = {"style": {"description_width": "4.5em"}, "layout": {"width": "280px"}}
        self.policy, self.task, self.variant = (
            self._filter(name, narrow) for name in ("policy", "task", "variant")
        )
        self.outcome = widgets.Dropdown(options=[*OUTCOMES], description="outcome", **narrow)
        head = escape(COLUMNS.format("policy", "task", "variant", "episode", "outcome"))
        style = (
            f"<style>.{TABLE} select {{ font-family: monospace }}</style><pre "
            f"style='margin:0;padding-left:4px'>{head}</pre>"
        )
        self.row = widgets.Select(options=[("", 0)], rows=8, layout={"width": "900px"})
        self.row.add_class(TABLE)
        self.count, self.replay = (
            widgets.Label(),
            widgets.Button(description="replay", tooltip="play this episode again in the simulator"),
        )
        self.step = widgets.IntSlider(0, 0, 0, description="step", layout={"width": "500px"})
        self.play = widgets.Play(interval=200, min=0, max=0)
        self.layer = widgets.IntSlider(1, 1, 1, description="layer", **narrow)
        self.heat, self.think = (
            widgets.Checkbox(value, description=name, indent=False, layout={"width": "110px"})
            for name, value in (("attention", True), ("rationale", False))
        )
        self.form = widgets.Dropdown(options=[*FORMATS], layout={"width": "80px"})
        self.save = widgets.Button(description="save", layout={"width": "80px"})
        self.picture, self.message = Picture(), widgets.HTML()
        widgets.jslink((self.play, "value"), (self.step, "value"))
        for control in (self.policy, self.task, self.variant, self.outcome):
            control.observe(lambda _: self._list(), "value")
        self.row.observe(lambda _: self._chosen(), "value")
        for shown in (self.step, self.layer, self.heat, self.think):
            shown.observe(lambda _: self._say(self._show), "value")
        self.replay.on_click(lambda _: self._say(self._replay))
        self.save.on_click(lambda _: self._say(self._save))
        self.moments = widgets.VBox(
            [
                widgets.HBox([self.step, self.play]),
                widgets.HBox([self.layer, self.heat, self.think, self.form, self.save]),
                self.picture,
            ]
        )
        table = widgets.VBox([widgets.HTML(style), self.row])
        self.box = widgets.VBox(
            [
                widgets.HBox([self.policy, self.task, self.variant, self.outcome]),
                table,
                widgets.HBox([self.replay, self.count]),
                self.message,
                self.moments,
            ]
        )
        self._list()

    @property
    def record(self) -> EpisodeRecord:
        """The episode chosen."""
        if self.row.value is None:
            raise KitError("no episode is chosen", "choose a row of the table; the filters may leave none")
        return self.records[self.row.value]

    def rollout(self) -> Rollout:
        """The chosen episode, played again when it was not yet."""
        return self._moments()[0]

    def view(self) -> View:
        """What is on show."""
        rollout, exploration = self._moments()
        now, plots = self.step.value, action_plots(rollout)
        observation = rollout.observations[now]
        state = ["held"] * bool(now and rollout.grasped[now - 1]) + ["solved"] * bool(
            now and rollout.success[now - 1]
        )
        title = episode_title(rollout.record)
        detail = f"{observation.instruction}: step {now} of {len(rollout.actions)}" + (
            f" ({', '.join(state)})" if state else ""
        )
        if exploration is None:
            masks = named_masks(rollout, now)
            return View(
                observation.image,
                {},
                masks,
                title,
                detail,
                steps=np.arange(len(rollout.observations)),
                now=now,
                plots=plots,
            )
        seen = exploration.view(now, ACTIONS, self.layer.value - 1)
        return View(
            seen.image,
            seen.maps if self.heat.value else {},
            seen.masks,
            title,
            f"{detail}; attention {seen.detail}",
            0.9,
            self.heat.value,
            seen.steps,
            now,
            (*plots, *seen.plots),
        )

    def figure(self) -> Figure:
        """The same for paper, drawn by the pure function; for a run without a browser too. Plays the episode
        when it was not yet.
        """
        return comparison(self.view())

    def _moments(self) -> tuple[Rollout, Exploration | None]:
        number, record = self.row.value, self.record
        if number not in self._played:
            policy = self._replayer.policy(record)
            rollout = self._replayer.play(record, masks=hasattr(policy, "vla"))  # they are for attention
            captures = read_attention(policy, rollout)
            frames = [
                Frame(
                    one.image,
                    named_masks(rollout, i),
                    one.instruction,
                    record.task,
                    record.episode_id,
                    i,
                    "",
                    one.proprioception,
                )
                for i, one in enumerate(rollout.observations)
            ]
            self._played[number] = (
                rollout,
                Exploration(frames, {record.policy: captures}) if captures else None,
            )
        return self._played[number]

    def _replay(self) -> None:
        self.message.value = f"playing {escape(episode_title(self.record))} …"
        rollout, exploration = self._moments()
        last = len(rollout.observations) - 1
        self.step.max = self.play.max = last
        if exploration is not None:
            self.layer.max = exploration.layers
            self.layer.value = upper_middle(exploration.layers) + 1
        self.layer.disabled = self.heat.disabled = exploration is None
        self._show()
        differences = ", ".join(
            f"{name} {now} (recorded: {before})" for name, (before, now) in rollout.differences.items()
        )
        ended = (
            f"The replay ended otherwise than the record: {differences}. Rounding can do that."
            if differences
            else "It ended as recorded."
        )
        self.message.value = ended + ("" if exploration else " The attention of this policy cannot be read.")

    def _show(self) -> None:
        if self.row.value in self._played:
            self.picture.view = payload(self.view(), self._texts())
            self.moments.layout.display = ""

    def _texts(self) -> dict[str, tuple[str, tuple[int, int]]]:
        rollout, _ = self._moments()
        record, now = rollout.record, self.step.value
        text = str(getattr(rollout.answers[now], "rationale", "")) if now < len(rollout.answers) else ""
        policy = self._replayer.policy(record)
        if not text and self.think.value and hasattr(policy, "explain"):
            key, seen = (self.row.value, now), rollout.observations[now]
            if key not in self._thoughts:
                self._thoughts[key] = policy.explain(seen.image, seen.instruction, seen.proprioception)
            text = self._thoughts[key]
        elif not text and self.think.value:
            text = "(this policy writes no rationales)"
        return {record.policy: (text, (0, 0))} if text else {}

    def _filter(self, name: str, narrow: dict[str, Any]) -> widgets.Dropdown:
        known = list(dict.fromkeys(getattr(record, name) for record in self.records))
        return widgets.Dropdown(
            options=[(ALL, ALL), *((label(one), one) for one in known)], description=name, **narrow
        )

    def _list(self) -> None:
        """Fill the table with what the filters let through; the chosen row stays when it is among them."""
        wanted = {name: getattr(self, name).value for name in ("policy", "task", "variant")}
        kept = [
            number
            for number, record in enumerate(self.records)
            if OUTCOMES[self.outcome.value](record)
            and all(value in (ALL, getattr(record, name)) for name, value in wanted.items())
        ]
        before = self.row.value
        self.row.options = [(_line(self.records[number]), number) for number in kept]
        self.row.value = before if before in kept else kept[0] if kept else None
        solved = sum(self.records[number].success_last for number in kept)
        self.count.value = f"{len(kept)} of {len(self.records)} episodes, {solved} solved at the last step"
        self._chosen()

    def _chosen(self) -> None:
        """Another row: show it when it has been played, else wait for the button."""
        self.message.value = ""
        if self.row.value in self._played:
            self._say(self._replay)
        else:
            self.moments.layout.display = "none"

    def _save(self) -> None:
        record = self.record
        played = f"{record.task}-{record.variant}-{record.start}{record.episode_id}"
        name = f"rollout-{record.policy}-{played}-step{self.step.value}"
        made_from = {"record": vars(record), "step": self.step.value, "layer": self.layer.value}
        saved = save_figure(self.figure(), self._folder / file_name(name), made_from, [self.form.value])
        self.message.value = f"saved {escape(str(saved))}"

    def _say(self, what: Callable[[], None]) -> None:
        try:
            what()
        except KitError as error:  # said in the widget: an exception in a callback would be swallowed
            self.message.value = f"<b>{escape(str(error))}</b>"


def _line(record: EpisodeRecord) -> str:
    """A row of the table; browsers fold ordinary spaces."""
    cells = (
        label(record.policy)[:23],
        label(record.task)[:19],
        record.variant[:21],
        record.episode_id,
        outcome(record),
    )
    return COLUMNS.format(*cells).replace(" ", "\u00a0")


def named_masks(rollout: Rollout, step: int) -> dict[str, Any]:
    """Masks of a step by what the things are for the task: "source", "target", "gripper", "arm" and other
    things by name; no background.
    """
    task = find_task(rollout.record.task)
    roles = {task.source: "source", task.target: "target"}
    return {roles.get(name, name): mask for name, mask in rollout.masks[step].items() if name != "background"}


def read_attention(policy: Any, rollout: Rollout) -> list[Capture]:
    """Attention of the action tokens at each observation (at the last one of what the policy would do); []
    where it cannot be read.
    """
    if not hasattr(policy, "vla"):
        return []
    from refinevla_kit.attention.forward import capture_batch  # needs torch; other policies may have none

    images = np.stack([one.image for one in rollout.observations])
    sentences = [one.instruction for one in rollout.observations]
    own = (
        np.stack([one.proprioception for one in rollout.observations])
        if getattr(policy, "needs_proprioception", False)
        else None
    )
    last = policy.act_batch(images[-1:], sentences[-1:], None if own is None else own[-1:])
    return capture_batch(policy, images, sentences, [*rollout.answers, *last], None, own)
