"""`load`: from a name or a place to a data set on a device."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pathsum.data import cache as stored
from pathsum.data import parquet, pickles
from pathsum.data.checks import need, reason
from pathsum.data.families import CIFAR10, FAMILIES, Family
from pathsum.data.splits import Dataset, Split, balanced_rows
from pathsum.errors import DataError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FORMS = (
    "'digits', or CIFAR-10 as 'cifar10:PATH' (PATH = a folder of train-*.parquet and test-*.parquet, "
    "cifar-10-python.tar.gz, or its extracted folder), or as a hub id such as 'uoft-cs/cifar10'; CIFAR-100 likewise, "
    "as 'cifar100:PATH' or 'cifar100:uoft-cs/cifar100'"
)


@dataclass(frozen=True)
class Origin:
    """Where the images lie: the files of each split, and for pickled batches the archive or folder."""

    family: Family
    files: Mapping[str, tuple[Path, ...]]
    pickled: Path | None = None
    ours: bool = True  # False in the hub's own cache, where nothing is to be added


def load(
    source: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device = "cpu",
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
) -> Dataset:
    """Load `digits`, CIFAR-10 or CIFAR-100 as uint8 tensors on `device`.

    `source`: "digits" (scikit-learn's 1,797 8×8 images; first half train, second half test, as in its own
    classification example; 0..16 scaled to 0..255); or, for CIFAR-10, "cifar10:PATH" or PATH, where PATH is
    a folder, a file or several files in the hub's parquet layout, `cifar-10-python.tar.gz`, or its
    extracted folder; or a hub id. CIFAR-100, with its fine labels, likewise as "cifar100:PATH".

    `train_limit`, `test_limit`: at most so many images of a split, a random subset with balanced classes
    that depends on `seed` only; 0 leaves a split out, which then need not exist. `cache`: keep whole decoded
    splits in `.pathsum` beside the data or, where that is read-only, in the user's cache folder
    ($XDG_CACHE_HOME or ~/.cache); it notices changed sources.

    Errors: DataError for a source that is unknown, missing, truncated, corrupt or of other data, and for an
    unusable device. Sources: Krizhevsky (2009); Alpaydin and Kaynak (1998), UCI optical digits.

    >>> load("digits")
    Dataset(digits: 898 train, 899 test, 1×8×8, 10 classes)
    """
    for name, limit in (("train_limit", train_limit), ("test_limit", test_limit)):
        if limit is not None and limit < 0:
            raise DataError(
                f"{name} is {limit}: expected a number of images, 0 to leave the split out, or None for all"
            )
    target = _device(device)
    if source == "digits":
        return _digits(target, train_limit, test_limit, seed)
    origin = _locate(source, [n for n, limit in (("train", train_limit), ("test", test_limit)) if limit != 0])
    test = _read(origin, "test", test_limit, seed, cache, progress)
    train = _read(origin, "train", train_limit, seed, cache, progress)
    return Dataset(
        name=origin.family.name,
        train=_split(*train, target),
        test=_split(*test, target),
        classes=origin.family.classes,
        mean=origin.family.mean,
        std=origin.family.std,
        flip=True,
    )


def _device(device: str | torch.device) -> torch.device:
    """The device, tried once: an unusable one must not cost a minute of decoding first."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(f"device {str(device)!r} cannot be used ({reason(error)}); use 'cpu'") from error


def _split(images: np.ndarray, labels: np.ndarray, device: torch.device) -> Split:
    return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))


