"""`pathsum inspect`: from a word to a network, samples to look at it with, and a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathsum.errors import DataError, PathsumError
from pathsum.inspection import Inspection, inspect, measure, ready

if TYPE_CHECKING:
    from pathsum.data import Dataset
    from pathsum.data.text import Text, Tokenizer
    from pathsum.resolve import Target
    from pathsum.tasks import Probe

__all__ = ["MARKER", "InspectCommand", "Inspection", "inspect"]

MARKER = "inspect.json"
TEXT = (".txt", ".text", ".md", ".rst")


@dataclass(frozen=True)
class InspectCommand:
    """Explain a trained network by its paths.

    Finds the residual branches of any network and prints: the branches; how good the network is; the expansion in λ
    order by order, with what it leaves out and a verdict; how much of the output comes through how many blocks, and
    how good paths up to each length are. Writes the same as a page with figures (report.html), PNG, SVG and CSV.

    MODEL is one of:
      FOLDER                a folder or .safetensors file that pathsum wrote
      FILE.py:FUNCTION      the file is run; the function takes no arguments and returns a torch.nn.Module
      hf:FOLDER, hf:NAME    a model of transformers, on disk or on its hub; safetensors only
      torchvision:NAME      with random weights; @DEFAULT, or the name of its weights, for published ones
      timm:NAME             likewise

    Images are judged by their labels, where these are the network's classes. A language model is given a text file
    and predicts next tokens, masked tokens or, with a decoder, second halves of sequences. Parts of an embedding are
    compared with the whole. Numbers in brackets below are what is taken where an option is not given.

    Examples:
      pathsum inspect runs/tower
      pathsum inspect runs/tower --data digits --samples 100 --order 8
      pathsum inspect nets.py:resnet20 --weights resnet20.safetensors --data cifar10:data/cifar10 \\
          --mean .485 .456 .406 --std .229 .224 .225
      pathsum inspect torchvision:resnet18@DEFAULT --data cifar10:data/cifar10 --samples 50
      pathsum inspect timm:convnext_tiny --weights mine.safetensors --data cifar10:data/cifar10 --image-size 64
      pathsum inspect hf:models/vit --data cifar10:data/cifar10
      pathsum inspect hf:models/gpt2 --data book.txt --samples 20 --length 64
      pathsum inspect hf:models/gpt2 --data book.txt --recompute norm attention
      pathsum inspect hf:models/sentence-encoder --data sentences.txt --lines
    """

    model: str
    """FOLDER, FILE.py:FUNCTION, hf:FOLDER, hf:NAME, torchvision:NAME or timm:NAME, as above."""
    data: str | None = None
    """Images: 'digits', 'cifar10:PATH', PATH or a hub id; for a language model a text file. A checkpoint may know."""
    weights: Path | None = None
    """A .safetensors file for FILE.py:FUNCTION, torchvision:NAME or timm:NAME; all names and shapes must fit."""
    samples: int | None = None
    """How many test images, a balanced subset (1000), or sequences of a text (20; of lines 100); 0 takes all."""
    order: int = 8
    """Highest order of the expansion in λ."""
    max_length: int | None = None
    """Longest path shown on its own, in blocks (32); longer ones are summed in one slot."""
    recompute: tuple[Literal["norm", "attention"], ...] = ()
    """Compute norm statistics, attention patterns or both anew for paths up to each length, not frozen."""
    chunk_size: int | None = None
    """Samples at a time (50, or fewer where they are large): less memory, the same numbers."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision; float64 is slower and lets sums close to the last digits."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels/255, a number per channel; by default as the model was trained, else the data's."""
    std: tuple[float, ...] | None = None
    """What that is divided by, a number per channel; likewise."""
    image_size: int | None = None
    """Resize images to so many pixels a side, not to the size that the model is built for."""
    length: int | None = None
    """Tokens of a sequence, special ones included (128, or as many as the model takes)."""
    lines: bool = False
    """Take each line of the text as a sequence, cut at --length, not the running text."""
    tokenizer: str | None = None
    """Folder or hub name to take the tokenizer from, not the model's own; without one, bytes are the tokens."""
    output: str | None = None
    """The output to look at, by name or number, such as pooler_output (logits, last hidden state, or the first)."""
    seed: int = 0
    """Seed of the choice of images, and of the tokens that are masked."""
    out: Path | None = None
    """Folder for the page; by default pathsum-inspect/NAME."""
    overwrite: bool = False
    """Replace an earlier result in that folder."""

    def __post_init__(self) -> None:
        least = {
            "samples": 0,
            "order": 0,
            "max_length": 0,
            "chunk_size": 1,
            "length": 2,
            "image_size": 1,
        }
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
        result = measure(
            target.model,
            self.probe(target),
            order=self.order,
            max_length=self.max_length,
            recompute=self.recompute,
            chunk_size=self.chunk_size,
            output=self.picked,
        )
        result = replace(result, name=target.name, about=target.about)
        show(result)
        publish(result, out, settings={"inspect": asdict(self)}, marker=MARKER, overwrite=self.overwrite)
        print(f"\nThe page: {out / 'report.html'}")

    @property
    def picked(self) -> str | int | None:
        """The output asked for, by name or number."""
        return int(self.output) if self.output and self.output.isdigit() else self.output

    def probe(self, target: Target) -> Probe:
        """The samples, in the form and precision that the model is to be looked at with."""
        from pathsum.probes import image_probe, text_probe

        ready(target.model, self.dtype)
        if target.takes == "text" or (target.takes is None and Path(self.data or "").suffix in TEXT):
            return text_probe(target.model, self.text(target), output=self.picked, seed=self.seed)
        data, mean, std = self.images(target)
        shape = target.image_shape
        if self.image_size is not None:
            shape = ((shape or data.shape)[0], self.image_size, self.image_size)
        return image_probe(
            target.model,
            data,
            dtype=self.dtype,
            shape=shape,
            mean=self.mean or mean,
            std=self.std or std,
            output=self.picked,
        )

    def text(self, target: Target) -> Text:
        """The sequences of the text file."""
        from pathsum.data.text import read_text

        if self.data is None:
            raise DataError(f"{target.name} reads text: say which with --data FILE.txt")
        length = self.length or min(128, target.longest or 128)
        if target.longest and length > target.longest:
            raise DataError(f"--length is {length}, but {target.name} takes at most {target.longest} tokens")
        few = 100 if self.lines else 20
        limit = few if self.samples is None else self.samples or None
        return read_text(self.data, self.tokens(target), length=length, limit=limit, lines=self.lines)

    def tokens(self, target: Target) -> Tokenizer:
        """The tokenizer asked for, else the model's own, else bytes."""
        from pathsum.data.text import BYTES
        from pathsum.resolve.hub import tokenizer_at

        if self.tokenizer is not None:
            return tokenizer_at(self.tokenizer)
        return target.tokenizer or BYTES

    def images(self, target: Target) -> tuple[Dataset, tuple[float, ...] | None, tuple[float, ...] | None]:
        """The data set, and the mean and standard deviation that the model was trained with, where known."""
        from pathsum.data import load

        source = target.source(self.data)
        if Path(source).suffix in TEXT:
            raise DataError(f"{target.name} looks at images, and {source} is a text: give images, as cifar10:PATH")
        limit = 1000 if self.samples is None else self.samples or None
        data = load(source, train_limit=0, test_limit=limit, seed=self.seed)
        return data, *target.statistics(data.name)
