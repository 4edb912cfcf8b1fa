"""Data: every layout reads the same images, every fault is one clear line, every batch can be had again."""

import gzip
import io
import math
import os
import pickle
import struct
import tarfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathsum.data import Dataset, Split, augment, batches, batching, load, normalize, steps_per_epoch
from pathsum.data import cache as stored
from pathsum.data.batching import draw
from pathsum.data.families import CIFAR10, CIFAR100
from pathsum.errors import DataError, PathsumError


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    """No test reads or leaves anything in the real cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "pathsum"


# --- small sources in each layout ---------------------------------------------------------------------------


def pixels(num, seed=0):
    """Random images `(num, 3, 32, 32)` and labels that run through the classes."""
    images = np.random.default_rng(seed).integers(0, 256, (num, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(num, dtype=np.int64) % 10


def png(image_CHW):
    file = io.BytesIO()
    Image.fromarray(image_CHW.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, images, labels, *, column="img", encoded=None, metadata=None, label_column="label", **how):
    cells = [{"bytes": b, "path": None} for b in (encoded or [png(image) for image in images])]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array(labels)
    table = pa.table({column: pa.array(cells, kind), label_column: labels}).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7, **how)
    return path


def parquet_folder(folder, num_train=25, num_test=20, **kwargs):
    """Two training shards and a test shard."""
    images, labels = pixels(num_train)
    cut = num_train // 2
    write_parquet(folder / "train-00000-of-00002.parquet", images[:cut], labels[:cut], **kwargs)
    write_parquet(folder / "train-00001-of-00002.parquet", images[cut:], labels[cut:], **kwargs)
    write_parquet(folder / "test-00000-of-00001.parquet", *pixels(num_test, seed=1), **kwargs)
    return folder


def python2_pickle(images, labels):
    """The opcodes that Python 2 and an old numpy wrote: the form of the official files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    raw = images.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + b"J" + struct.pack("<i", len(images)) + b"J" + struct.pack("<i", 3072) + b"\x86"
    array += dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}" + text(b"data") + array + b"s" + text(b"labels") + numbers + b"s."


def batch_pickle(images, labels, protocol="python2"):
    flat = images.reshape(len(images), -1)
    if protocol == "python2":
        return python2_pickle(flat, labels)
    return pickle.dumps({b"data": flat, b"labels": [int(label) for label in labels]}, protocol=protocol)


def batch_files(protocol="python2"):
    """The six official files, five images each."""
    files = {}
    images, labels = pixels(25)
    for k, name in enumerate(CIFAR10.batches["train"]):
        files[name] = batch_pickle(images[5 * k : 5 * k + 5], labels[5 * k : 5 * k + 5], protocol)
    files["test_batch"] = batch_pickle(*pixels(20, seed=1), protocol)
    files["batches.meta"] = b"never read"
    return files


