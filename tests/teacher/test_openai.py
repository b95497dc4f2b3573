"""The teacher `openai` against a real HTTP server that plays every kind of answer."""

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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import Limits, annotate_dataset, check_teacher, load_rationales
from refinevla_kit.teacher.answers import SCHEMA, reply_row, summarise
from refinevla_kit.teacher.client import MOST_TOKENS
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.openai import OpenAITeacher, json_schema
from refinevla_kit.teacher.prompt import QUOTED, jpeg, load_prompt
from refinevla_kit.teacher.schema import PARTS as PART_NAMES
from refinevla_kit.teacher.schema import REPAIRABLE, CallFailed, Facts, Rationale, Refusal, Reply, Request
from tests.conftest import REPOSITORY
from tests.teacher.openai_server import (
    ANSWERS,
    HTML,
    NO_SCHEMA,
    PAID,
    PARTS,
    Answer,
    Chat,
    OpenAIServer,
    body,
    error,
)
from tests.teacher.plain_teacher import write_dataset

KEY = "sk-proj-not/a+real.key_0123456789"
MALFORMED = int(os.environ.get("MALFORMED_REPLIES", "400"))

ENDS = {
    "ok": "rationale",
    "mismatch": "rationale",
    "fenced": "rationale",
    "in_parts": "rationale",
    "thought": "rationale",
    "thought_apart": "rationale",
    "no_usage": "rationale",
    "stopped": "blocked",
    "stopped_late": "blocked",
    "blocked": "blocked",
    "refused": "safety",
    "truncated": "truncated",
    "truncated_stop": "truncated",
    "all_thought": "truncated",
    "cut_thought": "truncated",
    "wrong_shape": "wrong_shape",
    "prose": "not_json",
    "html": "not_json",
    "event_stream": "not_json",
    "no_choices": "not_json",
    "other_api": "not_json",
    "non_utf8": "not_json",
    "surrogate": "not_json",
    "key_in_answer": "not_json",
    "empty": "empty",
    "null": "empty",
    "tool_call": "empty",
    "empty_body": "empty",
    "german": "other_language",
    "boilerplate": "boilerplate",
    "echo": "echo",
}
UNCOUNTED = (
    "no_usage",
    "blocked",
    "html",
    "event_stream",
    "other_api",
    "non_utf8",
    "surrogate",
    "empty_body",
)
"""Answers that do not say what they cost."""

FAILS = {
    "bad_request": ("bad_request", None),
    "unprocessable": ("bad_request", None),
    "unauthorised": ("unauthorised", None),
    "forbidden": ("unauthorised", None),
    "not_found": ("not_found", None),
    "not_found_text": ("not_found", None),
    "not_found_detail": ("not_found", None),
    "quota": ("quota", 2.0),
    "quota_bare": ("quota", None),
    "quota_date": ("quota", None),
    "no_credit": ("daily_quota", None),
    "daily_quota": ("daily_quota", 7.0),
    "used_up": ("daily_quota", None),
    "error_in_200": ("server", None),
    "server": ("server", None),
    "loading": ("server", 1.0),
    "moved": ("not_found", None),
    "html_502": ("server", None),
    "slow": ("timeout", None),
    "reset": ("connection", None),
}
"""Calls that bring no answer: the kind, and the seconds that the server asks to wait."""


class Scripted:
    """One server and one teacher for all cases, as in a run: what a case breaks, the next would notice."""

    def __init__(self, server: OpenAIServer) -> None:
        self.server, self.play = server, "ok"
        server.script = lambda _: self.play
        self.teacher = OpenAITeacher("m", base_url=server.url, timeout=0.5)

    def ask(self, request: Request, play: str | Answer, previous: Reply | None = None) -> tuple[Reply, Chat]:
        """One call; asserts that it was one on the wire too."""
        self.play, before = play, self.server.count
        try:
            return self.teacher.annotate(request, previous), self.server.requests[-1]
        finally:
            assert self.server.count == before + 1


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    with pytest.MonkeyPatch.context() as patch, OpenAIServer() as server:
        patch.setenv("OPENAI_API_KEY", KEY)
        yield Scripted(server)


