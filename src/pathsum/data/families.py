"""CIFAR-10 and CIFAR-100: the same images' form, other files, columns, classes and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What tells one from the other."""

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of the 50,000 training images, pixels/255; fixed, so that a limited split is
    std: tuple[float, ...]  # normalized like the whole
    column: str  # of labels, in parquet files
    entry: str  # of labels, in pickled batches
    folder: str  # of the extracted archive
    batches: Mapping[str, tuple[str, ...]]  # files by split
    places: tuple[str, ...]  # folders in which the hub keeps shards
    spelled: bool  # whether the hub spells the classes as here

    @property
    def archive(self) -> str:
        """The official file."""
        return f"{self.name[:5]}-{self.name[5:]}-python.tar.gz"


CIFAR10 = Family(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    column="label",
    entry="labels",
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    places=("data", "plain_text"),
    spelled=True,
)
CIFAR100 = Family(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    column="fine_label",
    entry="fine_labels",
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    places=("data", "cifar100"),
    spelled=False,
)
FAMILIES = {family.name: family for family in (CIFAR10, CIFAR100)}