def write_tar(path, files, *, folder=CIFAR10.folder, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_contents(data):
    """The data set holds exactly the images of `pixels`."""
    for split, (images, labels) in ((data.train, pixels(25)), (data.test, pixels(20, seed=1))):
        assert np.array_equal(split.images.numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels)
    assert data.classes == CIFAR10.classes
    assert data.flip
    assert data.shape == (3, 32, 32)


def hundred(num, seed=0):
    """Random images and labels that run through CIFAR-100's fine classes."""
    images, labels = pixels(num, seed)
    return images, (labels * 0 + np.arange(num) * 7) % 100


def check_hundred(data):
    for split, (images, labels) in ((data.train, hundred(25)), (data.test, hundred(20, seed=1))):
        assert np.array_equal(split.images.numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels)
    assert (data.name, data.num_classes, data.classes[0], data.classes[-1]) == ("cifar100", 100, "apple", "worm")
    assert len(set(data.classes)) == 100
    assert data.mean == CIFAR100.mean


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("inner", ["", "data", "plain_text"])
def test_parquet_folder(tmp_path, inner, column):
    parquet_folder(tmp_path / inner, column=column)
    check_contents(load(tmp_path))
    check_contents(load(f"cifar10:{tmp_path}", cache=False))


@pytest.mark.parametrize("inner", ["", "data", "cifar100"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_cifar100_in_the_hubs_layout(tmp_path, inner, image):
    folder = tmp_path / inner
    names = '{"info": {"features": {"fine_label": {"names": [' + ", ".join(f'"{k}"' for k in range(100)) + "]}}}}"
    how = {"column": image, "label_column": "fine_label", "metadata": {"huggingface": names}}
    write_parquet(folder / "train-00000-of-00001.parquet", *hundred(25), **how)
    write_parquet(folder / "test-00000-of-00001.parquet", *hundred(20, seed=1), **how)
    check_hundred(load(f"cifar100:{tmp_path}"))
    check_hundred(load(f"cifar100:{tmp_path}"))  # from the cache
    with pytest.raises(DataError, match="and label, got .*use CIFAR-10 in the hub's layout"):
        load(f"cifar10:{folder}", cache=False)


def test_cifar100_as_published(tmp_path):
    files = {"meta": b"never read"}
    for name, (images, labels) in (("train", hundred(25)), ("test", hundred(20, seed=1))):
        batch = {b"data": images.reshape(len(images), -1), b"fine_labels": [int(label) for label in labels]}
        files[name] = pickle.dumps({**batch, b"coarse_labels": [0] * len(labels)}, protocol=2)
    check_hundred(load(f"cifar100:{write_tar(tmp_path / CIFAR100.archive, files, folder=CIFAR100.folder)}"))
    check_hundred(load(f"cifar100:{tmp_path}"))
    check_hundred(load(f"cifar100:{write_folder(tmp_path / 'out' / CIFAR100.folder, files)}"))
    check_hundred(load(f"cifar100:{tmp_path / 'out'}"))
    with pytest.raises(DataError, match="no CIFAR-10 in this folder"):
        load(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no CIFAR-100 in this folder, its data/ or cifar100/; .*'cifar100:PATH'"):
        load(f"cifar100:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="test_batch not in the archive; .*fetch cifar-10-python.tar.gz"):
        load(f"cifar10:{tmp_path / CIFAR100.archive}", cache=False, train_limit=0)


def test_parquet_files(tmp_path):
    folder = parquet_folder(tmp_path)
    check_contents(load(sorted(folder.glob("*.parquet"))))
    alone = load(folder / "test-00000-of-00001.parquet", train_limit=0)
    assert (len(alone.train), len(alone.test)) == (0, 20)


@pytest.mark.parametrize("protocol", ["python2", 2, 3, 4, 5])
def test_pickled_batches_of_every_age(tmp_path, protocol):
    files = batch_files(protocol)
    check_contents(load(write_tar(tmp_path / "cifar-10-python.tar.gz", files)))
    check_contents(load(tmp_path))  # the folder that holds the archive
    check_contents(load(write_folder(tmp_path / "extracted" / CIFAR10.folder, files)))
    check_contents(load(tmp_path / "extracted"))


def test_plain_tar(tmp_path):
    packed = write_tar(tmp_path / "cifar-10-python.tar.gz", batch_files())
    (tmp_path / "cifar.tar").write_bytes(gzip.decompress(packed.read_bytes()))
    check_contents(load(tmp_path / "cifar.tar"))


def test_digits_has_the_standard_split():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(bunch.images, bunch.target, test_size=0.5, shuffle=False)
    data = load("digits")
    # 0..16 spread over 0..255 and rounded: no two levels meet, so the original comes back exactly.
    for split, x, y in ((data.train, x_train, y_train), (data.test, x_test, y_test)):
        assert np.array_equal(np.rint(split.images[:, 0].numpy() * (16 / 255)), x)
        assert np.array_equal(split.labels.numpy(), y)
    assert (data.shape, data.num_classes, data.flip) == ((1, 8, 8), 10, False)
    z = normalize(data.train.images, data.mean, data.std, dtype=torch.float64)
    assert abs(z.mean().item()) < 1e-12
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-12)
    assert repr(data) == "Dataset(digits: 898 train, 899 test, 1×8×8, 10 classes)"
    assert load("digits", train_limit=50).mean == data.mean


@pytest.mark.parametrize("found", [None, ModuleSpec("sklearn", None, origin=os.devnull)])
def test_digits_come_through_scikit_learn_where_its_file_lies_elsewhere(monkeypatch, found):
    before = load("digits")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    after = load("digits")
    assert torch.equal(after.train.images, before.train.images)
    assert torch.equal(after.test.labels, before.test.labels)


def test_hub_id_online_and_offline(tmp_path, monkeypatch, user_cache):
    import huggingface_hub

    folder = parquet_folder(tmp_path / "snapshot" / "plain_text")
    asked = {}

    def online(repo_id, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return str(folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", online)
    check_contents(load("uoft-cs/cifar10"))
    assert (asked["repo_id"], asked["repo_type"]) == ("uoft-cs/cifar10", "dataset")
    assert not (folder / ".pathsum").exists()  # nothing is added to the hub's own cache
    assert len(list(user_cache.iterdir())) == 2

    load("uoft-cs/cifar10", train_limit=0)
    assert not any("train" in pattern for pattern in asked["allow_patterns"])

    def offline(repo_id, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand no copy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match=r"'some/where'.*hub \(.*no connection and no copy.*cifar10:PATH"):
        load("some/where")


# --- limits -------------------------------------------------------------------------------------------------


def test_limits_decode_only_what_they_keep(tmp_path, monkeypatch):
    from pathsum.data import parquet

    parquet_folder(tmp_path, num_train=60, num_test=40)
    decoded = []
    original = parquet._decode
    monkeypatch.setattr(parquet, "_decode", lambda *a: decoded.append(a) or original(*a))
    few = load(tmp_path, train_limit=20, test_limit=10, seed=3)
    assert len(decoded) == 30
    assert not (tmp_path / ".pathsum").exists()
    whole = load(tmp_path)
    assert few.train.labels.bincount().tolist() == [2] * 10
    for part, num in (("train", 20), ("test", 10)):
        expected = getattr(whole, part).subset(num, 3)
        assert torch.equal(getattr(few, part).images, expected.images)
        assert torch.equal(getattr(few, part).labels, expected.labels)
    decoded.clear()
    cached = load(tmp_path, train_limit=20, test_limit=10, seed=3)  # now by way of the cache
    assert decoded == []
    assert cached.fingerprint == few.fingerprint != whole.fingerprint
    assert load(tmp_path, train_limit=20, test_limit=10, seed=4).fingerprint != few.fingerprint
    assert len(load(tmp_path, train_limit=10**9).train) == 60


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_subsets_are_balanced(counts, share, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels))]
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    split = Split(images, labels)
    num = int(share * len(labels))
    rest, part = split.split(num, seed)
    assert len(part) == num
    assert torch.equal(part.labels, split.subset(num, seed).labels)
    assert sorted(rest.images.flatten().tolist() + part.images.flatten().tolist()) == list(range(len(labels)))
    got = part.labels.bincount(minlength=len(counts)).tolist()
    # A class may lag behind the fullest by more than one only where it has no more images to give.
    assert all(g >= max(got) - 1 or g == c for g, c in zip(got, counts, strict=True))


# --- the cache ----------------------------------------------------------------------------------------------


def count_decodes(monkeypatch):
    from pathsum.data import parquet

    calls = []
    original = parquet.read
    monkeypatch.setattr(parquet, "read", lambda *a, **k: calls.append(a[0]) or original(*a, **k))
    return calls


def test_cache_is_used_and_is_exact(tmp_path, monkeypatch):
    parquet_folder(tmp_path)
    calls = count_decodes(monkeypatch)
    first = load(tmp_path)
    assert len(calls) == 2
    second = load(tmp_path)
    assert len(calls) == 2
    check_contents(second)
    assert first.fingerprint == second.fingerprint
    assert len(list((tmp_path / ".pathsum").iterdir())) == 2
    second.train.images[0] = 0  # what a user does to his tensor stays out of the cache
    check_contents(load(tmp_path))


def test_cache_notices_changed_content_behind_the_same_size_and_time(tmp_path, monkeypatch):
    # Uncompressed, a split whose labels are all one higher takes the same number of bytes.
    file = parquet_folder(tmp_path, compression="none") / "test-00000-of-00001.parquet"
    calls = count_decodes(monkeypatch)
    load(tmp_path)
    before = file.stat()
    images, labels = pixels(20, seed=1)
    write_parquet(file, images, (labels + 1) % 10, compression="none")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert torch.equal(load(tmp_path).test.labels, torch.from_numpy((labels + 1) % 10))
    assert len(calls) == 3  # test once more, train not
    assert len(list((tmp_path / ".pathsum").iterdir())) == 2  # the old one is replaced, not left behind


def test_cache_notices_a_removed_source(tmp_path):
    file = parquet_folder(tmp_path) / "test-00000-of-00001.parquet"
    load(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"no test split.*test_limit=0"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "garbage"])
def test_a_damaged_cache_is_rebuilt_silently(tmp_path, monkeypatch, damage, capfd):
    parquet_folder(tmp_path)
    load(tmp_path)
    for file in (tmp_path / ".pathsum").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        new = {"torn": content[:-9], "empty": b"", "flipped": content, "garbage": b"x" * 99}[damage]
        file.write_bytes(new)
    calls = count_decodes(monkeypatch)
    check_contents(load(tmp_path))
    assert len(calls) == 2
    check_contents(load(tmp_path))
    assert len(calls) == 2  # rebuilt
    assert capfd.readouterr() == ("", "")


def test_cache_goes_to_the_user_when_the_data_is_read_only(tmp_path, monkeypatch, user_cache):
    parquet_folder(tmp_path / "data")
    calls = count_decodes(monkeypatch)
    (tmp_path / "data").chmod(0o555)
    try:
        load(tmp_path)
        check_contents(load(tmp_path))
    finally:
        (tmp_path / "data").chmod(0o755)
    assert len(calls) == 2
    assert not (tmp_path / "data" / ".pathsum").exists()
    assert len(list(user_cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, user_cache):
    import safetensors.numpy

    def full_disk(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    parquet_folder(tmp_path)
    check_contents(load(tmp_path))
    assert [*(tmp_path / ".pathsum").iterdir(), *user_cache.iterdir()] == []


def test_cache_can_be_declined(tmp_path, user_cache):
    check_contents(load(parquet_folder(tmp_path), cache=False))
    assert not (tmp_path / ".pathsum").exists()
    assert not user_cache.exists()


def test_extracted_batches_are_not_cached_but_the_archive_is(tmp_path):
    load(write_folder(tmp_path / "a", batch_files()))
    assert not (tmp_path / "a" / ".pathsum").exists()
    load(write_tar(tmp_path / "cifar-10-python.tar.gz", batch_files()))
    assert len(list((tmp_path / ".pathsum").iterdir())) == 2


# --- hostile and broken input -------------------------------------------------------------------------------


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["whole", "inside", "archive"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol, place):
    mark = tmp_path / "it-ran"
    attack = Attack(f"touch {mark}")
    images, labels = pixels(5)
    content = {b"data": images.reshape(5, -1), b"labels": labels.tolist(), b"filenames": [attack]}
    files = batch_files() | {"test_batch": pickle.dumps(attack if place == "whole" else content, protocol)}
    if place == "archive":
        source = write_tar(tmp_path / "cifar-10-python.tar.gz", files)
    else:
        source = write_folder(tmp_path / CIFAR10.folder, files)
    with pytest.raises(DataError, match=r"test_batch.*asks for (posix|nt)\.system.*not run"):
        load(source)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([object()], dtype=object), "dtype 'O8'"),
        (np.array([(1, 2)], dtype="u1,u1"), "dtype 'V2'"),
        (np.array(["text"]), "dtype 'U4'"),
        (Path("x"), "pathlib"),
        (np.float64(1.0), "multiarray.scalar"),
        (bytearray(b"x"), "__builtin__.bytearray"),
        (print, "__builtin__.print"),
    ],
)
def test_a_pickle_of_anything_but_numeric_arrays_is_refused(tmp_path, value, said):
    files = batch_files() | {"test_batch": pickle.dumps({b"data": value, b"labels": [0]}, 2)}
    with pytest.raises(DataError, match=said):
        load(write_folder(tmp_path, files))


def test_a_pickle_cannot_change_the_stand_ins(tmp_path):
    # GLOBAL numpy.core.multiarray._reconstruct, then BUILD with a state that sets attributes on it.
    attack = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    sets = b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00nameK\x01sb."
    for content in (attack, sets):
        with pytest.raises(DataError):
            load(write_folder(tmp_path, batch_files() | {"test_batch": content}))
        check_contents(load(write_folder(tmp_path, batch_files())))


def test_the_archive_is_never_extracted_and_its_paths_never_followed(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_bytes(batch_files()["test_batch"])
    files = batch_files()
    del files["test_batch"]
    links = [(f"{CIFAR10.folder}/test_batch", str(secret))]
    monkeypatch.chdir(tmp_path)
    archive = write_tar(tmp_path / "linked.tar.gz", files, links=links)
    with pytest.raises(DataError, match="test_batch not in the archive"):
        load(archive)
    before = sorted(tmp_path.rglob("*"))
    check_contents(load(write_tar(archive, batch_files(), folder="../../escape"), cache=False))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path):
    member = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch")
    member.size = 2**40
    (tmp_path / "x.tar").write_bytes(member.tobuf() + bytes(10240))
    with pytest.raises(DataError, match=r"test_batch is 1,099,511,627,776 bytes long"):
        load(tmp_path / "x.tar")


def corrupt(content, how):
    if how == "truncated":
        return content[: len(content) * 2 // 3]
    if how == "empty":
        return b""
    flipped = bytearray(content)
    for at in range(len(content) // 3, len(content) // 3 + 40):
        flipped[at] ^= 0xFF
    return bytes(flipped)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
@pytest.mark.parametrize("layout", ["parquet", "tar", "pickle"])
def test_a_corrupt_file_is_named(tmp_path, layout, how):
    if layout == "parquet":
        file = parquet_folder(tmp_path) / "test-00000-of-00001.parquet"
    elif layout == "tar":
        file = write_tar(tmp_path / "cifar-10-python.tar.gz", batch_files())
    else:
        file = write_folder(tmp_path, batch_files()) / "test_batch"
    content = file.read_bytes()
    if layout == "pickle" and how == "flipped":
        content = content[::-1]  # flipped pixels are pixels: a pickle has no checksum, so break its program
    file.write_bytes(corrupt(content, how))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert file.name in text
    assert "\n" not in text
    assert "again" in text
    assert not (tmp_path / ".pathsum").exists()


def test_a_flipped_bit_anywhere_in_a_gzipped_archive_is_noticed(tmp_path):
    content = write_tar(tmp_path / "cifar-10-python.tar.gz", batch_files()).read_bytes()
    for at in np.random.default_rng(0).integers(20, len(content), 25):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (int(at) % 8)
        (tmp_path / "x.tar.gz").write_bytes(flipped)
        with pytest.raises(DataError, match=r"x\.tar\.gz"):
            load(tmp_path / "x.tar.gz", cache=False)


def bad_pngs():
    good = png(pixels(1)[0][0])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    small = png(np.zeros((3, 28, 28), np.uint8))
    gray = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(gray, "PNG")
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(jpeg, "JPEG")
    return {
        "truncated": (good[:-20], "ends early"),
        "no end": (good[:-12], "ends early"),
        "flipped": (bytes(flipped), "checksum of chunk b'IDAT'"),
        "small": (small, "expected a 32×32 RGB image, got 28×28 RGB"),
        "gray": (gray.getvalue(), "got 32×32 L"),
        "jpeg": (jpeg.getvalue(), "it starts with"),
        "empty": (b"", "corrupt"),
        "absent": (None, "no image bytes"),
    }


@pytest.mark.parametrize("kind", sorted(bad_pngs()))
def test_a_bad_image_is_named_by_file_and_row(tmp_path, kind):
    bad, said = bad_pngs()[kind]
    images, labels = pixels(20)
    encoded = [png(image) for image in images]
    encoded[9] = bad  # in the second row group
    write_parquet(tmp_path / "test.parquet", images, labels, encoded=encoded)
    with pytest.raises(DataError, match=rf"test\.parquet, row 9: .*{said}"):
        load(tmp_path, train_limit=0)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes(tmp_path, label):
    images, labels = pixels(20)
    labels[13] = label
    write_parquet(tmp_path / "test.parquet", images, labels)
    with pytest.raises(DataError, match=rf"label {label} in .*test\.parquet, row 13 .*expected 0\.\.9"):
        load(tmp_path, train_limit=0)
    if label > 0:
        files = batch_files() | {"test_batch": batch_pickle(images, labels)}
        with pytest.raises(DataError, match=r"label 10 in .*test_batch, row 13"):
            load(write_folder(tmp_path / CIFAR10.folder / CIFAR10.folder, files))


def test_other_faults_of_a_parquet_file(tmp_path):
    images, labels = pixels(4)
    file = tmp_path / "test.parquet"

    def refused(match):
        with pytest.raises(DataError, match=match):
            load(tmp_path, train_limit=0)

    write_parquet(file, images, labels, column="picture")
    refused(r"test\.parquet: expected columns img or image .* got \['picture', 'label'\]")
    write_parquet(file, images, labels, label_column="fine_label")
    refused(r"expected columns .* label, got \['img', 'fine_label'\]")
    write_parquet(file, images, [0, 1, None, 3])
    refused("1 of 4 labels are missing")
    write_parquet(file, images, ["cat", "dog", "cat", "dog"])
    refused("expected a column of integers")
    write_parquet(file, images[:0], labels[:0])
    refused("test split is empty")
    pq.write_table(pa.table({"img": [b"x"], "label": [1]}), file)
    refused("column img is binary, expected a struct")
    names = '{"info": {"features": {"label": {"names": ["zero", "one"]}}}}'
    write_parquet(file, images, labels, metadata={"huggingface": names})
    refused("its classes are zero, one, expected CIFAR-10's airplane")
    names = '{"info": {"features": {"label": {"names": ["' + '", "'.join(CIFAR10.classes) + '"]}}}}'
    write_parquet(file, images, labels, metadata={"huggingface": names})
    assert len(load(tmp_path, train_limit=0).test) == 4


def test_other_faults_of_a_batch(tmp_path):
    flat = pixels(4)[0].reshape(4, -1)
    for content, said in (
        ([1, 2], "expected a dict with data and labels, got list"),
        ({b"data": flat, b"fine_labels": [1]}, r"expected the entries data and labels, got"),
        (
            {b"data": flat[:, :100], b"labels": [1] * 4},
            r"expected data uint8 \(n, 3072\), got uint8 \(4, 100\)",
        ),
        ({b"data": flat.astype("i4"), b"labels": [1] * 4}, "got int32"),
        ({b"data": [1], b"labels": [1]}, "got list"),
        ({b"data": flat, b"labels": [1, 2]}, "4 images but 2 labels"),
        ({b"data": flat, b"labels": [1, 2, 3, "x"]}, "labels to be integers"),
        ({b"data": flat[:0], b"labels": []}, "test split is empty"),
    ):
        write_folder(tmp_path, batch_files() | {"test_batch": pickle.dumps(content, 4)})
        with pytest.raises(DataError, match=said):
            load(tmp_path)
    write_folder(tmp_path, batch_files())
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: cannot be read .*extract"):
        load(tmp_path)


def test_an_incomplete_set_of_shards(tmp_path):
    parquet_folder(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"train shards are not one complete set; expected each of 2 once"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mnist", r"unknown data 'mnist': expected 'digits'.*uoft-cs/cifar10"),
        ("cifar10", "unknown data 'cifar10'.*cifar10:PATH"),
        ("", "unknown data ''"),
        ("cifar10:/no/such/place", "no file or folder at /no/such/place"),
        ("./no-such", "no file or folder at no-such"),
        ("a/b.parquet", r"no file or folder at a/b\.parquet"),
        (Path("nowhere"), "no file or folder at nowhere"),
        (["nowhere.parquet"], r"no file or folder at nowhere\.parquet"),
        (__file__, r"test_data\.py: expected a \.parquet file"),
    ],
)
def test_unknown_sources(source, said):
    with pytest.raises(DataError, match=said) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_other_wrong_arguments(tmp_path):
    with pytest.raises(DataError, match="no CIFAR-10 in this folder"):
        load(tmp_path)
    with pytest.raises(DataError, match="train_limit is -1"):
        load("digits", train_limit=-1)
    with pytest.raises(DataError, match="device 'nowhere' cannot be used"):
        load("digits", device="nowhere")
    odd = write_parquet(tmp_path / "odd.parquet", *pixels(1))
    with pytest.raises(DataError, match="does not say which split"):
        load(odd)
    split = load("digits").train
    with pytest.raises(DataError, match=r"subset of 899 images: expected 0\.\.898"):
        split.subset(899)
    with pytest.raises(DataError, match="holding out -1"):
        split.split(-1)


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch):
    parquet_folder(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(PathsumError, match=r"pyarrow.*pip install 'pathsum\[train\]'"):
        load(tmp_path, cache=False)


def test_containers_check_what_they_hold():
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3)
    split = Split(images, labels)
    assert repr(split) == "Split(3 images 1×2×2, cpu)"
    with pytest.raises(DataError, match="expected uint8"):
        Split(images.float(), labels)
    with pytest.raises(DataError, match=r"expected int64 of shape \(3,\)"):
        Split(images, labels[:2])

    def dataset(train=split, test=split, classes=("a", "b", "c"), mean=(0.0,)):
        return Dataset("x", train, test, classes, mean, (1.0,), False)

    assert len(dataset().fingerprint) == 16
    assert dataset(test=split.take(torch.tensor([0]))).fingerprint != dataset().fingerprint
    with pytest.raises(DataError, match=r"labels of train run 0\.\.2, expected 0\.\.1"):
        dataset(classes=("a", "b"))
    with pytest.raises(DataError, match="same shape"):
        dataset(test=Split(images[:, :, :1], labels))
    with pytest.raises(DataError, match="expected 1 values in mean"):
        dataset(mean=(0.0, 0.0))


# --- normalization, augmentation, batches -------------------------------------------------------------------


def test_normalize():
    images = torch.from_numpy(pixels(4)[0])
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = normalize(images, mean, std, dtype=torch.float64)
    for c in range(3):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        assert torch.equal(got[:, c], expected)
    assert normalize(images, mean, std).dtype == torch.float32
    assert normalize(images, mean, std, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(DataError, match="normalize: expected uint8"):
        normalize(images.float(), mean, std)
    with pytest.raises(DataError, match="3 and 2"):
        normalize(images, mean, std[:2])


def slow_augment(images, chance, pad, scale):
    """One image, one pixel at a time, from the same draws."""
    num, channels, height, width = images.shape
    out = torch.zeros_like(images)
    for b in range(num):
        top, left = int(chance.top[b]) - pad, int(chance.left[b]) - pad
        crop = torch.zeros(channels, height, width, dtype=torch.uint8)
        for y in range(height):
            for x in range(width):
                if 0 <= y + top < height and 0 <= x + left < width:
                    crop[:, y, x] = images[b, :, y + top, x + left]
        if chance.mirror[b]:
            crop = crop.flip(2)
        if scale is not None:
            crop = slow_enlarge(crop, float(chance.side[b]), chance.corner[b].tolist())
        out[b] = crop
    return out


def slow_enlarge(image, side, corner):
    channels, height, width = image.shape
    out = torch.zeros_like(image)

    def taps(i, size, place):
        at = place * (1 - side) * size + (i + 0.5) * side - 0.5  # in pixels, centers at whole numbers
        at = min(max(at, 0.0), size - 1.0)
        low = math.floor(at)
        return (low, 1 - (at - low)), (min(low + 1, size - 1), at - low)

    for y in range(height):
        for x in range(width):
            value = torch.zeros(channels, dtype=torch.float64)
            for row, row_weight in taps(y, height, corner[0]):
                for column, column_weight in taps(x, width, corner[1]):
                    value += row_weight * column_weight * image[:, row, column].double()
            out[:, y, x] = value.round().to(torch.uint8)
    return out


@pytest.mark.parametrize("scale", [None, (0.2, 0.9), (1.0, 1.0)])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (4, True), (2, False), (0, True)])
def test_augment_is_its_slow_twin(pad, flip, scale):
    images = torch.from_numpy(pixels(6)[0])[:, :, :12, :10].contiguous()
    before = images.clone()
    got = augment(images, generator=torch.Generator().manual_seed(5), crop_pad=pad, flip=flip, scale=scale)
    generator = torch.Generator().manual_seed(5)
    chance = draw(6, generator=generator, crop_pad=pad, flip=flip, scale=scale)
    expected = slow_augment(images, chance, pad, scale)
    assert got.dtype == torch.uint8
    assert torch.equal(images, before)
    difference = (got.int() - expected.int()).abs().max()
    # Crop and mirror move whole pixels: exact. Enlarging rounds a float32 sum: a tie may fall either way.
    assert difference <= (0 if scale is None else 1)
    if scale == (1.0, 1.0):
        plain = augment(images, generator=torch.Generator().manual_seed(5), crop_pad=pad, flip=flip)
        assert torch.equal(got, plain)


@pytest.mark.parametrize("pad", [0, 3])
def test_augment_reads_images_in_any_layout(pad):
    images = torch.from_numpy(pixels(6)[0])[:, :, :12, :10]
    options = [{"generator": torch.Generator().manual_seed(5), "crop_pad": pad} for _ in range(3)]
    expected = augment(images.contiguous(), **options[0])
    assert torch.equal(augment(images, **options[1]), expected)
    assert torch.equal(augment(images.contiguous(memory_format=torch.channels_last), **options[2]), expected)


def test_augment_without_chance_is_the_identity():
    images = torch.from_numpy(pixels(3)[0])
    got = augment(images, generator=torch.Generator(), crop_pad=0, flip=False)
    assert torch.equal(got, images)


def test_draws_are_uniform():
    n = 20_000
    chance = draw(n, generator=torch.Generator().manual_seed(0), crop_pad=4, flip=True, scale=(0.25, 1.0))
    for offset in (chance.top, chance.left):
        counts = offset.bincount(minlength=9)
        assert len(counts) == 9
        assert (counts - n / 9).abs().max() < 5 * math.sqrt(n / 9)  # five standard errors
    assert abs(chance.mirror.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    area = chance.side.double() ** 2
    assert 0.25 <= area.min() < 0.26 < 0.99 < area.max() <= 1.0
    assert abs(area.mean() - 0.625) < 5 * 0.75 / math.sqrt(12 * n)


def test_augment_refuses():
    images, generator = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.Generator()
    with pytest.raises(DataError, match="augment before normalize"):
        augment(images.float(), generator=generator)
    with pytest.raises(DataError, match="crop_pad is -1"):
        augment(images, generator=generator, crop_pad=-1)
    for scale in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (0.5, float("nan"))):
        with pytest.raises(DataError, match="0 < low <= high <= 1"):
            augment(images, generator=generator, scale=scale)


def stream(split, batch_size=16, *, steps, seed=0, start_step=0, **kwargs):
    options = {"mean": (0.5,), "std": (0.25,), "augment": True, **kwargs}
    source = batches(split, batch_size, seed=seed, start_step=start_step, **options)
    return [next(source) for _ in range(steps)]


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 20),
    seed=st.integers(-5, 5),
    batch_size=st.integers(1, 30),
    scale=st.sampled_from([None, (0.3, 1.0)]),
)
def test_a_stream_resumed_at_any_step_is_bitwise_the_same(start, seed, batch_size, scale):
    split = load("digits").train.take(torch.arange(50))
    whole = stream(split, batch_size, steps=start + 4, seed=seed, scale=scale)
    torch.rand(3)  # what else draws in between does not matter
    resumed = stream(split, batch_size, steps=4, seed=seed, start_step=start, scale=scale)
    for (i, x, y), (j, x2, y2) in zip(whole[start:], resumed, strict=True):
        assert i == j
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