def test_each_answer_has_its_end_here() -> None:
    assert ANSWERS.keys() == ENDS.keys() | FAILS.keys()


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_ends_as_a_rationale_or_a_typed_refusal(
    scripted: Scripted, request_: Request, name: str
) -> None:
    reply, _ = scripted.ask(request_, name)
    if ENDS[name] == "rationale":
        assert isinstance(reply.result, Rationale)
        assert reply.result.instruction_matches == (name != "mismatch")
        assert [getattr(reply.result, part) for part in PART_NAMES] == [PARTS[part] for part in PART_NAMES]
        facts = Facts(source="carrot", held="nothing", reach_height_cm=10, sub_task="descend")
        assert reply.result.facts == facts
    else:
        assert isinstance(reply.result, Refusal)
        assert reply.result.kind == ENDS[name]
        assert reply.result.kind in (*REPAIRABLE, "empty", "blocked", "safety")
        assert reply.result.reason and "\n" not in reply.result.reason
    json.dumps(reply.raw, ensure_ascii=False).encode()  # fit for a file
    assert KEY not in repr(reply)
    worst = scripted.teacher.worst_case(request_)
    paid = (worst.input_tokens, worst.output_tokens) if name in UNCOUNTED else PAID
    assert (reply.input_tokens, reply.output_tokens) == paid


@pytest.mark.parametrize("name", FAILS)
def test_a_call_without_an_answer_says_why_and_when_to_try_again(
    scripted: Scripted, request_: Request, name: str
) -> None:
    with pytest.raises(CallFailed) as failed:
        scripted.ask(request_, name)
    assert (failed.value.kind, failed.value.retry_after) == FAILS[name]
    assert failed.value.reason and "\n" not in failed.value.reason
    assert failed.value.__cause__ is None and failed.value.__context__ is None
    assert KEY.encode() not in pickle.dumps(failed.value)


