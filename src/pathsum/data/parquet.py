"""CIFAR in the column layout of the Hugging Face hub: PNG files in a struct, labels beside them."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathsum.data.checks import check_labels, need, reason
from pathsum.data.families import Family
from pathsum.errors import DataError
from pathsum.progress import bar

SHARD = re.compile(r"(train|test)(?:-(\d+)-of-(\d+))?(?:-[0-9a-f]+)?\.parquet")  # the hub's file names
PNG = b"\x89PNG\r\n\x1a\n"


def find_shards(folder: Path, family: Family) -> dict[str, tuple[Path, ...]]:
    """Shards by split, from the first of the folder and the folders in it that holds any."""
    for place in (folder, *(folder / name for name in family.places)):
        found = sorted(file for file in place.glob("*.parquet") if SHARD.fullmatch(file.name))
        if found:
            splits = by_split(found)
            for files in splits.values():
                _check_complete(files)
            return splits
    return {}


def by_split(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Sort shards into splits by their names."""
    splits: dict[str, tuple[Path, ...]] = {}
    for file in files:
        match = SHARD.fullmatch(file.name)
        if match is None:
            raise DataError(
                f"{file}: the name does not say which split it is; expected "
                "train-00000-of-00002.parquet, test.parquet or alike; rename the file"
            )
        splits[match[1]] = (*splits.get(match[1], ()), file)
    return splits


def _check_complete(files: Sequence[Path]) -> None:
    """All shards `k-of-n` must be there: a download that stopped early must not pass for the whole."""
    numbered = [match for file in files if (match := SHARD.fullmatch(file.name)) and match[2]]
    if not numbered:
        return
    totals = {int(match[3]) for match in numbered}
    have = [int(match[2]) for match in numbered]
    if len(totals) != 1 or sorted(have) != list(range(max(totals))) or len(numbered) != len(files):
        raise DataError(
            f"{files[0].parent}: the {numbered[0][1]} shards are not one complete set; expected each of "
            f"{max(totals)} once, found {', '.join(file.name for file in files)}; download the "
            "missing files or move the others away"
        )


def read(
    files: Sequence[Path],
    choose: Callable[[np.ndarray], np.ndarray | None],
    family: Family,
    *,
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 3, 32, 32)` uint8 and labels `(n,)` of the rows that `choose(labels)` names (None: all).

    Only the chosen images are decoded. Errors: DataError naming file and row.
    """
    tables = [_open(file, family) for file in files]
    labels = np.concatenate([_labels(table, file, family) for table, file in zip(tables, files, strict=True)])
    rows = choose(labels)
    rows = np.arange(len(labels)) if rows is None else rows
    images = np.empty((len(rows), 32, 32, 3), np.uint8)
    first = done = 0
    # One thread: Pillow holds the interpreter lock for most of so small a PNG, and a pool of two was slower.
    with bar("decoding images", len(rows), show=progress) as update:
        for table, file in zip(tables, files, strict=True):
            start = first
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                wanted = rows[(rows >= first) & (rows < first + size)] - first
                if len(wanted):
                    for row, data in zip(wanted, _pngs(table, group, wanted, file), strict=True):
                        images[done] = _decode(data, file, first - start + int(row), family)
                        done += 1
                    update(len(wanted))
                first += size
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels[rows]


def _open(file: Path, family: Family) -> Any:
    """The opened parquet file, its columns and declared classes checked."""
    arrow = need("pyarrow")
    try:
        table = need("pyarrow.parquet").ParquetFile(file)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file}: not a whole parquet file ({reason(error)}); it is truncated, corrupt or of "
            "another kind: fetch it again"
        ) from error
    schema = table.schema_arrow
    column = _image_column(schema.names)
    if column is None or family.column not in schema.names:
        raise DataError(
            f"{file}: expected columns img or image = {{bytes, path}} and {family.column}, got {schema.names}; use "
            f"{family.title} in the hub's layout"
        )
    kind = schema.field(column).type
    if not arrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{file}: column {column} is {kind}, expected a struct {{bytes, path}}; use the hub's layout")
    names = _declared_classes(schema.metadata, family)
    same = names is None or (tuple(names) == family.classes if family.spelled else len(names) == len(family.classes))
    if names is not None and not same:
        raise DataError(
            f"{file}: its classes are {', '.join(names[:10])}, expected {family.title}'s "
            f"{', '.join(family.classes)}; this is another data set, or its classes are in another order"
        )
    return table


def _image_column(names: Sequence[str]) -> str | None:
    return next((name for name in ("img", "image") if name in names), None)


def _declared_classes(metadata: dict[bytes, bytes] | None, family: Family) -> list[str] | None:
    """Class names that the hub's library wrote into the schema, if it did."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][family.column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _labels(table: Any, file: Path, family: Family) -> np.ndarray:
    """The label column, whole: cheap beside the images."""
    arrow = need("pyarrow")
    try:
        column = table.read(columns=[family.column])[family.column]
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot read column {family.column} ({reason(error)}); fetch the file again"
        ) from error
    if column.null_count:
        raise DataError(f"{file}: {column.null_count} of {len(column)} labels are missing; use complete data")
    return check_labels(column.to_numpy(), len(family.classes), file)


def _pngs(table: Any, group: int, rows: np.ndarray, file: Path) -> list[bytes | None]:
    """The encoded images of some rows of a row group."""
    arrow = need("pyarrow")
    name = _image_column(table.schema_arrow.names)
    try:
        column = table.read_row_group(group, columns=[name])[name].combine_chunks()
        return column.field("bytes").take(arrow.array(rows)).to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot read column {name} of row group {group} ({reason(error)}); the file is "
            "corrupt: fetch it again"
        ) from error


def _decode(data: bytes | None, file: Path, row: int, family: Family) -> np.ndarray:
    """One PNG as `(32, 32, 3)` uint8."""
    image_module = need("PIL.Image")
    if data is None:
        raise DataError(f"{file}, row {row}: no image bytes; expected the PNG itself in {{bytes}}, not only a path")
    problem = _png_problem(data)
    if problem is None:
        try:
            image = image_module.open(io.BytesIO(data), formats=("PNG",))
            if image.size != (32, 32) or image.mode != "RGB":
                raise DataError(
                    f"{file}, row {row}: expected a 32×32 RGB image, got {image.size[0]}×{image.size[1]} "
                    f"{image.mode}; this is not {family.title}"
                )
            return np.asarray(image)
        except DataError:
            raise
        except Exception as error:  # a corrupt PNG can make Pillow raise almost anything
            problem = reason(error)
    raise DataError(f"{file}, row {row}: the PNG is truncated or corrupt ({problem}); fetch the file again")


def _png_problem(data: bytes) -> str | None:
    """Walk the chunks and their checksums: Pillow does not check those of the image data (4 μs each)."""
    if not data.startswith(PNG):
        return f"it starts with {data[:8]!r}"
    at, kind = len(PNG), b""
    while at < len(data) and kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end + 4 > len(data):
            return "it ends early"
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"wrong checksum of chunk {kind!r}"
        at = end + 4
    return None if kind == b"IEND" else "it ends early"
