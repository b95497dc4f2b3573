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
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NoReturn
from urllib.parse import quote

from PIL.Image import Image

from refinevla_kit.errors import KitError, install
from refinevla_kit.teacher.estimate import attended
from refinevla_kit.teacher.prompt import QUOTED, jpeg, load_prompt, render
from refinevla_kit.teacher.replies import parse
from refinevla_kit.teacher.schema import CallFailed, Rationale, Refusal, Reply, Request, Usage

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
STOPPED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION", "PUP_LIMITED_DISABLED")
DAILY = re.compile(r"per[\s_-]?day|\bdaily\b|\brpd\b", re.IGNORECASE)  # a quota that no wait of seconds renews
MOST_TOKENS = 10**9  # a server that counts more of them in a call is wrong
UNREACHABLE = {
    "ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "NewConnectionError",
    "ConnectTimeoutError", "NameResolutionError", "SSLError", "InvalidSchema", "InvalidURL", "MissingSchema",
    "ConnectionRefusedError", "gaierror",
}  # fmt: skip
"""Errors of HTTP libraries by which nothing was sent, so that nothing is paid."""
_CONNECTING = threading.Lock()  # google-generativeai is configured globally, and a key is asked for once


def _known_key() -> str:
    return next((os.environ[name].strip() for name in KEYS if os.environ.get(name, "").strip()), "")


def api_key() -> str:
    """The key in GEMINI_API_KEY or GOOGLE_API_KEY; in a terminal or JupyterLab, asked for in a box that does not show it and kept in this process's
    environment, so that workers started later have it. Raises `KitError` when there is none."""
    key = _known_key()
    if not key and attended():
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
    packages: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise KitError(f"the teacher {self.name} needs a model", "give model=..., one that Google lists and your key may use (gemini-3.8-flash)")
        if type(self.max_output_tokens) is not int or self.max_output_tokens < 1:
            raise KitError(f"max_output_tokens is {self.max_output_tokens!r}", "give a whole number of 1 or more")
        if type(self.timeout) not in (int, float) or not self.timeout > 0:
            raise KitError(f"timeout is {self.timeout!r}", "give a number of seconds above 0")
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
                self._import()
                try:
                    self._send = self._connect()
                except (ValueError, TypeError) as error:  # the SDKs' own check of options
                    what = f"the teacher {self.name} has an option that its SDK refuses"
                    raise KitError(f"{what} ({_line(_scrub(str(error)))})", "mend it") from None

    def check(self) -> None:
        """Find out what would stop the first call, without one and without asking anybody. Raises `KitError`."""
        if _known_key() or not attended():
            self.prepare()
        else:
            self._import()

    def _import(self) -> None:
        try:
            for package in self.packages:
                import_module(package)
        except ImportError as error:
            raise KitError(f"the teacher {self.name} needs {self.packages[-1]} ({error})", install("gemini")) from error

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """See `Teacher.annotate`. A reply without token counts (a page from a proxy, say) counts at its worst case."""
        self.prepare()
        parts = render(self._prompt, request, previous, contact_sheet=self.contact_sheet, state=self.state)
        contents = [part if isinstance(part, str) else {"inline_data": {"mime_type": "image/jpeg", "data": jpeg(part)}} for part in parts]
        try:
            self._send(contents)
            outcome: _Received | CallFailed = CallFailed("connection", "the SDK kept the answer to itself")
        except _Received as received:
            outcome = received.with_traceback(None)  # whose frames would keep the pictures in memory
        except Exception as error:  # each SDK has its own, and each of its HTTP libraries
            outcome = _problem(error)
        answer = outcome.answer(request) if isinstance(outcome, _Received) else outcome
        if isinstance(answer, CallFailed):
            raise answer  # out here: no SDK's exception hangs on to it, and no variable holds what came back
        used, raw, result = answer
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
        """A function that sends contents, once, and raises `_Received`."""
        raise NotImplementedError


