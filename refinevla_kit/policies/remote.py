"""A policy in another process, with other packages or on another machine: `serve(policy)` there, `RemotePolicy(url)` here.

The protocol is openpi's (Physical-Intelligence/openpi, `openpi_client`), so its servers drop in, and its clients can talk to `serve`: a websocket,
one binary frame a message, msgpack inside. An array is a map {b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [7]}, a NumPy scalar
{b"__npgeneric__": true, b"data": number, b"dtype": "<f4"}; only numbers are taken, nothing is ever unpickled.
    server: a map of metadata, when a client has connected
    client: an observation, {"observation/image": uint8 (H, W, 3), "prompt": the instruction}, and "observation/state" (`Observation.proprioception`)
        where the server asks for it; `RemotePolicy(observation=...)` makes another
    server: a map with "actions", (n, 7), the next n actions. If the policy failed, a *text* frame with the traceback, and it closes
Replies come in the order of the observations. What this kit adds, and openpi's clients and servers pass over:
    metadata: "name", "checkpoint_hash", "conventions" (a map, see `Conventions`), "stateless" (each answer depends on its observation alone), "reset"
        (true: the client begins an episode with {"reset": true, "prompt": the instruction}, which is answered by an empty map),
        "needs_proprioception" (true: it wants "observation/state")
    replies: "normalised", "tokens", "log_probability", "rationale", "terminate", as in `Action`
This module needs numpy, websockets (15 or newer) and msgpack only, and Python 3.10, so that the policy's environment can be its own.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import ceil
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from refinevla_kit.conventions import Conventions
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array

LARGEST = 64 * 2**20  # bytes of a message, both ways; an image of 640 x 480 has 0.9 MB
IN_FLIGHT = 8  # observations sent before their answers are read, so that neither side waits for the other to empty its buffers
EXTRAS = ("normalised", "tokens", "log_probability", "rationale", "terminate")  # of an `Action`, in a reply
START = "start it (`refinevla serve CHECKPOINT`, or your own script) and give the address that it prints"
AGAIN = "look at the server's terminal, start it again and run again: finished episodes are kept"


def pack(value: Any) -> bytes:
    """A message of plain values and numeric arrays."""
    packed = msgpack.packb(value, default=_plain)
    assert isinstance(packed, bytes)
    return packed


def unpack(message: bytes) -> Any:
    """Inverse of `pack`. Raises `ValueError` for what is no such message."""
    try:
        return msgpack.unpackb(message, object_hook=_array)
    except (KeyError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message of this protocol ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"cannot send a {type(value).__name__}: only plain values and numeric arrays")


def _array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} in a message: only numbers are taken")
    return dtype.type(value[b"data"]) if b"__npgeneric__" in value else np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"]).copy()


def _observation(image: Array, instruction: str) -> dict[str, Any]:
    return {"observation/image": image, "prompt": instruction}


class RemotePolicy:
    """`Policy` over a server, connected when it is made. `act_batch` is there when the server's policy is stateless (openpi's are).

    A batch is one message an image, sent ahead of the answers; the server still infers one after another. A lost connection is not made again within
    an episode, because what the policy remembered is gone with it; `reset` connects again.

    Args:
        url: "ws://127.0.0.1:8000".
        timeout: seconds to wait for the connection and for each answer; the first one of a large model can take minutes.
        name, checkpoint_hash, conventions: for records and checks; None: what the server says of itself.
        observation: makes the message of an image (uint8 (H, W, 3)) and an instruction, for servers that want other keys or more than these.
        execute: how many actions of an answer are executed before the server is asked again. More than 1 makes the policy stateful.

    Raises:
        KitError: no server there, something else that answers, no name; from `reset`, `act` and `act_batch`: the server died, was silent for
            `timeout`, failed, or answered with something else than actions of 7 finite numbers. All name the server.
    """

    act_batch: Callable[..., list[Action]]

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        name: str | None = None,
        checkpoint_hash: str | None = None,
        conventions: Conventions | None = None,
        observation: Callable[[Array, str], Mapping[str, Any]] = _observation,
        execute: int = 1,
    ) -> None:
        self.url, self.timeout, self._observation, self._execute = url, timeout, observation, execute
        self._instruction, self._chunk = "", deque[Action]()
        self._opened = ExitStack()
        weakref.finalize(self, self._opened.close)  # says good-bye at the end of the program, too
        self._socket: ClientConnection | None = None
        self.metadata: dict[str, Any] = {}
        self._connect()
        said = self.metadata
        self.needs_proprioception = bool(said.get("needs_proprioception", False))
        if not (name or said.get("name")):
            raise KitError(f"the policy server at {url} says no name", "give one: RemotePolicy(url, name=...); records carry it")
        self.name = name or str(said["name"])
        self.checkpoint_hash = str(said.get("checkpoint_hash", "")) if checkpoint_hash is None else checkpoint_hash
        self.conventions = conventions or (Conventions.from_dict(said["conventions"]) if said.get("conventions") else None)
        if execute == 1 and said.get("stateless", True):
            self.act_batch = self._act_batch

    def reset(self, instruction: str) -> None:
        """See `Policy.reset`."""
        self._instruction = instruction
        self._chunk.clear()
        if self._socket is None:
            self._connect()
        if self.metadata.get("reset"):
            list(self._answers([{"reset": True, "prompt": instruction}]))

    def act(self, image: Array, proprioception: Array | None = None) -> Action:
        """See `Policy.act`."""
        if not self._chunk:
            (answer,) = self._answers([self._message(image, self._instruction, proprioception)])
            self._chunk.extend(self._actions(answer)[: self._execute])
        return self._chunk.popleft()

    def _message(self, image: Array, instruction: str, proprioception: Array | None) -> dict[str, Any]:
        state = {} if proprioception is None else {"observation/state": np.asarray(proprioception, np.float32)}
        return {**state, **self._observation(image, instruction)}

    def _act_batch(self, images: Array, instructions: Sequence[str], proprioception: Array | None = None) -> list[Action]:
        states = [None] * len(images) if proprioception is None else proprioception
        messages = (self._message(*each) for each in zip(images, instructions, states, strict=True))
        answers = list(self._answers(messages))  # all of them before one can be refused, so that none is left for the next question
        return [self._actions(answer)[0] for answer in answers]

    def close(self) -> None:
        """Let go of the server; it goes on serving others."""
        self._socket = None
        self._opened.close()

    def _connect(self) -> None:
        try:
            self._socket = self._opened.enter_context(
                connect(self.url, compression=None, max_size=LARGEST, proxy=None, open_timeout=self.timeout, ping_interval=None, close_timeout=1)
            )
            with suppress(OSError):  # gone again already: `_receive` tells why. Without a limit, sending to a process that hangs would never return
                self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ceil(self.timeout), 0))
        except TimeoutError as error:
            raise KitError(f"no answer from {self.url} within {self.timeout:g} s", START) from error
        except (OSError, InvalidURI) as error:
            raise KitError(f"no policy server at {self.url} ({error})", START) from error
        except InvalidHandshake as error:
            raise KitError(f"{self.url} is no policy server: it does not answer as a websocket ({error})", START) from error
        before, self.metadata = self.metadata, self._receive()
        if before not in ({}, self.metadata):
            self.close()
            raise KitError(f"another policy is served at {self.url} than before ({self.metadata.get('name')!r})", "make a new RemotePolicy for it")

    def _answers(self, messages: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        waiting = 0
        for message in messages:
            try:
                packed = pack(message)
            except (TypeError, ValueError) as error:
                self.close()
                raise KitError(f"an observation for {self.url} cannot be sent ({error})", "give plain values and numeric arrays") from error
            with suppress(ConnectionClosed):  # what the server said last, and why it went, is for _receive to tell
                self._alive().send(packed)
            waiting += 1
            if waiting == IN_FLIGHT:
                yield self._receive()
                waiting -= 1
        for _ in range(waiting):
            yield self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            message = self._alive().recv(self.timeout)
            if isinstance(message, str):  # openpi's way of saying that the policy failed
                raise KitError(f"the policy server at {self.url} failed: {(message.strip().splitlines() or [''])[-1]}", AGAIN)
            answer = unpack(message)
            if not isinstance(answer, dict):
                raise ValueError(f"a {type(answer).__name__} instead of a map")
        except TimeoutError as error:
            self.close()
            what = f"the policy server at {self.url} did not answer within {self.timeout:g} s"
            raise KitError(what, f"raise RemotePolicy's timeout, or {AGAIN}") from error
        except ConnectionClosed as error:
            self.close()
            raise KitError(f"the policy server at {self.url} has gone or hangs ({error})", AGAIN) from error
        except ValueError as error:
            self.close()
            raise KitError(f"{self.url} does not speak openpi's protocol: {error}", START) from error
        except KitError:
            self.close()
            raise
        return answer

    def _alive(self) -> ClientConnection:
        if self._socket is None:
            raise KitError(f"the connection to {self.url} was lost in this episode", "begin the episode again with reset(instruction)")
        return self._socket

    def _actions(self, answer: Mapping[str, Any]) -> list[Action]:
        numbers = np.asarray(answer.get("actions"))
        if numbers.dtype.kind not in "iuf" or numbers.ndim not in (1, 2) or numbers.shape[-1] != 7 or not numbers.size:
            said = f"actions of shape {numbers.shape}" if "actions" in answer else f"no actions, but {sorted(map(str, answer))}"
            raise KitError(f"the policy server at {self.url} returned {said}", "it has to answer with {'actions': array (n, 7)}")
        numbers = numbers.reshape(-1, 7).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise KitError(f"the policy server at {self.url} returned {numbers.tolist()}", "check its un-normalisation statistics and its checkpoint")
        first = Action(
            numbers[0], np.asarray(answer.get("normalised", numbers[0]), np.float32), np.asarray(answer.get("tokens", []), np.int64),
            np.asarray(answer.get("log_probability", []), np.float32), str(answer.get("rationale", "")), bool(answer.get("terminate", False)),
        )  # fmt: skip
        return [first, *(Action(row, row, first.tokens[:0], first.log_probability[:0]) for row in numbers[1:])]


def _announce(url: str) -> None:
    print(f"serving at {url}", flush=True)


def serve(policy: Any, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] = _announce) -> None:
    """Serve `policy` until interrupted. There is no authentication: any program that reaches the address may use it.

    Args:
        policy: a `Policy`, or anything with `act(image)` (and `reset(instruction)`) that returns an `Action` or 7 numbers. Without `act_batch` it is
            taken to remember its episode: it serves one client at a time, and is reset when the instruction changes.
        host, port: to listen on; port 0 takes a free one.
        ready: called once with the address, "ws://127.0.0.1:40123".

    Raises:
        KitError: the address is taken or not this machine's.
    """
    session = _Session(policy)
    try:
        # origins: a web page in this machine's browser could connect too, but browsers say where the page is from
        server = listen(session.talk, host, port, origins=[None], compression=None, max_size=LARGEST, ping_interval=None)
    except OSError as error:
        raise KitError(f"cannot listen on {host}:{port} ({error})", "choose another port; 0 takes a free one") from error
    with server:
        ready(f"ws://{host}:{server.socket.getsockname()[1]}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class _Session:
    """A policy and whose turn it is."""

    def __init__(self, policy: Any) -> None:
        self._policy, self._turn = policy, threading.Lock()
        self._instruction: str | None = None
        self._stateless, self._wants_state = hasattr(policy, "act_batch"), bool(getattr(policy, "needs_proprioception", False))
        conventions = getattr(policy, "conventions", None)
        self._metadata = {
            "name": getattr(policy, "name", type(policy).__name__), "checkpoint_hash": getattr(policy, "checkpoint_hash", ""),
            "conventions": conventions.to_dict() if conventions else None, "stateless": self._stateless, "reset": True,
            "needs_proprioception": self._wants_state,
        }  # fmt: skip

    def talk(self, client: ServerConnection) -> None:
        """One client, from its connection to its end."""
        if not self._stateless and not self._turn.acquire(blocking=False):
            client.send(f"another client is using {self._metadata['name']!r}, which remembers its episode and serves one at a time")
            return
        try:
            client.send(pack(self._metadata))
            for message in client:
                client.send(pack(self._answer(unpack(message if isinstance(message, bytes) else message.encode()))))
        except ConnectionClosed:
            pass
        except Exception:  # told to the client, as openpi's server does, and shown here
            traceback.print_exc()
            with suppress(ConnectionClosed):
                client.send(traceback.format_exc())
                client.close(1011, "the policy failed")
        finally:
            if not self._stateless:
                self._instruction = None
                self._turn.release()

    def _answer(self, message: Any) -> dict[str, Any]:
        instruction, begun = str(message["prompt"]), time.perf_counter()
        state = [np.asarray(message["observation/state"], np.float32)] if self._wants_state and not message.get("reset") else []
        if self._stateless:
            if message.get("reset"):
                return {}
            with self._turn:
                (answer,) = self._policy.act_batch(np.asarray(message["observation/image"])[None], [instruction], *(one[None] for one in state))
        else:
            if message.get("reset") or instruction != self._instruction:
                self._instruction = instruction
                if hasattr(self._policy, "reset"):
                    self._policy.reset(instruction)
            if message.get("reset"):
                return {}
            answer = self._policy.act(message["observation/image"], *state)
        reply: dict[str, Any] = {"actions": np.asarray(getattr(answer, "processed", answer), np.float32)[None]}
        reply |= {name: getattr(answer, name) for name in EXTRAS if hasattr(answer, name)}
        return reply | {"server_timing": {"infer_ms": 1e3 * (time.perf_counter() - begun)}}
