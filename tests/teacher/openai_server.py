"""OpenAI's chat completions on 127.0.0.1, answered as told over a real socket; see `gemini_server`.

with OpenAIServer(["ok", "quota", completion("...")]) as server:
    OpenAITeacher("m", base_url=server.url) ...
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tests.teacher.gemini_server import GERMAN, HTML, PARTS, Answer, GeminiServer, Received

USAGE = {"prompt_tokens": 900, "completion_tokens": 150, "total_tokens": 1050}
PAID = (900, 150)
"""Input and output tokens that `USAGE` amounts to."""


@dataclass(frozen=True)
class Chat(Received):
    """A request for a chat completion."""

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of all turns, in order."""
        return [part for message in self.body.get("messages", []) for part in message["content"]]

    @property
    def text(self) -> str:
        """All the text of the request."""
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def key(self) -> str:
        """The key that was sent, "" for none."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def pictures(self) -> list[tuple[str, bytes]]:
        """(type, bytes) of each picture, in order."""
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        halves = [url.removeprefix("data:").split(";base64,") for url in urls]
        return [(kind, base64.b64decode(data)) for kind, data in halves]


def body(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def completion(said: Any = None, finish: str | None = "stop", usage: Any = USAGE, **message: Any) -> Answer:
    """A 200 whose message says `said`: a text, or `PARTS` changed by a dict, or whatever else is given."""
    text = (
        json.dumps(PARTS | (said or {}), ensure_ascii=False)
        if said is None or isinstance(said, dict)
        else said
    )
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text} | message,
        "finish_reason": finish,
    }
    document = {"id": "c-1", "object": "chat.completion", "model": "m", "choices": [choice]}
    return Answer(body(document | ({"usage": usage} if usage else {})))


def error(status: int, message: str, code: Any = None, param: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI words it."""
    said = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Answer(
        body({"error": said}), status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


NO_SCHEMA = error(
    400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
)

ANSWERS: dict[str, Answer] = {
    "ok": completion(),
    "key_in_answer": completion("Your key is {key}."),
    "mismatch": completion(
        {"instruction_matches": False, "mismatch": "The robot moves a can, the instruction says a bottle."}
    ),
    "fenced": completion(f"Here is the JSON:\n```json\n{json.dumps(PARTS)}\n```"),
    "in_parts": completion(
        [{"type": "text", "text": json.dumps(PARTS)[:50]}, {"type": "text", "text": json.dumps(PARTS)[50:]}]
    ),
    "thought": completion('<think>{"observation": "a draft"}</think>\n' + json.dumps(PARTS)),
    "thought_apart": completion(None, reasoning_content="The carrot is at the left."),
    "no_usage": completion(usage=None),
    "stopped": completion("", "content_filter"),
    "stopped_late": completion(json.dumps(PARTS)[:99], "content_filter"),
    "blocked": error(
        400, "The response was filtered: prompt triggered content management policy.", "content_filter"
    ),
    "refused": completion("", refusal="I cannot help with that."),
    "truncated": completion(json.dumps(PARTS)[:170], "length"),
    "truncated_stop": completion(json.dumps(PARTS)[:170]),
    "all_thought": completion("", "length"),
    "cut_thought": completion("<think>The carrot lies at the left of", "length"),
    "wrong_shape": completion('{"observation": "A carrot on the left.", "plan": ["reach", "grasp"]}'),
    "prose": completion("The gripper is open and the carrot lies at the left of the table."),
    "html": Answer(HTML, headers={"Content-Type": "text/html"}),
    "event_stream": Answer(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'),
    "empty": completion(""),
    "null": completion(content=None),
    "tool_call": completion(content=None, tool_calls=[{"id": "t", "type": "function"}]),
    "empty_body": Answer(b""),
    "no_choices": Answer(body({"object": "chat.completion", "choices": [], "usage": USAGE})),
    "other_api": Answer(body({"model": "m", "response": "hello", "done": True})),
    "non_utf8": Answer(b'{"choices": [{"message": {"content": "\xff\xfe\xe9"}}]}'),
    "surrogate": Answer(b'{"choices": [{"message": {"content": "half \\ud83d a pair"}}]}'),
    "german": completion(GERMAN),
    "boilerplate": completion(
        {"observation": "As an AI language model, I cannot see the images that you sent to me."}
    ),
    "echo": completion(dict.fromkeys(GERMAN, "{instruction}")),
    "bad_request": error(400, "This model's maximum context length is 4096 tokens."),
    "unprocessable": Answer(body({"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}), 422),
    "unauthorised": error(401, "Incorrect API key provided: {key}.", "invalid_api_key"),
    "forbidden": Answer(body({"error": "Forbidden for {key}"}), 403),
    "not_found": error(404, "The model `m` does not exist.", 404),
    "not_found_text": Answer(b"404 page not found", 404, {"Content-Type": "text/plain"}),
    "not_found_detail": Answer(body({"detail": "Not Found"}), 404),
    "no_credit": error(402, "Insufficient Balance"),
    "quota": error(
        429, "Rate limit reached, try again in 2s. key={key}", "rate_limit_exceeded", Retry_After="2"
    ),
    "quota_bare": Answer(b"slow down", 429),
    "quota_date": error(429, "Slow down.", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
    "daily_quota": error(
        429,
        "Rate limit reached on requests per day (RPD): Limit 200.",
        "rate_limit_exceeded",
        Retry_After="7",
    ),
    "used_up": error(429, "You exceeded your current quota.", "insufficient_quota"),
    "error_in_200": Answer(body({"error": {"code": 503, "message": "no instance is up"}})),
    "server": error(500, "CUDA out of memory for {key}"),
    "loading": error(503, "Loading model", 503, Retry_After="1"),
    "moved": Answer(b"", 301, {"Location": "/elsewhere"}),
    "html_502": Answer(HTML + b"{key}", 502, {"Content-Type": "text/html"}),
    "slow": replace(completion(), delay=3.0),
    "reset": Answer(None),
}
"""One answer of every kind, by name."""


class OpenAIServer(GeminiServer):
    """Plays `ANSWERS` of this module. `url` ends in /v1."""

    answers: ClassVar[dict[str, Answer]] = ANSWERS
    received: ClassVar[type[Received]] = Chat

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url += "/v1"
