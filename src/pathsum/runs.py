"""Run folders: configuration, rows, checkpoints and models that survive a kill at any moment.

A run folder holds `config.json` (what was asked, and where it ran), `rows.jsonl` (one line per evaluation),
`observations.jsonl` (one line per observation, where any was asked for), `checkpoint.safetensors` (everything needed to
continue bitwise), and at the end `model.safetensors` with `model.json`, and `done.json`. Every file but the lines is
written under another name, synced and renamed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pathsum
from pathsum.errors import CheckpointError, OutputError, PathsumError
from pathsum.storage import finite, read_json, read_tensors, write_atomic, write_json, write_tensors, writing

CONFIG, ROWS, CHECKPOINT, DONE = "config.json", "rows.jsonl", "checkpoint.safetensors", "done.json"
OBSERVATIONS = "observations.jsonl"  # what observers saw of the network, where they were asked
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"  # its memory at the end, where the run was given one to go on with
REQUEST = "request"  # in the configuration: what a sweep asked for, before data and model were at hand
COMMAND = "command.json"  # beside several runs: the command that asked for them


def model_record(model: nn.Module) -> dict[str, Any]:
    """What is needed to build `model` again: its class, and its `config` where it has one."""
    config = getattr(model, "config", None)
    record: dict[str, Any] = {"class": type(model).__name__, "config": config}
    if config is None:  # not one of ours: at least tell two sizes apart
        record["parameters"] = sum(p.numel() for p in model.parameters())
    return record


def save_model(path: str | Path, model: nn.Module, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `model.safetensors` and `model.json` into the folder `path`; or the file `path` and its JSON.

    `extra` (data, training summary, ...) joins the class and configuration in the JSON. Returns the weights'
    path. Raises `OutputError`.
    """
    path = Path(path)
    weights = path if path.suffix == ".safetensors" else path / MODEL
    with writing(weights):
        weights.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(weights, model.state_dict())
    write_json(weights.with_suffix(".json"), {"pathsum": pathsum.__version__, **model_record(model), **(extra or {})})
    return weights