def _limited(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray | None:
    """The rows a limit leaves, None for all."""
    if limit is None or limit >= len(labels):
        return None
    return balanced_rows(torch.from_numpy(labels), limit, seed).numpy()


def _digits(device: torch.device, train_limit: int | None, test_limit: int | None, seed: int) -> Dataset:
    """scikit-learn's digits, in the order they come."""
    table = _digit_table()
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    half = len(labels) // 2  # 898, as train_test_split(test_size=0.5, shuffle=False) rounds
    mean, std = float((images[:half] / 255).mean()), float((images[:half] / 255).std())

    def part(images: np.ndarray, labels: np.ndarray, limit: int | None) -> Split:
        rows = _limited(labels, limit, seed)
        return _split(images, labels, device) if rows is None else _split(images[rows], labels[rows], device)

    return Dataset(
        name="digits",
        train=part(images[:half], labels[:half], train_limit),
        test=part(images[half:], labels[half:], test_limit),
        classes=tuple(str(k) for k in range(10)),
        mean=(mean,),
        std=(std,),
        flip=False,
    )


def _digit_table() -> np.ndarray:
    """Pixels and label of each digit, from scikit-learn's own file: to import it takes 2 s of every process."""
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    bunch = need("sklearn.datasets").load_digits()  # wherever it keeps them now
    return np.column_stack([bunch.data, bunch.target])


def _locate(source: str | Path | Sequence[str | Path], wanted: Sequence[str]) -> Origin:
    """Which form the source is, and its files."""
    if not isinstance(source, str | Path):
        return Origin(CIFAR10, parquet.by_split([_existing(Path(item).expanduser()) for item in source]))
    name, colon, rest = str(source).partition(":")
    family = FAMILIES[name] if colon and name in FAMILIES else CIFAR10
    text = rest if colon and name in FAMILIES else str(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return _in_folder(path, family)
    if text and path.exists():
        if path.suffix == ".parquet":
            return Origin(family, parquet.by_split([path]))
        if path.name.endswith(ARCHIVES):
            return Origin(family, dict.fromkeys(family.batches, (path,)), path)
        raise DataError(f"{path}: expected a .parquet file, {family.archive} or a folder; give one of {FORMS}")
    if isinstance(source, str) and HUB_ID.fullmatch(text) and not text.endswith((".parquet", *ARCHIVES)):
        return _from_hub(text, family, wanted)
    if isinstance(source, Path) or "/" in text or str(source) != text:
        _existing(path)
    raise DataError(f"unknown data {str(source)!r}: expected {FORMS}")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"no file or folder at {path}: expected {FORMS}; check the path")
    return path


def _in_folder(folder: Path, family: Family) -> Origin:
    """The data in a folder: parquet shards, else extracted batches, else the archive."""
    shards = parquet.find_shards(folder, family)
    if shards:
        return Origin(family, shards)
    for place in (folder, folder / family.folder):
        if any((place / name).is_file() for names in family.batches.values() for name in names):
            files = {split: tuple(place / n for n in names) for split, names in family.batches.items()}
            return Origin(family, files, place)
    archive = folder / family.archive
    if archive.is_file():
        return Origin(family, dict.fromkeys(family.batches, (archive,)), archive)
    inside = " or ".join(f"{name}/" for name in family.places)
    raise DataError(f"{folder}: no {family.title} in this folder, its {inside}; expected {FORMS}")


def _from_hub(name: str, family: Family, wanted: Sequence[str]) -> Origin:
    """A data set of the hub, downloaded to its own cache; from there when offline."""
    hub = need("huggingface_hub")
    patterns = [pattern for split in wanted for pattern in (f"{split}-*.parquet", f"*/{split}-*.parquet")]
    try:
        folder = Path(hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # its errors, and its transport's, differ between versions
        raise DataError(
            f"{name!r}: no such file or folder here, and it cannot be had from the Hugging Face hub "
            f"({reason(error)}); check the name and the connection, or download it and give its folder "
            f"as {family.name}:PATH"
        ) from error
    shards = parquet.find_shards(folder, family)
    if not shards:
        raise DataError(f"{name!r} on the hub has no train-*.parquet and test-*.parquet; expected {FORMS}")
    return Origin(family, shards, ours=False)


def _read(
    origin: Origin, split: str, limit: int | None, seed: int, cache: bool, progress: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split: from the cache, else decoded, and then only what the limit leaves."""
    if limit == 0:
        return np.empty((0, 3, 32, 32), np.uint8), np.empty(0, np.int64)
    files = origin.files.get(split)
    if not files:
        have = ", ".join(str(file) for files in origin.files.values() for file in files)
        raise DataError(f"no {split} split: found only {have}; add its files, or leave it out with {split}_limit=0")
    whole = True

    def choose(labels: np.ndarray) -> np.ndarray | None:
        nonlocal whole
        if len(labels) == 0:
            raise DataError(f"{files[0]}: the {split} split is empty; expected images: fetch the data again")
        rows = _limited(labels, limit, seed)
        whole = rows is None
        return rows

    if origin.pickled is not None and origin.pickled.is_dir():
        cache = False  # the batches are raw arrays already
    key = _key(files) if cache else ""
    known = stored.read(files, split, key, beside=origin.ours) if cache else None
    if known is not None:
        images, labels = known
        rows = choose(labels)
        return known if rows is None else (images[rows], labels[rows])
    if origin.pickled is None:
        images, labels = parquet.read(files, choose, origin.family, progress=progress)
    else:
        images, labels = pickles.read(origin.pickled, split, choose, origin.family, progress=progress)
    if cache and whole:
        stored.write(files, split, key, images, labels, beside=origin.ours)
    return images, labels


def _key(files: Sequence[Path]) -> str:
    try:
        return stored.source_key(files)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); check that it is a file you may read"
        ) from error
