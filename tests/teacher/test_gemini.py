"""Both Gemini clients against a real HTTP server that plays every kind of answer: how each ends, what is sent
and paid, and where the key is not.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.answers import SCHEMA, reply_row
from refinevla_kit.teacher.gemini import GeminiLegacyTeacher, GeminiTeacher, api_key
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.prompt import QUOTED, jpeg, load_prompt
from refinevla_kit.teacher.schema import PARTS as PART_NAMES
from refinevla_kit.teacher.schema import REPAIRABLE, CallFailed, Facts, Rationale, Refusal, Reply, Request
from tests.teacher.gemini_server import ANSWERS, HTML, PAID, PARTS, Answer, GeminiServer, Received

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "AIzaSy-not/a+real.key_0123456789"
TEACHERS = (GeminiTeacher, GeminiLegacyTeacher)
MALFORMED = int(
    os.environ.get("MALFORMED_REPLIES", "400")
)  # tried with each SDK; 10,000 in 2026-11 found none

ENDS = {
    "ok": "rationale",
    "mismatch": "rationale",
    "fenced": "rationale",
    "blocked": "blocked",
    "no_candidates": "blocked",
    "safety": "safety",
    "recitation": "safety",
    "truncated": "truncated",
    "truncated_stop": "truncated",
    "all_thought": "truncated",
    "continuation": "truncated",
    "wrong_shape": "wrong_shape",
    "wrong_type": "wrong_shape",
    "list": "wrong_shape",
    "prose": "not_json",
    "html_text": "not_json",
    "html": "not_json",
    "non_utf8": "not_json",
    "surrogate": "not_json",
    "key_in_answer": "not_json",
    "empty": "empty",
    "empty_body": "empty",
    "unknown_finish": "empty",
    "odd_json": "not_json",
    "odd_types": "not_json",
    "german": "other_language",
    "chinese": "other_language",
    "boilerplate": "boilerplate",
    "same": "boilerplate",
    "echo": "echo",
}
"""How each answer ends with either SDK; what google-genai reads as nothing and google-generativeai cannot
read has an end for each.
"""

FAILS = {
    "bad_request": ("bad_request", None),
    "bad_key": ("unauthorised", None),
    "unauthorised": ("unauthorised", None),
    "forbidden": ("unauthorised", None),
    "not_found": ("not_found", None),
    "quota": ("quota", 0.25),
    "quota_header": ("quota", 2.0),
    "quota_bare": ("quota", None),
    "daily_quota": ("daily_quota", 2.1),
    "daily_quota_text": ("daily_quota", None),
    "error_text": ("not_found", None),
    "error_string": ("not_found", None),
    "error_list": ("unauthorised", None),
    "error_in_200": ("server", None),
    "server": ("server", None),
    "overloaded": ("server", 1.0),
    "html_502": ("server", None),
    "deadline": ("server", None),
    "slow": ("timeout", None),
    "reset": ("connection", None),
}
"""Calls that bring no answer: the kind, and the seconds that the server asks to wait."""


class Scripted:
    """One server and one teacher of each SDK for all cases, as in a run: what a case breaks, the next would
    notice.
    """

    def __init__(self, server: GeminiServer) -> None:
        self.server, self.play = server, "ok"
        server.script = lambda _: self.play
        self.teachers = {
            teacher: teacher("gemini-x", base_url=server.url, timeout=0.5) for teacher in TEACHERS
        }

    def ask(
        self, teacher: type, request: Request, play: str | Answer, previous: Reply | None = None
    ) -> tuple[Reply, Received]:
        """One call; asserts that it was one on the wire too."""
        self.play, before = play, self.server.count
        try:
            return self.teachers[teacher].annotate(request, previous), self.server.requests[-1]
        finally:
            assert self.server.count == before + 1


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    with pytest.MonkeyPatch.context() as patch, GeminiServer() as server:
        patch.setenv("GEMINI_API_KEY", KEY)
        yield Scripted(server)


def test_each_answer_has_its_end_here() -> None:
    assert ANSWERS.keys() == ENDS.keys() | FAILS.keys()


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", ENDS)
def test_an_answer_ends_as_a_rationale_or_a_typed_refusal(
    scripted: Scripted, request_: Request, name: str, teacher: type
) -> None:
    reply, _ = scripted.ask(teacher, request_, name)
    ends = ENDS[name] if isinstance(ENDS[name], tuple) else (ENDS[name],) * 2
    if ends[0] == "rationale":
        assert isinstance(reply.result, Rationale)
        assert reply.result.instruction_matches == (name != "mismatch")
        assert bool(reply.result.mismatch) == (name == "mismatch")
        assert [getattr(reply.result, part) for part in PART_NAMES] == [PARTS[part] for part in PART_NAMES]
        facts = Facts(source="carrot", held="nothing", reach_height_cm=10, sub_task="descend")
        assert reply.result.facts == facts
    else:
        assert isinstance(reply.result, Refusal)
        assert reply.result.kind == ends[TEACHERS.index(teacher)]
        assert reply.result.kind in (*REPAIRABLE, "empty", "blocked", "safety")
        assert reply.result.reason and "\n" not in reply.result.reason
    json.dumps(reply.raw, ensure_ascii=False).encode()  # fit for a file
    assert KEY not in repr(reply)
    served = json.loads(ANSWERS[name].body) if name not in ("html", "empty_body", "non_utf8") else {}
    if isinstance(served, dict) and (usage := served.get("usageMetadata")) and name != "odd_types":
        assert (reply.input_tokens, reply.output_tokens) == (
            PAID if "candidatesTokenCount" in usage else (900, 0)
        )
    elif name != "odd_types":  # the server does not say what it cost: as much as it can have
        worst = scripted.teachers[teacher].worst_case(request_)
        assert (reply.input_tokens, reply.output_tokens) == (worst.input_tokens, worst.output_tokens)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", FAILS)
def test_a_call_without_an_answer_says_why_and_when_to_try_again(
    scripted: Scripted, request_: Request, name: str, teacher: type
) -> None:
    with pytest.raises(CallFailed) as failed:
        scripted.ask(teacher, request_, name)
    assert (failed.value.kind, failed.value.retry_after) == FAILS[name]
    assert failed.value.retryable == (FAILS[name][0] in ("quota", "server", "timeout", "connection"))
    assert failed.value.reason and "\n" not in failed.value.reason
    assert (
        failed.value.__cause__ is None and failed.value.__context__ is None
    )  # an SDK's exception may hold the request
    assert KEY.encode() not in pickle.dumps(failed.value)


numbers = st.integers(-5, 5000) | st.sampled_from(
    [10**12, -(10**30), 1e400, 0.5, float("nan"), "12", "many", True]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
texts = st.sampled_from(
    ["", json.dumps(PARTS), json.dumps(PARTS)[:90], HTML.decode(), "```", "half \ud83d a pair"]
) | st.text(max_size=20)


def maybe(usual: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly what is usual, else anything."""
    return st.one_of(usual, usual, usual, values)


