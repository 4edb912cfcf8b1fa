"""Data: `digits` (bundled with scikit-learn) and CIFAR-10 in its usual forms, as uint8 tensors on a device.

`load` gives a `Dataset` of two `Split`s; `batches` turns a split into an endless, resumable stream of
augmented and normalized batches, each a pure function of `(seed, step)`.
"""

from pathsum.data.batching import augment, batches, normalize, steps_per_epoch
from pathsum.data.loading import load
from pathsum.data.splits import Dataset, Split

__all__ = ["Dataset", "Split", "augment", "batches", "load", "normalize", "steps_per_epoch"]
