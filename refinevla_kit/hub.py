"""Models and datasets of the Hugging Face hub by their names: downloaded once, only what is wanted of them,
and gone on with after an interruption; and folders of this machine, checked and uploaded there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refinevla_kit.errors import KitError, as_kit_error

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

FILES = {"model": ("*.json", "*.safetensors", "*.model", "*.txt"), "dataset": ("meta/**",)}
"""What is always wanted; never code."""
ONE_BY_ONE = 1000  # files; of more, whole folders are taken
UPLOADED = "csv jpg json jsonl md model mp4 npz parquet png safetensors txt webm"
"""How the names of files end that are uploaded: no code, and nothing that runs when it is read."""
STATED = (".json", ".jsonl", ".parquet", ".safetensors")  # which say what made them, maybe by its path
SECRET = re.compile(
    rb"(?<![A-Za-z\d])(hf_[^\W_]{30}|AIza[\w-]{35}|AQ\.[\w-]{20}|sk-[\w-]{20}|(gsk_|xai-)\w{20}|gh[a-z]_\w{36}"
    rb"|github_pat_\w{22}|A(KI|SI)A[A-Z\d]{16})|-BEGIN [A-Z ]*PRIVATE KEY"
)
"""Keys of this hub, Google, OpenAI and its likes, GitHub, Amazon, and of ssh."""
LOCAL = re.compile(rb"\bfile://[\w./]+|(?<![\w.:/])/([\w.-]+/)+[\w.-]+|\b[A-Z]:(/|\\\\?)\w")
"""An absolute path of two parts or more, an address of one, or one of Windows, also as JSON has it."""
ESCAPED = re.compile(rb"\\(x..|u....|.)")
"""An escaped sign, such as the n of a line break: it hides that a new word begins behind it."""


def is_name(source: str | Path) -> bool:
    """Whether this is how the hub names something: owner/name, and no folder here."""
    text = str(source)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(source).exists()


def name_in_cache(path: str | Path) -> str:
    """Which dataset a folder of the hub's cache is a snapshot of, as owner/name; "" for another folder."""
    cached, _, _ = str(Path(path)).partition("/snapshots/")
    kind, _, name = Path(cached).name.partition("--")
    return name.replace("--", "/", 1) if kind == "datasets" and "/snapshots/" in str(path) else ""


def download(name: str, files: Sequence[str], kind: str = "model", revision: str | None = None) -> Path:
    """The folder of a model or dataset in the hub's cache.

    Args:
        name: owner/name.
        files: those wanted, as patterns of their paths in it.
        kind: "model" or "dataset".
        revision: a branch, tag or commit; None: the newest.

    Raises:
        KitError: it is not there, the hub cannot be reached, the download was interrupted, or what is still
            to come does not fit the disk, which is said before it begins.
    """
    # seconds to import, and not needed for what lies here
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"repo_type": kind, "revision": revision, "allow_patterns": list(files)}
    try:
        with suppress(DryRunError):  # no connection: what is in the cache will do
            planned = [] if HF_HUB_OFFLINE else snapshot_download(name, dry_run=True, **wanted)
            coming = sum(file.file_size or 0 for file in planned if file.will_download)
            _check_room(name, coming, HF_HUB_CACHE)
        return Path(snapshot_download(name, **wanted))
    except LocalEntryNotFoundError as error:
        what = f"{name} is no folder here, not in the hub's cache, and the hub cannot be reached"
        remedy = f"connect, or download the {kind} on another machine and give its folder"
        raise KitError(what, remedy) from error
    except KitError:
        raise
    except Exception as error:  # the transport's own have no base in common with the hub's
        said = str(error).partition("\n")[0]
        what = f"{name} could not be downloaded ({type(error).__name__}: {said})"
        remedy = "check the name, the revision and your access; what was downloaded is kept and continued"
        raise KitError(what, remedy) from error


