"""A policy behind a socket: the same records as in this process, and one clear line for every way a server
can fail. All servers here are real.
"""

from __future__ import annotations

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from refinevla_kit.conventions import WIDOWX
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.policies import remote
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.remote import RemotePolicy, pack, serve, unpack
from refinevla_kit.policies.vla_policy import load_policy
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY

CARROT = "widowx_carrot_on_plate"
SMALL: dict[str, Any] = {"width": 48, "height": 36, "workers": 0, "progress": False}
IMAGE = np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)

POLICY = """
    import dataclasses, numpy as np
    from refinevla_kit.conventions import WIDOWX

    class Drifter:  # moves by what it has seen in this episode: nothing that the next episode may know of
        name, checkpoint_hash = "drifter", "abc"
        conventions = dataclasses.replace(WIDOWX, image_size=(48, 36))

        def reset(self, instruction):
            self.total = float(len(instruction))

        def act(self, image):
            self.total += image.mean(dtype=np.float64) / 50
            return np.array([np.sin(self.total) / 50, np.cos(self.total) / 50, 0, 0, 0, 0, 1], np.float32)

    class Seer(Drifter):  # stateless: what it sees now is all
        name = "seer"

        def act_batch(self, images, instructions):
            return [self.answer(image, text) for image, text in zip(images, instructions)]

        def answer(self, image, text):
            x, y = image[..., :2].mean(axis=(0, 1)) / 1e4
            return np.array([x, -y, 0, 0, 0, 0, len(text) / 100], np.float32)

    class Falls(Drifter):
        name = "falls"

        def act(self, image):
            return 1 / 0
"""
NAMES: dict[str, Any] = {}
exec(textwrap.dedent(POLICY), NAMES)  # the very same policies, in this process