def find_weights(path: Path) -> Path:
    """The weights file of a model folder, of the only model below a folder, or `path` itself."""
    if path.suffix in {".safetensors", ".json"}:
        return path.with_suffix(".safetensors")
    if (path / MODEL).is_file():
        return path / MODEL
    below = sorted(path.glob(f"*/{MODEL}")) if path.is_dir() else []
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(file.parent.name for file in below)
        raise CheckpointError(f"{path} holds {len(below)} models ({names}); name one of these folders")
    if any((path / name).is_file() for name in (CONFIG, CHECKPOINT)):
        raise CheckpointError(f"{path} holds a run without a finished model; finish or resume its training")
    raise CheckpointError(f"no model at {path}; give a folder with {MODEL}, or a .safetensors file")


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model stored at `path` (folder or file) in eval mode; returns it with its JSON record.

    Raises `CheckpointError` where files are missing, damaged, or of another network than the JSON says.
    """
    weights = find_weights(Path(path))
    record = read_json(weights.with_suffix(".json"))
    model = build(record.get("class"), record.get("config"), weights.with_suffix(".json"), weights)
    load_weights(model, weights)
    return model.eval(), record


def build(name: Any, config: Any, path: Path, weights: Path | None = None) -> nn.Module:
    """The network of a class and configuration as `path` records them; raises `CheckpointError`."""
    from pathsum.nets.mlp import ResidualMLP
    from pathsum.nets.plain import PlainNet, RepVGG
    from pathsum.nets.tower import ResidualTower

    classes: tuple[type[nn.Module], ...] = (ResidualTower, ResidualMLP, PlainNet, RepVGG)
    known = {each.__name__: each for each in classes}
    if name not in known or not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: cannot rebuild class {name!r}, expected one of {', '.join(known)} with its config"
            + (f"; build the model yourself and use --weights {weights}" if weights is not None else "")
        )
    try:
        return known[name](**config)
    except (TypeError, ValueError, PathsumError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot build {name} ({why})") from None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights in a safetensors file into `model`; names the difference where they do not fit."""
    tensors, _ = read_tensors(Path(path))
    load_state(model, tensors, path)


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `tensors` into `model` once all names and shapes agree; raises `CheckpointError`."""
    expected = model.state_dict()
    # A counter that older files lack and that eval mode does not read.
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    tensors = counters | dict(tensors)
    want, got = _num_blocks(expected), _num_blocks(tensors)
    if want and got and want != got:
        raise CheckpointError(
            f"{path} holds a network of depth {got}, expected depth {want}; "
            "give the checkpoint of this network, or build it with that depth"
        )
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        lacks = f"lacks {len(missing)} tensors (first: {missing[0]})" if missing else ""
        holds = f"holds {len(unknown)} unknown tensors (first: {unknown[0]})" if unknown else ""
        raise CheckpointError(
            f"{path} {' and '.join(filter(None, (lacks, holds)))} for this {type(model).__name__} of "
            f"{len(expected)} tensors; give the checkpoint of this network"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; "
                "give the checkpoint of this network"
            )
    model.load_state_dict(tensors)


def _num_blocks(names: Mapping[str, Any]) -> int:
    """How many `blocks.N` there are among parameter names; 0 where there are none."""
    return len({name.split(".")[1] for name in names if name.startswith("blocks.")})


def new_folder(path: str | Path, *, resume_ok: bool = False) -> Path:
    """Create the folder `path`; one that holds anything is refused unless it is a run to be resumed.

    Raises `OutputError` where `path` is a file, is not empty, or cannot be created.
    """
    path = Path(path)
    with writing(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file, expected a folder; choose another output folder")
        if path.is_dir() and any(path.iterdir()):
            resumable = any((path / name).is_file() for name in (CONFIG, COMMAND))
            if not (resume_ok and resumable):
                why = "" if resumable else " and holds no run to resume"
                raise OutputError(f"{path} is not empty{why}; choose another output folder, or remove it")
        path.mkdir(parents=True, exist_ok=True)
    return path


def environment() -> dict[str, Any]:
    """Versions, hardware and code version: what a number depends on beside its configuration."""
    import numpy as np

    root = Path(__file__).parents[2]
    commit = None
    if (root / ".git").exists():
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            commit = subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout.strip() or None
        except (OSError, subprocess.TimeoutExpired):
            commit = None
    return {
        "pathsum": pathsum.__version__,
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`field: old -> new` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def open_run(folder: str | Path, config: Mapping[str, Any], *, resume: bool = True, free: Collection[str] = ()) -> Path:
    """Start a run in `folder`, or check that the one there was asked for with this very `config`.

    `free` names the fields ("train.threads") that may differ on resuming.
    A folder that holds only a sweep's request (`pathsum.store`) becomes this run, and keeps the request.
    Raises `OutputError` (not empty, not writable), `CheckpointError` (another configuration: old, new).
    """
    folder = Path(folder)
    asked = json.loads(json.dumps(finite(config)))
    if (folder / CONFIG).is_file() and resume:
        stored = read_json(folder / CONFIG)
        beside = {key: stored.pop(key) for key in ("environment", REQUEST) if key in stored}
        if REQUEST in beside and not stored:
            write_json(folder / CONFIG, {**asked, **beside, "environment": environment()})
            return folder
        changed = [line for line in differences(stored, asked) if line.partition(":")[0] not in free]
        if changed:
            raise CheckpointError(
                f"{folder} holds a run with another configuration ({'; '.join(changed)}, stored -> asked); "
                "choose another output folder, or ask for the stored values"
            )
        return folder
    new_folder(folder)
    write_json(folder / CONFIG, {**asked, "environment": environment()})
    return folder


class RowLog:
    """Rows appended to a JSONL file as they come; opening it keeps the first `keep` and drops the rest."""

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self.path = path
        self.rows = read_rows(path)[:keep]
        if len(self.rows) < keep:
            raise CheckpointError(
                f"{path} holds {len(self.rows)} whole rows, expected at least {keep} by the checkpoint; "
                "it was changed after training: train into another folder"
            )
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        with writing(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it is in the file when this returns."""
        clean = finite(row)
        self.rows.append(clean)
        with writing(self.path):
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Force the rows to the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; every row was flushed, so only a row already reported as failed can fail again."""
        with suppress(OSError):
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a kill tore is dropped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise CheckpointError(f"{path}, line {number}: not JSON; the file was damaged after training") from None
    return rows


@dataclass(frozen=True)
class Run:
    """A run folder as read back: what was asked, what came out."""

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]  # of done.json; empty while the run is unfinished
    observations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> str:
        """ "done", "diverged", "frozen", or "interrupted" for a run that can be resumed."""
        return str(self.summary.get("status", "interrupted"))


def read_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not; raises `CheckpointError` where there is none."""
    folder = Path(folder)
    summary = read_json(folder / DONE) if (folder / DONE).is_file() else {}
    rows, observations = (read_rows(folder / name) for name in (ROWS, OBSERVATIONS))
    return Run(folder, read_json(folder / CONFIG), rows, summary, observations)


def find_runs(root: str | Path) -> list[Path]:
    """All run folders at or below `root`, sorted."""
    return sorted(path.parent for path in Path(root).rglob(CONFIG) if (path.parent / ROWS).is_file())
