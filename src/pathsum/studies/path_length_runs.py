"""Path length against accuracy: the work itself, in pieces that another process can take."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathsum import runs
from pathsum.data import Dataset, batches, normalize
from pathsum.errors import PathsumError
from pathsum.knobs import Knobs, knobs
from pathsum.lengths import average_path_length, path_lengths
from pathsum.linearize import example, run_linearize
from pathsum.linearizing.layout import observe, rounds, sites_of
from pathsum.linearizing.norms import renewed
from pathsum.linearizing.result import At, Linearized
from pathsum.nets.plain import RepVGG
from pathsum.resolve import resolve
from pathsum.runs import save_model
from pathsum.storage import read_json, write_json
from pathsum.studies.path_length import LATER, PathLength, Point, Spot
from pathsum.studies.starts import ended
from pathsum.train import FitResult, TrainConfig, evaluate, fit
from pathsum.training.record import make_optimizer
from pathsum.unit_spectrum import unit_spectrum

ROW = "point.json"
COOLING = 0.8  # share of the plain network's training after which the rate is a tenth
FOLDED = 2048  # training images for the batch norms of a folded network, all at once
CALIBRATION = 4096  # training images for batch norms taken anew, at most
WATCHED = 500  # test images for the rows along the way; the points are tested on all
Job = tuple[str, int] | Point  # ("start", seed), or a point


def jobs(study: PathLength) -> list[Job]:
    """All there is to do, in an order that one process can follow."""
    return [*dict.fromkeys(start_job(study, seed) for seed in study.seeds), *study.points()]


def start_job(study: PathLength, seed: int) -> Job:
    """What makes the networks to start from: for each seed, or once where one is given."""
    return "start", seed if study.model is None else study.seeds[0]


def needs(study: PathLength, job: Job) -> list[Job]:
    """What a job waits for."""
    if not isinstance(job, Point):
        return []
    return [start_job(study, job.spot.seed), *study.needs(job)]


def folder_of(root: Path, job: Job) -> Path:
    """Where a job works."""
    return root / (job.name if isinstance(job, Point) else f"start-{job[1]}")


def settled(folder: Path) -> Path:
    """Where a point ends: the steps at a tenth of the rate, when its slopes are where they are to be."""
    return folder.with_name(f"{folder.name}-settled")


def is_done(study: PathLength, root: Path, job: Job) -> bool:
    """Whether a job has nothing left to do."""
    return (folder_of(root, job) / ROW).is_file()


def length_of(study: PathLength, job: Job, size: int) -> int:
    """The steps of a job; `size` training images for a start."""
    if isinstance(job, Point):
        return study.steps
    return max(1, round(study.start_epochs * (size // study.batch_size))) if study.model is None else 1


def steps_done(study: PathLength, root: Path, job: Job, size: int) -> int:
    """The steps that a job has taken, as far as it has told."""
    if is_done(study, root, job):
        return length_of(study, job, size)
    folder = folder_of(root, job)
    parts = [folder, settled(folder)] if isinstance(job, Point) else sorted(folder.glob("part-*"))
    files = [part / runs.ROWS for part in parts if (part / runs.ROWS).is_file()]
    return sum(rows[-1]["step"] for rows in map(runs.read_rows, files) if rows)


def work(study: PathLength, root: Path, job: Job, device: str, threads: int | None, *, progress: bool | None) -> None:
    """Do one job, or continue it; returns when it is done, raises `starts.Interrupted` where a signal came first."""
    if isinstance(job, Point):
        linearize_to(study, root, job, device, threads, progress=progress)
        return
    if study.model is None:
        train_start(study, root, job[1], device, threads, progress=progress)
    spots = [spot for spot in study.spots() if start_job(study, spot.seed) == job]
    shares = {f"{spot.share:g}": spot for spot in spots}  # one network each: the images for testing are the same
    known = {share: about_start(*subject(study, root, spot, device)) for share, spot in shares.items()}
    folder_of(root, job).mkdir(parents=True, exist_ok=True)
    write_json(folder_of(root, job) / ROW, known)


# ------------------------------------------------------------------------------------------------ the start


def train_start(
    study: PathLength, root: Path, seed: int, device: str, threads: int | None, *, progress: bool | None
) -> None:
    """Train a plain network, and keep it, folded, at each share of the training that is asked for."""
    data = start_images(study, device)
    channels, _, _ = data.shape
    net = RepVGG(study.widths, in_channels=channels, num_classes=data.num_classes, seed=seed).to(device)
    total = length_of(study, ("start", seed), len(data.train))
    ends = sorted({max(1, round(share * total)): share for share in (*study.start_at, COOLING)}.items())
    optimizer: torch.optim.Optimizer | None = None
    done = 0
    for end, share in ends:
        if share > max(study.start_at):
            break
        config = TrainConfig(
            lr=study.start_lr if done < round(COOLING * total) else study.start_lr / 10,
            steps=end - done,
            seed=seed + 1000 * done,  # another order of the images in each part
            batch_size=study.batch_size,
            weight_decay=5e-4,
            augment=study.augment,
            eval_every=max(1, (end - done) // 4),
            threads=threads,
        )
        if optimizer is None:
            optimizer = make_optimizer(list(net.parameters()), config)
        part = root / f"start-{seed}" / f"part-{end}"
        check(fit(net, watched(data), config, out=part, optimizer=optimizer, progress=progress))
        done = end
        for kept in study.start_at:
            if max(1, round(kept * total)) == end:
                images = data.train.images[:FOLDED]
                plain = net.eval().fold(normalize(images, data.mean, data.std))
                save_model(root / Spot("plain", kept, seed).name, plain)


def check(result: FitResult | Linearized) -> None:
    """Stop where a run was interrupted or failed."""
    ended(result)
    if result.status != "done":
        raise PathsumError(f"a run of the study {result.status}: {result.reason}; lower --lr, --alpha-lr or --start-lr")


# ------------------------------------------------------------------------------------------------- a point


def linearize_to(
    study: PathLength, root: Path, point: Point, device: str, threads: int | None, *, progress: bool | None
) -> None:
    """One point: linearize to its target, test on all test images, write the row."""
    net, data = subject(study, root, point.spot, device)
    start = read_json(folder_of(root, start_job(study, point.spot.seed)) / ROW)
    about = start[f"{point.spot.share:g}"]
    target = target_of(study, root, point, about["napl_start"])
    begin, alpha = net, None
    if study.successive and point.place:
        made = Linearized.load(settled(folder_of(root, point._replace(place=point.place - 1))), copy.deepcopy(net))
        begin, alpha = made.net, made.alpha
    config = replace(study.config(point.spot.seed), threads=threads)
    options = study.options(point.arm, target)
    out = folder_of(root, point)
    seen = watched(data)
    parts = zip((out, settled(out)), study.parts(config), strict=True)
    forced, teacher = 0, net if study.distill else None
    for folder, part in parts:
        result = run_linearize(begin, seen, options, part, alpha=alpha, teacher=teacher, out=folder, progress=progress)
        check(result)
        begin, alpha, forced = result.net, result.alpha, forced + result.forced
    renewed(At(result.net, result.alpha), images_seen(data, config))
    result.save(settled(out))
    write_json(out / ROW, {**row(study, point, result, data, about, target), "forced": forced})


def images_seen(data: Dataset, config: TrainConfig) -> Iterator[Tensor]:
    """An epoch of the training images, at most `CALIBRATION`, in batches and augmented as in training."""
    stream = batches(
        data.train,
        config.batch_size,
        mean=data.mean,
        std=data.std,
        seed=config.seed + 2 * LATER,
        augment=config.augment,
        flip=data.flip,
    )
    for _, x, _ in islice(stream, max(1, min(CALIBRATION, len(data.train)) // config.batch_size)):
        yield x


def target_of(study: PathLength, root: Path, point: Point, whole: float) -> float:
    """By layer a share of the original length; by channel the length that the layers reached, which is discrete."""
    if point.arm == "layer":
        return study.shares[point.place] * whole
    return float(read_json(folder_of(root, point._replace(arm="layer")) / ROW)["napl"])


def row(
    study: PathLength, point: Point, made: Linearized, data: Dataset, about: dict[str, Any], target: float
) -> dict[str, Any]:
    """What is known of a point."""
    lengths = path_lengths(made.net, alpha=made.alpha)
    _, accuracy = evaluate(At(made.net, made.alpha), data.test, data)
    return {
        "start": point.spot.start,
        "start_at": point.spot.share,
        "seed": point.spot.seed,
        "arm": point.arm,
        "point": point.place,
        "share": study.shares[point.place],
        "target": target,
        "napl": lengths.mean,
        "napl_std": lengths.std,
        "functional": functional_length(study, made, data),
        "units": made.units_left,
        "relus": made.relus,
        "rounds": made.rounds,
        "accuracy": accuracy,
        "slopes": made.parameters,
        "slopes_share": made.parameters / about["weights"],
        "forced": made.forced,
        "reached": made.reached,
        "steps": study.steps,
        "histogram": lengths.histogram.tolist(),
        **about,
    }


def functional_length(study: PathLength, made: Linearized, data: Dataset) -> float | None:
    """Mean length of the paths that some images take, by energy; None where it is not asked for."""
    if not study.functional:
        return None
    images = data.test.images[: study.functional]
    x = normalize(images, data.mean, data.std)
    return unit_spectrum(made.net, x, alpha=made.alpha, progress=False).mean_length()


def subject(study: PathLength, root: Path, spot: Spot, device: str) -> tuple[Knobs, Dataset]:
    """The network to start from with knobs, and its images."""
    data = images_of(study, spot.seed, device)
    if study.model is None:
        net, _ = runs.load_model(root / spot.name)
    else:
        net, data = given(study, data)
    net = net.to(device)
    return knobs(net, example(net, data)), data


def given(study: PathLength, data: Dataset) -> tuple[nn.Module, Dataset]:
    """The user's network, and the images with the mean and deviation that it takes."""
    assert study.model is not None
    target = resolve(study.model, weights=study.weights)
    return target.model, target.normalized(data, study.mean, study.std)


def about_start(net: Knobs, data: Dataset) -> dict[str, Any]:
    """Path length, nonlinear scalars, rounds, weights and accuracy of a network before it is linearized."""
    recorder = observe(net.model, (example(net, data),))
    sites = sites_of([unit.name for unit in net.units], recorder, "layer", None)
    return {
        "accuracy_start": evaluate(At(net, [0.0] * len(net.units)), data.test, data)[1],
        "napl_start": average_path_length(net),
        "relus_start": sum(site.scalars for site in sites),
        "rounds_start": rounds(recorder, [True] * len(sites)),
        "weights": sum(p.numel() for p in net.parameters()),
    }


def watched(data: Dataset) -> Dataset:
    """The data with few test images, for the rows along the way."""
    return replace(data, test=data.test.subset(min(WATCHED, len(data.test))))


@lru_cache(maxsize=2)
def images_of(study: PathLength, seed: int, device: str) -> Dataset:
    """The images of a seed, kept between the points of a process."""
    return study.dataset(seed, device)


@lru_cache(maxsize=1)
def start_images(study: PathLength, device: str) -> Dataset:
    """The images for the start."""
    return study.start_dataset(device)
