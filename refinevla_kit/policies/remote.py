"""A policy in another process, with other packages or on another machine: `serve(policy)` there,
`RemotePolicy(url)` here.

The protocol is openpi's (Physical-Intelligence/openpi, `openpi_client`), so its servers drop in, and its
clients can talk to `serve`: a websocket, one binary frame a message, msgpack inside. An array is a map
{b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [7]}, a NumPy scalar {b"__npgeneric__":
true, b"data": number, b"dtype": "<f4"}; only numbers are taken, nothing is ever unpickled.
    server: a map of metadata, when a client has connected
    client: an observation, {"observation/image": uint8 (H, W, 3), "prompt": the instruction}, and
    "observation/state" (`Observation.proprioception`)
        where the server asks for it; `RemotePolicy(observation=...)` makes another
    server: a map with "actions", (n, 7), the next n actions. If the policy failed, a *text* frame with the
    traceback, and it closes
Replies come in the order of the observations. GET /healthz is answered by 200, as by openpi's server.
What this kit adds, and openpi's clients and servers pass over:
    metadata: "name", "checkpoint_hash", "conventions" (a map, see `Conventions`), "stateless" (each answer
    depends on its observation alone), "reset"
        (true: the client begins an episode with {"reset": true, "prompt": the instruction}, which is answered
        by an empty map), "needs_proprioception" (true: it wants "observation/state"), "busy" (why it will
        refuse this client's first message: it serves another)
    replies: "normalised", "tokens", "log_probability" (a row an action, as openpi's chunk broker takes rows
    of all arrays; left out where the policy
        has none), "rationale", "terminate" (after the last action), as in `Action`
This module needs numpy, websockets (15 or newer) and msgpack only, and Python 3.10, so that the policy's
environment can be its own.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from http import HTTPStatus
from math import ceil
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from refinevla_kit.conventions import Conventions
from refinevla_kit.errors import KitError, as_kit_error, checked_integer
from refinevla_kit.policies.contract import (
    Action,
    Array,
    ask,
    begin,
    conventions_of,
    has,
    identity_of,
    name_of,
    naming,
    read_answer,
)

LONGEST = 1e6  # s to wait
LARGEST = 64 * 2**20  # bytes of a message, both ways; an image of 640 x 480 has 0.9 MB
# Observations sent before their answers are read, so that neither side waits for the other to empty its
# buffers
IN_FLIGHT = 8
ROWS = ("normalised", "tokens", "log_probability")  # of an `Action`, in a reply
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
    except Exception as error:  # the bytes may be anyone's
        raise ValueError(f"not a message of this protocol ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biuf":
        raise TypeError(f"cannot send a {type(value).__name__}: only plain values and numeric arrays")
    kind = value.dtype.str
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": kind}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": kind, b"shape": value.shape}


def _array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} in a message: only numbers are taken")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"]).copy()


def _observation(image: Array, instruction: str) -> dict[str, Any]:
    return {"observation/image": image, "prompt": instruction}


class RemotePolicy:
    """`Policy` over a server, connected when it is made. `act_batch` is there when the server's policy is
    stateless (openpi's are).

    A batch is one message an image, sent ahead of the answers; the server still infers one after another. A
    lost connection is not made again within an episode, because what the policy remembered is gone with it;
    `reset` connects again.

    Args:
        url: "ws://127.0.0.1:8000".
        timeout: seconds to wait for the connection and for each answer; the first one of a large model can
            take minutes.
        name, checkpoint_hash, conventions: for records and checks; None: what the server says of itself.
        observation: makes the message of an image (uint8 (H, W, 3)) and an instruction, for servers that want
            other keys or more than these. Its name goes into the identity: give the function another when it
            has changed. A lambda has none.
        execute: how many actions of an answer are executed before the server is asked again; it goes into the
            identity. More than 1 makes the policy stateful. None: the one there is; of several, say how many.

    Raises:
        KitError: no server there, something else that answers, no name, a policy that serves another client.
            `reset`, `act` and `act_batch` raise it where the server died, was silent for `timeout`, failed,
            or answered with something else than actions of 7 finite numbers. All name the server.
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
        execute: int | None = None,
    ) -> None:
        if execute is not None:
            execute = checked_integer(execute, "RemotePolicy's execute", 1)
        if not isinstance(timeout, int | float) or not 0 < timeout < LONGEST:
            raise KitError(f"RemotePolicy's timeout is {timeout!r}", "give seconds, such as 60")
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
            remedy = "give one: RemotePolicy(url, name=...); records carry it"
            raise KitError(f"the policy server at {url} says no name", remedy)
        self.name = name or _text(said["name"])
        identity = _text(said.get("checkpoint_hash") or "") if checkpoint_hash is None else checkpoint_hash
        self.checkpoint_hash = identity + (f"+execute={execute}" if execute else "")
        if observation is not _observation:
            called = getattr(observation, "__qualname__", type(observation).__name__)
            if "<lambda>" in called:
                what = "RemotePolicy's observation is a lambda, and records tell policies apart by its name"
                raise KitError(what, "give a function with a name (def)")
            self.checkpoint_hash += f"+observation={called}"
        self.conventions = conventions
        if conventions is None and said.get("conventions"):
            self.conventions = Conventions.from_dict(said["conventions"])
        if execute in (None, 1) and said.get("stateless", True):
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
            self._chunk.extend(self._actions(answer))
        return self._chunk.popleft()

    def _message(self, image: Array, instruction: str, proprioception: Array | None) -> dict[str, Any]:
        message = dict(self._observation(image, instruction))
        if proprioception is not None:
            message.setdefault("observation/state", np.asarray(proprioception, np.float32))
        return message

    def _act_batch(
        self, images: Array, instructions: Sequence[str], proprioception: Array | None = None
    ) -> list[Action]:
        states = [None] * len(images) if proprioception is None else proprioception
        messages = (self._message(*each) for each in zip(images, instructions, states, strict=True))
        # All of them before one can be refused, so that none is left for the next question.
        answers = list(self._answers(messages))
        return [self._actions(answer)[0] for answer in answers]

    def close(self) -> None:
        """Let go of the server; it goes on serving others."""
        self._socket = None
        self._opened.close()

    def _failed(self, what: str, remedy: str) -> KitError:
        """The error to raise, after letting go."""
        self.close()
        return KitError(what, remedy)

    def _connect(self) -> None:
        unreachable = (OSError, InvalidURI, InvalidHandshake, ValueError, OverflowError)
        with as_kit_error(f"no policy server answers at {self.url}", START, unreachable):
            opened = connect(
                self.url,
                compression=None,
                max_size=LARGEST,
                proxy=None,
                open_timeout=self.timeout,
                ping_interval=None,
                close_timeout=1,
            )
            self._socket = self._opened.enter_context(opened)
        limit = struct.pack("ll", ceil(self.timeout), 0)
        with suppress(OSError):  # gone again already: `_receive` tells why
            # Without a limit, sending to a process that hangs would never return.
            opened.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        metadata = self._receive()
        busy, name = metadata.get("busy"), metadata.get("name")
        if busy:
            remedy = "wait until the other client has gone, or start another server"
            raise self._failed(f"the policy server at {self.url}: {_text(busy)}", remedy)
        if self.metadata and pack(self.metadata) != pack(metadata):
            what = f"another policy is served at {self.url} than before ({name!r})"
            raise self._failed(what, "make a new RemotePolicy for it")
        self.metadata = metadata

    def _answers(self, messages: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        waiting = 0
        try:
            for message in messages:
                try:
                    packed = pack(message)
                except (TypeError, ValueError) as error:
                    what = f"an observation for {self.url} cannot be sent ({error})"
                    raise KitError(what, "give plain values and numeric arrays") from error
                with suppress(ConnectionClosed):  # what the server said last, and why, `_receive` tells
                    self._alive().send(packed)
                waiting += 1
                if waiting == IN_FLIGHT:
                    yield self._receive()
                    waiting -= 1
            for _ in range(waiting):
                yield self._receive()
        except BaseException:  # also Ctrl-C: what is still to come would be taken for the next answers
            self.close()
            raise

    def _receive(self) -> dict[str, Any]:
        server = f"the policy server at {self.url}"
        try:
            message = self._alive().recv(self.timeout)
        except TimeoutError as error:
            what = f"{server} did not answer within {self.timeout:g} s"
            raise self._failed(what, f"raise RemotePolicy's timeout, or {AGAIN}") from error
        except ConnectionClosed as error:
            raise self._failed(f"{server} has gone or hangs ({error})", AGAIN) from error
        except BaseException:
            self.close()
            raise
        if isinstance(message, str):  # openpi's way of saying that the policy failed
            last = (message.strip().splitlines() or [""])[-1]
            raise self._failed(f"{server} failed: {last}", AGAIN)
        try:
            answer = unpack(message)
            if not isinstance(answer, dict):
                raise ValueError(f"a {type(answer).__name__} instead of a map")
        except ValueError as error:
            raise self._failed(f"{self.url} does not speak openpi's protocol: {error}", START) from error
        return answer

    def _alive(self) -> ClientConnection:
        if self._socket is None:
            what = f"the connection to {self.url} was lost in this episode"
            raise KitError(what, "begin the episode again with reset(instruction)")
        return self._socket

    def _actions(self, answer: Mapping[str, Any]) -> list[Action]:
        """Those of an answer that are executed; where it says that it is over, that is after the last row."""
        server = f"the policy server at {self.url}"
        try:
            if "actions" not in answer:
                raise KitError(f"returned no actions, but {sorted(map(str, answer))}", "")
            actions = read_answer(answer)
        except KitError as error:
            raise KitError(
                f"{server} {error.what}", "it has to answer with {'actions': array (n, 7)}"
            ) from error
        if not all(np.isfinite(action.processed).all() for action in actions):
            said = [action.processed.tolist() for action in actions]
            raise KitError(
                f"{server} returned {said}", "check its un-normalisation statistics and its checkpoint"
            )
        if self._execute is None and len(actions) > 1:
            what = f"{server} answers with {len(actions)} actions at a time"
            remedy = f"say how many are executed: RemotePolicy(url, execute={len(actions)}), or fewer"
            raise KitError(what, remedy)
        return actions[: self._execute]


def _text(value: Any) -> str:
    """Text, also where the other side sent it as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _announce(url: str) -> None:
    print(f"serving at {url}", flush=True)


def serve(
    policy: Any, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], None] = _announce
) -> None:
    """Serve `policy` until interrupted. There is no authentication: any program that reaches the address may
    use it.

    Args:
        policy: whatever `evaluate` takes. Without `act_batch` it is taken to remember its episode: it serves
            one client at a time, and is reset when the instruction changes.
        host, port: to listen on; port 0 takes a free one.
        ready: called once with the address, "ws://127.0.0.1:40123".

    Raises:
        KitError: the address is taken or not this machine's; a policy that cannot be served.
    """
    session = _Session(policy)
    with as_kit_error(
        f"cannot listen on {host}:{port}", "choose another port; 0 takes a free one", (OSError, OverflowError)
    ):
        # origins: a web page in this machine's browser could connect too, but browsers say where the page is
        # from
        server = listen(
            session.talk,
            host,
            port,
            origins=[None],
            compression=None,
            max_size=LARGEST,
            ping_interval=None,
            process_request=_health,
        )
    with server:
        ready(f"ws://{host}:{server.socket.getsockname()[1]}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _health(client: ServerConnection, request: Request) -> Response | None:
    """What openpi's server says to who asks whether it is there."""
    return client.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


class _Session:
    """A policy and whose turn it is."""

    def __init__(self, policy: Any) -> None:
        self._policy, self._turn = policy, threading.Lock()
        self._instruction: str | None = None
        self._stateless = has(policy, "act_batch")
        if getattr(policy, "needs_state", False):
            what = f"{name_of(policy)} reads the simulator's state, which no message carries"
            raise KitError(what, "serve a policy that acts on pictures")
        self._metadata = {
            "name": name_of(policy),
            "checkpoint_hash": identity_of(policy),
            "conventions": conventions_of(policy).to_dict(),
            "stateless": self._stateless,
            "reset": True,
            "needs_proprioception": bool(getattr(policy, "needs_proprioception", False)),
        }

    def talk(self, client: ServerConnection) -> None:
        """One client, from its connection to its end."""
        mine = self._stateless or self._turn.acquire(blocking=False)
        try:
            busy = (
                f"another client is using {self._metadata['name']!r}, which remembers its episode and "
                "serves one at a time"
            )
            client.send(pack(self._metadata if mine else self._metadata | {"busy": busy}))
            for message in client:
                if not mine:
                    raise KitError(busy, "wait until it has gone, or start another server")
                client.send(pack(self._answer(message)))
        except ConnectionClosed:
            pass
        except KitError as error:
            self._refuse(client, str(error))
        except Exception as error:  # of the protocol: what cannot be packed or unpacked
            traceback.print_exc()
            self._refuse(client, f"{type(error).__name__}: {error}")
        finally:
            if mine and not self._stateless:
                self._instruction = None
                self._turn.release()

    def _refuse(self, client: ServerConnection, line: str) -> None:
        """Tell the client, as openpi's server does, and show it here; the server goes on with the others."""
        print(line, file=sys.stderr, flush=True)
        with suppress(ConnectionClosed):
            client.send(line)
            client.close(1011, "the policy failed")

    def _answer(self, received: bytes | str) -> dict[str, Any]:
        try:
            message = unpack(received if isinstance(received, bytes) else received.encode())
        except ValueError as error:
            raise KitError(
                f"an observation that cannot be read: {error}", "send msgpack as openpi's client does"
            ) from error
        if not isinstance(message, dict) or "prompt" not in message:
            listed = isinstance(message, dict)
            said = ", ".join(map(repr, message)) if listed else f"a {type(message).__name__}"
            remedy = "send {'observation/image': uint8 (H, W, 3), 'prompt': the instruction}"
            raise KitError(f"an observation without 'prompt', but {said}", remedy)
        if not isinstance(message["prompt"], str | bytes):
            raise KitError(f"an observation whose 'prompt' is {message['prompt']!r}", "send the instruction")
        instruction, started = _text(message["prompt"]), time.perf_counter()
        if not self._stateless and (message.get("reset") or instruction != self._instruction):
            self._instruction = instruction
            self._told(begin, self._policy, instruction)
        if message.get("reset"):
            return {}
        image = _given(message, "observation/image", None)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            what = f"'observation/image' is {image.dtype} {image.shape}"
            raise KitError(what, "send RGB as a camera has it: uint8 (H, W, 3)")
        own = None
        if self._metadata["needs_proprioception"]:
            own = [_given(message, "observation/state", np.float32)]
        with self._turn if self._stateless else nullcontext():
            (answer,) = self._told(ask, self._policy, [image], [instruction], own)
        actions = self._told(read_answer, answer)
        reply: dict[str, Any] = {"actions": np.stack([action.processed for action in actions])}
        for name in ROWS:
            rows = [np.asarray(getattr(action, name)) for action in actions]
            if rows[0].size and len({row.shape for row in rows}) == 1:
                reply[name] = np.stack(rows)
        reply |= {"rationale": actions[0].rationale, "terminate": actions[-1].terminate}
        return reply | {"server_timing": {"infer_ms": 1e3 * (time.perf_counter() - started)}}

    def _told(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it; an error names the policy, and the terminal shows where it was."""
        try:
            with naming(f"policy {self._metadata['name']!r}"):
                return function(*arguments)
        except KitError as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, KitError):
                traceback.print_exception(error.__cause__)
            raise


def _given(message: Mapping[str, Any], name: str, dtype: Any) -> Array:
    """The array of this name in an observation."""
    value = message.get(name)
    if not isinstance(value, (np.ndarray, list)):
        raise KitError(
            f"an observation without an array {name!r}, but {', '.join(map(repr, message))}",
            f"send {name!r} as an array",
        )
    with as_kit_error(f"{name!r} is no array of numbers", "send an array", (TypeError, ValueError)):
        return np.asarray(value, dtype)
