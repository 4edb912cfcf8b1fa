"""Make units linear under a sparsity prior: α → 1 by channel, by layer or by element, and see what is left.

From "ResNets Are Deeper Than You Think" (arXiv 2506.14386): both arms of its comparison start from one trained network
and learn the slopes of its units under ω·Σ|1−α|^½; channels make paths of many lengths, layers of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from . import runs
from .data import Dataset, normalize
from .errors import ControlFlowError, DataError, PathsumError
from .knobs import Knobs, as_knobs
from .lengths import average_path_length
from .linearizing.books import SlopeTraining
from .linearizing.budget import Budget, counted, remembered
from .linearizing.layout import By, observe, sites_of
from .linearizing.options import LinearizeOptions
from .linearizing.result import RECORD, Linearized, load_alpha
from .linearizing.slopes import Slopes
from .storage import digest_of
from .train import TrainConfig, run_training
from .training.evaluation import placement
from .values import Alpha, check_alpha

__all__ = ["LinearizeOptions", "Linearized", "linearize", "load_alpha"]

FELT = 128  # training images on which `saliency` is measured
DEFAULT = TrainConfig(lr=0.01, epochs=10)


def linearize(
    net: nn.Module,
    data: Dataset,
    by: By = "channel",
    *,
    omega: float | tuple[float, float] | None = None,
    target_units: float | None = None,
    target_relus: float | None = None,
    target_length: float | None = None,
    power: float = 0.5,
    normalize: bool = False,
    alpha_lr: float = 0.01,
    cotrain: bool = True,
    saliency: bool = False,
    distill: float = 0.0,
    teacher: nn.Module | None = None,
    units: Sequence[str] | None = None,
    alpha: Alpha | Linearized | str | Path | None = None,
    train: TrainConfig = DEFAULT,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> Linearized:
    """Train a copy of `net` on `data` with its units αa + (1 − α)φ(a), under CE + ω·Σ|1 − α|^power.

    α starts at 0, the network itself, or at `alpha` (that of an earlier result, or its folder). Each step is an
    optimizer step in the weights (`train`, as in `fit`; `cotrain=False` leaves them alone and the network in eval
    mode), a gradient step in α with `alpha_lr`, and the prior's exact proximal step; |1 − α| < 0.01 becomes α = 1 for
    good. One of four says how far: omega, a number or (start, end); or a target for the nonlinear units, for the
    nonlinear scalars per inference, or for the average path length, reached by controlling ω over the first 70 % of
    the steps and met, not passed, by the slopes nearest to 1.

    A site is a call: a module used twice has two sets of slopes. by="channel" takes axis 1 after convolutions and the
    last after linear layers. units: names, kinds or patterns; by default the ReLU family, GELU and SiLU included.
    normalize divides each unit's prior by its number of slopes. saliency divides it by how much the logits z feel
    each slope at the start, Σₖ Var(∂zₖ/∂α) over 128 training images, times what it counts in the target, so that what
    is harmless becomes linear first. distill is the share of the loss that is the divergence from `teacher`, by default
    `net` as it is given, instead of the cross-entropy: it keeps accuracy where data are few. `net` stays as it is; the
    copy is `result.net`.

    With a folder `out` the run is recorded, resumable (a kill costs the time since the last checkpoint; on the CPU
    bitwise), and the same call continues it or returns what it came to. Costs about the training, one kernel a unit.

    Source: arXiv 2506.14386. Raises `NoUnitsError`, `PathsumError` for a target below the reachable and for a choice
    that is not elementwise, `CheckpointError` for α of another model, `DataError` where data and network do not fit.

    >>> import torch, pathsum as ps
    >>> from pathsum.data import load
    >>> net = ps.ResidualMLP(depth=2, width=8, seed=0)
    >>> made = ps.linearize(net, load("digits"), target_units=1, train=ps.TrainConfig(lr=0.02, steps=30))
    >>> made.units_left, [len(a) for a in made.alpha]
    (1.0, [8, 8])
    """
    options = LinearizeOptions(
        by=by,
        omega=() if omega is None else tuple(omega) if isinstance(omega, tuple | list) else (omega,),
        target_units=target_units,
        target_relus=target_relus,
        target_length=target_length,
        power=power,
        normalize=normalize,
        alpha_lr=alpha_lr,
        cotrain=cotrain,
        saliency=saliency,
        distill=distill,
        units=None if units is None else tuple(units),
    )
    return run_linearize(
        net, data, options, train, alpha=alpha, teacher=teacher, out=out, resume=resume, progress=progress
    )


def run_linearize(
    net: nn.Module,
    data: Dataset,
    options: LinearizeOptions,
    train: TrainConfig,
    *,
    alpha: Alpha | Linearized | str | Path | None = None,
    teacher: nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> Linearized:
    """`linearize` with its options in one object, as the command line has them."""
    model = prepare(net, data, options, train, alpha=alpha, teacher=teacher, progress=progress)
    with fixed_weights(model.net, fixed=not options.cotrain):
        fit = run_training(SlopeTraining, model, data, train, out=out, resume=resume, progress=progress)
    if out is not None and (Path(out) / RECORD).is_file():  # also where the run was finished before
        return Linearized.load(out, model.net)
    return Linearized.of(model, fit)


def prepare(
    net: nn.Module,
    data: Dataset,
    options: LinearizeOptions,
    train: TrainConfig,
    *,
    alpha: Alpha | Linearized | str | Path | None = None,
    teacher: nn.Module | None = None,
    progress: bool | None = None,
) -> Slopes:
    """A copy of the network with its slopes, ready to be trained; refuses what cannot work."""
    if teacher is not None and not options.distill:
        raise PathsumError("a teacher goes with distill: give the share of the loss, such as distill=0.5")
    teach = copy.deepcopy(net if teacher is None else teacher).eval() if options.distill else None
    net = copy.deepcopy(net).eval()
    x = example(net, data)
    with fitting(data):
        knobbed = as_knobs(net, (x,), {})
        out = knobbed.pick(knobbed(x))
        recorder = observe(knobbed.model, (x,))
    if out.ndim != 2 or out.shape[1] != data.num_classes:
        raise DataError(
            f"{data.name} has {data.num_classes} classes, but {type(knobbed.model).__name__} gives outputs of shape "
            f"{tuple(out.shape)}, expected (batch, {data.num_classes}): give the data it was trained on"
        )
    names = [unit.name for unit in knobbed.units]
    if len(names) != len(recorder.units):
        raise ControlFlowError(
            f"the knobs have {len(names)} units, and a run on {data.name} makes {len(recorder.units)}: "
            "make the knobs with an input like these"
        )
    sites = sites_of(names, recorder, options.by, options.units)
    per_epoch = (len(data.train) - train.val_size) // train.batch_size
    model = Slopes(knobbed, sites, options, steps=train.num_steps(max(per_epoch, 1)), recorder=recorder)
    if alpha is not None:
        model.start(read_alpha(alpha, knobbed))
    if options.target is not None:
        kind, target = options.target
        model.budget = Budget(kind, target, measure(kind, model))
        model.budget.check(model.slopes.detach() == 1)
        model.rest_if_met()
    if options.saliency and not model.met:
        felt = data.train.images[:FELT].to(x.device)
        model.weigh(normalize_images(felt, data.mean, data.std, dtype=x.dtype), progress=progress)
    if teach is not None:
        model.teach = logits_of(teach, alpha if teacher is None else None, knobbed, x)
    model.config = {
        **({} if teach is None else {"teacher": fingerprint(teach.state_dict())}),
        "linearize": {key: value for key, value in asdict(options).items() if value is not None},
        "of": runs.model_record(knobbed.model),
        "units": names,
        "weights": fingerprint(knobbed.state_dict()),
        "alpha": fingerprint({"alpha": model.slopes.detach()}),
    }
    return model


def logits_of(
    net: nn.Module, alpha: Alpha | Linearized | str | Path | None, like: Knobs, x: Tensor
) -> Callable[[Tensor], Tensor]:
    """The logits of a network under α, as a function; `like` tells which of its outputs they are."""
    if alpha is None:
        return lambda x: like.pick(net(x))
    knobbed = as_knobs(net, (x,), {})
    fixed = read_alpha(alpha, knobbed)
    return lambda x: knobbed.pick(knobbed(x, alpha=fixed))


def measure(kind: str, model: Slopes) -> Callable[[Tensor], float]:
    """What a budget counts, of a mask of slopes."""
    if kind != "length":
        return counted(model.sites, kind, model.slopes.device)
    return remembered(lambda linear: average_path_length(model.net, alpha=model.alpha(linear)))


def example(net: nn.Module, data: Dataset) -> Tensor:
    """One image as the network takes it, (1, C, H, W)."""
    device, dtype = placement(net)
    split = data.train if len(data.train) else data.test
    if not len(split):
        raise DataError(f"{data.name}: no images; raise the limits")
    return normalize_images(split.images[:1].to(device), data.mean, data.std, dtype=dtype)


normalize_images = normalize  # `linearize` has an option of that name


@contextmanager
def fitting(data: Dataset) -> Iterator[None]:
    """Turn torch's complaint about a shape into one about the data."""
    try:
        yield
    except PathsumError:
        raise
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"the model cannot take the images of {data.name}, of shape {data.shape} ({why}); give the data it was "
            "trained on"
        ) from error


def read_alpha(alpha: Alpha | Linearized | str | Path, net: Knobs) -> list[float | Tensor]:
    """The α to start from: as given, of a result, or in its folder."""
    if isinstance(alpha, str | Path):
        return load_alpha(alpha, net)
    return check_alpha(alpha.alpha if isinstance(alpha, Linearized) else alpha, len(net.units))


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """A hash (16 hex digits) of tensors."""
    return digest_of({name: t.detach().cpu().contiguous() for name, t in tensors.items()})[:16]


@contextmanager
def fixed_weights(net: nn.Module, *, fixed: bool) -> Iterator[None]:
    """No gradients for the weights for a while, if so asked."""
    changed = [p for p in net.parameters() if p.requires_grad] if fixed else []
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)