def fields(**usual: st.SearchStrategy) -> st.SearchStrategy:
    """An object with any of these fields, each mostly as usual."""
    return st.fixed_dictionaries({}, optional={name: maybe(strategy) for name, strategy in usual.items()})


finishes = st.sampled_from(
    ["STOP", "MAX_TOKENS", "SAFETY", "LANGUAGE", "OTHER", "BRAND_NEW", "IMAGE_SAFETY", 2]
)
part = fields(text=texts, thought=st.booleans())
candidate = fields(
    content=fields(parts=st.lists(maybe(part), max_size=3), role=st.just("model")),
    finishReason=finishes,
    index=st.just(0),
)
counts = fields(
    promptTokenCount=numbers,
    candidatesTokenCount=numbers,
    thoughtsTokenCount=numbers,
    totalTokenCount=numbers,
)
detail = fields(retryDelay=st.sampled_from(["2s", "1e9", "s"]), violations=st.just([{"quotaId": "PerDay"}]))
failure = fields(
    code=st.sampled_from([400, 404, 429, 503]),
    message=st.text(max_size=20),
    details=st.lists(maybe(detail), max_size=3),
)
document = fields(
    candidates=st.lists(maybe(candidate), max_size=2),
    usageMetadata=counts,
    promptFeedback=fields(blockReason=st.just("OTHER")),
)
errors = st.fixed_dictionaries({"error": maybe(failure)})
bodies = st.one_of(
    st.one_of(document, errors, values, st.lists(document, max_size=2)).map(
        lambda each: json.dumps(each).encode()
    ),
    st.binary(max_size=40),
    st.just(b"[" * 100_000),
    st.just(b"9" * 5000),
    texts.map(lambda text: text.encode("utf-16", "surrogatepass")),
)
statuses = st.sampled_from(
    [200, 200, 200, 200, 201, 204, 304, 400, 401, 403, 404, 408, 418, 429, 429, 500, 502, 503, 599]
)
dates = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
headers = st.sampled_from([{}, {}, {"Retry-After": "3"}, dates, {"Content-Type": "text/html; charset=none"}])


