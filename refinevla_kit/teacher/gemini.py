"""Gemini as a teacher, through either of Google's SDKs: `GeminiTeacher` (google-genai) and `GeminiLegacyTeacher` (google-generativeai, at its end
of life, but what existing projects have). Each is a thin client behind one seam: it sends the parts once; all that follows is shared.

One call a question: the SDKs' own retries, continuations and refreshes are switched off, because the run counts and pays for every call. Whatever
comes back ends as a rationale, a typed refusal or `CallFailed`. The key comes from the environment, travels in a header (never in an address) and is
not kept in the teacher; what SDKs, servers and models say is searched for it before it is stored or raised.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from PIL.Image import Image

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.prompt import QUOTED, jpeg, load_prompt, render
from refinevla_kit.teacher.replies import parse
from refinevla_kit.teacher.schema import CallFailed, Rationale, Refusal, Reply, Request, Usage

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
STOPPED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION", "PUP_LIMITED_DISABLED")
_CONNECTING = threading.Lock()  # google-generativeai is configured globally, and a key is asked for once


def api_key() -> str:
    """The key in GEMINI_API_KEY or GOOGLE_API_KEY; in a terminal or JupyterLab, asked for in a box that does not show it and kept in this process's
    environment, so that workers started later have it. Raises `KitError` when there is none."""
    key = next((os.environ[name].strip() for name in KEYS if os.environ.get(name, "").strip()), "")
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not key and (hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())):
        try:
            key = os.environ[KEYS[0]] = getpass.getpass("Gemini API key (not shown, not stored): ").strip()
        except (EOFError, NotImplementedError):  # a notebook run without a person before it
            key = ""
    if not key:
        raise KitError("there is no Gemini API key", f"set the environment variable {KEYS[0]}, or run this in JupyterLab or a terminal and be asked")
    if not re.fullmatch(r"[!-~]+", key):
        raise KitError("the Gemini API key has characters that no key has", f"copy it again into {KEYS[0]}: letters, digits and punctuation only")
    return key


@dataclass
class _Gemini:
    """What both teachers share.

    Args:
        model: as Google names it ("gemini-3.8-flash"); there is no default, because models are withdrawn within about a year.
        prompt: a file of prompts/, or the path of your own. contact_sheet, state: see `prompt.render`.
        max_output_tokens: of one answer, the model's thinking included. timeout: seconds without a byte from the server.
        base_url: another server that speaks Gemini's API.
    Attributes: name, version, prompt_hash: see `Teacher`; the version names the model and what else changes its answers.
    """

    model: str = ""
    prompt: str = "rationale_v1"
    contact_sheet: bool = False
    state: bool = False
    max_output_tokens: int = 4096
    timeout: float = 120.0
    base_url: str | None = None

    name = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise KitError(f"the teacher {self.name} needs a model", "give model=..., one that Google lists and your key may use (gemini-3.8-flash)")
        self._send: Any = None
        self._prompt = load_prompt(self.prompt)
        self.prompt_hash = self._prompt.hash
        self.version = ", ".join([self.model, *(word.replace("_", " ") for word in ("contact_sheet", "state") if getattr(self, word))])

    def __getstate__(self) -> dict[str, Any]:
        """Without the client, which holds the key: another process makes its own."""
        return self.__dict__ | {"_send": None}

    def prepare(self) -> None:
        """Make the client, asking for the key if need be: for the main thread, before the first call. Raises `KitError` without SDK or key."""
        with _CONNECTING:
            if self._send is None:
                self._send = self._connect()

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """See `Teacher.annotate`. A reply without token counts (a page from a proxy, say) counts at its worst case."""
        self.prepare()
        parts = render(self._prompt, request, previous, contact_sheet=self.contact_sheet, state=self.state)
        contents = [part if isinstance(part, str) else {"inline_data": {"mime_type": "image/jpeg", "data": jpeg(part)}} for part in parts]
        problem = None
        try:
            response = self._send(contents)
        except Exception as error:  # each SDK has its own, and each of its HTTP libraries
            problem = _problem(error)
        if isinstance(problem, CallFailed):
            raise problem  # out here, so that no SDK's exception hangs on to it
        if problem is not None:
            used, raw = None, problem.strip()
            result: Rationale | Refusal = Refusal("not_json" if raw else "empty", f"the server's answer could not be read: {_line(raw)}")
        else:
            used, (raw, result) = _usage(response), _read(response, request)
        used = used or self.worst_case(request)
        return Reply(result, raw, used.input_tokens, used.output_tokens)

    def worst_case(self, request: Request) -> Usage:
        """See `Teacher.worst_case`.

        Input: a token is at least one byte of UTF-8, so text counts with its bytes, the follow-up's included; a picture with the most that Google
        documents of any model: 258 for each tile, of 256 pixels at the least, or 2,240 at the highest media resolution; 256 for turns and markers.
        Output: `max_output_tokens`, at which Gemini cuts off thinking and answer together.
        """
        parts = render(self._prompt, request, contact_sheet=self.contact_sheet, state=self.state)
        text = "".join([*(part for part in parts if isinstance(part, str)), self._prompt.repair, json.dumps(self._prompt.schema)])
        pictures = sum(max(2240, 258 * (1 + -(-part.width // 256) * -(-part.height // 256))) for part in parts if isinstance(part, Image))
        return Usage(len(text.encode("utf-8", "replace")) + QUOTED + 400 + pictures + 256, self.max_output_tokens)

    def _connect(self) -> Callable[[list[Any]], Any]:
        """A function that sends contents, once, and returns the SDK's response."""
        raise NotImplementedError