@contextmanager
def serving(made: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(address, process) of `serve(made)` in a process that can import numpy, websockets, msgpack and the
    kit, and nothing else that is installed.
    """
    program = """
        import importlib.abc, site, sys
        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                known = {"numpy", "websockets", "msgpack", "refinevla_kit", *sys.stdlib_module_names}
                if name.partition(".")[0] not in known:
                    raise ImportError(f"{name} is not in the policy's environment")
        sys.meta_path.insert(0, Refuse())
        from refinevla_kit.policies.remote import serve
    """
    program = textwrap.dedent(program) + textwrap.dedent(POLICY) + f"\nserve({made}, port={port})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("serving at ").strip(), process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def answering(*replies: Any, metadata: Any = {"name": "fake"}) -> Iterator[str]:  # noqa: B006
    """Address of a server that greets with `metadata` and then gives `replies`, one a message: bytes and text
    as they are, a function is called.
    """

    def talk(client: ServerConnection) -> None:
        client.send(metadata if isinstance(metadata, (bytes, str)) else pack(metadata))
        for reply, message in zip(replies, client, strict=False):
            answer = reply(unpack(message)) if callable(reply) else reply
            client.send(answer if isinstance(answer, (bytes, str)) else pack(answer))

    with listen(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def without_time(path: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in asdict(record).items() if name != "wall_time"}
        for record in load_records(path)
    ]


@given(
    npst.arrays(
        st.sampled_from(["u1", "<f4", ">f8", "<i8", "?"]),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0),
    ),
    st.text(),
    st.integers(0, 2**60),
)
def test_a_message_comes_through_whole(array: Array, text: str, number: int) -> None:
    back = unpack(pack({"a": array, "deep": [{"text": text}], "scalar": np.float32(1.5), "number": number}))
    assert (
        back["a"].dtype == array.dtype
        and back["a"].shape == array.shape
        and back["a"].tobytes() == array.tobytes()
    )
    assert (back["deep"], back["scalar"], back["number"]) == ([{"text": text}], np.float32(1.5), number)


def test_messages_are_openpis() -> None:
    """Byte for byte what its `msgpack_numpy` writes; only numbers are taken, and a pickle in place of an
    array is not.
    """
    wire = {b"__ndarray__": True, b"data": b"\x00\x00\x80?", b"dtype": "<f4", b"shape": (1,)}
    assert pack(np.ones(1, np.float32)) == msgpack.packb(wire)
    for broken in ({"dtype": "|O"}, {"dtype": "<U1"}, {"dtype": "nonsense"}, {"shape": (3,)}, {"data": 7}):
        with pytest.raises(ValueError):
            unpack(msgpack.packb(wire | {name.encode(): value for name, value in broken.items()}))
    with pytest.raises(TypeError, match="only plain values and numeric arrays"):
        pack({"a": np.array([object()])})


@pytest.mark.slow
def test_a_served_policy_leaves_the_records_it_leaves_in_this_process(tmp_path: Path) -> None:
    here = evaluate(NAMES["Seer"](), [CARROT], episodes=2, output=tmp_path / "here", **SMALL)
    with serving("Seer()") as (url, _):
        policy = RemotePolicy(url, timeout=30)
        assert (policy.name, policy.checkpoint_hash, policy.conventions) == (
            "seer",
            "abc",
            NAMES["Seer"].conventions,
        )
        there = evaluate(policy, [CARROT], episodes=2, output=tmp_path / "there", **SMALL)
    assert without_time(there) == without_time(here)


@pytest.mark.slow
def test_a_server_killed_in_an_episode_costs_no_finished_one(tmp_path: Path) -> None:
    with serving("Drifter()") as (url, process):
        policy = RemotePolicy(url, timeout=30)
        assert not hasattr(policy, "act_batch"), "what remembers its episode plays one at a time"
        asked, act = [0], policy.act

        def act_until_killed(image: Array) -> Any:
            asked[0] += 1
            if asked[0] == 70:  # the second episode's tenth step
                process.send_signal(signal.SIGKILL)
                process.wait()
            return act(image)

        policy.act = act_until_killed  # type: ignore[method-assign]
        with pytest.raises(KitError, match=rf"policy server at {url} has gone.* finished episodes are kept"):
            evaluate(policy, [CARROT], episodes=2, output=tmp_path, **SMALL)
    before = load_records(tmp_path / "records.parquet")
    assert [record.episode_id for record in before] == [0]
    with serving("Drifter()", port=int(url.rpartition(":")[2])) as (again, _):
        assert again == url
        done = evaluate(
            policy, [CARROT], episodes=2, output=tmp_path, **SMALL
        )  # the same object: it connects again for a new episode
    assert load_records(done)[0] == before[0], "not played again"
    assert without_time(done) == without_time(
        evaluate(NAMES["Drifter"](), [CARROT], episodes=2, output=tmp_path / "here", **SMALL)
    )


def test_a_lost_connection_is_not_made_again_within_an_episode() -> None:
    with answering({}, {"actions": np.ones((1, 7))}, metadata={"name": "fake", "reset": True}) as url:
        policy = RemotePolicy(url, timeout=5)
        policy.reset("go")
        assert policy.act(IMAGE).processed.tolist() == [1] * 7
        with pytest.raises(KitError, match="has gone"):
            policy.act(IMAGE)
        with pytest.raises(KitError, match="lost in this episode"):
            policy.act(IMAGE)
        policy.reset("go on")
        assert policy.act(IMAGE).processed.tolist() == [1] * 7
    with pytest.raises(KitError, match="has gone"):
        policy.act(IMAGE)
    with pytest.raises(KitError, match="no policy server answers at"):
        policy.reset("once more")


def test_another_policy_at_the_same_address_is_not_taken_for_the_first() -> None:
    with serving("Drifter()") as (url, _):
        policy = RemotePolicy(url, timeout=30)
    policy.close()
    with (
        serving("Seer()", port=int(url.rpartition(":")[2])),
        pytest.raises(KitError, match=r"another policy is served at .*'seer'"),
    ):
        policy.reset("go")


def test_an_openpi_server_drops_in() -> None:
    """No name, no conventions, no reset, other keys; chunks of actions, of which some are executed."""
    asked: list[dict[str, Any]] = []

    def infer(observation: dict[str, Any]) -> dict[str, Any]:
        asked.append(observation)
        return {
            "actions": np.arange(70, dtype=np.float64).reshape(10, 7) + 100 * len(asked),
            "state": np.zeros(8),
            "server_timing": {"infer_ms": 1.0},
        }

    def wrist(image: Array, text: str) -> dict[str, Any]:
        return {"observation/wrist_image": image, "prompt": text}

    with answering(infer, infer, infer, metadata={"action_horizon": 10}) as url:
        with pytest.raises(KitError, match="says no name"):
            RemotePolicy(url)
        policy = RemotePolicy(url, name="pi0", conventions=WIDOWX, execute=3, observation=wrist)
        assert not hasattr(policy, "act_batch"), "the rest of a chunk is remembered"
        policy.reset("put carrot on plate")
        assert [policy.act(IMAGE).processed[0] for _ in range(4)] == [100, 107, 114, 200]
        policy.reset("now another")
        assert policy.act(IMAGE).processed[0] == 300
    assert [each["prompt"] for each in asked] == ["put carrot on plate"] * 2 + ["now another"]
    assert np.array_equal(asked[0]["observation/wrist_image"], IMAGE)


def test_a_batch_is_answered_in_order_however_long() -> None:
    count = 3 * remote.IN_FLIGHT + 1
    with answering(
        *[lambda seen: {"actions": np.full(7, seen["observation/image"][0, 0, 0])}] * count
    ) as url:
        images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones(
            (1, 480, 640, 3), np.uint8
        )  # 0.9 MB each
        assert [
            action.processed[6] for action in RemotePolicy(url, timeout=30).act_batch(images, ["go"] * count)
        ] == list(range(count))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"actions": np.zeros((2, 6))}, r"returned an action of shape \(2, 6\)"),
        ({"actions": np.full((1, 7), np.nan)}, r"returned \[\[nan.*un-normalisation"),
        ({"action": [0] * 7}, r"returned no actions, but \['action'\]"),
        ({"actions": ["left"] * 7}, "returned 'left' where numbers belong"),
        (b"\xc1 not msgpack", "does not speak openpi's protocol"),
        (b"\x07", "a int instead of a map"),
        (
            "Traceback (most recent call last):\n  ...\nRuntimeError: CUDA out of memory\n",
            "failed: RuntimeError: CUDA out of memory",
        ),
    ],
)
def test_an_answer_that_is_no_action_is_named(reply: Any, message: str) -> None:
    with answering(reply) as url, pytest.raises(KitError, match=f"{url}.*{message}|{message}") as caught:
        RemotePolicy(url, timeout=5).act(IMAGE)
    assert url in caught.value.what


def test_a_policy_that_fails_over_there_is_told_here(capfd: pytest.CaptureFixture[str]) -> None:
    with serving("Drifter()") as (url, _):
        policy = RemotePolicy(url, timeout=30)
        policy.reset("go")
        policy._observation = lambda image, text: {"prompt": text}
        with pytest.raises(
            KitError, match="failed: an observation without an array 'observation/image', but 'prompt'"
        ):
            policy.act(IMAGE)
    assert "Traceback" not in capfd.readouterr().err
    with serving("Falls()") as (url, _):
        policy = RemotePolicy(url, timeout=30)
        policy.reset("go")
        with pytest.raises(
            KitError,
            match=r"failed: policy 'falls' failed: ZeroDivisionError: division by zero \(<string>, line "
            r"\d+\)",
        ):
            policy.act(IMAGE)
    assert "Traceback" in capfd.readouterr().err, "the server's terminal shows where"


def test_a_silent_server_is_given_up_after_the_timeout() -> None:
    release = threading.Event()

    def think(_: Any) -> dict[str, Any]:
        release.wait(20)
        return {"actions": np.zeros(7)}

    with answering(think) as url:
        policy = RemotePolicy(url, timeout=0.5)
        with pytest.raises(KitError, match=r"did not answer within 0\.5 s -> raise RemotePolicy's timeout"):
            policy.act(IMAGE)
        release.set()


def test_sending_to_a_server_that_hangs_is_given_up_too() -> None:
    with serving("Seer()") as (url, process):
        policy = RemotePolicy(url, timeout=1)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # a busy machine takes its time
        with pytest.raises(KitError, match=r"has gone or hangs|did not answer"):
            policy.act_batch(
                np.zeros((remote.IN_FLIGHT, 1200, 1600, 3), np.uint8), ["go"] * remote.IN_FLIGHT
            )  # 46 MB, more than the socket buffers


def test_an_address_without_a_policy_server_is_refused_before_the_first_episode() -> None:
    def told(url: str) -> str:
        with pytest.raises(KitError) as caught:
            RemotePolicy(url, timeout=1)
        assert url in caught.value.what and "refinevla serve" in caught.value.remedy
        return caught.value.what

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    assert "HTTP" in told(f"ws://127.0.0.1:{web.server_port}")
    web.shutdown()
    web.server_close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "timed out" in told(f"ws://127.0.0.1:{port}")
    assert "refused" in told(f"ws://127.0.0.1:{port}")
    assert "isn't a valid URI" in told("http://127.0.0.1:8000")
    for odd in ("ws://127.0.0.1:99999", "ws://127.0.0.1:PORT", "ws://a..b:8000"):
        told(odd)
    for timeout in (None, 0, float("inf"), "5"):
        with pytest.raises(KitError, match=r"timeout is .* -> give seconds"):
            RemotePolicy("ws://127.0.0.1:8000", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(KitError, match="cannot listen on"):
        serve(object(), port=99999)
    with answering(metadata="<html>hello</html>") as url, pytest.raises(KitError, match="<html>hello</html>"):
        RemotePolicy(url, timeout=5)
    with (
        answering(metadata={"name": "fake", "conventions": {"rotation": "quaternion"}}) as url,
        pytest.raises(KitError, match="unknown rotation of conventions 'quaternion'"),
    ):
        RemotePolicy(url, timeout=5)


def test_a_message_beyond_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST", 10_000)
    with answering({"actions": np.zeros((1000, 7))}) as url, pytest.raises(KitError, match=r"gone.*too big"):
        RemotePolicy(url, timeout=5).act(IMAGE)


def test_a_policy_that_remembers_serves_one_client_and_no_web_page() -> None:
    with serving("Drifter()") as (url, _):
        first = RemotePolicy(url, timeout=30)
        with pytest.raises(KitError, match="another client is using 'drifter'"):
            RemotePolicy(url, timeout=30)
        first.close()
        for attempt in range(100):  # the server has to notice that the first client has gone
            try:
                RemotePolicy(url, timeout=30).close()
                break
            except KitError:
                assert attempt < 99
                time.sleep(0.1)
        with pytest.raises(InvalidStatus, match="403"):
            connect(url, origin="http://127.0.0.1:8888", proxy=None)  # type: ignore[arg-type]


@contextmanager
def served(policy: Any) -> Iterator[ClientConnection]:
    """A plain client, as openpi's is, of `policy` served in a thread; the metadata is read."""
    found, ready = list[str](), threading.Event()
    threading.Thread(
        target=remote.serve,
        args=(policy,),
        kwargs={"ready": lambda url: (found.append(url), ready.set())},
        daemon=True,
    ).start()
    assert ready.wait(20)
    with connect(found[0], max_size=None, proxy=None) as client:
        client.url = found[0]  # type: ignore[attr-defined]
        client.metadata = unpack(client.recv())  # type: ignore[attr-defined]
        yield client


def ask(client: Any, **changes: Any) -> Any:
    client.send(pack({"observation/image": IMAGE, "prompt": "go"} | changes))
    answer = client.recv()
    return answer if isinstance(answer, str) else unpack(answer)


def test_every_array_of_an_answer_has_a_row_an_action_as_openpis_chunk_broker_takes_them() -> None:
    class Chunks:
        def act_batch(self, images: Array, instructions: list[str]) -> list[Any]:
            return [np.arange(21, dtype=np.float64).reshape(3, 7)] * len(images)

    class Tokens:
        def act_batch(self, images: Array, instructions: list[str]) -> list[Any]:
            return [Action(np.ones(7), np.full(7, 0.5), np.arange(3), np.zeros(3, np.float32))] * len(images)

    with served(Chunks()) as client:
        answer = ask(client)
        assert {name: value.shape for name, value in answer.items() if isinstance(value, np.ndarray)} == {
            "actions": (3, 7),
            "normalised": (3, 7),
        }
        policy = RemotePolicy(client.url, timeout=20, execute=3)  # type: ignore[attr-defined]
        assert [policy.act(IMAGE).processed[0] for _ in range(4)] == [0, 7, 14, 0]
    with served(Tokens()) as client:
        shapes = {name: value.shape for name, value in ask(client).items() if isinstance(value, np.ndarray)}
        assert shapes == {
            "actions": (1, 7),
            "normalised": (1, 7),
            "tokens": (1, 3),
            "log_probability": (1, 3),
        }
        (action,) = RemotePolicy(client.url, timeout=20).act_batch(IMAGE[None], ["go"])  # type: ignore[attr-defined]
        assert (action.normalised.tolist(), action.tokens.tolist()) == ([0.5] * 7, [0, 1, 2])


def test_of_an_answer_with_several_actions_is_said_how_many_are_executed() -> None:
    """Whether it is over holds after the last of them, not after those that are executed."""

    class Chunks:
        name = "chunks"

        def act_batch(self, images: Array, instructions: list[str]) -> list[Any]:
            return [{"actions": np.zeros((3, 7)), "terminate": True} for _ in images]

    for execute, ends in ((1, [False, False]), (2, [False, False]), (3, [False, False, True])):
        with served(Chunks()) as client:
            policy = RemotePolicy(client.url, timeout=20, execute=execute)  # type: ignore[attr-defined]
            policy.reset("go")
            assert [policy.act(IMAGE).terminate for _ in ends] == ends
            assert hasattr(policy, "act_batch") == (execute == 1)
    with served(Chunks()) as client:
        policy = RemotePolicy(client.url, timeout=20)  # type: ignore[attr-defined]
        policy.reset("go")
        with pytest.raises(KitError, match=r"3 actions at a time -> say how many.*execute=3"):
            policy.act(IMAGE)


def test_what_reads_the_simulators_state_is_not_served() -> None:
    with pytest.raises(KitError, match="demonstrator reads the simulator's state"):
        remote.serve(DemonstratorPolicy())


def test_a_policy_whose_conventions_cannot_be_read_is_not_served() -> None:
    policy = SimpleNamespace(name="own", act=len, conventions={"image_size": 4})
    with pytest.raises(KitError, match="'own' has conventions that are a dict"):
        remote.serve(policy)


def test_a_prompt_of_bytes_is_text_and_what_has_no_name_or_hash_is_served() -> None:
    class Nameless:
        name = checkpoint_hash = None

        def step(self, image: Array, task_description: str) -> Any:
            said.append(task_description)
            turned = {
                "world_vector": [0.1, 0, 0],
                "rot_axangle": [0, 0, 0.2],
                "gripper": [1],
                "terminate_episode": [1.0],
            }
            return {"world_vector": [9, 9, 9]}, turned

    said: list[str] = []
    with served(Nameless()) as client:
        assert (client.metadata["name"], client.metadata["checkpoint_hash"]) == ("Nameless", "")  # type: ignore[attr-defined]
        answer = ask(client, prompt=b"put carrot on plate")
        assert said == ["put carrot on plate"]
        assert (
            answer["actions"] == pytest.approx(np.array([[0.1, 0, 0, 0, 0, 0.2, 1]])) and answer["terminate"]
        )


def test_a_second_openpi_client_of_a_policy_that_remembers_is_told_why_and_disturbs_nothing() -> None:
    with served(NAMES["Drifter"]()) as first:
        before, alone = ask(first)["actions"], NAMES["Drifter"]()
        with connect(first.url, proxy=None) as second:  # type: ignore[attr-defined]
            assert unpack(second.recv())["name"] == "drifter"
            assert (
                ask(second, prompt="another")
                == "another client is using 'drifter', which remembers its episode and serves one at a "
                "time -> "
                "wait until it has gone, or start another server"
            )
        after = ask(first)["actions"]
    alone.reset("go")
    assert np.array_equal(np.stack([before[0], after[0]]), np.stack([alone.act(IMAGE) for _ in range(2)]))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\xc1 not msgpack", "cannot be read"),
        ("words", "cannot be read|without 'prompt'"),
        (pack([1, 2]), "without 'prompt', but a list"),
        (pack({"prompt": None, "observation/image": IMAGE}), "whose 'prompt' is None"),
        (pack({"observation/image": IMAGE}), "without 'prompt', but 'observation/image'"),
        (
            pack({"prompt": "go", "image": IMAGE}),
            "without an array 'observation/image', but 'prompt', 'image'",
        ),
        (
            pack({"prompt": "go", "observation/image": IMAGE / 255}),
            r"'observation/image' is float64 \(36, 48, 3\) -> send RGB",
        ),
        (pack({"prompt": "go", "observation/image": IMAGE.transpose(2, 0, 1)}), r"is uint8 \(3, 36, 48\)"),
        (
            msgpack.packb(
                {
                    "prompt": "go",
                    "x": {b"__ndarray__": True, b"data": b"", b"dtype": "(", b"shape": (10**12,)},
                }
            ),
            "cannot be read",
        ),
        (bytes(remote.LARGEST + 1), "too big"),
    ],
    ids=[
        "noise",
        "words",
        "list",
        "prompt of nothing",
        "no prompt",
        "other keys",
        "float",
        "channels first",
        "damaged array",
        "huge",
    ],
)
def test_a_message_that_is_no_observation_is_answered_by_one_line_and_the_server_goes_on(
    message: Any, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(NAMES["Seer"]()) as client:
        url = client.url  # type: ignore[attr-defined]
        try:
            client.send(message)
            answer = client.recv()
        except ConnectionClosed as error:
            answer = str(error)
        assert isinstance(answer, str) and re.search(told, answer) and "\n" not in answer.strip()
        with connect(url, proxy=None) as another:
            another.recv()
            assert ask(another)["actions"].shape == (1, 7)
    assert "Traceback" not in capfd.readouterr().err


def test_the_server_says_that_it_is_there() -> None:
    with served(NAMES["Drifter"]()) as client:
        address = client.url.replace("ws:", "http:") + "/healthz"  # type: ignore[attr-defined]
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        assert ask(client)["actions"].shape == (1, 7)


def test_what_the_client_makes_of_answers_is_in_its_identity() -> None:
    def wrist(image: Array, instruction: str) -> dict[str, Any]:
        return {"observation/wrist_image": image, "prompt": instruction}

    with served(NAMES["Seer"]()) as client:
        url = client.url  # type: ignore[attr-defined]
        hashes = [
            RemotePolicy(url, 20, **options).checkpoint_hash
            for options in ({}, {"execute": 2}, {"execute": 5}, {"observation": wrist})
        ]
        assert hashes[:3] == ["abc", "abc+execute=2", "abc+execute=5"] and hashes[3].endswith("wrist")
        with pytest.raises(KitError, match="is a lambda"):
            RemotePolicy(url, 20, observation=lambda image, instruction: {})
        for execute in (0, -1, True, 1.5):
            with pytest.raises(KitError, match="execute is"):
                RemotePolicy(url, 20, execute=execute)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_serves_a_checkpoint_that_acts_as_in_this_process() -> None:
    folder = REPOSITORY / "data/checkpoints/action_only"
    command = [sys.executable, "-m", "refinevla_kit.cli", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        there, here = (
            RemotePolicy(process.stdout.readline().removeprefix("serving at ").strip()),
            load_policy(folder),
        )
        assert (there.name, there.checkpoint_hash, there.conventions) == (
            here.name,
            here.checkpoint_hash,
            here.conventions,
        )
        image = np.random.default_rng(0).integers(0, 256, (1, 120, 160, 3), dtype=np.uint8)
        own = np.array(
            [[0.3, 0, 0.1, 0.7, 0, 0.7, 0, 1, 0.32, 0, 0.1, 0.7, 0, 0.7, 0]], np.float32
        )  # the robot's own state goes over the socket too
        assert there.needs_proprioception and here.needs_proprioception
        (a,), (b,) = (policy.act_batch(image, ["put carrot on plate"], own) for policy in (there, here))
        for field in fields(a):
            both = getattr(a, field.name), getattr(b, field.name)
            if field.name == "log_probability":  # as many threads there need not be here
                np.testing.assert_allclose(*both, rtol=1e-5)
            else:
                assert np.array_equal(*both), field.name
        there.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_example_evaluates_a_policy_of_another_environment(tmp_path: Path) -> None:
    example = REPOSITORY / "examples/served_policy"
    server = subprocess.Popen(
        [sys.executable, "-I", example / "server.py", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().removeprefix("serving at ").strip()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, example / "evaluate.py", url, "--episodes", "1", "--output", str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    finally:
        server.kill()
        server.communicate()
    assert re.search(rf"reacher {CARROT} 0 failure 60", run.stdout), run.stdout + run.stderr


def test_a_server_that_tells_an_array_of_itself_is_the_same_after_a_lost_connection() -> None:
    told = {"name": "fake", "action_low": np.zeros(7)}
    with answering(metadata=told) as url:
        policy = RemotePolicy(url, timeout=5)
        policy.close()
        policy.reset("go")


def test_answers_that_nobody_took_are_not_taken_for_the_next_ones() -> None:
    def broken(image: np.ndarray, instruction: str) -> dict[str, Any]:
        if image[0, 0, 0] == 3:
            raise KeyboardInterrupt
        return {"observation/image": image, "prompt": instruction}

    images = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    with answering(*[lambda seen: {"actions": np.full(7, seen["observation/image"][0, 0, 0])}] * 6) as url:
        policy = RemotePolicy(url, timeout=5, observation=broken)
        with pytest.raises(KeyboardInterrupt):
            policy.act_batch(images, ["go"] * 6)
        with pytest.raises(KitError, match=r"the connection .* was lost in this episode"):
            policy.act_batch(images[3:], ["go"] * 3)
        policy.reset("go")
        assert [action.processed[6] for action in policy.act_batch(images[3:], ["go"] * 3)] == [4, 5, 6]
