"""A Gemini API on 127.0.0.1 that answers as told: a real HTTP server, so that both SDKs meet every kind of
answer over a real socket.

with GeminiServer(["ok", "quota", answer(text="...")]) as server:   # in this order, the last one for ever
    GeminiTeacher(base_url=server.url) ...
    server.requests[0].text                                         # what was asked
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

os.environ.setdefault("NO_PROXY", "127.0.0.1")  # a proxy in the environment has no business with this server

PARTS = {
    "observation": "A carrot lies at the left of the table, a plate at the right; the open gripper is "
    "above the "
    "carrot.",
    "situation_analysis": "The carrot is not held yet and the plate is empty, so the robot is still at "
    "the first sub-task.",
    "spatial_reasoning": "The gripper is about 10 cm above the carrot; the plate is about 20 cm to the "
    "right of the "
    "carrot.",
    "task_planning": "Move down to the carrot, then close the gripper on it, lift it and carry it over "
    "to the plate.",
    "instruction_matches": True,
    "mismatch": "",
    "facts": {
        "source": "carrot",
        "held": "nothing",
        "reach_height_cm": 10,
        "sub_task": "descend",
        "motion": "?",
    },
}
"""A rationale as a teacher should write it."""

USAGE = {
    "promptTokenCount": 900,
    "candidatesTokenCount": 120,
    "thoughtsTokenCount": 30,
    "totalTokenCount": 1050,
}
PROMPT_ONLY = {"promptTokenCount": 900, "totalTokenCount": 900}
PAID = (900, 150)
"""Input and output tokens that `USAGE` amounts to: thinking is paid as output."""


@dataclass(frozen=True)
class Answer:
    """What the server sends. `{key}` and `{instruction}` in the body become what the request carried;
    `body=None` resets the connection.
    """

    body: bytes | None = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(frozen=True)
class Received:
    """A request as it came off the socket. `number` counts from 0."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of all turns, in order."""
        return [part for content in self.body.get("contents", []) for part in content["parts"]]

    @property
    def text(self) -> str:
        """All the text of the request, the system instruction included."""
        system = (self.body.get("systemInstruction") or self.body.get("system_instruction") or {}).get(
            "parts", []
        )
        return "\n".join(part["text"] for part in [*system, *self.parts] if "text" in part)

    @property
    def key(self) -> str:
        """The key that was sent, "" for none."""
        return self.headers.get("x-goog-api-key", "")

    @property
    def pictures(self) -> list[tuple[str, bytes]]:
        """(type, bytes) of each picture, in order. The SDKs mix camel and snake case, and both of base64's
        alphabets.
        """
        inline = [
            part.get("inlineData") or part.get("inline_data") for part in self.parts if "text" not in part
        ]
        return [
            (
                one.get("mimeType") or one.get("mime_type"),
                base64.b64decode(one["data"].translate(str.maketrans("-_", "+/"))),
            )
            for one in inline
        ]


def _body(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def answer(
    parts: dict[str, Any] | None = None,
    *,
    text: str | None = None,
    finish: str = "STOP",
    usage: dict[str, int] | None = None,
) -> Answer:
    """A 200 whose candidate says `text`, or `PARTS` changed by `parts` as JSON."""
    said = json.dumps(PARTS | (parts or {}), ensure_ascii=False) if text is None else text
    content: dict[str, Any] = {"role": "model", "parts": [{"text": said}]} if said else {"role": "model"}
    return Answer(
        _body(
            {
                "candidates": [{"content": content, "finishReason": finish, "index": 0}],
                "usageMetadata": usage or USAGE,
                "modelVersion": "scripted-1",
                "responseId": "r",
            }
        )
    )


def error(status: int, name: str, message: str, retry_info: str | None = None, **headers: str) -> Answer:
    """An error in Google's JSON; `retry_info` as in google.rpc.RetryInfo ("7s")."""
    details = (
        [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_info}]
        if retry_info
        else []
    )
    body = {"error": {"code": status, "message": message, "status": name, "details": details}}
    return Answer(_body(body), status, {key.replace("_", "-"): value for key, value in headers.items()})


