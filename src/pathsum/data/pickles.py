"""CIFAR as published: pickled batches in `cifar-10-python.tar.gz` and its like, or in the extracted folder.

A pickle is a program. The one here may build lists, dicts, text, bytes and numeric arrays and nothing else:
the names that numpy's pickles use are answered by stand-ins, so not even numpy's own unpickling is reached.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np

from pathsum.data.checks import check_labels, reason
from pathsum.data.families import Family
from pathsum.errors import DataError
from pathsum.progress import bar

MAX_BYTES = 2**28  # a real batch has 31 MB, or 155; a header that promises more is no reason to fill the memory
NUMERIC = re.compile(r"[<>|=]?[buif][1248]")


class _DType:
    """Stand-in for a numeric numpy.dtype while unpickling."""

    def __init__(self, name: str | bytes, align: Any = False, copy: Any = False) -> None:
        self.name = _text(name)
        if not NUMERIC.fullmatch(self.name):
            raise pickle.UnpicklingError(f"an array of dtype {self.name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order not in "<>|=" or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of structured dtype")
        self.name = order + self.name.lstrip("<>|=")


class _Array:
    """Stand-in for numpy.ndarray while unpickling; the array itself is `value`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _text(value: str | bytes) -> str:
    """Text that Python 2 may have pickled as bytes."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _from_bytes(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array over raw bytes; numpy checks that they fill the shape."""
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array without plain bytes")
    return np.frombuffer(raw, np.dtype(dtype.name)).reshape(shape, order="F" if order == "F" else "C")


class _Unpickler(pickle.Unpickler):
    """Admits the names that numpy arrays need, each answered by a stand-in; refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        # Made anew at each look-up, so that a pickle that changes one changes nothing that lasts.
        def reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
            return _Array()

        def frombuffer(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
            array = _Array()
            array.value = _from_bytes(raw, dtype, shape, order)
            return array

        def encode(text: str, encoding: str) -> bytes:
            if encoding != "latin1":
                raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r}")
            return text.encode("latin1")

        base = module.replace("numpy._core.", "numpy.core.", 1)
        admitted: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy.core.numeric", "_frombuffer"): frombuffer,
            ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct, which ignores it
            ("numpy", "dtype"): _DType,
            ("_codecs", "encode"): encode,
        }
        if (base, name) not in admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not needed for arrays: not run")
        return admitted[base, name]


def read(
    path: Path,
    split: str,
    choose: Callable[[np.ndarray], np.ndarray | None],
    family: Family,
    *,
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 3, 32, 32)` uint8 and labels `(n,)` of a split, from the archive or the folder at `path`.

    `choose(labels)` names the rows (None: all). Nothing is written to disk, and no path that the archive
    mentions is opened: its members are streamed, and picked by the last part of their names.
    """
    names = family.batches[split]
    if path.is_dir():
        streams = {name: _read_file(path / name, family) for name in names}
    else:
        streams = _read_archive(path, names, family, progress)
    parts = [_batch(streams[name], f"{path}: {name}", family) for name in names]
    images = np.concatenate([images for images, _ in parts])  # a writable copy
    labels = np.concatenate([labels for _, labels in parts])
    rows = choose(labels)
    return (images, labels) if rows is None else (images[rows], labels[rows])


def _read_file(file: Path, family: Family) -> bytes:
    """The bytes of one extracted batch."""
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(
                f"{file}: {size:,} bytes, expected 155,000,000 at the most; this is not a {family.title} batch"
            )
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); expected every batch of {family.folder}: extract the archive "
            "again"
        ) from error


def _read_archive(path: Path, names: tuple[str, ...], family: Family, progress: bool | None) -> dict[str, bytes]:
    """The wanted members' bytes; streamed to the end, so that gzip's checksum of the whole is checked too."""
    found: dict[str, bytes] = {}
    seen = 0
    try:
        with (
            path.open("rb") as raw,
            bar(f"reading {path.name}", path.stat().st_size, show=progress) as update,
            _plain(raw) as stream,
        ):
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isreg() and name in names:
                        if name in found or member.size > MAX_BYTES:
                            problem = "there twice" if name in found else f"{member.size:,} bytes long"
                            raise DataError(
                                f"{path}: {name} is {problem}; expected the official archive: fetch it again"
                            )
                        content = archive.extractfile(member)
                        found[name] = content.read() if content is not None else b""
                    update(raw.tell() - seen)
                    seen = raw.tell()
            while stream.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: the archive is truncated or corrupt ({reason(error)}); fetch {family.archive} again"
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing)} not in the archive; it is truncated or another one: "
            f"fetch {family.archive} again"
        )
    return found


def _plain(raw: IO[bytes]) -> IO[bytes]:
    """The uncompressed stream of a .tar.gz or a .tar."""
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if gzipped else raw


def _batch(data: bytes, where: str, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one pickled batch, checked."""
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a corrupt pickle can fail in any way
        raise DataError(
            f"{where} is no pickled {family.title} batch ({reason(error)}); it is truncated, corrupt or not the "
            f"official one: fetch {family.archive} again"
        ) from error
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a dict with data and labels, got {type(batch).__name__}; fetch it again")
    keys = {_text(key): value for key, value in batch.items() if isinstance(key, str | bytes)}
    if "data" not in keys or family.entry not in keys:
        raise DataError(
            f"{where}: expected the entries data and {family.entry}, got {sorted(keys)}; use {family.title}'s batches"
        )
    parts = (keys["data"], keys[family.entry])
    pixels, labels = (part.value if isinstance(part, _Array) else part for part in parts)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{where}: expected data uint8 (n, 3072), got {got}; this is not {family.title}")
    if isinstance(labels, list) and not all(type(label) is int for label in labels):
        last = len(family.classes) - 1
        raise DataError(f"{where}: expected labels to be integers 0..{last}; this is not {family.title}")
    checked = check_labels(np.asarray(labels, dtype=np.int64 if labels == [] else None), len(family.classes), where)
    if len(checked) != len(pixels):
        raise DataError(f"{where}: {len(pixels)} images but {len(checked)} labels; fetch the data again")
    return pixels.reshape(-1, 3, 32, 32), checked
