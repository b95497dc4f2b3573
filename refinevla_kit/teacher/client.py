"""What all teachers behind an HTTP server share: options, keys, what a response or an error means.

One call a question, because the run counts and pays for every call. Whatever comes back ends as a
rationale, a typed refusal or `CallFailed`. A key comes from the environment and travels in a header, never
in an address. It is not kept in the teacher. What clients, servers and models say is searched for it before
it is stored or raised.
"""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.prompt import QUOTED, Part, load_prompt, render
from refinevla_kit.teacher.schema import CallFailed, Rationale, Refusal, Reply, Request, Usage

GEMINI_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
OPENAI_KEYS = ("OPENAI_API_KEY",)
SHORTEST_KEY = 8  # characters; a shorter one ("none", "ollama") is a word, which answers may have
# a quota that no wait of seconds renews
DAILY = re.compile(r"per[\s_-]?day|\bdaily\b|\brpd\b|insufficient_quota", re.IGNORECASE)
STATUSES = {
    401: "unauthorised",
    402: "daily_quota",  # there is no credit left
    403: "unauthorised",
    404: "not_found",
    408: "timeout",
    429: "quota",
}
MOST_TOKENS = 10**9  # a server that counts more of them in a call is wrong
KINDS = {
    "unreachable": {  # nothing was sent, so nothing is paid
        "ConnectError",
        "ConnectTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "NewConnectionError",
        "ConnectTimeoutError",
        "NameResolutionError",
        "SSLError",
        "InvalidSchema",
        "InvalidURL",
        "MissingSchema",
        "ConnectionRefusedError",
        "gaierror",
    },
    "timeout": {"TimeoutException", "Timeout", "TimeoutError"},
    "connection": {"TransportError", "RequestError", "RequestException", "OSError"},
}
"""What errors of HTTP libraries mean, by the names of their classes; the first that fits."""
CONNECTING = threading.Lock()  # google-generativeai is configured globally, and a key is asked for once


Answer = tuple[Rationale | Refusal, str, Usage | None]
"""What a response amounts to: what is in it, its text, tokens paid for (None where the server is silent)."""


