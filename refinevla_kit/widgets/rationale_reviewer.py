"""Review rationales: read each beside its pictures, actions and audit, then accept, edit or reject it, by
mouse or keyboard.

A thin shell over `figures.reviews.review_card` and `teacher.reviews`. Every decision is on the disk before
the next answer is shown, and the teacher's text is never written. `rationales="reviewed"` trains on the
result. `figure` gives the same picture without a browser. ipywidgets passes no key events on, so a small
anywidget listens for them in the browser.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
from matplotlib.figure import Figure

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.figures.reviews import action_paths, review_card
from refinevla_kit.figures.style import as_png
from refinevla_kit.teacher.answers import StoredRationale, load_rationales
from refinevla_kit.teacher.audit import audit, audit_dataset
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.reviews import (
    VERDICTS,
    Decision,
    decide,
    decision_of,
    load_decisions,
    reviews_path,
    shown,
)
from refinevla_kit.teacher.schema import PARTS, Rationale, Request

FILTERS = {"all": "all", "doubted by the audit": "doubted", "not yet reviewed": "open", "refused": "refused"}
REASONS = ("wrong object", "wrong relation", "wrong sub-task", "wrong instruction", "says too little")
READING, EDITING, REJECTING = "reading", "editing", "rejecting"
BUTTONS = {  # what is written on each -> the key that does the same
    "accept": "a",
    "edit": "e",
    "reject": "r",
    "←": "ArrowLeft",
    "→": "ArrowRight",
    "save": "save",
    "cancel": "Escape",
}
KEYS_BOX = "refinevla-keys"  # CSS class of the box that is listened to
KEYS_TEXT = "refinevla-keys-text"  # and of its text fields


class Keys(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base has no type hints
    """Listens to the keyboard anywhere in the box with the class `KEYS_BOX` and sends {"key", "texts"}; told
    {"focus": mode}, moves the focus there.

    JupyterLab's own single-key commands (a inserts a cell, r makes it raw) are switched off inside the box by
    Lumino's attribute for it. What is being typed travels with the key: a text field's last letters may still
    be on their way to the kernel.
    """

    _esm = """
    const KEYS = ["a", "e", "r", "ArrowLeft", "ArrowRight", "Escape", "save"];
    function render({ model, el }) {
      let box = null, gone = false;
      el.textContent = "Keys, after a click on the picture: a accept, e edit, r reject, "
        + "\\u2190 \\u2192 move; Ctrl+Enter save, Esc cancel";
      const down = (event) => {
        const field = event.target.closest("textarea, input, select");
        const enter = event.key === "Enter" && (event.ctrlKey || field?.type === "text");
        const key = enter ? "save" : event.key;
        if (event.altKey || event.metaKey || (event.ctrlKey && !enter)) return;
        if ((field && !enter && key !== "Escape") || !KEYS.includes(key)) return;
        event.preventDefault();
        event.stopPropagation();
        const texts = [...box.querySelectorAll(".TEXT textarea, .TEXT input")].map((each) => each.value);
        model.send({ key, texts });
      };
      const attach = () => {
        box = el.closest(".BOX");
        if (!box && !gone) return requestAnimationFrame(attach);
        if (!box || gone) return;
        box.tabIndex = 0;
        box.dataset.lmSuppressShortcuts = "true";
        box.addEventListener("keydown", down, true);  // before the text fields, which keep keys to themselves
      };
      const told = () => requestAnimationFrame(() => {
        const all = box?.querySelectorAll(".TEXT textarea, .TEXT input") ?? [];
        const fields = [...all].filter((each) => each.offsetParent);
        (fields[0] ?? box)?.focus({ preventScroll: true });
      });
      model.on("msg:custom", told);
      attach();
      return () => {
        gone = true;
        model.off("msg:custom", told);
        box?.removeEventListener("keydown", down, true);
      };
    }
    export default { render };
    """.replace("BOX", KEYS_BOX).replace("TEXT", KEYS_TEXT)


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
        self._answers = load_rationales(table)
        self._keyframes, self._reviewer = keyframes, reviewer
        self._path = reviews_path(table)
        self._decisions = load_decisions(self._path)
        self._doubts: list[bool] = []
        self._mode = READING
        if not self._answers:
            raise KitError(f"{table} holds no answers", "annotate the dataset first (notebook 01)")
        self._shown = list(range(len(self._answers)))
        self.filter = widgets.Dropdown(options=FILTERS, description="show")
        self.place = widgets.BoundedIntText(1, 1, len(self._shown), layout={"width": "70px"})
        self.of, self.progress, self.message = widgets.Label(), widgets.Label(), widgets.HTML()
        self.accept, self.edit, self.reject, self.back, self.forward, self.save, self.cancel = (
            self._button(*names) for names in BUTTONS.items()
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
            field.add_class(KEYS_TEXT)
        self.picture, self.keys = widgets.Image(format="png", width=1080), Keys()
        self.keys.on_msg(lambda _, content, __: self.press(content.get("key", ""), content.get("texts", ())))
        self._fields = {EDITING: widgets.VBox([*self.parts.values(), self.matches]), REJECTING: self.reason}
        self._decide_row = widgets.HBox([self.accept, self.edit, self.reject])
        self._finish_row = widgets.HBox([self.save, self.cancel])
        moves = [self.filter, self.back, self.place, self.of, self.forward]
        top = widgets.HBox([*moves, self._decide_row, self._finish_row, self.progress])
        self.box = widgets.VBox([top, self.message, *self._fields.values(), self.picture, self.keys])
        self.box.add_class(KEYS_BOX)
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
        request, rationale = self._request(), shown(self.answer, self.decision)
        found = audit(request, rationale) if rationale else None
        return review_card(request, self.answer, found, self.decision, action_paths(self._dataset, request))

    def press(self, key: str, texts: Any = ()) -> None:
        """What a key does: "a", "e", "r", "ArrowLeft", "ArrowRight", "save" (Ctrl+Enter), "Escape". `texts`:
        parts and reason, as typed.
        """
        self._try(lambda: self._press(key, texts))

    def _button(self, name: str, key: str) -> widgets.Button:
        button = widgets.Button(description=name, layout={"width": "auto"})
        button.on_click(lambda _: self.press(key))
        return button

    def _press(self, key: str, texts: Any) -> None:
        for field, text in zip((*self.parts.values(), self.reason), texts):
            field.value = text
        if key == "Escape":
            self._enter(READING)
        elif key == "save" and self._mode == EDITING:
            edits = {part: field.value for part, field in self.parts.items()}
            self._decide("edit", edits | {"instruction_matches": self.matches.value})
        elif key == "save" and self._mode == REJECTING:
            self._decide("reject", reason=self.reason.value)
        elif self._mode != READING:
            return
        elif key in ("ArrowLeft", "ArrowRight"):
            self.place.value += 1 if key == "ArrowRight" else -1  # held within its bounds
        elif not self.picture.value:
            raise KitError("this answer is not on show: nothing is decided", "go on to another one")
        elif key == "a":
            edits = self.decision.edits if self.decision else {}  # accepted again, an edit stays
            self._decide("edit" if edits else "accept", edits)
        elif key == "e":
            self._enter(EDITING)
        elif key == "r":
            self._enter(REJECTING)

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
            rationale = shown(self.answer, self.decision) or Rationale("", "", "", "")
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
        shown = []
        for number, answer in enumerate(self._answers):
            wanted = {
                "all": True,
                "doubted": bool(self._doubts) and self._doubts[number],
                "refused": answer.refusal is not None,
                "open": decision_of(self._decisions, answer) is None,
            }
            if wanted[self.filter.value]:
                shown.append(number)
        if not shown:
            raise KitError(f"no answer is {self.filter.label}", "choose something else to show")
        self._shown, before = shown, self.place.value
        self.place.value, self.place.max = 1, len(shown)
        if before == 1:  # otherwise the change has shown it
            self._show()

    def _show(self) -> None:
        self._mode, self.picture.value = READING, b""
        self._arrange()
        self.picture.value = as_png(self.figure())

    def _arrange(self) -> None:
        """Show the controls of the mode, and how far the review has come."""
        for mode, field in self._fields.items():
            field.layout.display = "" if mode == self._mode else "none"
        self._decide_row.layout.display = "" if self._mode == READING else "none"
        self._finish_row.layout.display = "none" if self._mode == READING else ""
        self.place.disabled = self.filter.disabled = self._mode != READING  # what is typed would be lost
        decisions = [decision_of(self._decisions, answer) for answer in self._answers]
        counts = Counter(decision.verdict for decision in decisions if decision)
        done = ", ".join(f"{counts[verdict]} {word}" for verdict, word in VERDICTS.items())
        self.progress.value = f"{counts.total()} of {len(self._answers)} reviewed ({done})"
        self.of.value = f"of {len(self._shown)}"

    def _request(self) -> Request:
        span = self.answer.span
        infos = [self._dataset.info(span[0])]
        request = next(requests(self._dataset, "trajectory", self._keyframes, infos, lambda *_: [span]), None)
        if request is None:
            raise KitError(self._dataset.left_out[span[0]], "copy the dataset again, pictures included")
        return request

    def _try(self, what: Any) -> None:
        try:
            self.message.value = ""
            what()
        except KitError as error:  # said in the widget: an exception in a callback would be swallowed
            self.message.value = f"<b>{escape(str(error))}</b>"
