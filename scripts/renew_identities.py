"""Carry files that were written when a policy's identity was the hash of its weights alone over to that of
all its checkpoint's files.

    python scripts/renew_identities.py data/checkpoints/action_only data/checkpoints/with_reasoning --
    data/records/*.parquet figures/*.json

Without it such episodes are played again: nothing says whether the checkpoint had the same bin limits and
words then. So run it only where it had.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.files import replacing
from refinevla_kit.vlas.checkpoint import checkpoint_hash, files_hash


def renew(path: Path, identities: dict[str, str]) -> None:
    """Rewrite one table (its column `checkpoint_hash`) or one JSON file (wherever a hash stands in it)."""
    with replacing(path) as part:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            place = table.schema.get_field_index("checkpoint_hash")
            hashes = [identities.get(old, old) for old in table.column(place).to_pylist()]
            field = table.schema.field(place)
            pq.write_table(table.set_column(place, field, pa.array(hashes, field.type)), part)
        else:
            text = path.read_text(encoding="utf-8")
            for old, new in identities.items():
                text = text.replace(f'"{old}"', f'"{new}"')
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    split = sys.argv.index("--")
    new = {checkpoint_hash(folder): files_hash(folder) for folder in sys.argv[1:split]}
    for name in sys.argv[split + 1 :]:
        renew(Path(name), new)
