"""A teacher behind any server with OpenAI's chat completions: vLLM, Ollama, llama.cpp, `transformers serve`.

It is plain HTTP, without OpenAI's SDK: see `client` for what comes back.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from typing import Any

import httpx

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.answers import parse
from refinevla_kit.teacher.client import (
    OPENAI_KEYS,
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
from refinevla_kit.teacher.schema import CallFailed, Refusal, Request

SERVER = "OPENAI_BASE_URL"
EXAMPLE = "http://localhost:8000/v1 (vLLM) or http://localhost:11434/v1 (Ollama)"
FILTERED = ("content_filter", "content_policy_violation")
CUT = ("length", "max_tokens", "model_length")
DISPENSABLE = {
    "response_format": re.compile(r"response.?format|json.?schema|grammar|guided|structured", re.IGNORECASE),
    "max_tokens": re.compile(r"max_completion_tokens\W+instead", re.IGNORECASE),
    "temperature": re.compile(r"unsupported.*temperature|temperature.*not support", re.IGNORECASE),
}
"""Fields that a server may refuse with a 400 or 422, and how it says so; the next calls go without them."""


@dataclass
class OpenAITeacher(ServedTeacher):
    """Sends the question as one turn of text and pictures, at temperature 0.

    The key in OPENAI_API_KEY is sent where there is one; servers of your own mostly need none.
    Arguments as `ServedTeacher` has them, and these.

    Args:
        timeout: seconds without a byte from the server; it sends none before the whole answer is written.
        base_url: such as http://localhost:8000/v1; without a path, /v1 is added. None takes OPENAI_BASE_URL.

    Raises:
        KitError: without a model or a server's address, or where an option makes no sense.
    """

    timeout: float = 300.0

    name = "openai"
    example = "as the server names it (GET /v1/models lists them)"
    # Above what common open models take of 640 pixels; services that multiply (gpt-4o-mini) may exceed it.
    picture_tokens = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base_url = _checked_url(self.base_url or os.environ.get(SERVER, "").strip())
        self._refused: set[str] = set()  # fields that the server does not take

    def _connect(self) -> httpx.Client:
        key = key_in(OPENAI_KEYS)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # as many connections as the run allows calls
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        try:
            return httpx.Client(headers=headers, timeout=self.timeout, limits=limits)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            what = f"no connection can be made ({one_line(scrub(str(error)))})"
            raise KitError(what, "mend the proxy or the certificates (HTTPS_PROXY, SSL_CERT_FILE)") from None

    def _ask(self, parts: list[Part]) -> Received | CallFailed:
        body = self._body(parts)
        response = self._client.post(f"{self.base_url}/chat/completions", json=body)
        if response.has_redirect_location:  # not followed: a POST may become a GET
            moved = one_line(scrub(response.headers["Location"]))
            return CallFailed("not_found", f"HTTP {response.status_code}: the server is at {moved}")
        received = Received(response.status_code, response.headers.get("Retry-After", ""), response.content)
        if field := self._dispensable(received, body):
            self._refused.add(field)
            said = f"HTTP {received.status}: {received.reason}"
            # to be tried again by the run, which counts that call like any other
            return CallFailed(
                "server", f"the server takes no {field}, the next call goes without ({said})", 0.0
            )
        return received

    def _body(self, parts: list[Part]) -> dict[str, Any]:
        form = {"name": "rationale", "strict": True, "schema": json_schema(self._prompt.schema)}
        fields: dict[str, Any] = {
            "max_tokens": self.max_output_tokens,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        kept = {name: value for name, value in fields.items() if name not in self._refused}
        if "max_tokens" not in kept:
            # OpenAI's newer name, which some servers ignore
            kept["max_completion_tokens"] = self.max_output_tokens
        turn = {"role": "user", "content": [_content(part) for part in parts]}
        return {"model": self.model, "messages": [turn]} | kept

    def _dispensable(self, received: Received, body: dict[str, Any]) -> str:
        """The field for which the server refused the request, if the next can do without it; else ""."""
        complaint = f"{received.reason} {at(received.error, 'param') or ''}"
        fields = [name for name, words in DISPENSABLE.items() if name in body and words.search(complaint)]
        return fields[0] if fields and received.status in (400, 422) else ""

    def _read(self, received: Received, request: Request) -> Answer | CallFailed:
        document = received.document
        choice = at(document, "choices", 0)
        if received.status >= 300 or (at(document, "error") and not choice):
            if at(received.error, "code") in FILTERED:
                return Refusal("blocked", f"the question was blocked ({received.reason})"), "", None
            return received.failure()
        if not isinstance(document, dict):
            return received.unreadable("could not be read")
        counts = [at(document, "usage", f"{kind}_tokens") for kind in ("prompt", "completion", "total")]
        used = usage(counts[0], counts[1], 0, counts[2])
        message, finish = at(choice, "message"), name_of(at(choice, "finish_reason"))
        if not isinstance(message, dict):
            return received.unreadable("has not the shape of a chat completion", used)
        text = scrub(_text(at(message, "content")))
        if finish in FILTERED:
            return Refusal("blocked", f"the answer was stopped ({finish})"), text, used
        refusal = at(message, "refusal")
        if isinstance(refusal, str) and refusal.strip() and not text.strip():
            return Refusal("safety", f"the model refused: {one_line(scrub(refusal))}"), "", used
        return parse(text, request, cut=finish in CUT), text, used


def json_schema(shape: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of an answer's shape, which prompts keep in the form that Gemini's API takes."""
    schema = shape | {"type": shape["type"].lower()}
    if schema.pop("nullable", False):
        schema["type"] = [schema["type"], "null"]
    if "items" in shape:
        schema["items"] = json_schema(shape["items"])
    if "properties" in shape:
        schema["properties"] = {name: json_schema(inner) for name, inner in shape["properties"].items()}
        schema["additionalProperties"] = False  # OpenAI's strict mode wants it said
    return schema


def _checked_url(given: Any) -> str:
    """The server's address, without a slash at its end. Raises `KitError`."""
    remedy = f"give base_url=... or set {SERVER}, such as {EXAMPLE}"
    if not given:
        raise KitError("the teacher openai needs a server", remedy)
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, TypeError):
        raise KitError(f"base_url is {given!r}", remedy) from None
    if url.userinfo or url.query or url.fragment:  # not quoted: it may hold a password
        remedy = f"give it without user, query and fragment; a key goes into {OPENAI_KEYS[0]}"
        raise KitError("base_url has more than an address", remedy)
    if url.scheme not in ("http", "https") or not url.host:
        raise KitError(f"base_url is {given!r}", remedy)
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return str(url.copy_with(path=path or "/v1"))


def _content(part: Part) -> dict[str, Any]:
    """Text or picture, as a part of a turn."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    picture = base64.b64encode(jpeg(part)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}


def _text(content: Any) -> str:
    """What a message says, in one text or in parts, behind the model's thinking."""
    texts = [content] if isinstance(content, str) else [at(part, "text") for part in items(content)]
    text = "".join(text for text in texts if isinstance(text, str))
    answer = text.rpartition("</think>")[2]
    return "" if answer.lstrip().startswith("<think>") else answer  # cut off while thinking
