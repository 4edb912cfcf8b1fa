"""`pathsum grow`: a deeper network from a trained one, with the same outputs, ready to be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pathsum import runs
from pathsum.errors import CheckpointError
from pathsum.grow import Growth, grow
from pathsum.growing.weights import New
from pathsum.storage import read_json, read_tensors
from pathsum.training.options import TrainConfig
from pathsum.training.record import make_optimizer
from pathsum.training.state import adopt, load_memory, save_memory, unpack


@dataclass(frozen=True, kw_only=True)
class GrowCommand:
    """Make a trained tower deeper without changing what it computes.

    A residual block whose last layer is zero does nothing, so blocks can be put in anywhere. Where λ depends on the
    depth, as 1/n does, the last layers of the old blocks are multiplied to make up for it. The result is checked: the
    outputs on random images are the same. SOURCE is a folder or .safetensors file that pathsum wrote, also a run that
    was interrupted; of such a run the optimizer's memory (momentum) is carried over too.

    pathsum train --start OUT trains the deeper network, pathsum inspect OUT looks at it.

    Examples:
      pathsum train --depth 8 --steps 300 --out runs/shallow
      pathsum grow runs/shallow --depth 16 --out runs/deeper
      pathsum train --start runs/deeper --steps 300 --lr 0.03 --out runs/grown
      pathsum grow runs/shallow --depth 32 --where end --new zero-last --out runs/deepest
    """

    source: Path
    """A trained tower: a run's folder, a folder with one run, or a .safetensors file."""
    depth: int | None = None
    """Residual blocks of the new network; by default twice as many."""
    out: Path = Path("runs/grown-net")
    """Folder for the new network; must be new or empty."""
    where: Literal["end", "interleaved"] = "interleaved"
    """New blocks after the last one, or evenly among the old ones."""
    new: Literal["fresh", "zero-last", "zero"] = "fresh"
    """Fresh: drawn as the tower's blocks are, but for a last layer of zeros; zero-last: copies of the block before,
    with a last layer of zeros; zero: all parameters zero, which gradient descent cannot leave but for a last bias."""
    lam: float | None = None
    """Where new λ start, if λ is learned or a list."""
    seed: int = 0
    """Seed of fresh blocks."""

    def run(self) -> None:
        """Read, grow, write, and say what to do next."""
        model, record, optimizer = load(self.source)
        depth = 2 * int(record["config"]["depth"]) if self.depth is None else self.depth
        new: New = "zero_last" if self.new == "zero-last" else self.new
        grown = grow(
            model,
            example(model),
            depth=depth,
            where=self.where,
            new=new,
            lam=self.lam,
            seed=self.seed,
            optimizer=optimizer,
        )
        out = runs.new_folder(self.out)
        save(out, grown, record, {"source": str(self.source), "where": self.where, "new": self.new, "seed": self.seed})
        was = grown.depth - len(grown.new_blocks)
        print(f"{self.source}: {was} blocks, now {grown.depth}; new ones: {', '.join(grown.new_blocks)}")
        factors = sorted({f"{f:.4g}" for f in grown.table()["factor"] if f != 1})
        if factors:
            print(f"λ changes with the depth, so the old last layers were multiplied by {', '.join(factors)}")
        print(f"outputs on random images differ by {grown.error:.1e}")
        print("the optimizer's memory was carried over" if optimizer is not None else "no optimizer's memory was there")
        print(f"Next: pathsum train --start {out} --steps 300, or pathsum inspect {out}")


def save(out: Path, grown: Growth, record: dict[str, Any], how: dict[str, Any]) -> None:
    """The folder of a grown network: the model, its record, and the optimizer's memory where there is one."""
    kept: dict[str, Any] = {name: record[name] for name in ("data", "train") if name in record}
    if grown.optimizer is not None:
        ordered = make_optimizer(list(grown.net.parameters()), TrainConfig(**adjusted(record["train"])))
        adopt(ordered, grown.optimizer)
        save_memory(out / runs.OPTIMIZER, ordered)
    about = {**how, "new_blocks": list(grown.new_blocks), "error": grown.error}
    runs.save_model(out, grown.net, {**kept, "grown": about})


def load(source: Path) -> tuple[nn.Module, dict[str, Any], torch.optim.Optimizer | None]:
    """A tower, its record, and an optimizer with its memory where that was kept."""
    running = unfinished(source)
    if running is None:
        model, record = runs.load_model(source)
        memory = runs.find_weights(source).with_name(runs.OPTIMIZER)
        if not memory.is_file() or "train" not in record:
            return model, record, None
        optimizer = make_optimizer(list(model.parameters()), TrainConfig(**adjusted(record["train"])))
        load_memory(memory, optimizer)
        return model, record, optimizer
    stored = read_json(running / runs.CONFIG)
    about = stored.get("model", {})
    model = runs.build(about.get("class"), about.get("config"), running / runs.CONFIG)
    optimizer = make_optimizer(list(model.parameters()), TrainConfig(**adjusted(stored["train"])))
    tensors, state = read_tensors(running / runs.CHECKPOINT)
    if "optimizer" not in state:
        raise CheckpointError(f"{running / runs.CHECKPOINT} is no checkpoint of a training run")
    unpack(tensors, state["optimizer"], model, optimizer, [], running / runs.CHECKPOINT)
    found: dict[str, Any] = {**stored["model"], "data": stored.get("data", {}), "train": stored["train"]}
    return model.eval(), found, optimizer


def unfinished(source: Path) -> Path | None:
    """The folder of a run that has a checkpoint and no model yet, at `source` or alone below it."""
    if not source.is_dir() or (source / runs.MODEL).is_file():
        return None
    if (source / runs.CHECKPOINT).is_file():
        return source
    below = sorted(path.parent for path in source.glob(f"*/{runs.CHECKPOINT}"))
    finished = list(source.glob(f"*/{runs.MODEL}"))
    return below[0] if len(below) == 1 and not finished else None


def adjusted(train: dict[str, Any]) -> dict[str, Any]:
    """A training record as `TrainConfig` takes it: JSON has no tuples."""
    crop = train.get("crop_scale")
    return {**train, "crop_scale": None if crop is None else tuple(crop)}


def example(model: nn.Module) -> torch.Tensor:
    """Random images that the tower takes."""
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    if "in_features" in config:
        return torch.randn(16, config["in_features"], generator=generator)
    size = 32 if config["encoder"] == "imagenet" else 8
    return torch.randn(16, config["in_channels"], size, size, generator=generator)