@pytest.mark.parametrize("scale", [None, (0.3, 1.0)])
def test_batches_made_several_at_a_time_are_those_made_one_by_one(monkeypatch, scale):
    split = load("digits").train.take(torch.arange(100))
    several = stream(split, steps=14, scale=scale)
    monkeypatch.setattr(batching, "AHEAD", 1)
    for (i, x, y), (j, x2, y2) in zip(several, stream(split, steps=14, scale=scale), strict=True):
        assert i == j
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_an_epoch_visits_each_image_at_most_once_in_a_new_order():
    split = load("digits").train.take(torch.arange(50))
    number = Split(torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1), split.labels)
    assert steps_per_epoch(number, 16) == 3  # the last two images wait for another epoch
    seen = [
        (x.flatten() * 255).round().int().tolist()
        for _, x, _ in stream(number, steps=6, augment=False, mean=(0.0,), std=(1.0,))
    ]
    first, second = seen[0] + seen[1] + seen[2], seen[3] + seen[4] + seen[5]
    assert len(set(first)) == len(set(second)) == 48
    assert first != second
    assert set(first) <= set(range(50))


def test_batches_depend_on_the_seed_and_leave_global_randomness_alone():
    split = load("digits").train
    state = torch.get_rng_state()
    a, b = stream(split, steps=1, seed=1)[0], stream(split, steps=1, seed=2)[0]
    assert not torch.equal(a[1], b[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert a[1].shape == (16, 1, 8, 8)
    assert a[2].shape == (16,)


def test_a_split_smaller_than_a_batch_is_refused_at_once():
    split = load("digits").train.take(torch.arange(5))
    with pytest.raises(DataError, match="5 images, fewer than one batch of 16"):
        batches(split, 16, mean=(0.5,), std=(0.25,), seed=0)
    with pytest.raises(DataError, match="batch size is 0"):
        batches(split, 0, mean=(0.5,), std=(0.25,), seed=0)
    with pytest.raises(DataError, match="start_step is -1"):
        batches(split, 2, mean=(0.5,), std=(0.25,), seed=0, start_step=-1)


@pytest.mark.gpu
def test_batches_on_an_accelerator_are_those_of_the_cpu():
    split = load("digits").train
    there = load("digits", device="cuda").train
    for (_, x, y), (_, x2, y2) in zip(stream(split, steps=60), stream(there, steps=60), strict=True):
        assert x2.is_cuda
        assert torch.equal(y, y2.cpu())
        torch.testing.assert_close(x, x2.cpu(), rtol=0, atol=1e-6)  # the same pixels, divided elsewhere


# --- the real thing -----------------------------------------------------------------------------------------


@pytest.mark.data
def test_cifar10(shared, monkeypatch):
    folder = shared / "data" / "cifar10"
    before = sorted(folder.rglob("*"))
    data = load(folder, train_limit=100)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.train.labels.bincount().tolist() == [10] * 10
    monkeypatch.setattr(stored, "write", None)  # the second time nothing is decoded, so nothing is written
    again = load(folder, train_limit=0)
    assert torch.equal(again.test.images, data.test.images)
    # The data may lie beside a checkout that many share: where it is read-only, nothing is added to it.
    if not folder.stat().st_mode & 0o222:
        assert sorted(folder.rglob("*")) == before


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_training_images_have_the_stated_mean(shared):
    data = load(shared / "data" / "cifar10")
    pixels_C = data.train.images.double().transpose(0, 1).reshape(3, -1) / 255
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert pixels_C.mean(1).tolist() == pytest.approx(data.mean, abs=5e-5)
    assert pixels_C.std(1).tolist() == pytest.approx(data.std, abs=5e-5)
