"""Files that are whole or absent: atomic writes, JSON, tensors with a checksum, a lock on a folder.

Tensors are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathsum.errors import CheckpointError, OutputError, PathsumError


class BusyError(OutputError):
    """Another process is at work in the folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing `path` into one clear `OutputError`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {what}; free some space or choose another folder") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` so that after a crash `path` is either what it was or complete."""
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def create(path: Path, content: str) -> bool:
    """Write the whole file `path` unless there is one; False where there is. Of several callers one gets True.

    The name appears by `link`, which the file system does at once or not at all, also over NFS: there a lost
    reply can report failure after success, which the number of links tells.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with writing(path):
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except FileExistsError:
                return os.stat(temporary).st_nlink == 2
        finally:
            temporary.unlink(missing_ok=True)
    return True


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def dump(value: Mapping[str, Any]) -> str:
    """A JSON object as text for a file; not-a-number becomes null."""
    return json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_atomic(path, dump(value))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise `CheckpointError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; give a folder or model that pathsum wrote") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); it is damaged: train again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object; it is damaged")
    return value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system drops the lock when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with writing(folder):
        file = open(folder / ".lock", "w")  # noqa: SIM115 (closed below, after the caller's work)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is training into {folder}; wait for it or choose another folder"
            ) from None
        yield


def _safetensors() -> Any:
    """The safetensors module, or an error that says how to get it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise PathsumError("checkpoints need safetensors; run: pip install 'pathsum[train]'") from None
    return safetensors


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> None:
    """Write tensors, their hash and a JSON state to one safetensors file, atomically."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen:  # safetensors refuses tied weights
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        plain[name] = tensor
    metadata = {"sha256": digest_of(plain), "state": json.dumps(finite(state or {}), allow_nan=False)}
    write_atomic(path, _safetensors().torch.save(plain, metadata=metadata))


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state in a file of `write_tensors`, without its tensors; empty where there is no such file.

    Safe beside a writer: the file is opened once ("np"; "pt" opens it twice, and may meet two files).
    """
    library = _safetensors()
    try:
        with library.safe_open(path, "np") as file:
            return dict(json.loads((file.metadata() or {}).get("state", "{}")))
    except (OSError, ValueError, library.SafetensorError):
        return {}


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells one file at `path` from the next written there; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, or any safetensors file (then the state is empty).

    Safe beside a writer: safetensors opens a file twice, so one replaced meanwhile is read again.
    """
    while True:
        before = _identity(path)
        try:
            return _read_tensors(path)
        except (CheckpointError, RuntimeError):  # the latter is what torch raises for a file of another size
            if before is None or _identity(path) == before:
                raise


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    library = _safetensors()
    try:
        with library.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}; check the path") from None
    except (OSError, ValueError, library.SafetensorError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path} is truncated or no safetensors file ({why}); copy it again") from None
    if "sha256" in metadata and metadata["sha256"] != digest_of(tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not match their checksum; copy it again")
    return tensors, json.loads(metadata.get("state", "{}"))