@dataclass
class GeminiTeacher(_Gemini):
    """Gemini through google-genai; arguments as `_Gemini` has them, and `thinking`: a budget in tokens (Gemini 2.5) or a level ("low"; Gemini 3 and
    later), None for the model's own."""

    thinking: int | str | None = None
    name = "gemini"
    packages = ("httpx2", "google.genai")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thinking is not None and type(self.thinking) not in (int, str):
            raise KitError(f"thinking is {self.thinking!r}", 'give a number of tokens, a level such as "low", or None')
        self.version += "" if self.thinking is None else f", thinking {self.thinking}"

    def _connect(self) -> Callable[[list[Any]], Any]:
        import httpx2
        from google import genai

        options = genai.types.HttpOptions(
            base_url=self.base_url, api_version="v1beta", timeout=round(1000 * self.timeout),  # milliseconds
            client_args={
                "limits": httpx2.Limits(max_connections=None),  # as many connections as the run allows calls, not 100
                "event_hooks": {"response": [lambda got: got.next_request or _received(got.status_code, got.headers, got.read())]},
            },
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
    packages = ("requests", "google.generativeai")

    def _connect(self) -> Callable[[list[Any]], Any]:
        import google.generativeai as genai
        from google.generativeai.client import get_default_generative_client
        from requests.adapters import HTTPAdapter

        genai.configure(api_key=api_key(), transport="rest", client_options={"api_endpoint": self.base_url} if self.base_url else None)
        model: Any = genai.GenerativeModel(self.model)
        model._client = get_default_generative_client()  # this teacher's own: another one may configure another server
        session = model._client.transport._session
        session._max_refresh_attempts = 0  # a 401 would be sent three times: there is nothing to refresh about a key
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=256))  # not 10, beyond which connections are thrown away after each call
        session.hooks["response"] = [lambda got, **_: got.is_redirect or _received(got.status_code, got.headers, got.content)]
        config = {"max_output_tokens": self.max_output_tokens, "response_mime_type": "application/json", "response_schema": self._prompt.schema}
        options = {"timeout": self.timeout, "retry": None}
        return lambda contents: model.generate_content(contents, generation_config=config, request_options=options)