@dataclass(frozen=True)
class Received:
    """A response as it came off the wire; its body may quote the key, so it is in no repr."""

    status: int
    retry_after: str
    body: bytes = field(repr=False)

    @property
    def raw(self) -> str:
        """The body as text."""
        return scrub(self.body.decode("utf-8", "replace").strip())

    @cached_property
    def document(self) -> Any:
        """The JSON value in the body, the first one of a list; None where there is none. Not scrubbed."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return document[0] if isinstance(document, list) and document else document

    @property
    def error(self) -> Any:
        """What the server says went wrong: Google's and OpenAI's object, or whatever a proxy makes of it."""
        return at(self.document, "error") or self.document

    @property
    def reason(self) -> str:
        """The same in one line."""
        messages = [self.error, at(self.error, "message"), at(self.error, "detail"), ""]
        message = next(text for text in messages if isinstance(text, str))
        return one_line(scrub(message) or self.raw) or "no reason given"

    def failure(self) -> CallFailed:
        """The error that came."""
        status = self.status
        if status < 300:  # an error in what calls itself a success
            code = at(self.error, "code")
            status = code if type(code) is int else 500
        kind = STATUSES.get(status, "bad_request" if 400 <= status < 500 else "server")
        if status == 400 and "api key" in self.reason.lower():  # Google's way
            kind = "unauthorised"
        if kind == "quota" and DAILY.search(self.raw):
            kind = "daily_quota"
        waits = [self.retry_after, *(at(detail, "retryDelay") for detail in items(at(self.error, "details")))]
        matches = [re.fullmatch(r"(\d+(?:\.\d+)?)s?", wait) for wait in waits if isinstance(wait, str)]
        wait = max((float(match[1]) for match in matches if match), default=None)
        return CallFailed(kind, f"HTTP {status}: {self.reason}", wait)

    def unreadable(self, what: str, used: Usage | None = None) -> Answer:
        """An answer that has no text to read, for the reason `what`."""
        kind = "not_json" if self.raw else "empty"
        return Refusal(kind, f"the server's answer {what}: {one_line(self.raw)}"), self.raw, used


@dataclass
class ServedTeacher:
    """What the teachers share.

    Args:
        model: as the server names it; there is no default, because models are withdrawn within about a year.
        prompt: a file of prompts/, or the path of your own.
        state: see `prompt.render`.
        max_output_tokens: of one answer, the model's thinking included.
        timeout: seconds without a byte from the server.
        base_url: of the server.

    Attributes:
        name, prompt_hash: see `Teacher`.
        version: names the model and what else changes its answers.
    """

    model: str = ""
    prompt: str = "rationale_v2"
    state: bool = False
    max_output_tokens: int = 4096
    timeout: float = 120.0
    base_url: str | None = None

    name = ""
    example = ""  # of a model, for whoever gives none
    picture_tokens = 0  # the most that a picture of `prompt.LONGEST_SIDE` is counted as

    def __post_init__(self) -> None:
        if not self.model:
            raise KitError(f"the teacher {self.name} needs a model", f"give model=..., {self.example}")
        most = self.max_output_tokens
        if type(most) is not int or most < 1:
            raise KitError(f"max_output_tokens is {most!r}", "give a whole number of 1 or more")
        if type(self.timeout) not in (int, float) or not self.timeout > 0:
            raise KitError(f"timeout is {self.timeout!r}", "give a number of seconds above 0")
        if type(self.state) is not bool:
            raise KitError(f"state is {self.state!r}", "give true or false")
        if not isinstance(self.prompt, str | os.PathLike):
            raise KitError(f"prompt is {self.prompt!r}", "give the name of a prompt, or a .txt file")
        self._client: Any = None
        self._prompt = load_prompt(self.prompt)
        self.prompt_hash = self._prompt.hash
        self.version = f"{self.model}, state" if self.state else self.model

    def __getstate__(self) -> dict[str, Any]:
        """Without the client, which holds the key: another process makes its own."""
        return self.__dict__ | {"_client": None}

    def prepare(self) -> None:
        """Make the client before the first call, whichever thread it is in. Raises `KitError` where none can
        be.
        """
        with CONNECTING:
            if self._client is None:
                self._client = self._connect()

    def check(self) -> None:
        """Find out what would stop the first call; makes none and asks nobody. Raises `KitError`."""
        self.prepare()

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """See `Teacher.annotate`. A reply without token counts (a proxy's page) counts at its worst case."""
        self.prepare()
        try:
            outcome = self._ask(self.parts(request, previous))
        except Exception as error:  # each client has its own, and each of its HTTP libraries
            outcome = problem(error)
        if isinstance(outcome, CallFailed):
            raise outcome  # out here: no client's exception and no body hangs on to it
        return self.read(outcome, request)

    def parts(self, request: Request, previous: Reply | None = None) -> list[Part]:
        """Texts and pictures of a question, or of its follow-up."""
        return render(self._prompt, request, previous, self.state)

    def read(self, received: Received, request: Request) -> Reply:
        """What a response amounts to; raises `CallFailed`."""
        answer = self._read(received, request)
        if isinstance(answer, CallFailed):
            raise answer
        result, raw, used = answer
        used = used or self.worst_case(request)
        return Reply(result, raw, used.input_tokens, used.output_tokens)

    def worst_case(self, request: Request) -> Usage:
        """See `Teacher.worst_case`.

        Input: a token is at least one byte of UTF-8, so text counts with its bytes, the follow-up's included.
        A picture counts with `picture_tokens`; turns and markers with 256.
        Output: `max_output_tokens`, at which servers cut off thinking and answer together.
        """
        parts = self.parts(request)
        texts = [part for part in parts if isinstance(part, str)]
        text = "".join([*texts, self._prompt.repair, json.dumps(self._prompt.schema)])
        size = len(text.encode("utf-8", "replace")) + self.picture_tokens * (len(parts) - len(texts))
        return Usage(size + QUOTED + 400 + 256, self.max_output_tokens)

    def _connect(self) -> Any:
        """The client. Raises `KitError`."""
        raise NotImplementedError

    def _ask(self, parts: list[Part]) -> Received | CallFailed:
        """One call. What it raises is read by `problem`."""
        raise NotImplementedError

    def _read(self, received: Received, request: Request) -> Answer | CallFailed:
        """What a response amounts to. A failure is returned: a traceback through here would show the body."""
        raise NotImplementedError


def key_in(names: tuple[str, ...]) -> str:
    """The key in the first of the environment variables that has one; "" where none has. Raises `KitError`
    where no header takes it.
    """
    for name in names:
        if key := os.environ.get(name, "").strip():
            if not re.fullmatch(r"[!-~]+", key):
                remedy = f"copy it again into {name}: letters, digits and punctuation only"
                raise KitError(f"the key in {name} has characters that no key has", remedy)
            return key
    return ""


def scrub(text: str) -> str:
    """The text without any key of this process, and fit for UTF-8."""
    for key in (os.environ.get(name, "").strip() for name in (*GEMINI_KEYS, *OPENAI_KEYS)):
        if len(key) >= SHORTEST_KEY:
            text = text.replace(key, "<key>").replace(quote(key, safe=""), "<key>")
    return text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """One line of at most 300 characters, for a reason."""
    return " ".join(text.split())[:300]


def at(value: Any, *path: str | int) -> Any:
    """What lies at `path` in a JSON value of any shape, None where nothing does."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def items(value: Any) -> list[Any]:
    """A JSON list, or an empty one in the place of anything else."""
    return value if isinstance(value, list) else []


def name_of(value: Any) -> str:
    """An enum's name; "" for none and "unspecified"."""
    return one_line(scrub(value)) if isinstance(value, str) and "UNSPECIFIED" not in value else ""


def usage(asked: Any, answered: Any, thought: Any, total: Any) -> Usage | None:
    """Tokens paid for, thinking as output. None where the server is silent or its counts make no sense."""
    try:
        counts = [int(count or 0) for count in (asked, answered, thought, total)]
    except (TypeError, ValueError, OverflowError):
        return None
    if min(counts) < 0 or max(counts) > MOST_TOKENS:
        return None
    asked, answered, thought, total = counts
    return Usage(asked, max(answered + thought, total - asked)) if asked or answered or total else None


def problem(error: Exception) -> CallFailed:
    """What an exception means that came instead of a response."""
    reason = one_line(scrub(str(error))) or type(error).__name__
    names: set[str] = set()  # of its classes and of the errors' it was made from: libraries wrap the system's
    todo: list[Any] = [error]
    seen: list[Any] = []
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and each not in seen:
            seen.append(each)
            names |= {kind.__name__ for kind in type(each).__mro__}
            todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    for kind, classes in KINDS.items():
        if names & classes:
            return CallFailed(kind, reason)
    return CallFailed("bad_request", f"{type(error).__name__}: {reason}")  # the client's, which sent nothing