@dataclass
class GeminiTeacher(_Gemini):
    """Gemini through google-genai; arguments as `_Gemini` has them, and `thinking`: a budget in tokens (Gemini 2.5) or a level ("low"; Gemini 3 and
    later), None for the model's own."""

    thinking: int | str | None = None
    name = "gemini"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.version += "" if self.thinking is None else f", thinking {self.thinking}"

    def _connect(self) -> Callable[[list[Any]], Any]:
        try:
            import httpx2
            from google import genai
        except ImportError as error:
            raise KitError("the teacher gemini needs google-genai", "pip install 'refinevla_kit[gemini]'") from error
        options = genai.types.HttpOptions(
            base_url=self.base_url, api_version="v1beta", timeout=round(1000 * self.timeout),  # milliseconds
            client_args={"limits": httpx2.Limits(max_connections=None)},  # as many connections as the run allows calls, not 100
        )  # fmt: skip
        thinking = {"thinking_budget" if isinstance(self.thinking, int) else "thinking_level": self.thinking}
        config = genai.types.GenerateContentConfig(
            max_output_tokens=self.max_output_tokens, response_mime_type="application/json",
            response_schema=self._prompt.schema | {"property_ordering": self._prompt.schema["required"]},  # or some models answer alphabetically
            thinking_config=None if self.thinking is None else genai.types.ThinkingConfig.model_validate(thinking),
            automatic_continuation=False, automatic_function_calling=genai.types.AutomaticFunctionCallingConfig(disable=True),
        )  # fmt: skip
        client = genai.Client(api_key=api_key(), vertexai=False, http_options=options)
        return lambda contents: client.models.generate_content(model=self.model, contents=contents, config=config)


@dataclass
class GeminiLegacyTeacher(_Gemini):
    """Gemini through google-generativeai, over REST; arguments as `_Gemini` has them. Models think as they please, within `max_output_tokens`."""

    name = "gemini-legacy"

    def _connect(self) -> Callable[[list[Any]], Any]:
        try:
            import google.generativeai as genai
            from google.generativeai.client import get_default_generative_client
            from requests.adapters import HTTPAdapter
        except ImportError as error:
            raise KitError("the teacher gemini-legacy needs google-generativeai", "pip install 'refinevla_kit[gemini]'") from error
        genai.configure(api_key=api_key(), transport="rest", client_options={"api_endpoint": self.base_url} if self.base_url else None)
        model: Any = genai.GenerativeModel(self.model)
        model._client = get_default_generative_client()  # this teacher's own: another one may configure another server
        session = model._client.transport._session
        session._max_refresh_attempts = 0  # a 401 would be sent three times: there is nothing to refresh about a key
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=256))  # not 10, beyond which connections are thrown away after each call
        config = {"max_output_tokens": self.max_output_tokens, "response_mime_type": "application/json", "response_schema": self._prompt.schema}
        options = {"timeout": self.timeout, "retry": None}
        return lambda contents: model.generate_content(contents, generation_config=config, request_options=options)