numbers = st.integers(-5, 5000) | st.sampled_from(
    [10**12, -(10**30), 1e400, 0.5, float("nan"), "12", "many", True]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
whole = json.dumps(PARTS)
texts = st.sampled_from(
    ["", whole, whole[:90], HTML.decode(), "```", "half \ud83d a pair", "</think>"]
) | st.text(max_size=20)


def maybe(usual: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly what is usual, else anything."""
    return st.one_of(usual, usual, usual, values)


def fields(**usual: st.SearchStrategy) -> st.SearchStrategy:
    """An object with any of these fields, each mostly as usual."""
    return st.fixed_dictionaries({}, optional={name: maybe(strategy) for name, strategy in usual.items()})


content = texts | st.lists(maybe(fields(type=st.just("text"), text=texts)), max_size=3)
message = fields(role=st.just("assistant"), content=content, refusal=texts | st.none())
finishes = st.sampled_from(["stop", "length", "content_filter", "tool_calls", "brand_new", None, 2])
choice = fields(index=st.just(0), message=message, finish_reason=finishes)
counts = fields(prompt_tokens=numbers, completion_tokens=numbers, total_tokens=numbers)
codes = st.sampled_from([400, 404, 429, 503, "content_filter", "insufficient_quota", None])
complaints = st.sampled_from(
    ["no", "response_format is unknown", "Unsupported value: 'temperature'"]
) | st.text(max_size=20)
failure = fields(
    code=codes, message=complaints, type=st.just("x"), param=st.just("response_format"), details=values
)
document = fields(
    choices=st.lists(maybe(choice), max_size=2), usage=counts, object=st.just("chat.completion")
)
errors = st.fixed_dictionaries({"error": maybe(failure | complaints)}) | st.fixed_dictionaries(
    {"detail": values}
)
bodies = st.one_of(
    st.one_of(document, document, errors, values, st.lists(document, max_size=2)).map(
        lambda each: json.dumps(each).encode()
    ),
    st.binary(max_size=40),
    st.just(b"[" * 100_000),
    st.just(b"9" * 5000),
    texts.map(lambda text: text.encode("utf-16", "surrogatepass")),
)
statuses = st.sampled_from(
    [200, 200, 200, 200, 201, 204, 302, 304, 400, 401, 403, 404, 408, 418, 422, 429, 429, 500, 503, 599]
)
dates = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
headers = st.sampled_from([{}, {}, {"Retry-After": "3"}, dates, {"Content-Type": "text/html; charset=none"}])


@settings(max_examples=MALFORMED, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.builds(Answer, bodies, statuses, headers))
def test_no_reply_whatever_its_shape_raises_anything_else(
    scripted: Scripted, request_: Request, play: Answer
) -> None:
    if play.status in (204, 304):
        play = replace(play, body=b"")  # HTTP has none there
    scripted.teacher._refused.clear()
    try:
        reply, _ = scripted.ask(request_, play)
    except CallFailed as failed:
        assert failed.kind not in ("connection", "timeout") or play.status == 408
        assert failed.reason and "\n" not in failed.reason
        assert failed.retry_after is None or failed.retry_after >= 0
        return
    finally:
        scripted.teacher._refused.clear()
    assert play.status < 300 or reply.result.kind == "blocked"
    assert 0 <= reply.input_tokens <= MOST_TOKENS and 0 <= reply.output_tokens <= MOST_TOKENS
    assert isinstance(reply.result, Rationale) or (reply.result.reason and "\n" not in reply.result.reason)
    row = reply_row((0, 0, 1), reply, Spent(1, reply.input_tokens, reply.output_tokens), None, 1)
    pa.Table.from_pylist([row], SCHEMA)  # fit for the table


def test_a_server_that_is_not_reached_is_told_from_a_call_that_broke_off(request_: Request) -> None:
    with OpenAIServer() as server:
        url = server.url
    for address in (url, "http://no-such-host.invalid", "https" + url[4:]):
        with pytest.raises(CallFailed) as failed:
            OpenAITeacher("m", base_url=address, timeout=2).annotate(request_)
        assert failed.value.kind == "unreachable", address


def test_the_request_holds_pictures_frame_numbers_actions_and_shape(
    scripted: Scripted, request_: Request
) -> None:
    _, received = scripted.ask(request_, "ok")
    assert received.path == "/v1/chat/completions"
    assert received.key == KEY and KEY not in json.dumps(received.body)
    assert [turn["role"] for turn in received.body["messages"]] == ["user"]
    assert (received.body["model"], received.body["temperature"], received.body["max_tokens"]) == (
        "m",
        0,
        4096,
    )

    labels = [part["text"] for part in received.parts if part.get("text", "").startswith("Frame ")]
    assert [label.split()[1] for label in labels] == [str(frame) for frame in request_.keyframe_indices]
    assert received.pictures == [("image/jpeg", jpeg(Image.fromarray(frame))) for frame in request_.keyframes]
    types = [part["type"] for part in received.parts]
    assert types == ["text"] + ["text", "image_url"] * len(request_.keyframes) + [
        "text"
    ]  # each picture after its number
    assert f'"{request_.instruction}"' in received.text and "the tool moves" in received.text

    form = received.body["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    shape = form["json_schema"]["schema"]
    assert (shape["type"], shape["additionalProperties"]) == ("object", False)
    assert list(shape["properties"]) == shape["required"] == list(PARTS)
    assert {inner["type"] for inner in shape["properties"].values()} == {"string", "boolean", "object"}


def test_a_schema_is_translated_at_every_depth() -> None:
    inner = {
        "type": "OBJECT",
        "properties": {"held": {"type": "STRING", "enum": ["a", "b"], "nullable": True}},
        "required": ["held"],
    }
    translated = json_schema({"type": "ARRAY", "items": inner})
    held = {"type": ["string", "null"], "enum": ["a", "b"]}
    expected = {
        "type": "object",
        "properties": {"held": held},
        "required": ["held"],
        "additionalProperties": False,
    }
    assert translated == {"type": "array", "items": expected}
    assert inner["type"] == "OBJECT"


def test_a_follow_up_quotes_the_answer_and_what_is_wrong_with_it(
    scripted: Scripted, request_: Request
) -> None:
    unusable, first = scripted.ask(request_, "german")
    mended, second = scripted.ask(request_, "ok", unusable)
    assert isinstance(mended.result, Rationale)
    assert second.text.startswith(first.text)
    added = second.text[len(first.text) :]
    assert unusable.result.reason in added and "Die Karotte" in added


def test_the_worst_case_bounds_the_question_and_its_follow_up(scripted: Scripted, request_: Request) -> None:
    worst = scripted.teacher.worst_case(request_)
    _, first = scripted.ask(request_, "ok")
    _, follow_up = scripted.ask(request_, "ok", Reply(Refusal("wrong_shape", "x" * 260), "\u00e9" * 10_000))
    assert follow_up.text.count("\u00e9") == QUOTED // 2
    for received in (first, follow_up):
        text = len(received.text.encode()) + len(json.dumps(load_prompt().schema))
        assert text + 4096 * len(request_.keyframes) <= worst.input_tokens
    assert worst.input_tokens < 25_000  # a bound of use


def test_options_change_what_is_sent_and_the_version(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.removesuffix("/v1") + "/")
        options = {"state": True, "max_output_tokens": 99}
        sheet = check_teacher("openai", model="m-1", **options)
        sheet.annotate(request_)
    (received,) = server.requests
    assert received.path == "/v1/chat/completions"
    assert "authorization" not in received.headers
    assert "From the tool to the object" in received.text
    assert received.body["max_tokens"] == 99 == sheet.worst_case(request_).output_tokens
    assert sheet.version == "m-1, state"
    assert sheet.prompt_hash == load_prompt().hash


REFUSALS = {
    "OpenAI": NO_SCHEMA,
    "DeepSeek": error(400, "This response_format type is unavailable now"),
    "FastAPI": Answer(
        body({"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]}), 422
    ),
    "llama.cpp": error(400, 'Either "json_schema" or "grammar" can be specified, but not both', 400),
    "param": error(400, "Unknown parameter", param="response_format"),
}


@pytest.mark.parametrize("server", REFUSALS)
def test_a_server_without_schemas_is_asked_without_for_the_whole_run(server: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "noise", 4, 3)

    def script(received: Chat) -> Answer | str:
        return REFUSALS[server] if "response_format" in received.body else "ok"

    with OpenAIServer(script) as played:
        teacher = OpenAITeacher("m", base_url=played.url)
        limits = Limits(4, budget_calls=4)
        path = annotate_dataset(
            dataset, teacher, "trajectory", 1, False, tmp_path / "r.parquet", limits=limits, confirm=True
        )
        assert ["response_format" in received.body for received in played.requests] == [
            True,
            False,
            False,
            False,
        ]
        assert (
            len([row for row in load_rationales(path) if row.rationale]) == 3
        )  # the refused call is counted too
        assert "budget_calls=4" in summarise(path).stopped
        annotate_dataset(dataset, teacher, "trajectory", 1, False, tmp_path / "r.parquet", confirm=True)
        assert played.count == 5


def test_models_that_think_get_the_fields_that_they_take(request_: Request) -> None:
    tokens = error(
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
    )
    warmth = error(
        400,
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) "
        "is supported.",
    )
    with OpenAIServer([tokens, warmth, "ok"]) as server:
        teacher = OpenAITeacher("m", base_url=server.url, max_output_tokens=77)
        for _ in range(2):
            with pytest.raises(CallFailed) as failed:
                teacher.annotate(request_)
            assert failed.value.retryable
        assert isinstance(teacher.annotate(request_).result, Rationale)
        sent = server.requests[-1].body
        assert sent["max_completion_tokens"] == 77
        assert not {"max_tokens", "temperature"} & sent.keys() and "response_format" in sent


@pytest.mark.parametrize("play", ["all_thought", "cut_thought"])
def test_what_was_cut_off_while_thinking_is_not_followed_up(
    scripted: Scripted, request_: Request, play: str
) -> None:
    """There is nothing to mend, and it would think as long again."""
    reply, _ = scripted.ask(request_, play)
    assert reply.raw == "" and reply.output_tokens


def test_a_context_that_is_too_short_is_no_missing_field(request_: Request) -> None:
    said = (
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length "
        "is 2048 tokens."
    )
    with OpenAIServer([error(400, said)]) as server, pytest.raises(CallFailed, match="bad_request"):
        OpenAITeacher("m", base_url=server.url).annotate(request_)


def test_teachers_travel_to_other_processes_without_the_key(scripted: Scripted, request_: Request) -> None:
    scripted.ask(request_, "ok")
    parcel = pickle.dumps(scripted.teacher)
    assert KEY.encode() not in parcel
    assert KEY not in repr(scripted.teacher) + repr(vars(scripted.teacher))
    assert isinstance(pickle.loads(parcel).annotate(request_).result, Rationale)  # noqa: S301


def shown_failure(teacher: OpenAITeacher, request: Request) -> str:
    """The traceback of a call that fails, as a notebook shows it after `%xmode Verbose`."""
    from IPython.core.ultratb import VerboseTB

    try:
        teacher.annotate(request)
    except CallFailed:
        return VerboseTB(include_vars=True, theme_name="nocolor").text(*sys.exc_info())
    return ""


def test_a_traceback_with_all_variables_shows_no_key(scripted: Scripted, request_: Request) -> None:
    for name in ("forbidden", "server", "html_502"):
        scripted.play = name
        shown = shown_failure(scripted.teacher, request_)
        assert "in ServedTeacher.annotate(self=OpenAITeacher(" in shown and "answer = CallFailed(" in shown
        assert KEY not in shown


def test_a_word_in_place_of_a_key_stays_in_answers(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "OPENAI_API_KEY", "carrot"
    )  # as "ollama" or "none" may be: servers of one's own take any
    with OpenAIServer() as server:
        reply = OpenAITeacher("m", base_url=server.url).annotate(request_)
    assert server.requests[-1].key == "carrot"
    assert isinstance(reply.result, Rationale) and "carrot" in reply.result.observation


def test_what_is_missing_or_wrong_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    wrong: dict[str, dict] = {
        r"needs a model -> give model=\.\.\.": {"model": ""},
        "needs a server -> give base_url=.* or set OPENAI_BASE_URL": {"base_url": None},
        "base_url is 'localhost:8000'": {"base_url": "localhost:8000"},
        "base_url is 'ftp://here'": {"base_url": "ftp://here"},
        r"base_url is 'http://\[::1'": {"base_url": "http://[::1"},
        "base_url is 5": {"base_url": 5},
        "a key goes into OPENAI_API_KEY": {"base_url": "https://me:secret@here/v1"},
        "without user, query and fragment": {"base_url": "https://here/v1?key=secret"},
        "max_output_tokens is 0": {"max_output_tokens": 0},
        "timeout is 'long'": {"timeout": "long"},
        "state is 'no' -> give true or false": {"state": "no"},
        "prompt is 2 -> give the name": {"prompt": 2},
        "no prompt 'mine'": {"prompt": "mine"},
        "unknown openai option 'modle'": {"modle": "m"},
        "nobody is here to confirm it": {"confirm": None},
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO("never read"))
    for why, options in wrong.items():
        with pytest.raises(KitError, match=why) as failed:
            check_teacher("openai", **{"model": "m", "base_url": "http://localhost:8000"} | options)
        assert "secret" not in str(failed.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1/chat/completions")
    assert check_teacher("openai", model="m").base_url == "http://localhost:8000/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(KitError, match="OPENAI_API_KEY has characters that no key has") as failed:
        check_teacher("openai", model="m")
    assert "two" not in str(failed.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://there")
    with pytest.raises(KitError, match="no connection can be made"):
        check_teacher("openai", model="m")


RUN = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from refinevla_kit.teacher import annotate_dataset, make_teacher
teacher = make_teacher("openai", model="m", base_url=sys.argv[1], timeout=2)
print(teacher, vars(teacher))
annotate_dataset("data/demo", teacher, "trajectory", 2, output=sys.argv[2], confirm=True)
print(vars(teacher))
"""


@pytest.mark.slow
def test_no_artefact_of_a_run_holds_the_key(tmp_path: Path) -> None:
    """With every log there is: what is written and printed, by runs that end well, are refused, or are
    killed.
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
            OpenAIServer(script) as server,
            (folder / "stdout").open("wb") as stdout,
            (folder / "stderr").open("wb") as stderr,
        ):
            command = [sys.executable, "-c", RUN, server.url, str(folder / "out.parquet")]
            environment = os.environ | {"OPENAI_API_KEY": KEY}
            running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=stdout, stderr=stderr)
            while name == "killed" and running.poll() is None and server.count < 8:
                time.sleep(0.05)
            if name == "killed":
                running.kill()
            assert (running.wait(120) == 0) == (name == "run"), (folder / "stderr").read_text()[-2000:]
        assert b"DEBUG" in (folder / "stderr").read_bytes()
        assert {received.key for received in server.requests} == {KEY}
    assert "403" in (tmp_path / "refused/stderr").read_text()
    journal = b"".join(path.read_bytes() for path in (tmp_path / "killed").glob("out.parquet*"))
    assert b"Your key is <key>." in journal
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in str(
        pq.read_table(tmp_path / "run/out.parquet").to_pylist()
    )  # parquet may be compressed
