"""`refinevla publish`: what is shipped may be public, what may not is refused in one line, and what is
uploaded arrives at a server on 127.0.0.1 that answers as the Hub does. Nothing here reaches the network.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

from refinevla_kit import hub
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from scripts.cards import CHECKPOINTS, DATASETS

TOKEN = "hf_" + "t" * 34
CARD = "---\nlicense: apache-2.0\n---\n\n# Mine\n"
SHIPPED = [*sorted(path.relative_to(REPOSITORY) for path in CHECKPOINTS.glob("[!.]*")), *map(Path, DATASETS)]


class Hub(ThreadingHTTPServer):
    """The few answers of the Hub that an upload asks for: small files come in the commit, weights before it.

    Attributes:
        repositories: what was asked to be made.
        held: large files by their SHA-256.
        files: what was committed, by path.
        keys: the authorisations that came.
    """

    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse
        self.repositories: list[dict[str, Any]] = []
        self.held: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.keys: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.add(self.headers["Authorization"])
        if self.server.refuse:
            self.answer({"error": "no right to write here"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.repositories.append(asked)
            under = "/datasets" if asked.get("type") == "dataset" else ""
            self.answer({"url": f"{self.server.url}{under}/{asked['organization']}/{asked['name']}"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            self.answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.server.url}/held/{one['oid']}"}} for one in wanted]
            objects = [one | {"actions": action} for one, action in zip(wanted, actions, strict=True)]
            self.answer({"objects": objects, "transfer": "basic"})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                file = line["value"]
                if line["key"] == "file":
                    self.server.files[file["path"]] = base64.b64decode(file["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[file["path"]] = self.server.held[file["oid"]]
            repository = self.path.removeprefix("/api/").removeprefix("models/").partition("/commit/")[0]
            address = f"{self.server.url}/{repository}/commit/{'1' * 40}"
            self.answer({"commitUrl": address, "commitOid": "1" * 40})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.held[self.path.rpartition("/")[2]] = content
        self.answer({})

    def answer(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Hub]:
    with Hub(getattr(request, "param", 0)) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that may be public."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "README.md").write_text(CARD)
    (path / "config.json").write_text('{"model_type": "paligemma", "page": "https://example.org/a/b"}')
    save_file({"weight": np.arange(4.0)}, path / "model.safetensors")
    return path


def publish(*arguments: str | Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, with a home of its own, in which nobody is logged in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    return subprocess.run(
        [sys.executable, "-m", "refinevla_kit.cli", "publish", *map(str, arguments)],
        env=kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_all_that_is_shipped_may_be_public(name: Path) -> None:
    shipped = REPOSITORY / name
    kind, files = hub.to_upload(shipped, "somebody/mine")
    assert kind == ("model" if shipped.parent == CHECKPOINTS else "dataset")
    assert {file.path_in_repo for file in files} == {
        path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()
    }


def test_a_dry_run_lists_and_needs_neither_token_nor_network(tmp_path: Path) -> None:
    shipped = CHECKPOINTS / "with_reasoning"
    run = publish(shipped, "somebody/mine", "--dry-run", home=tmp_path, HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stderr
    *listing, last = run.stdout.splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listing}
    assert listed.keys() == {path.name for path in shipped.iterdir()}
    weights = (shipped / "model.safetensors").stat().st_size
    assert listed["model.safetensors"] == weights
    assert json.loads(last) == {
        "repo": "somebody/mine",
        "type": "model",
        "files": len(listed),
        "bytes": sum(listed.values()),
        "url": None,
    }


def test_what_is_uploaded_arrives_and_the_token_is_never_shown(server: Hub, tmp_path: Path) -> None:
    shipped = tmp_path / "with_reasoning"
    shutil.copytree(CHECKPOINTS / "with_reasoning", shipped)
    (shipped / ".cache").mkdir()
    (shipped / ".cache" / "secret.bin").write_text(TOKEN)  # hidden, so it stays
    there = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    run = publish(shipped, "somebody/mine", "--private", home=tmp_path / "home", **there)
    assert run.returncode == 0, run.stderr
    assert server.repositories[0]["name"] == "mine" and server.repositories[0]["organization"] == "somebody"
    assert server.repositories[0]["visibility"] == "private"
    for path in filter(Path.is_file, shipped.iterdir()):
        if path.name != "README.md":
            assert server.files.pop(path.name) == path.read_bytes(), path.name
    card = ModelCard(server.files.pop("README.md").decode())
    assert card.data.base_model == "somebody/compact_base", "a base by its folder's name is the same owner's"
    assert card.text == ModelCard.load(shipped / "README.md").text and not server.files
    assert json.loads(run.stdout.splitlines()[-1])["url"] == f"{server.url}/somebody/mine"
    assert server.keys == {f"Bearer {TOKEN}"} and TOKEN not in run.stdout + run.stderr


def test_a_dataset_is_uploaded_as_one(server: Hub, tmp_path: Path) -> None:
    there = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    demo = REPOSITORY / "data" / "demo"
    run = publish(demo, "somebody/demo", home=tmp_path, **there)
    assert run.returncode == 0, run.stderr
    assert (server.repositories[0]["type"], server.repositories[0]["visibility"]) == ("dataset", "public")
    assert json.loads(run.stdout.splitlines()[-1])["url"] == f"{server.url}/datasets/somebody/demo"
    assert server.files == {
        path.relative_to(demo).as_posix(): path.read_bytes() for path in demo.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("server", [403], indirect=True)
def test_a_refusal_of_the_hub_is_one_line(server: Hub, folder: Path, tmp_path: Path) -> None:
    run = publish(folder, "else/mine", home=tmp_path, HF_ENDPOINT=server.url, HF_TOKEN=TOKEN)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert "else/mine could not be uploaded (" in run.stderr and "-> check your connection" in run.stderr
    assert TOKEN not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "there is no token of the Hugging Face Hub -> run `hf auth login`, or set HF_TOKEN"),
        ({"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "somebody/mine could not be uploaded ("),
        ({"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "-> check your connection, the name"),
    ],
)
def test_without_a_token_or_a_hub_nothing_is_uploaded(
    folder: Path, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    run = publish(folder, "somebody/mine", home=tmp_path, **environment)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert said in run.stderr and TOKEN not in run.stdout + run.stderr


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no card": (lambda f: (f / "README.md").unlink(), r"README.md is no card .* -> begin README.md with"),
    "no front matter": (lambda f: (f / "README.md").write_text("# Mine"), r"begins with something else"),
    "no license": (lambda f: (f / "README.md").write_text("---\ntags: [a]\n---\n"), r"names no license"),
    "no YAML": (lambda f: (f / "README.md").write_text("---\nlicense: [\n---\n"), r"is no card with front"),
    "not an object": (lambda f: (f / "README.md").write_text("---\n- a\n---\n"), r"is no card with front"),
    "pickled weights": (lambda f: (f / "model.bin").write_bytes(b"\x80\x04."), r"model.bin is of no kind"),
    "code": (lambda f: (f / "modeling.py").write_text("1"), r"modeling.py is of no kind .* -> take it out"),
    "a pickle by another name": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04N."),
        r"model.safetensors is not what its name says",
    ),
    "pickled arrays": (
        lambda f: np.savez(f / "a.npz", a=np.array([{}], dtype=object)),
        r"a.npz is not what its name says .* -> store it anew",
    ),
    "a token": (lambda f: (f / "notes.txt").write_text(f"token {TOKEN}"), r"notes.txt holds what looks like"),
    "a Google key": (lambda f: (f / "a.json").write_text('{"k": "AIza' + "x" * 35 + '"}'), r"a.json holds"),
    "an OpenAI key": (lambda f: (f / "a.md").write_text("key=sk-proj-" + "x" * 30), r"a.md holds what looks"),
    **{
        f"a key that begins with {key[:11]}": (
            lambda f, key=key: (f / "a.md").write_text(f"key_{key}"),
            r"a.md holds what looks like a key",
        )
        for key in (
            "github_pat_" + "x" * 22,
            "gsk_" + "x" * 20,
            "xai-" + "x" * 20,
            "ASIA" + "X" * 16,
            "AQ." + "x" * 20,
        )
    },
    "an ssh key": (
        lambda f: (f / "a.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----"),
        r"a.txt holds what looks like a key -> take it out, and replace that key",
    ),
    "a key in a table": (
        lambda f: pd.DataFrame({"raw": [TOKEN]}).to_parquet(f / "a.parquet"),
        r"a.parquet holds what looks like a key",
    ),
    "a key in a table of bytes": (
        lambda f: pd.DataFrame({"raw": [TOKEN.encode()]}).to_parquet(f / "a.parquet"),
        r"a.parquet holds what looks like a key",
    ),
    "a key in the next line of an answer": (
        lambda f: pd.DataFrame({"raw": [f"as you asked:\n{TOKEN}"]}).to_parquet(f / "a.parquet"),
        r"a.parquet holds what looks like a key",
    ),
    "a key behind a sign that is not shown": (
        lambda f: pd.DataFrame({"raw": [b"\x14" + TOKEN.encode()]}).to_parquet(f / "a.parquet"),
        r"a.parquet holds what looks like a key",
    ),
    "a key in the next line of a JSON": (
        lambda f: (f / "a.json").write_text(json.dumps({"prompt": f"é\t\n{TOKEN}"})),
        r"a.json holds what looks like a key",
    ),
    "a key in an array of bytes": (
        lambda f: np.savez(f / "a.npz", a=np.array([TOKEN.encode()])),
        r"a.npz holds what looks like a key",
    ),
    "a key in an array": (lambda f: np.savez(f / "a.npz", a=np.array([TOKEN])), r"a.npz holds what looks"),
    "a path": (
        lambda f: (f / "config.json").write_text('{"_name_or_path": "/somewhere/models/base"}'),
        r"config.json names a path of this machine, /somewhere/models/base -> write a name",
    ),
    "a path in the next line": (
        lambda f: (f / "a.json").write_text(json.dumps({"log": "from\n/somewhere/models/base"})),
        r"a.json names a path of this machine, /somewhere/models/base",
    ),
    "a path as an address of Windows": (
        lambda f: (f / "a.json").write_text('{"base": "file:///C:/models/base"}'),
        r"a.json names a path of this machine, file:///C",
    ),
    "a path of Windows with other slashes": (
        lambda f: (f / "a.json").write_text('{"base": "C:/models/base"}'),
        r"a.json names a path of this machine, C:/m",
    ),
    "a path as an address": (
        lambda f: (f / "a.json").write_text('{"base": "file:///somewhere/models/base"}'),
        r"a.json names a path of this machine, file:///somewhere/models/base",
    ),
    "a path of Windows": (
        lambda f: (f / "a.jsonl").write_text(json.dumps({"base": "C:\\models\\base"})),
        r"a.jsonl names a path of this machine, C:",
    ),
    "a path in the weights' header": (
        lambda f: save_file({"a": np.zeros(1)}, f / "model.safetensors", {"made": "by /somewhere/run.py"}),
        r"model.safetensors names a path of this machine, /somewhere/run.py",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_should_not_be_public_is_refused_in_one_line(folder: Path, case: str) -> None:
    hub.to_upload(folder, "somebody/mine")
    spoil, said = BAD[case]
    spoil(folder)
    with pytest.raises(KitError, match=said) as error:
        hub.to_upload(folder, "somebody/mine")
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "a b/c", "somebody/", "/mine", "", "somebody/mi--ne"])
def test_a_name_that_the_hub_would_not_take_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(KitError, match=r"is no name for the hub .* -> give OWNER/NAME"):
        hub.to_upload(folder, name)


def test_a_folder_that_is_none_is_refused(folder: Path) -> None:
    for path in (folder / "elsewhere", folder / "config.json"):
        with pytest.raises(KitError, match=r" is no folder -> give that of a checkpoint"):
            hub.to_upload(path, "somebody/mine")


def test_the_base_of_another_owner_stays_his(folder: Path) -> None:
    for line in ("base_model: openvla/openvla-7b", "base_model: [openvla/openvla-7b]"):
        (folder / "README.md").write_text(CARD.replace("license", f"{line}\nlicense"))
        _, files = hub.to_upload(folder, "somebody/mine")
        [card] = [file for file in files if file.path_in_repo == "README.md"]
        assert card.path_or_fileobj == (folder / "README.md").read_bytes()


@pytest.mark.parametrize("leads", ["videos", "nowhere"])
def test_a_link_that_would_be_left_out_is_refused(folder: Path, tmp_path: Path, leads: str) -> None:
    (tmp_path / "videos").mkdir()
    (folder / "videos").symlink_to(tmp_path / leads)
    with pytest.raises(KitError, match=r"videos is a link to a folder or to nothing"):
        hub.to_upload(folder, "somebody/mine")
