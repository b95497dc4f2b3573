"""Gemini as a teacher, through either of Google's SDKs: `GeminiTeacher` (google-genai) and
`GeminiLegacyTeacher` (google-generativeai, at its end of life, but what existing projects have). Each is a
thin client behind one seam: it sends the parts once; all that follows is shared.

The SDKs' own retries, continuations and refreshes are switched off: see `client` for what comes back.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from refinevla_kit.errors import KitError, as_kit_error, install
from refinevla_kit.teacher.annotation import attended
from refinevla_kit.teacher.answers import parse
from refinevla_kit.teacher.batches import BatchLost, Job
from refinevla_kit.teacher.client import (
    GEMINI_KEYS,
    Answer,
    Received,
    ServedTeacher,
    at,
    items,
    key_in,
    name_of,
    one_line,
    scrub,
    usage,
)
from refinevla_kit.teacher.prompt import Part, jpeg
from refinevla_kit.teacher.schema import CallFailed, Refusal, Reply, Request

STOPPED = (
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "ESCALATION",
    "PUP_LIMITED_DISABLED",
)


def api_key() -> str:
    """The key in GEMINI_API_KEY or GOOGLE_API_KEY; else a person is asked for it.

    That is in a terminal or JupyterLab, in a box that does not show it. It is kept in this process's
    environment, so that workers started later have it. Raises `KitError` when there is none.
    """
    name = GEMINI_KEYS[0]
    if not key_in(GEMINI_KEYS) and attended():
        with suppress(EOFError, NotImplementedError):  # a notebook run without a person before it
            os.environ[name] = getpass.getpass("Gemini API key (not shown, not stored): ")
    if not (key := key_in(GEMINI_KEYS)):
        remedy = f"set the environment variable {name}, or run this in JupyterLab or a terminal and be asked"
        raise KitError("there is no Gemini API key", remedy)
    return key


class _Gemini(ServedTeacher):
    """What both teachers share; arguments as `ServedTeacher` has them, base_url of another server that speaks
    Gemini's API.
    """

    example = "one that Google lists and your key may use (gemini-3.8-flash)"
    packages: ClassVar[tuple[str, ...]] = ()
    # Google documents 258 for each tile of 256 pixels, or 2,240 at the highest media resolution.
    picture_tokens = 258 * (1 + 3 * 3)

    def check(self) -> None:
        """See `ServedTeacher.check`."""
        if key_in(GEMINI_KEYS) or not attended():
            self.prepare()
        else:
            self._import()

    def _import(self) -> None:
        with as_kit_error(
            f"the teacher {self.name} needs {self.packages[-1]}", install("gemini"), (ImportError,)
        ):
            for package in self.packages:
                import_module(package)

    def _connect(self) -> Callable[[list[Any]], Any]:
        api_key()  # the SDK takes seconds to import, and without a key for nothing
        self._import()
        try:
            return self._sender()
        except (ValueError, TypeError) as error:  # the SDKs' own check of options
            what = f"the teacher {self.name} has an option that its SDK refuses"
            raise KitError(f"{what} ({one_line(scrub(str(error)))})", "mend it") from None

    def _sender(self) -> Callable[[list[Any]], Any]:
        """A function that sends contents, once, and raises `_Intercepted`."""
        raise NotImplementedError

    def _ask(self, parts: list[Part]) -> Received | CallFailed:
        contents: list[Any] = []
        for part in parts:
            if isinstance(part, str):
                contents.append(part)
            else:
                contents.append({"inline_data": {"mime_type": "image/jpeg", "data": jpeg(part)}})
        try:
            self._client(contents)
        except _Intercepted as intercepted:
            return intercepted.received
        return CallFailed("connection", "the SDK kept the answer to itself")

    def _read(self, received: Received, request: Request) -> Answer | CallFailed:
        document = received.document
        candidates = at(document, "candidates")
        if received.status >= 300 or (at(document, "error") and not candidates):
            return received.failure()
        if not isinstance(document, dict):
            return received.unreadable("could not be read")
        kinds = ("prompt", "candidates", "thoughts", "total")
        used = usage(*(at(document, "usageMetadata", f"{kind}TokenCount") for kind in kinds))
        block = name_of(at(document, "promptFeedback", "blockReason"))
        if block or (used and not candidates):  # without an answer, it was blocked for a reason not told
            why = f"the question was blocked ({block or 'no reason given'})"
            return Refusal("blocked", why), "", used
        candidate = at(candidates, 0)
        if candidates and not isinstance(candidate, dict):
            return received.unreadable("has not the shape of Gemini's", used)
        finish = name_of(at(candidate, "finishReason"))
        parts = items(at(candidate, "content", "parts"))
        texts = [at(part, "text") for part in parts if not at(part, "thought")]
        text = scrub("".join(text for text in texts if isinstance(text, str)))
        if finish in STOPPED or finish.startswith("IMAGE_"):
            return Refusal("safety", f"the answer was stopped ({finish})"), text, used
        if finish == "LANGUAGE":
            return Refusal("other_language", "the answer was stopped for its language"), text, used
        return parse(text, request, cut=finish in ("MAX_TOKENS", "CONTINUATION")), text, used


@dataclass
class GeminiTeacher(_Gemini):
    """Gemini through google-genai; arguments as `ServedTeacher` has them.

    Args:
        thinking: a budget in tokens (Gemini 2.5) or a level ("low"; Gemini 3 and later), None for the model's
            own.
    """

    thinking: int | str | None = None
    name = "gemini"
    packages = ("httpx2", "google.genai")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thinking is None:
            return
        if type(self.thinking) not in (int, str):
            remedy = 'give a number of tokens, a level such as "low", or None'
            raise KitError(f"thinking is {self.thinking!r}", remedy)
        self.version += f", thinking {self.thinking}"

    def batches(self) -> GeminiBatches:
        """Its batch mode, see `teacher.batches`."""
        self._import()
        return GeminiBatches(self)

    def _sender(self) -> Callable[[list[Any]], Any]:
        import httpx2

        def take(response: httpx2.Response) -> None:
            if not response.next_request:
                _received(response.status_code, response.headers, response.read())

        limits = httpx2.Limits(max_connections=None)  # as many as the run allows calls, not 100
        client = self.client({"limits": limits, "event_hooks": {"response": [take]}})
        config = self.config()
        return lambda contents: client.models.generate_content(
            model=self.model, contents=contents, config=config
        )

    def client(self, arguments: dict[str, Any] | None = None) -> Any:
        """The SDK's client; `arguments` of its HTTP library."""
        from google import genai

        options = genai.types.HttpOptions(
            base_url=self.base_url,
            api_version="v1beta",
            timeout=round(1000 * self.timeout),  # milliseconds
            client_args=arguments,
        )
        return genai.Client(api_key=api_key(), vertexai=False, http_options=options)

    def config(self) -> Any:
        """The SDK's configuration of a request."""
        from google.genai import types

        thinking = None
        if self.thinking is not None:
            kind = "thinking_budget" if isinstance(self.thinking, int) else "thinking_level"
            thinking = types.ThinkingConfig.model_validate({kind: self.thinking})
        return types.GenerateContentConfig(
            max_output_tokens=self.max_output_tokens,
            response_mime_type="application/json",
            response_schema=_ordered(self._prompt.schema),
            thinking_config=thinking,
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )


def _ordered(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with an order of its fields: some models answer alphabetically without one."""
    if "properties" not in schema:
        return schema
    fields = {name: _ordered(field) for name, field in schema["properties"].items()}
    return schema | {"properties": fields, "property_ordering": schema["required"]}


class GeminiBatches:
    """Gemini's batch mode; see `teacher.batches.BatchServer`."""

    def __init__(self, teacher: GeminiTeacher) -> None:
        from google.genai import types

        self.read = teacher.read
        self._teacher, self._client = teacher, teacher.client()
        config = teacher.config()
        config.response_schema = types.Schema.model_validate(config.response_schema)
        names = {"max_output_tokens", "response_mime_type", "response_schema", "thinking_config"}
        self._generation = config.model_dump(mode="json", by_alias=True, exclude_none=True, include=names)

    def line(self, key: str, request: Request, previous: Reply | None) -> str:
        """What a call would send, as one line."""
        parts: list[dict[str, Any]] = []
        for part in self._teacher.parts(request, previous):
            if isinstance(part, str):
                parts.append({"text": part})
            else:
                data = base64.b64encode(jpeg(part)).decode()
                parts.append({"inlineData": {"mimeType": "image/jpeg", "data": data}})
        asked = {"contents": [{"role": "user", "parts": parts}], "generationConfig": self._generation}
        return json.dumps({"key": key, "request": asked})

    def submit(self, file: Path, name: str) -> str:
        """See `BatchServer`."""
        with _told("sent"):
            kind = {"mime_type": "application/jsonl", "display_name": name}
            uploaded = self._client.files.upload(file=str(file), config=kind)
            job = self._client.batches.create(
                model=self._teacher.model, src=uploaded.name, config={"display_name": name}
            )
        return str(job.name)

    def find(self, name: str) -> str | None:
        """See `BatchServer`."""
        with _told("looked for"):
            jobs = self._client.batches.list(config={"page_size": 100})
            return next((str(job.name) for job in jobs if job.display_name == name), None)

    def look(self, job: str) -> Job | None:
        """See `BatchServer`."""
        with _told("looked at"):
            found = self._client.batches.get(name=job)
        state = found.state.name.removeprefix("JOB_STATE_") if found.state else "UNSPECIFIED"
        if state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED"):
            return Job(file=str(found.dest.file_name) if found.dest else "")
        if state in ("FAILED", "CANCELLED", "EXPIRED"):
            why = found.error.message if found.error else ""
            return Job(one_line(scrub(f"{state.lower()} {why or ''}")))
        return None

    def download(self, file: str) -> Iterator[tuple[str, Received]]:
        """See `BatchServer`."""
        with _told("downloaded"):
            content: bytes = self._client.files.download(file=file)
        for text in content.splitlines():
            with suppress(ValueError):  # a line that is none answers nothing
                line = json.loads(text)
                status, said = 200, at(line, "response")
                if said is None:
                    status, said = 500, {"error": at(line, "error") or {"code": 500}}
                yield str(at(line, "key")), Received(status, "", json.dumps(said).encode())


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the SDK raises becomes one line without the key."""
    try:
        yield
    except Exception as error:
        why = one_line(scrub(f"{type(error).__name__}: {error}"))
        if what in ("looked at", "downloaded") and getattr(error, "code", None) == 404:
            raise BatchLost(f"a batch has left the server ({why})", "Run again to ask anew") from None
        remedy = "run again: what the server has is found by its name, and nothing is sent twice"
        raise KitError(f"a batch could not be {what} ({why})", remedy) from None


@dataclass
class GeminiLegacyTeacher(_Gemini):
    """Gemini through google-generativeai, over REST; arguments as `ServedTeacher` has them.

    Models think as they please, within `max_output_tokens`.
    """

    name = "gemini-legacy"
    packages = ("requests", "google.generativeai")

    def _sender(self) -> Callable[[list[Any]], Any]:
        import google.generativeai as genai
        import requests
        from google.generativeai.client import get_default_generative_client
        from requests.adapters import HTTPAdapter

        genai.configure(
            api_key=api_key(),
            transport="rest",
            client_options={"api_endpoint": self.base_url} if self.base_url else None,
        )

        def take(response: requests.Response, **_: Any) -> None:
            if not response.is_redirect:
                _received(response.status_code, response.headers, response.content)

        model: Any = genai.GenerativeModel(self.model)
        model._client = get_default_generative_client()  # its own: another teacher may have another server
        session = model._client.transport._session
        session._max_refresh_attempts = 0  # a 401 would be sent three times: no key is refreshed
        for scheme in ("https://", "http://"):
            # not 10, beyond which connections are thrown away after each call
            session.mount(scheme, HTTPAdapter(pool_maxsize=256))
        session.hooks["response"] = [take]
        config = {
            "max_output_tokens": self.max_output_tokens,
            "response_mime_type": "application/json",
            "response_schema": self._prompt.schema,
        }
        options = {"timeout": self.timeout, "retry": None}
        return lambda contents: model.generate_content(
            contents, generation_config=config, request_options=options
        )


def _received(status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
    """The hook in each SDK's HTTP library: takes a response out of its hands, as it fails on what proxies
    answer.
    """
    raise _Intercepted(Received(status, headers.get("Retry-After") or "", body))


class _Intercepted(Exception):
    """No error, but the way in which a response leaves the SDK."""

    def __init__(self, received: Received) -> None:
        super().__init__(received.status)
        self.received = received