@pytest.mark.parametrize("teacher", TEACHERS)
@settings(max_examples=MALFORMED, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.builds(Answer, bodies, statuses, headers))
def test_no_reply_whatever_its_shape_raises_anything_else(
    scripted: Scripted, request_: Request, teacher: type, play: Answer
) -> None:
    if play.status in (204, 304):
        play = replace(play, body=b"")  # HTTP has none there
    try:
        reply, _ = scripted.ask(teacher, request_, play)
    except CallFailed as failed:
        assert failed.kind != "connection"
        assert failed.reason and "\n" not in failed.reason
        assert failed.retry_after is None or failed.retry_after >= 0
        return
    assert play.status < 300
    assert 0 <= reply.input_tokens <= 10**9 and 0 <= reply.output_tokens <= 10**9
    assert isinstance(reply.result, Rationale) or (reply.result.reason and "\n" not in reply.result.reason)
    row = reply_row((0, 0, 1), reply, Spent(1, reply.input_tokens, reply.output_tokens), None, 1)
    pa.Table.from_pylist([row], SCHEMA)  # fit for the table


def test_a_server_that_is_not_reached_is_told_from_a_call_that_broke_off(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with GeminiServer() as server:
        url = server.url
    for teacher in TEACHERS:
        for address in (url, "http://no-such-host.invalid", "https" + url[4:], "http://[::1", "nonsense"):
            with pytest.raises(CallFailed) as failed:
                teacher("m", base_url=address, timeout=2).annotate(request_)
            assert failed.value.kind in ("unreachable", "bad_request"), (
                address
            )  # an SDK may refuse an odd address itself
            assert failed.value.kind == "unreachable" or address in ("http://[::1", "nonsense")


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_request_holds_pictures_frame_numbers_actions_and_shape(
    scripted: Scripted, request_: Request, teacher: type
) -> None:
    _, received = scripted.ask(teacher, request_, "ok")
    assert received.path.startswith("/v1beta/models/gemini-x:generateContent")
    assert received.headers["x-goog-api-key"] == KEY
    assert "key" not in received.path and KEY not in json.dumps(received.body)
    assert [content["role"] for content in received.body["contents"]] == ["user"]

    labels = [part["text"] for part in received.parts if part.get("text", "").startswith("Frame ")]
    assert [label.split()[1] for label in labels] == [str(frame) for frame in request_.keyframe_indices]
    assert {kind for kind, _ in received.pictures} == {"image/jpeg"}  # not re-encoded on the way
    sent = [picture for _, picture in received.pictures]
    assert sent == [jpeg(Image.fromarray(frame)) for frame in request_.keyframes]
    for image, frame in zip(sent, request_.keyframes, strict=True):
        assert np.abs(np.asarray(Image.open(io.BytesIO(image))).astype(int) - frame).mean() < 3
    assert ["text" in part for part in received.parts] == [True] + [True, False] * len(sent) + [
        True
    ]  # each picture after its number

    assert f'"{request_.instruction}"' in received.text
    assert "instruction_matches" in received.text and "the tool moves" in received.text
    assert f"\n{request_.end - 1}: " in received.text
    config = received.body["generationConfig"]
    assert config["maxOutputTokens"] == 4096 and config["responseMimeType"] == "application/json"
    assert (
        set(config["responseSchema"]["properties"]) == set(config["responseSchema"]["required"]) == set(PARTS)
    )
    if teacher is GeminiTeacher:
        assert next(
            config["responseSchema"][key] for key in ("property_ordering", "propertyOrdering")
        ) == list(PARTS)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_follow_up_quotes_the_answer_and_what_is_wrong_with_it(
    scripted: Scripted, request_: Request, teacher: type
) -> None:
    unusable, first = scripted.ask(teacher, request_, "german")
    mended, second = scripted.ask(teacher, request_, "ok", unusable)
    assert isinstance(mended.result, Rationale)
    assert second.text.startswith(first.text)
    added = second.text[len(first.text) :]
    assert unusable.result.reason in added and "Die Karotte" in added
    long = Reply(Refusal("not_json", "the answer is not JSON"), "ß" * 100_000)
    _, received = scripted.ask(teacher, request_, "ok", long)
    assert received.text.count("ß") == QUOTED // 2


def test_options_change_what_is_sent_and_the_version(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with GeminiServer() as server:
        for teacher in TEACHERS:
            sheet = teacher("m-1", base_url=server.url, state=True, max_output_tokens=99)
            sheet.annotate(request_)
            received = server.requests[-1]
            assert "From the tool to the object" in received.text
            assert (
                received.body["generationConfig"]["maxOutputTokens"]
                == 99
                == sheet.worst_case(request_).output_tokens
            )
            assert sheet.version == "m-1, state"
            assert sheet.prompt_hash == load_prompt().hash
        for thinking, field in ((256, "thinkingBudget"), ("low", "thinkingLevel")):
            thoughtful = GeminiTeacher("m-1", base_url=server.url, thinking=thinking)
            thoughtful.annotate(request_)
            said = {
                key.replace("_", "").lower(): value
                for key, value in server.requests[-1].body["generationConfig"]["thinkingConfig"].items()
            }
            assert str(said[field.lower()]).lower() == str(thinking)
            assert thoughtful.version == f"m-1, thinking {thinking}"


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_worst_case_bounds_the_question_and_its_follow_up(
    scripted: Scripted, request_: Request, teacher: type
) -> None:
    worst = scripted.teachers[teacher].worst_case(request_)
    _, first = scripted.ask(teacher, request_, "ok")
    _, follow_up = scripted.ask(
        teacher, request_, "ok", Reply(Refusal("wrong_shape", "x" * 260), "\u00e9" * 10_000)
    )
    for received in (first, follow_up):
        text = len(received.text.encode()) + len(json.dumps(received.body["generationConfig"]))
        assert text + 2240 * len(request_.keyframes) <= worst.input_tokens
    assert worst.input_tokens < 20_000  # a bound of use
    assert worst.output_tokens == 4096


def test_teachers_travel_to_other_processes_without_the_key(scripted: Scripted, request_: Request) -> None:
    for teacher in scripted.teachers.values():
        teacher.annotate(request_) if scripted.play == "ok" else scripted.ask(type(teacher), request_, "ok")
        parcel = pickle.dumps(teacher)
        assert KEY.encode() not in parcel
        assert KEY not in repr(teacher) + repr(vars(teacher))
        assert isinstance(pickle.loads(parcel).annotate(request_).result, Rationale)  # noqa: S301


def test_what_is_missing_is_said_with_its_remedy(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("never read"))
    for teacher in TEACHERS:
        with pytest.raises(
            KitError, match="no Gemini API key -> set the environment variable GEMINI_API_KEY"
        ):
            teacher("m").annotate(request_)
        with pytest.raises(KitError, match=r"needs a model -> give model=\.\.\."):
            teacher()
        with pytest.raises(KitError, match="no prompt 'rationale_v9'"):
            teacher("m", prompt="rationale_v9")
        with monkeypatch.context() as patched, pytest.raises(KitError, match="no Gemini API key"):
            patched.setattr(teacher, "packages", ("not_there",))  # takes seconds where it is there
            teacher("m").check()
    monkeypatch.setenv("GEMINI_API_KEY", f" {KEY}\n")
    assert api_key() == KEY
    monkeypatch.setenv("GEMINI_API_KEY", "two\nlines")
    with pytest.raises(KitError, match="characters that no key has") as failed:
        api_key()
    assert "two" not in str(failed.value)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for teacher, module in zip(TEACHERS, ("httpx2", "google.generativeai"), strict=True):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            KitError,
            match=r"needs google\.\w+ \(.*\) -> in the kit's folder: .* -m pip install -e '\.\[gemini\]'",
        ):
            teacher("m").prepare()


def test_a_notebook_asks_in_a_box_and_shows_the_key_nowhere() -> None:
    """A real kernel: the box, then a cell that fails with the key in the server's answer, its traceback with
    all local variables shown.
    """
    from jupyter_client.manager import start_new_kernel

    environment = {
        name: value for name, value in os.environ.items() if name not in ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    }
    with GeminiServer(["forbidden"]) as server:
        manager, client = start_new_kernel(
            env=environment | {"PYTHONPATH": str(REPOSITORY)}, cwd=str(REPOSITORY)
        )
        try:
            cells = [
                "%xmode Verbose\nfrom refinevla_kit.teacher.gemini import *\nfrom "
                "refinevla_kit.teacher.requests import requests",
                f"teachers = [t('m', base_url='{server.url}') for t in (GeminiTeacher, GeminiLegacyTeacher)]",
                "for teacher in teachers: teacher.prepare()\nteachers",
                "from refinevla_kit.episodes import open_dataset\nasked = "
                "next(requests(open_dataset('data/demo')))\nteachers[0].annotate(asked)",
                "teachers[1].annotate(asked)",
            ]
            shown, boxes = [], []

            def asked(message: dict) -> None:
                boxes.append(message["content"])
                client.input(KEY)

            for cell in cells:
                client.execute_interactive(
                    cell,
                    allow_stdin=True,
                    timeout=60,
                    stdin_hook=asked,
                    output_hook=lambda message: shown.append(
                        json.dumps(message["content"], ensure_ascii=False)
                    ),
                )
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    assert [box["password"] for box in boxes] == [True]  # asked once
    assert server.count == 2 and {one.headers["x-goog-api-key"] for one in server.requests} == {KEY}
    assert sum("CallFailed" in one and "unauthorised" in one for one in shown) == 2
    assert not [one for one in shown if KEY in one]


RUN = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from refinevla_kit.teacher import annotate_dataset
from refinevla_kit.teacher.answers import SCHEMA, reply_row
from refinevla_kit.teacher.gemini import GeminiLegacyTeacher, GeminiTeacher
teachers = dict(gemini=GeminiTeacher, legacy=GeminiLegacyTeacher)
teacher = teachers[sys.argv[1]]("m", base_url=sys.argv[2], timeout=2)
print(teacher, vars(teacher))
annotate_dataset("data/demo", teacher, "trajectory", 2, output=sys.argv[3], confirm=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["gemini", "legacy"])
def test_no_artefact_of_a_run_holds_the_key(which: str, tmp_path: Path) -> None:
    """A run that meets errors and answers with the key in them, everything logged; one that ends in an error;
    one that is killed: all they leave.
    """
    trouble = {1: "quota", 3: "server", 5: "key_in_answer", 7: "html_502", 9: "reset"}
    scripts = {
        "run": lambda received: trouble.get(received.number, "ok"),
        "refused": ["forbidden"],
        "killed": lambda received: (
            "key_in_answer" if received.number < 6 else replace(ANSWERS["ok"], delay=60)
        ),
    }
    for name, script in scripts.items():
        (folder := tmp_path / name).mkdir()
        with (
            GeminiServer(script) as server,
            (folder / "stdout").open("wb") as stdout,
            (folder / "stderr").open("wb") as stderr,
        ):
            command = [sys.executable, "-c", RUN, which, server.url, str(folder / "out.parquet")]
            running = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | {"GEMINI_API_KEY": KEY},
                stdout=stdout,
                stderr=stderr,
            )
            while name == "killed" and running.poll() is None and server.count < 8:
                time.sleep(0.05)
            if name == "killed":
                running.kill()
            assert (running.wait(120) == 0) == (name == "run"), (folder / "stderr").read_text()[-2000:]
        assert b"DEBUG" in (folder / "stderr").read_bytes()
    assert "403" in (tmp_path / "refused/stderr").read_text()
    journal = b"".join(path.read_bytes() for path in (tmp_path / "killed").glob("out.parquet*"))
    assert b"Your key is <key>." in journal  # it is in there, but not the key
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in str(
        pq.read_table(tmp_path / "run/out.parquet").to_pylist()
    )  # parquet may be compressed