def _check_room(name: str, size: int, cache: str) -> None:
    """Raises `KitError` where `size` bytes do not fit the disk of the cache."""
    there = next(folder for folder in (Path(cache), *Path(cache).parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        what = f"{name} takes {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free in {there}"
        raise KitError(what, "choose fewer episodes, free space, or set HF_HOME to a larger disk")


def patterns_of(files: Sequence[str]) -> list[str]:
    """What to ask for to get these files; of very many, the folders that they lie in."""
    if len(files) <= ONE_BY_ONE:
        return list(files)
    return sorted({f"{file.rpartition('/')[0]}/*" for file in files})


def to_upload(folder: Path, name: str) -> tuple[str, list[CommitOperationAdd]]:
    """What of a folder is to be uploaded, after a look into every file. Hidden files stay here.

    Args:
        folder: of a checkpoint, a dataset or records, with its card.
        name: owner/name. A base that the card names without an owner is understood as this owner's.

    Returns:
        "model" where there are weights, else "dataset", and the files.

    Raises:
        KitError: no such folder, no such name, no card, or a file that should not be public.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import validate_repo_id

    if not folder.is_dir():
        raise KitError(f"{folder} is no folder", "give that of a checkpoint, a dataset or records")
    owner, slash, _ = name.partition("/")
    with as_kit_error(f"{name!r} is no name for the hub", "give OWNER/NAME", (ValueError,)):
        validate_repo_id(name)
        if not slash:
            raise ValueError("there is no owner")
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.is_file():
            what = f"{path} is a link to a folder or to nothing: what it stands for would be left out"
            raise KitError(what, "put the files themselves there")
        if path.is_file() and not re.search(r"(^|/)\.", inside):
            _check_file(path)
            contents[inside] = path
    kind = "model" if any(folder.rglob("*.safetensors")) else "dataset"
    contents["README.md"] = _card(folder / "README.md", kind, owner).encode()
    return kind, [CommitOperationAdd(path, content) for path, content in contents.items()]


def _card(path: Path, kind: str, owner: str) -> str:
    """The text of a card as it is uploaded."""
    from huggingface_hub import DatasetCard, ModelCard

    remedy = "begin README.md with `---`, `license: ` and a license's name, and `---` (docs/your_vla.md)"
    with as_kit_error(f"{path} is no card with front matter", remedy):
        text = path.read_text(encoding="utf-8")
        if not text.startswith("---"):
            raise ValueError("it begins with something else")
        card = (ModelCard if kind == "model" else DatasetCard)(text)
        if not card.data.get("license"):
            raise ValueError("it names no license")
    base = str(card.data.get("base_model") or "/")
    if "/" in base:
        return text
    card.data["base_model"] = f"{owner}/{base}"
    return str(card)


def _check_file(path: Path) -> None:
    """Raises `KitError` where a file should not be public."""
    if path.suffix[1:] not in UPLOADED.split():
        raise KitError(f"{path} is of no kind that is uploaded ({UPLOADED})", "take it out of the folder")
    with as_kit_error(f"{path} is not what its name says", "store it anew, arrays without Python objects"):
        for text in (form for raw in _texts(path) for form in (raw, ESCAPED.sub(b" ", raw))):
            if SECRET.search(text):  # which no message quotes
                raise KitError(f"{path} holds what looks like a key", "take it out, and replace that key")
            if path.suffix in STATED and path.name != "tokenizer.json" and (local := LOCAL.search(text)):
                what = f"{path} names a path of this machine, {local[0].decode()}"
                raise KitError(what, "write a name in its place")


def _texts(path: Path) -> Iterator[bytes]:
    """What can be read in a file: the words of a table and the header of weights, whose numbers are many;
    else all. What does not open without running code does not open.
    """
    import numpy as np
    from pyarrow.parquet import ParquetFile
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        with safe_open(path, "np") as tensors:
            yield str(tensors.metadata()).encode()
    elif path.suffix == ".parquet":
        with ParquetFile(path) as table:
            yield str(table.schema_arrow.metadata).encode()
            words = [
                field.name for field in table.schema_arrow if re.search("string|binary", str(field.type))
            ]
            for batch in table.iter_batches(columns=words):
                yield str(batch.to_pydict()).encode()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            yield str([array.tolist() for array in arrays.values() if array.dtype.kind in "US"]).encode()
    else:
        yield path.read_bytes()


def upload(files: Sequence[CommitOperationAdd], kind: str, name: str, private: bool) -> str:
    """Make the model or dataset where there is none yet, and upload to it; returns its address.

    Args:
        files: see `to_upload`.
        kind: "model" or "dataset".
        name: owner/name.
        private: whether only its owner sees it, where it is made here.

    Raises:
        KitError: no token, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import create_commit, create_repo, get_token

    if not get_token():
        raise KitError("there is no token of the Hugging Face Hub", "run `hf auth login`, or set HF_TOKEN")
    remedy = "check your connection, the name, and that your token may write; then run it again"
    with as_kit_error(f"{name} could not be uploaded", remedy):
        address = create_repo(name, private=private, repo_type=kind, exist_ok=True)
        create_commit(name, files, commit_message="Upload by refinevla publish", repo_type=kind)
    return str(address)