def _received(status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
    """The hook in each SDK's HTTP library: takes a response out of its hands, as it fails on what proxies answer."""
    raise _Received(status, headers.get("Retry-After") or "", body)


class _Received(Exception):
    """A response as it came off the wire: no error, but the way in which it leaves the SDK."""

    def __init__(self, status: int, retry_after: str, body: bytes) -> None:
        super().__init__(status)
        self.status, self.retry_after, self.body = status, retry_after, body

    def answer(self, request: Request) -> tuple[Usage | None, str, Rationale | Refusal] | CallFailed:
        """Tokens paid for (None where the server does not say), the text, and what it amounts to; or the error that came."""
        raw = _scrub(self.body.decode("utf-8", "replace").strip())
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        document = found[0] if isinstance(found, list) and found else found
        candidates = _at(document, "candidates")
        if self.status >= 300 or (_at(document, "error") and not candidates):
            return self._failure(document, raw)
        if not isinstance(document, dict):
            reason = f"the server's answer could not be read: {_line(raw)}"
            return None, raw, Refusal("not_json" if raw else "empty", reason)
        used, block = _usage(document), _name(_at(document, "promptFeedback", "blockReason"))
        if block or (used and not candidates):  # without an answer it was blocked, for a reason that is not told
            return used, "", Refusal("blocked", f"the question was blocked ({block or 'no reason given'})")
        candidate = _at(candidates, 0)
        if candidates and not isinstance(candidate, dict):
            reason = f"the server's answer has not the shape of Gemini's: {_line(raw)}"
            return used, raw, Refusal("not_json", reason)
        finish = _name(_at(candidate, "finishReason"))
        parts = _items(_at(candidate, "content", "parts"))
        texts = [_at(part, "text") for part in parts if not _at(part, "thought")]
        text = _scrub("".join(text for text in texts if isinstance(text, str)))
        if finish in STOPPED or finish.startswith("IMAGE_"):
            return used, text, Refusal("safety", f"the answer was stopped ({finish})")
        if finish == "LANGUAGE":
            return used, text, Refusal("other_language", "the answer was stopped for its language")
        return used, text, parse(text, request, cut=finish in ("MAX_TOKENS", "CONTINUATION"))

    def _failure(self, document: Any, raw: str) -> CallFailed:
        """An error in Google's JSON, or in whatever a proxy makes of it."""
        error = _at(document, "error") or document
        message = error if isinstance(error, str) else _at(error, "message")
        said = _line(_scrub(message) if isinstance(message, str) else raw) or "no reason given"
        code = _at(error, "code")
        status = self.status if self.status >= 300 else code if type(code) is int else 500
        waits = [self.retry_after, *(_at(detail, "retryDelay") for detail in _items(_at(error, "details")))]
        matches = [re.fullmatch(r"(\d+(?:\.\d+)?)s?", wait) for wait in waits if isinstance(wait, str)]
        kind = _kind(status, said)
        if kind == "quota" and DAILY.search(raw):
            kind = "daily_quota"
        wait = max((float(match[1]) for match in matches if match), default=None)
        return CallFailed(kind, f"HTTP {status}: {said}", wait)


def _at(value: Any, *path: str | int) -> Any:
    """What lies at `path` in a JSON value of any shape, None where nothing does."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _usage(document: dict[str, Any]) -> Usage | None:
    """Tokens paid for: thinking is paid as output. None where the server is silent or its counts make no sense."""
    counts = [
        _at(document, "usageMetadata", f"{kind}TokenCount") or 0
        for kind in ("prompt", "candidates", "thoughts", "total")
    ]
    try:
        asked, answered, thought, total = map(int, counts)
    except (TypeError, ValueError, OverflowError):
        return None
    if min(asked, answered, thought, total) < 0 or max(asked, answered, thought, total) > MOST_TOKENS:
        return None
    return Usage(asked, max(answered + thought, total - asked)) if asked or answered or total else None


def _name(value: Any) -> str:
    """An enum's name; "" for none and "unspecified"."""
    return _line(_scrub(value)) if isinstance(value, str) and "UNSPECIFIED" not in value else ""


def _problem(error: Exception) -> CallFailed:
    """What an exception means that came instead of a response."""
    said, kinds = _line(_scrub(str(error))) or type(error).__name__, _kinds(error)
    if kinds & UNREACHABLE:
        return CallFailed("unreachable", said)
    if kinds & {"TimeoutException", "Timeout", "TimeoutError"}:
        return CallFailed("timeout", said)
    if kinds & {"TransportError", "RequestError", "RequestException", "OSError"}:
        return CallFailed("connection", said)
    return CallFailed("bad_request", f"{type(error).__name__}: {said}")  # the SDK's, which sent nothing


def _kinds(error: Any) -> set[str]:
    """Names of the classes of an error and of those it was made from: HTTP libraries wrap the system's."""
    names: set[str] = set()
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            names |= {kind.__name__ for kind in type(each).__mro__}
            todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    return names


def _kind(code: int, said: str) -> str:
    if code in (401, 403) or (code == 400 and "api key" in said.lower()):  # Google answers a wrong key with 400
        return "unauthorised"
    if code < 400 or code >= 500:
        return "server"
    return {404: "not_found", 408: "timeout", 429: "quota"}.get(code, "bad_request")


def _scrub(text: str) -> str:
    """The text without any key of this process, and fit for UTF-8."""
    for key in filter(None, (os.environ.get(name, "").strip() for name in KEYS)):
        text = text.replace(key, "<key>").replace(quote(key, safe=""), "<key>")
    return text.encode("utf-8", "replace").decode()


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