HTML = b"<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"
GERMAN = {
    "observation": "Die Karotte liegt links auf dem Tisch und der Teller steht rechts davon.",
    "situation_analysis": "Der Greifer ist offen und die Karotte ist noch nicht gegriffen.",
    "spatial_reasoning": "Der Greifer ist etwa zehn Zentimeter über der Karotte und neben dem Teller.",
    "task_planning": "Zuerst den Greifer senken, dann die Karotte greifen und auf den Teller legen.",
}

ANSWERS: dict[str, Answer] = {
    "ok": answer(),
    "key_in_answer": Answer(
        _body(
            {"candidates": [{"content": {"parts": [{"text": "Your key is {key}."}]}, "finishReason": "STOP"}]}
        )
    ),
    "mismatch": answer(
        {"instruction_matches": False, "mismatch": "The robot moves a can, the instruction says a bottle."}
    ),
    "fenced": answer(text=f"Here is the JSON:\n```json\n{json.dumps(PARTS)}\n```"),
    "blocked": Answer(
        _body({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": PROMPT_ONLY})
    ),
    "safety": Answer(_body({"candidates": [{"finishReason": "SAFETY", "index": 0}], "usageMetadata": USAGE})),
    "recitation": Answer(
        _body({"candidates": [{"finishReason": "RECITATION", "index": 0}], "usageMetadata": USAGE})
    ),
    "no_candidates": Answer(_body({"usageMetadata": PROMPT_ONLY})),
    "truncated": answer(text=json.dumps(PARTS)[:170], finish="MAX_TOKENS"),
    "truncated_stop": answer(text=json.dumps(PARTS)[:170]),
    "all_thought": answer(text="", finish="MAX_TOKENS"),
    "wrong_shape": answer(text='{"observation": "A carrot on the left.", "plan": ["reach", "grasp"]}'),
    "wrong_type": answer({"task_planning": ["reach", "grasp"]}),
    "list": answer(text="[1, 2, 3]"),
    "prose": answer(text="The gripper is open and the carrot lies at the left of the table."),
    "html_text": answer(text=HTML.decode()),
    "html": Answer(HTML, headers={"Content-Type": "text/html"}),
    "empty": answer(text=""),
    "empty_body": Answer(b""),
    "non_utf8": Answer(
        b'{"candidates": [{"content": {"parts": [{"text": "\xff\xfe\xe9"}]}, "finishReason": "STOP"}]}'
    ),
    "surrogate": Answer(
        b'{"candidates": [{"content": {"parts": [{"text": "half \\ud83d a pair"}]}, "finishReason": "STOP"}]}'
    ),
    "unknown_finish": answer(text="", finish="SOMETHING_NEW"),
    "german": answer(GERMAN),
    "chinese": answer(dict.fromkeys(GERMAN, "胡萝卜在桌子的左边，盘子在右边，机械手是张开的。")),
    "boilerplate": answer(
        {"observation": "As an AI language model, I cannot see the images that you sent to me."}
    ),
    "echo": answer(dict.fromkeys(GERMAN, "{instruction}")),
    "same": answer(dict.fromkeys(GERMAN, "The robot is performing the task that it was given.")),
    "bad_request": error(400, "INVALID_ARGUMENT", "Invalid value at 'contents'."),
    "bad_key": error(400, "INVALID_ARGUMENT", "API key not valid ({key}). Please pass a valid API key."),
    "unauthorised": error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials: {key}."),
    "forbidden": error(403, "PERMISSION_DENIED", "The key {key} lacks permission."),
    "not_found": error(
        404, "NOT_FOUND", "models/none is not found for API version v1beta; see /v1beta/models?key={key}."
    ),
    "quota": error(
        429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, key={key}.", retry_info="0.25s"
    ),
    "quota_header": error(429, "RESOURCE_EXHAUSTED", "Slow down.", Retry_After="2"),
    "quota_bare": error(429, "RESOURCE_EXHAUSTED", "Slow down."),
    "daily_quota": Answer(
        _body(
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota. Please retry in 2.1s.",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
                        },
                        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.1s"},
                    ],
                }
            }
        ),
        429,
    ),
    "daily_quota_text": Answer(b'{"error": "your daily limit of 50 requests is reached"}', 429),
    "error_text": Answer(b'{"error": "no route found for model m"}', 404),
    "error_string": Answer(b'"model not found"', 404),
    "error_list": Answer(b'[{"error": {"code": 403, "message": ["no", "text"], "details": "none"}}]', 403),
    "error_in_200": Answer(b'{"error": {"code": 503, "message": "upstream timed out", "details": 5}}'),
    "server": error(500, "INTERNAL", "An internal error has occurred for {key}."),
    "overloaded": error(503, "UNAVAILABLE", "The model is overloaded.", Retry_After="1"),
    "html_502": Answer(HTML + b"{key}", 502, {"Content-Type": "text/html"}),
    "odd_json": Answer(b"[]"),
    "odd_types": Answer(b'{"candidates": "none", "usageMetadata": {"promptTokenCount": 900}}'),
    "continuation": answer(text=json.dumps(PARTS)[:170], finish="CONTINUATION"),
    "deadline": error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    "slow": replace(answer(), delay=3.0),
    "reset": Answer(None),
}
"""One answer of every kind, by name."""

