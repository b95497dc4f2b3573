"""A policy in an environment of its own, served to `evaluate.py` in openpi's protocol, without the kit.

    python -m venv /tmp/policy && /tmp/policy/bin/pip install numpy websockets msgpack
    /tmp/policy/bin/python examples/served_policy/server.py --port 8000
    .venv/bin/python examples/served_policy/evaluate.py ws://127.0.0.1:8000       # in another terminal

Replace `Reacher` by your policy; the rest stays. Any Python from 3.10, any versions of anything else. Where
the kit can be imported too (for this it needs no more than these three packages),
`refinevla_kit.policies.remote.serve(policy)` does the same and also tells the client what went wrong;
`refinevla serve CHECKPOINT` serves a checkpoint of the kit. The messages are described in
`refinevla_kit/policies/remote.py`.
"""

import argparse

import msgpack
import numpy as np
from websockets.sync.server import serve

NAME = "reacher"
CONVENTIONS = {  # what its numbers mean; compared with the robot's before the first episode
    "robot": "widowx",
    "frame": "base",
    "unit": "m",
    "added_to": "target",
    "rotation": "euler_xyz_extrinsic",
    "gripper": "open+1_closed-1",
    "sticky_gripper": 1,
    "control_hz": 5.0,
    "image_size": [160, 120],
    "resize": "stretch",
    "colour": "rgb",
    "normalisation": "own",
    "camera": "3rd_view_camera",
}


class Reacher:
    """Moves the open gripper towards the orange in the picture; solves nothing."""

    def act(self, image, instruction):
        """image uint8 (H, W, 3), str -> float32 (7,): metres, radians, gripper."""
        red, green, blue = np.moveaxis(image.astype(np.float32), -1, 0)  # H, W each
        weight = np.clip(red - np.maximum(green, blue) - 40, 0, None)
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
        total = weight.sum() + 1e-6
        right, down = (
            (weight * columns).sum() / total / image.shape[1] - 0.5,
            (weight * rows).sum() / total / image.shape[0] - 0.5,
        )
        return np.array([0.05 * down, 0.05 * right, -0.005, 0, 0, 0, 1], np.float32)


def to_message(value):
    """An array as openpi writes it."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def from_message(value):
    """Inverse of `to_message`."""
    return (
        np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"])
        if b"__ndarray__" in value
        else value
    )


def talk(socket):
    """One client: the metadata, then an answer to each observation."""
    policy = Reacher()
    socket.send(
        msgpack.packb({"name": NAME, "checkpoint_hash": "", "conventions": CONVENTIONS, "stateless": True})
    )
    for message in socket:
        observation = msgpack.unpackb(message, object_hook=from_message)
        action = policy.act(observation["observation/image"], observation["prompt"])
        socket.send(msgpack.packb({"actions": action[None]}, default=to_message))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    with serve(
        talk, "127.0.0.1", parser.parse_args().port, origins=[None], compression=None, max_size=2**26
    ) as server:
        print(f"serving at ws://127.0.0.1:{server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()
