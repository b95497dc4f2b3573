"""The keyboard of a widget: ipywidgets passes no key events on, so a small anywidget listens for them in the
browser.
"""

from __future__ import annotations

import anywidget

BOX, TEXT = (
    "refinevla-keys",
    "refinevla-keys-text",
)  # CSS classes of the box that is listened to, and of its text fields


class Keys(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base has no type hints
    """Listens to the keyboard anywhere in the box with the class `BOX` and sends {"key", "texts"}; told
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
    """.replace("BOX", BOX).replace("TEXT", TEXT)