Script = Callable[[Received], Answer | str] | Sequence[Answer | str]


class GeminiServer:
    """Plays `script`: answers (or names in `ANSWERS`) in order, the last one for ever; or a function from the
    request to its answer.

    Args:
        latency: seconds before each answer.
        keep: requests kept in the log, the newest ones (a benchmark wants few).
    Attributes: answers, received: by name, and what a request is read as; a subclass has another API's.
        url: "http://127.0.0.1:PORT". requests: the log. count: requests received. most_at_once: the most that
        were under way together.
    """

    answers: ClassVar[dict[str, Answer]] = ANSWERS
    received: ClassVar[type[Received]] = Received

    def __init__(self, script: Script = ("ok",), latency: float = 0.0, keep: int = 1000) -> None:
        self.script, self.latency = script, latency
        self.requests: deque[Received] = deque(maxlen=keep)
        self.count = self.most_at_once = self._now = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                outer._serve(self)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, *_: Any) -> None:
                """A client that hung up: its time-out is what is being played."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> GeminiServer:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)) or b"{}")
        with self._lock:
            received = self.received(
                self.count,
                handler.path,
                {name.lower(): value for name, value in handler.headers.items()},
                body,
            )
            self.requests.append(received)
            self.count, self._now = self.count + 1, self._now + 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            named = (
                self.script(received)
                if callable(self.script)
                else self.script[min(received.number, len(self.script) - 1)]
            )
            played = self.answers[named] if isinstance(named, str) else named
            if played.delay:
                self._closing.wait(played.delay)
            time.sleep(self.latency)
        finally:
            with self._lock:
                # Before the answer is out: the client may send its next request as soon as it has this one's
                self._now -= 1
        self._send(handler, played, received)

    def _send(self, handler: BaseHTTPRequestHandler, played: Answer, received: Received) -> None:
        if played.body is None:
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # close with RST, not FIN
            handler.connection.shutdown(socket.SHUT_RD)
            handler.close_connection = True
            handler.rfile.close()
            handler.wfile.close()
            handler.connection.close()
            return
        asked = (
            re.search(r'The instruction: "(.*)"', received.text) if b"{instruction}" in played.body else None
        )
        body = played.body.replace(b"{key}", received.key.encode())
        body = body.replace(b"{instruction}", asked[1].encode() if asked else b"")
        handler.send_response(played.status)
        for name, value in (
            {"Content-Type": "application/json; charset=UTF-8"}
            | played.headers
            | {"Content-Length": str(len(body))}
        ).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
