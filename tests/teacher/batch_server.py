"""Gemini's batch mode beside its direct calls, on 127.0.0.1: files are uploaded, jobs made, listed and looked
at, answers downloaded, as google-genai does it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.teacher.gemini_server import Answer, GeminiServer, Received, Script

WORKING, DONE, FAILED = "BATCH_STATE_RUNNING", "BATCH_STATE_SUCCEEDED", "BATCH_STATE_FAILED"


class BatchServer(GeminiServer):
    """Plays `script` for each request of a batch.

    Args:
        looks: how often a job is looked at before it has ended.
        failing: jobs fail instead.

    Attributes:
        jobs: by the server's name, with the name that they were submitted under and their requests.
        asked: how often each request was in a job, by its key.
        gone: the stage, "get" or "download", at which nothing is there any more.
        at: called with the stage ("upload", "create", "get", "list", "download") before it is answered.
    """

    def __init__(self, script: Script = ("ok",), looks: int = 1, failing: bool = False) -> None:
        super().__init__(script)
        self.looks, self.failing = looks, failing
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        self.gone = ""
        self.at: Any = lambda stage: None

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = handler.path.partition("?")[0]
        if path == "/upload/v1beta/files":
            self._reply(handler, {}, **{"X-Goog-Upload-URL": f"{self.url}/upload/here"})
        elif path == "/upload/here":
            self.at("upload")
            name = f"files/in{len(self.files)}"
            self.files[name] = body
            self._reply(handler, {"file": {"name": name}}, **{"X-Goog-Upload-Status": "final"})
        elif path.endswith(":batchGenerateContent"):
            given = json.loads(body)["batch"]
            name = f"batches/job{len(self.jobs)}"
            lines = [json.loads(line) for line in self.files[given["inputConfig"]["fileName"]].splitlines()]
            self.jobs[name] = {"name": given["displayName"], "requests": lines, "looks": 0}
            self.asked.update(line["key"] for line in lines)
            self.at("create")
            self._reply(handler, self._job(name))
        elif path == "/v1beta/batches":
            self.at("list")
            self._reply(handler, {"operations": [self._job(name) for name in self.jobs]})
        elif self.gone == ("download" if path.endswith(":download") else "get"):
            handler.send_error(404)
        elif path.startswith("/v1beta/batches/"):
            self.at("get")
            name = path.removeprefix("/v1beta/")
            self.jobs[name]["looks"] += 1
            self._reply(handler, self._job(name))
        elif match := re.fullmatch(r"/(?:download/)?v1beta/files/(out-job\d+):download", path):
            self.at("download")
            self._reply(handler, self._answers(f"batches/{match[1].removeprefix('out-')}"))
        else:
            handler.send_error(404)

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        ended = job["looks"] >= self.looks
        state = (FAILED if self.failing else DONE) if ended else WORKING
        about: dict[str, Any] = {"displayName": job["name"], "state": state}
        found: dict[str, Any] = {"name": name, "metadata": about, "done": ended}
        if ended and self.failing:
            found["error"] = {"code": 3, "message": "the file could not be read"}
        elif ended:
            about["output"] = {"responsesFile": f"files/out-{name.removeprefix('batches/')}"}
        return found

    def _answers(self, name: str) -> bytes:
        """One line a request, in an order of the server's own."""
        lines = []
        for line in self.jobs[name]["requests"]:
            received = Received(self.count, line["key"], {}, line["request"])
            self.requests.append(received)
            self.count += 1
            named = self.script(received) if callable(self.script) else self.script[0]
            played: Answer = self.answers[named] if isinstance(named, str) else named
            content = json.loads(played.body or b"{}")
            what = {"response": content} if played.status < 300 else content
            lines.append(json.dumps({"key": line["key"]} | what))
        return "\n".join(reversed(lines)).encode()

    def _reply(self, handler: BaseHTTPRequestHandler, value: Any, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(200)
        for name, text in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(content)