def _read(response: Any, request: Request) -> tuple[str, Rationale | Refusal]:
    """The text of a response and what it amounts to. Both SDKs name things alike; what is absent is None in one, 0 or empty in the other."""
    block = _name(getattr(response.prompt_feedback, "block_reason", None))
    if block or (not response.candidates and _usage(response)):  # without an answer the question was blocked, for a reason this SDK may not know
        return "", Refusal("blocked", f"the question was blocked ({block or 'no reason given'})")
    candidate = response.candidates[0] if response.candidates else None
    finish = _name(getattr(candidate, "finish_reason", None))
    parts = getattr(getattr(candidate, "content", None), "parts", None) or []
    text = _scrub("".join(part.text or "" for part in parts if not getattr(part, "thought", False)))
    if finish in STOPPED or finish.startswith("IMAGE_"):
        return text, Refusal("safety", f"the answer was stopped ({finish})")
    if finish == "LANGUAGE":
        return text, Refusal("other_language", "the answer was stopped for its language")
    return text, parse(text, request, cut=finish in ("MAX_TOKENS", "CONTINUATION"))


def _usage(response: Any) -> Usage | None:
    """Tokens paid for: thinking is paid as output (google-generativeai does not know it, but the total holds it). None where the server is silent."""
    counts = (getattr(response.usage_metadata, f"{kind}_token_count", None) for kind in ("prompt", "candidates", "thoughts", "total"))
    asked, answered, thought, total = (int(count or 0) for count in counts)
    return Usage(asked, max(answered + thought, total - asked)) if asked or answered or total else None


def _name(value: Any) -> str:
    """An enum's name in either SDK; "" for none and "unspecified"."""
    name = getattr(value, "name", None) or ("" if value is None else str(value))
    return "" if "UNSPECIFIED" in name else name


def _problem(error: Exception) -> CallFailed | str:
    """What an exception of an SDK means: a call that brought no answer, or the text of an answer (status 200) that the SDK could not read."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = re.sub(r"^POST \S+: ", "", _line(_scrub(str(getattr(error, "message", None) or error))))
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return CallFailed(_kind(int(code), said), f"HTTP {int(code)}: {said}", _retry_after(error))
    if kinds & {"TimeoutException", "Timeout", "TimeoutError"}:
        return CallFailed("timeout", said or type(error).__name__)
    if kinds & {"TransportError", "RequestError", "RequestException", "OSError"}:
        return CallFailed("connection", said or type(error).__name__)
    if kinds & {"ValueError", "ParseError", "AttributeError", "TypeError"}:
        causes = (error, error.__cause__, error.__context__)
        raw = next((text for cause in causes if (text := getattr(cause, "doc", getattr(cause, "object", None))) is not None), said)
        return _scrub(raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw))
    return CallFailed("bad_request", f"{type(error).__name__}: {said}")


def _kind(code: int, said: str) -> str:
    if code in (401, 403) or (code == 400 and "api key" in said.lower()):  # Google answers a wrong key with 400
        return "unauthorised"
    if code < 400 or code >= 500:
        return "server"
    return {404: "not_found", 408: "timeout", 429: "quota"}.get(code, "bad_request")


def _retry_after(error: Any) -> float | None:
    """Seconds to wait, as the header Retry-After or google.rpc.RetryInfo in the body says; the longer of the two."""
    header = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    body = getattr(error, "details", None) or []
    details = (body.get("error") or body).get("details") or [] if isinstance(body, dict) else body
    said = [header, *(detail.get("retryDelay", "") for detail in details if isinstance(detail, dict))]
    return max((float(match[1]) for text in said if (match := re.fullmatch(r"(\d+(?:\.\d+)?)s?", str(text)))), default=None)


def _scrub(text: str) -> str:
    """The text without any key of this process, and fit for UTF-8."""
    for key in filter(None, (os.environ.get(name, "").strip() for name in KEYS)):
        text = text.replace(key, "<key>").replace(quote(key, safe=""), "<key>")
    return text.encode("utf-8", "replace").decode()


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
