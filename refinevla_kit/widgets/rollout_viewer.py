"""The rollout viewer: evaluation records as a table with filters. An episode chosen from it is played again
and can be gone through step by step. `FrameSlider` is a first look at one episode.

What was played is shown in an attention explorer of its own: pictures, commands as curves, and the rationale
where the policy writes one. Where attention can be read, it shows where the policy looks.
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
from refinevla_kit.figures.overlays import token_grid
from refinevla_kit.figures.style import as_png, label
from refinevla_kit.tasks import find_task, roles_of
from refinevla_kit.widgets.attention_explorer import AttentionExplorer
from refinevla_kit.widgets.exploration import Commentary

ALL = "all"
FILTERS = ("policy", "task", "variant")
OUTCOMES: dict[str, Callable[[EpisodeRecord], bool]] = {
    ALL: lambda _: True,
    "solved": lambda record: record.success_last,
    "not solved": lambda record: not record.success_last,
    "solved, then lost": lambda record: record.success_any and not record.success_last,
    "held, not placed": lambda record: record.grasped and not record.success_any,
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
        message: how the replay ended, or why there is none.

    Args:
        records: of `load_records`.
        policies: those that played them, by name or not; an episode of a policy that is not here stays a row
            of the table.
        folder: where the explorer's `save` writes.

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
        self._played: dict[int, tuple[Rollout, AttentionExplorer]] = {}
        values = {name: dict.fromkeys(getattr(one, name) for one in records) for name in FILTERS}
        filters = {name: [(label(each), each) for each in (ALL, *found)] for name, found in values.items()}
        self.policy, self.task, self.variant, self.outcome = (
            widgets.Dropdown(
                options=options,
                description=name,
                style={"description_width": "4.5em"},
                layout={"width": "280px"},
            )
            for name, options in {**filters, "outcome": [*OUTCOMES]}.items()
        )
        head = escape(COLUMNS.format("policy", "task", "variant", "episode", "outcome"))
        style = f"<style>.{TABLE} select {{ font-family: monospace }}</style>"
        titles = widgets.HTML(f"{style}<pre style='margin:0;padding-left:4px'>{head}</pre>")
        self.row = widgets.Select(options=[("", 0)], rows=8, layout={"width": "900px"})
        self.row.add_class(TABLE)
        self.replay = widgets.Button(description="replay", tooltip="play this episode again in the simulator")
        self.count, self.message, self._moments = widgets.Label(), widgets.HTML(), widgets.VBox()
        controls = [self.policy, self.task, self.variant, self.outcome]
        for control in controls:
            control.observe(lambda _: self._list(), "value")
        self.row.observe(lambda _: self._chosen(), "value")
        self.replay.on_click(lambda _: self._replay())
        rows = [widgets.HBox(controls), widgets.VBox([titles, self.row])]
        rows += [widgets.HBox([self.replay, self.count]), self.message, self._moments]
        self.box = widgets.VBox(rows)
        self._list()

    @property
    def record(self) -> EpisodeRecord:
        """The episode chosen."""
        if self.row.value is None:
            raise KitError("no episode is chosen", "choose a row of the table; the filters may leave none")
        return self.records[self.row.value]

    def rollout(self) -> Rollout:
        """The chosen episode, played again when it was not yet."""
        return self._play()[0]

    def explorer(self) -> AttentionExplorer:
        """The chosen episode step by step; played again when it was not yet."""
        return self._play()[1]

    def figure(self) -> Figure:
        """What the explorer shows, drawn for paper; for a run without a browser too."""
        return self.explorer().figure()

    def _play(self) -> tuple[Rollout, AttentionExplorer]:
        record, number = self.record, self.row.value
        if number not in self._played:
            policy = self._replayer.policy(record)
            rollout = self._replayer.play(record, masks=hasattr(policy, "vla"))  # they are for attention
            captures = read_attention(policy, rollout)
            explorer = AttentionExplorer(
                frames_of(rollout),
                {record.policy: captures} if captures else {},
                folder=self._folder,
                commentary=comment(rollout, policy),
            )
            self._played[number] = rollout, explorer
        return self._played[number]

    def _replay(self) -> None:
        try:
            self.message.value = f"playing {escape(episode_title(self.record))} …"
            rollout, explorer = self._play()
        except KitError as error:  # said in the widget: an exception in a callback would be swallowed
            self.message.value = f"<b>{escape(str(error))}</b>"
            return
        self._moments.children = [explorer]
        said = "It ended as recorded."
        if rollout.differences:
            words = [f"{name} {now} (recorded: {was})" for name, (was, now) in rollout.differences.items()]
            said = f"The replay ended otherwise than the record: {', '.join(words)}. Rounding can do that."
        if not explorer.exploration.captures:
            said += " The attention of this policy cannot be read."
        self.message.value = said

    def _list(self) -> None:
        """Fill the table with what the filters let through; the chosen row stays when it is among them."""
        wanted = {name: getattr(self, name).value for name in FILTERS}
        kept = [
            number
            for number, record in enumerate(self.records)
            if all(value in (ALL, getattr(record, name)) for name, value in wanted.items())
            and OUTCOMES[self.outcome.value](record)
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
        self._moments.children = []
        if self.row.value in self._played:
            self._replay()


class FrameSlider:
    """One slider over a played episode: each picture, and beside it where the policy looked.

    Attributes:
        step: the slider.
        box: what to display.

    Args:
        policy: a VLA's, that played it.
        record: of the episode, which is played again (seconds).
    """

    def __init__(self, policy: Any, record: EpisodeRecord) -> None:
        with Replayer([policy]) as replayer:
            rollout = replayer.play(record)
        self._frames, self._seen = frames_of(rollout), read_attention(policy, rollout)
        self._notes, self._policy = comment(rollout, policy).notes, record.policy
        self.step = widgets.IntSlider(
            description="step", max=record.steps, continuous_update=False, layout={"width": "600px"}
        )
        self._picture = widgets.Image(format="png")
        self.box = widgets.VBox([self.step, self._picture])
        self.step.observe(lambda _: self._show(), "value")
        self._show()

    def figure(self) -> Figure:
        """What is on show; for a run without a browser too."""
        frame, seen = self._frames[self.step.value], self._seen[self.step.value]
        maps = {self._policy: [seen.map(upper_middle(seen.layers))]}
        note = self._notes[self.step.value]
        return token_grid(frame.image, maps, ["where it looks"], frame.masks, note, size=4.0)

    def _show(self) -> None:
        self._picture.value = as_png(self.figure(), 120)


def frames_of(rollout: Rollout) -> list[Frame]:
    """The moments of a played episode, with masks where they were kept."""
    record = rollout.record
    return [
        Frame(
            observation.image,
            named_masks(rollout, step),
            observation.instruction,
            record.task,
            record.episode_id,
            step,
            "",
            observation.proprioception,
        )
        for step, observation in enumerate(rollout.observations)
    ]


def comment(rollout: Rollout, policy: Any) -> Commentary:
    """What is told about a played episode beside its attention."""
    record, steps = rollout.record, len(rollout.actions)
    notes = []
    for step, observation in enumerate(rollout.observations):
        reached = {"held": rollout.grasped, "solved": rollout.success} if step else {}
        states = [name for name, after_step in reached.items() if after_step[step - 1]]
        state = f" ({', '.join(states)})" if states else ""
        notes.append(f"{observation.instruction}: step {step} of {steps}{state}")

    def write(step: int) -> str:
        if not hasattr(policy, "explain"):
            return "(this policy writes no rationales)"
        observation = rollout.observations[step]
        return str(policy.explain(observation.image, observation.instruction, observation.proprioception))

    return Commentary(
        name=f"rollout-{record.policy}-{record.task}-{record.variant}-{record.start}-seed{record.seed}",
        made_from={"record": vars(record)},
        policy=record.policy,
        title=episode_title(record),
        notes=notes,
        plots=action_plots(rollout),
        texts=[*(str(getattr(answer, "rationale", "")) for answer in rollout.answers), ""],
        write=write,
    )


def _line(record: EpisodeRecord) -> str:
    """A row of the table; browsers fold ordinary spaces."""
    policy, task, variant = label(record.policy)[:23], label(record.task)[:19], record.variant[:21]
    line = COLUMNS.format(policy, task, variant, record.episode_id, outcome(record))
    return line.replace(" ", "\u00a0")


def named_masks(rollout: Rollout, step: int) -> dict[str, Any]:
    """Masks of a step by what the things are for the task: "source", "target", "gripper", "arm" and other
    things by name; no background.
    """
    roles = roles_of(find_task(rollout.record.task), rollout.observations[step].instruction)
    return {roles.get(name, name): mask for name, mask in rollout.masks[step].items() if name != "background"}


def read_attention(policy: Any, rollout: Rollout) -> list[Capture]:
    """Attention of the action tokens at each observation (at the last one of what the policy would do); []
    where it cannot be read.
    """
    if not hasattr(policy, "vla"):
        return []
    from refinevla_kit.attention.forward import capture_batch  # needs torch; other policies may have none

    images = np.stack([observation.image for observation in rollout.observations])
    sentences = [observation.instruction for observation in rollout.observations]
    states = None
    if getattr(policy, "needs_proprioception", False):
        states = np.stack([observation.proprioception for observation in rollout.observations])
    last = policy.decide(images[-1:], sentences[-1:], None if states is None else states[-1:])
    return capture_batch(policy, images, sentences, [*rollout.answers, *last], None, states)
