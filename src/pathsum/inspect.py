"""`pathsum inspect`: what a trained network is as a sum over paths, measured on many samples in bounded memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathsum.errors import DataError, PathsumError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from pathsum.data import Dataset
    from pathsum.expansion import Verdict
    from pathsum.resolve import Target

MARKER = "inspect.json"
LENGTHS = 32  # path lengths shown one by one where --max-length is not given


@dataclass(frozen=True)
class InspectCommand:
    """Explain a trained network by its paths.

    Finds the residual branches of any network and prints: the branches; the accuracy; the expansion in λ order by
    order, with what it leaves out and a verdict; how much of the output comes through how many blocks, and the
    accuracy of paths up to each length. Writes the same as a page with figures (report.html), PNG, SVG and CSV.

    Examples:
      pathsum inspect runs/tower
      pathsum inspect runs/tower --data digits --samples 100 --order 8
      pathsum inspect nets.py:resnet20 --weights resnet20.safetensors --data cifar10:data/cifar10 \\
          --mean .485 .456 .406 --std .229 .224 .225
    """

    model: str
    """What to look at: a folder or .safetensors file that pathsum wrote, or FILE.py:FUNCTION (the file is run; the
    function is called without arguments and returns a torch.nn.Module)."""
    data: str | None = None
    """The images: 'digits', 'cifar10:PATH', PATH or a hub id; by default what a checkpoint was trained on."""
    weights: Path | None = None
    """Weights for FILE.py:FUNCTION, a .safetensors file; every name and shape must fit."""
    samples: int = 1000
    """How many test images to look at, a balanced subset; 0 takes all."""
    order: int = 8
    """Highest order of the expansion in λ."""
    max_length: int | None = None
    """Longest path shown on its own, in blocks; longer ones are summed in one slot (by default 32)."""
    chunk_size: int = 50
    """Images at a time: less needs less memory, and changes nothing else."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision; float64 is slower and lets sums close to the last digits."""
    mean: tuple[float, ...] | None = None
    """Mean to subtract from pixels/255, a number per channel; by default the checkpoint's, else the data's."""
    std: tuple[float, ...] | None = None
    """Standard deviation to divide by, a number per channel; likewise."""
    seed: int = 0
    """Seed of the choice of samples."""
    out: Path | None = None
    """Folder for the page; by default pathsum-inspect/NAME."""
    overwrite: bool = False
    """Replace an earlier result in that folder."""

    def __post_init__(self) -> None:
        least = {"samples": 0, "order": 0, "max_length": 0, "chunk_size": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise PathsumError(f"--{name.replace('_', '-')} is {value}, expected {bound} or more")

    def run(self) -> None:
        """Measure, print, and write the page."""
        from pathsum.explain import publish, show
        from pathsum.page import check_free
        from pathsum.resolve import resolve

        target = resolve(self.model, weights=self.weights)
        out = self.out or Path("pathsum-inspect") / target.name
        check_free(out, marker=MARKER, overwrite=self.overwrite)
        data = self.load(target)
        result = inspect(
            target.model,
            data,
            order=self.order,
            max_length=self.max_length,
            chunk_size=self.chunk_size,
            dtype=self.dtype,
        )
        result = replace(result, name=target.name, about=target.about)
        show(result)
        publish(result, out, settings={"inspect": asdict(self)}, marker=MARKER, overwrite=self.overwrite)
        print(f"\nThe page: {out / 'report.html'}")

    def load(self, target: Target) -> Dataset:
        """The samples, with the mean and standard deviation they are to be normalized with."""
        from pathsum.data import load

        known = target.record.get("data") or {}
        source = self.data or ("digits" if known.get("name") == "digits" else None)
        if source is None:
            trained = f"was trained on {known['name']}" if "name" in known else "does not say what it was trained on"
            raise DataError(f"{target.name} {trained}: say where images lie with --data, such as --data cifar10:PATH")
        data = load(source, train_limit=0, test_limit=self.samples or None, seed=self.seed)
        same = known if known.get("name") == data.name else {}
        mean = self.mean or tuple(same.get("mean") or data.mean)
        std = self.std or tuple(same.get("std") or data.std)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != data.shape[0]:
                raise DataError(
                    f"--{name} has {len(values)} values, but {data.name} has {data.shape[0]} channels: "
                    "give one for each"
                )
        if not all(value > 0 for value in std):
            raise DataError(f"--std is {std}, expected numbers above 0")
        return replace(data, mean=mean, std=std)


@dataclass(frozen=True)
class Inspection:
    """What a network is as a sum over paths, on `num_samples` test images; accuracies are shares of 1.

    A `norm` is that of a part of the logits over all samples, divided by the norm of the logits: ‖part‖/‖f‖. Parts
    can cancel, so norms need not add up to 1. `share` is a length's part of Σ‖v_k‖², as in `pathsum.Spectrum`.
    """

    name: str
    about: str
    data: str
    num_samples: int
    accuracy: float
    branches: pd.DataFrame  # branch, lam, shortcut, after, shape, call
    orders: pd.DataFrame  # order, norm, remainder (‖f − Σ_{j≤k}‖/‖f‖), accuracy (of the partial sum)
    verdict: Verdict
    lengths: pd.DataFrame  # length, paths, norm, share, accuracy (of paths up to this length)
    longer: bool  # the last length stands for all longer ones
    mean_length: float  # in blocks; the last length counts as its least
    conservation: float  # ‖Σ_k v_k − f‖/‖f‖
    sample_lengths: np.ndarray  # (num_samples,) mean path length of each sample

    @property
    def is_bound(self) -> bool:
        """Whether the longer paths hold enough to move the mean length by a percent: it is then a lower bound."""
        if not self.longer:
            return False
        most = float(self.lengths["share"].iloc[-1]) * (len(self.branches) - len(self.lengths) + 1)
        return most > 0.01 * self.mean_length

    def __repr__(self) -> str:
        return (
            f"Inspection({self.name}: {len(self.branches)} branches, accuracy {self.accuracy:.2%}, "
            f"{self.verdict}, mean path length {self.mean_length:.3g})"
        )


def inspect(
    model: nn.Module,
    data: Dataset,
    *,
    order: int = 8,
    max_length: int | None = None,
    chunk_size: int = 50,
    dtype: Literal["float32", "float64"] = "float32",
    progress: bool | None = None,
) -> Inspection:
    """Expand `model` in λ and by path length on the test split of `data`, in chunks.

    The model is converted to `dtype` and put in eval mode. Memory: one chunk's series, and a few numbers a sample.
    Raises DataError where images or labels do not fit the model, NoJoinsError for a model without branches.
    """
    import torch

    import pathsum as ps
    from pathsum.data import normalize
    from pathsum.progress import bar
    from pathsum.tally import Tally

    if not len(data.test):
        raise DataError(f"{data.name} has no test images; inspect needs at least one")
    number = getattr(torch, dtype)
    model = model.eval().to(number)
    images, labels = data.test.images, data.test.labels

    def chunk(start: int, size: int) -> tuple[Tensor, Tensor]:
        rows = slice(start, start + size)
        return normalize(images[rows], data.mean, data.std, dtype=number), labels[rows]

    with torch.no_grad():
        first = chunk(0, min(chunk_size, len(labels)))[0]
        check_fit(model, first[:2], labels, data)
        net = ps.knobs(model, first)
        longest = min(LENGTHS, len(net.branches)) if max_length is None else max_length
        max_length = longest if longest < len(net.branches) else None  # no slot for longer ones where there are none
        tally = Tally(eps=torch.finfo(number).eps)
        with bar("inspecting", len(labels)) as update:
            for start in range(0, len(labels), chunk_size):
                x, y = chunk(start, chunk_size)
                expansion = ps.expand(net, x, order=order, progress=False)
                spectrum = ps.spectrum(net, x, max_length=max_length, progress=False)
                tally.add(expansion, spectrum, y)
                update(len(y))
    return tally.result(net, data)


def check_fit(model: nn.Module, x: Tensor, labels: Tensor, data: Dataset) -> None:
    """Refuse images the model cannot take, outputs that are no class scores, and labels beyond them."""
    name, shape = type(model).__name__, tuple(x.shape[1:])
    try:
        out = model(x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"{name} cannot take {data.name}'s images of shape {shape}: {error}; give the --data it was trained on"
        ) from error
    out = getattr(out, "logits", out)
    if getattr(out, "ndim", 0) != 2:
        raise DataError(
            f"{name} returns {type(out).__name__} of shape {tuple(getattr(out, 'shape', ()))} for {len(x)} images, "
            f"expected class scores ({len(x)}, classes); inspect looks at classifiers of images"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= out.shape[1]:
        raise DataError(
            f"{data.name} has labels {low}..{high}, but {name} has {out.shape[1]} classes "
            f"(0..{out.shape[1] - 1}); give the --data it was trained on"
        )
