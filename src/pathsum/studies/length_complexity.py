"""An open question of arXiv 2506.14386: do complex inputs take longer paths? What is trained and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pathsum.data import Dataset, normalize
from pathsum.errors import PathsumError
from pathsum.knobs import as_knobs
from pathsum.lengths import average_path_length
from pathsum.spectrum import spectrum
from pathsum.studies.image_complexity import difficulty, image_measures
from pathsum.studies.starts import ModelOptions, kept, recall
from pathsum.training.evaluation import placement
from pathsum.unit_spectrum import unit_spectrum

Preset = Literal["cifar10", "small", "smoke"]
LENGTHS = {"units": "functional length (nonlinear units)", "joins": "mean order of the spectrum (residual branches)"}


@dataclass(frozen=True, kw_only=True)
class LengthComplexityStudy(ModelOptions):
    """For each test image: how long its paths are in a trained network, how complex it is, how hard it is."""

    samples: int = 800
    """Test images, classes balanced."""
    resamples: int = 1000
    """Resamples of the bootstrap."""
    chunk: int = 100
    """Images at a time; changes nothing but memory."""

    def validate(self) -> None:
        super().validate()
        if self.samples < 10 or self.resamples < 100 or self.chunk < 1:
            raise PathsumError("--samples must be 10 or more, --resamples 100 or more, --chunk 1 or more")
        if self.model and len(self.seeds) > 1:
            raise PathsumError("--seeds: a network of yours is one network; give one seed, --seeds 0")

    def place(self, folder: Path, seed: int) -> Path:
        """Where the measurements of a network are kept."""
        return folder / f"images-{seed}.json"

    def what(self, seed: int) -> dict[str, Any]:
        """What they depend on."""
        return {**self.key("resamples", "chunk"), "seed": seed}


def train_all(study: LengthComplexityStudy, folder: Path, say: Callable[[str], None]) -> None:
    """Train the towers and measure their images; what is finished is not done again, the rest resumed."""
    data, start = study.starts(folder)
    for number, seed in enumerate(study.seeds, 1):
        say(f"{number} of {len(study.seeds)}: {study.model or f'tower of seed {seed}'}")
        kept(study.place(folder, seed), study.what(seed), partial(measured, study, data, start, seed))


def measured(
    study: LengthComplexityStudy, data: Dataset, start: Callable[[int], nn.Module], seed: int
) -> dict[str, Any]:
    """A column for each length and each measure, an entry an image; and the network's structural length."""
    net = start(seed)
    chosen = data.test.subset(min(study.samples, len(data.test)))
    x = normalize(chosen.images.to(placement(net)[0]), data.mean, data.std, dtype=placement(net)[1])
    knobbed = as_knobs(net, (x[:1],), {})
    units = unit_spectrum(knobbed, x, chunk_size=study.chunk)
    columns: dict[str, Any] = {"units": units.per_sample()["mean_length"].tolist()}
    sums = [units.conservation]
    if knobbed.branches:
        joins = spectrum(knobbed, x, chunk_size=study.chunk)
        columns["joins"] = joins.per_sample()["mean_length"].tolist()
        sums.append(joins.conservation)
    measures = image_measures(chosen.images) | difficulty(units.output, chosen.labels)
    columns |= {name: values.tolist() for name, values in measures.items()}
    columns["label"] = chosen.labels.tolist()
    right = (units.output.argmax(1).cpu() == chosen.labels.cpu()).double().mean()
    return {
        "columns": columns,
        "napl": average_path_length(knobbed),
        "accuracy": float(right),
        "conservation": max(sums),
    }


def found_images(study: LengthComplexityStudy, folder: Path) -> dict[int, dict[str, Any]]:
    """What was measured, by seed."""
    found = {seed: recall(study.place(folder, seed), study.what(seed)) for seed in study.seeds}
    return {seed: result for seed, result in found.items() if result}


PRESETS: dict[Preset, LengthComplexityStudy] = {
    # Two cores, a minute or two.
    "small": LengthComplexityStudy(seeds=(0, 1, 2, 3, 4)),
    # Shows that all parts work: seconds, and no result worth quoting.
    "smoke": LengthComplexityStudy(depth=4, width=8, steps=60, seeds=(0, 1), samples=100, resamples=200),
    # A GPU's worth of work; data must be given.
    "cifar10": LengthComplexityStudy(data="", depth=16, width=64, steps=8_000, augment=True, samples=2_000),
}
