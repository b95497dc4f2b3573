"""Review rationales: read each beside its pictures, actions and audit, then accept, edit or reject it, by
mouse or keyboard.

A thin shell over `figures.reviews.review_card` and `teacher.reviews`: every decision is on the disk before
the next answer is shown, the teacher's text is never written, and `rationales="reviewed"` trains on the
result. `figure` gives the same picture without a browser.
"""

from __future__ import annotations

import io
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.figures.reviews import action_paths, review_card
from refinevla_kit.teacher.answers import StoredRationale, load_rationales
from refinevla_kit.teacher.audit import audit, audit_dataset
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.reviews import (
    VERDICTS,
    Decision,
    applied,
    decide,
    decision_of,
    load_decisions,
    reviews_path,
)
from refinevla_kit.teacher.schema import PARTS, Rationale, Request
from refinevla_kit.widgets.keys import BOX, TEXT, Keys

FILTERS = {"all": "all", "doubted by the audit": "doubted", "not yet reviewed": "open", "refused": "refused"}
REASONS = ("wrong object", "wrong relation", "wrong sub-task", "wrong instruction", "says too little")
READING, EDITING, REJECTING = "reading", "editing", "rejecting"


class RationaleReviewer:
    """Widget over the answers in one rationale table.

    Attributes:
        box: what to display.
        filter, place: which answers, and which of them (from 1); setting a `.value` works without a browser
            too.
        accept, edit, reject, back, forward, save, cancel: the buttons.
        parts, matches, reason: the fields of an edit and of a rejection.
        picture: the PNG on show.
        progress, message: texts; the message says what went wrong.
        keys: the keyboard.

    Args:
        dataset: an opened dataset or its folder.
        table: the rationales' parquet file.
        keyframes: pictures an answer.
        reviewer: stored with decisions.
    Raises: `KitError` when the table holds no answers, or table or decisions are damaged.
    """

    def __init__(
        self, dataset: EpisodeDataset | str | Path, table: str | Path, keyframes: int = 3, reviewer: str = ""
    ) -> None:
        self._dataset = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
        self._answers, self._keyframes, self._reviewer = load_rationales(table), keyframes, reviewer
        self._path, self._doubts, self._mode = reviews_path(table), list[bool](), READING
        self._decisions = load_decisions(self._path)
        if not self._answers:
            raise KitError(f"{table} holds no answers", "annotate the dataset first (notebook 01)")
        self._shown = list(range(len(self._answers)))
        self.filter = widgets.Dropdown(options=FILTERS, description="show")
        self.place = widgets.BoundedIntText(1, 1, len(self._shown), layout={"width": "70px"})
        self.of, self.progress, self.message = widgets.Label(), widgets.Label(), widgets.HTML()
        self.accept, self.edit, self.reject, self.back, self.forward, self.save, self.cancel = (
            widgets.Button(description=name, layout={"width": "auto"})
            for name in ("accept", "edit", "reject", "←", "→", "save", "cancel")
        )
        self.parts = {
            part: widgets.Textarea(
                description=part.split("_")[0], layout={"width": "900px", "height": "52px"}
            )
            for part in PARTS
        }
        self.matches = widgets.Checkbox(True, description="the instruction matches")
        self.reason = widgets.Combobox(
            options=REASONS, description="reason", ensure_option=False, layout={"width": "500px"}
        )
        for field in (*self.parts.values(), self.reason):
            field.add_class(TEXT)
        self.picture, self.keys = widgets.Image(format="png", width=1080), Keys()
        self._fields = {EDITING: widgets.VBox([*self.parts.values(), self.matches]), REJECTING: self.reason}
        self._buttons = {
            READING: widgets.HBox([self.accept, self.edit, self.reject]),
            "": widgets.HBox([self.save, self.cancel]),
        }
        top = widgets.HBox(
            [
                self.filter,
                self.back,
                self.place,
                self.of,
                self.forward,
                self._buttons[READING],
                self._buttons[""],
                self.progress,
            ]
        )
        self.box = widgets.VBox([top, self.message, *self._fields.values(), self.picture, self.keys])
        self.box.add_class(BOX)
        for key, button in {
            "a": self.accept,
            "e": self.edit,
            "r": self.reject,
            "ArrowLeft": self.back,
            "ArrowRight": self.forward,
            "save": self.save,
            "Escape": self.cancel,
        }.items():
            button.on_click(lambda _, key=key: self.press(key))
        self.keys.on_msg(lambda _, content, __: self.press(content.get("key", ""), content.get("texts", ())))
        self.filter.observe(lambda _: self._try(self._choose), "value")
        self.place.observe(lambda _: self._try(self._show), "value")
        self._show()

    @property
    def answer(self) -> StoredRationale:
        """The one on show."""
        return self._answers[self._shown[self.place.value - 1]]

    @property
    def decision(self) -> Decision | None:
        """What was decided about it."""
        return decision_of(self._decisions, self.answer)

    def figure(self) -> Figure:
        """What is on show, drawn by the pure function; for a run without a browser."""
        request, rationale = self._request(), self._rationale()
        found = audit(request, rationale) if rationale else None
        return review_card(request, self.answer, found, self.decision, action_paths(self._dataset, request))

    def press(self, key: str, texts: Any = ()) -> None:
        """What a key does: "a", "e", "r", "ArrowLeft", "ArrowRight", "save" (Ctrl+Enter), "Escape". `texts`:
        parts and reason, as typed.
        """
        self._try(lambda: self._press(key, texts))

    def _press(self, key: str, texts: Any) -> None:
        for field, text in zip((*self.parts.values(), self.reason), texts, strict=False):
            field.value = text
        if key == "Escape":
            self._enter(READING)
        elif key == "save" and self._mode == EDITING:
            self._decide(
                "edit",
                {
                    name: field.value
                    for name, field in {**self.parts, "instruction_matches": self.matches}.items()
                },
            )
        elif key == "save" and self._mode == REJECTING:
            self._decide("reject", reason=self.reason.value)
        elif self._mode == READING and key == "a":
            self._decide(
                "edit" if self.decision and self.decision.edits else "accept",
                self.decision.edits if self.decision else {},
            )
        elif self._mode == READING and key in ("e", "r"):
            self._enter({"e": EDITING, "r": REJECTING}[key])
        elif self._mode == READING and key in ("ArrowLeft", "ArrowRight"):
            self.place.value += 1 if key == "ArrowRight" else -1  # held within its bounds

    def _decide(self, verdict: str, edits: dict[str, Any] | None = None, reason: str = "") -> None:
        decide(self._path, self.answer, verdict, edits, reason, self._reviewer)
        self._decisions = load_decisions(self._path)  # others may review at the same time
        self._enter(READING)
        if self.place.value < self.place.max:
            self.place.value += 1  # shows it
        else:
            self._show()
            self.message.value = "That was the last one of these: choose again what to show."

    def _enter(self, mode: str) -> None:
        if mode == EDITING:
            rationale = self._rationale() or Rationale("", "", "", "")
            for part, field in self.parts.items():
                field.value = getattr(rationale, part)
            self.matches.value = rationale.instruction_matches
        self.reason.value = self.decision.reason if mode == REJECTING and self.decision else ""
        self._mode = mode
        self._arrange()
        self.keys.send({"focus": mode})

    def _choose(self) -> None:
        """Answers keep their place in the list after a decision, so that one can go back; choosing again
        makes a new list.
        """
        if self.filter.value == "doubted" and not self._doubts:
            self._doubts = [bool(doubt) for doubt in audit_dataset(self._dataset, self._answers)["doubt"]]
        tests = {
            "all": lambda _: True,
            "doubted": lambda i: self._doubts[i],
            "refused": lambda i: self._answers[i].refusal is not None,
            "open": lambda i: decision_of(self._decisions, self._answers[i]) is None,
        }
        shown = [i for i in range(len(self._answers)) if tests[self.filter.value](i)]
        if not shown:
            raise KitError(f"no answer is {self.filter.label}", "choose something else to show")
        self._shown, before = shown, self.place.value
        self.place.value, self.place.max = 1, len(shown)
        if before == 1:  # otherwise the change has shown it
            self._show()

    def _show(self) -> None:
        png = io.BytesIO()
        self._mode = READING
        self.figure().savefig(png, format="png", dpi=90)
        self.picture.value = png.getvalue()
        self._arrange()

    def _arrange(self) -> None:
        """Show the controls of the mode, and how far the review has come."""
        for mode, field in self._fields.items():
            field.layout.display = "" if mode == self._mode else "none"
        for mode, row in self._buttons.items():
            row.layout.display = "" if (mode == READING) == (self._mode == READING) else "none"
        counts = Counter(
            one.verdict for answer in self._answers if (one := decision_of(self._decisions, answer))
        )
        done = ", ".join(f"{counts[verdict]} {word}" for verdict, word in VERDICTS.items())
        self.progress.value = f"{counts.total()} of {len(self._answers)} reviewed ({done})"
        self.of.value = f"of {len(self._shown)}"

    def _rationale(self) -> Rationale | None:
        """The text on show: the teacher's, or the reviewer's."""
        return (
            applied(self.answer, self.decision).rationale
            if self.decision and self.decision.edits
            else self.answer.rationale
        )

    def _request(self) -> Request:
        span = (self.answer.episode, self.answer.start, self.answer.end)
        for request in requests(
            self._dataset,
            "trajectory",
            self._keyframes,
            [self._dataset.info(self.answer.episode)],
            lambda *_: [span],
        ):
            return request
        raise KitError(
            self._dataset.left_out[self.answer.episode], "copy the dataset again, pictures included"
        )

    def _try(self, what: Any) -> None:
        try:
            self.message.value = ""
            what()
        except KitError as error:  # said in the widget: an exception in a callback would be swallowed
            self.message.value = f"<b>{escape(str(error))}</b>"
