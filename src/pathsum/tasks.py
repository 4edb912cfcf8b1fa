"""What a network's outputs are (classes, tokens, embeddings), and how good a part of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How good a part of the output is; a mean over its rows, 1 the best for all but losses.

    `of(part, whole, labels)` scores each row: part and whole (rows, features), labels (rows,) -> (rows,).
    """

    name: str  # the column in tables
    label: str  # on axes and in sentences
    of: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    percent: bool = True
    reach: str = ""  # what paths that reach nearly the whole's value do; {s} is their verb's ending
    needs: str = ""  # what takes paths of every length


@dataclass(frozen=True)
class Task:
    """What is asked of a network, how an answer is scored, and the words for it."""

    sample: str  # "image", "sequence", "line"
    samples: str
    scores: tuple[Score, ...]  # the first leads
    claim: str  # a headline's beginning
    output: str = "logits"
    note: str = ""  # what a reader should know of this way to look

    @property
    def lead(self) -> Score:
        return self.scores[0]


@dataclass(frozen=True)
class Chunk:
    """Some samples: what the model takes, which positions of its output count, and what is right there."""

    inputs: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    where: Tensor | None = None  # (samples, positions); None: the whole output of a sample is one row
    labels: Tensor | None = None  # (rows,)

    def __len__(self) -> int:
        return len(next(iter((*self.inputs, *self.kwargs.values()))))

    def rows(self, output: Tensor) -> Tensor:
        """The rows of an output that count, (rows, features) in float64."""
        return (output.flatten(1) if self.where is None else output[self.where]).double()

    def owner(self) -> Tensor:
        """The sample each row is of."""
        return torch.arange(len(self)) if self.where is None else self.where.nonzero()[:, 0]


@dataclass(frozen=True)
class Probe:
    """What a model is looked at with: samples, a chunk at a time, and what is asked of it there."""

    data: str
    num: int
    task: Task
    chunk: Callable[[int, int], Chunk]  # start, size
    notes: tuple[str, ...] = ()


def right(part: Tensor, whole: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None
    return (part.argmax(1) == labels).double()


def agrees(part: Tensor, whole: Tensor, labels: Tensor | None) -> Tensor:
    return (part.argmax(1) == whole.argmax(1)).double()


def cross_entropy(part: Tensor, whole: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None
    return F.cross_entropy(part, labels, reduction="none")


def cosine(part: Tensor, whole: Tensor, labels: Tensor | None) -> Tensor:
    return F.cosine_similarity(part, whole, dim=1)


def accuracy(label: str) -> Score:
    return Score(
        "accuracy",
        label,
        right,
        reach="alone reach{es} {reached:.1%}, the whole network {whole:.1%}",
        needs="Its accuracy needs paths of every length: leaving out the longest loses more than one point.",
    )


def agreement(rows: str) -> Score:
    return Score(
        "agreement",
        "same choice as the whole network",
        agrees,
        reach=f"alone choose{{s}} as the whole network does for {{reached:.1%}} of {rows}",
        needs="Its choices need paths of every length: leaving out the longest changes more than one in a hundred.",
    )


LOSS = Score("loss", "cross-entropy (nats)", cross_entropy, percent=False)
SIMILARITY = Score(
    "similarity",
    "cosine similarity to the whole",
    cosine,
    percent=False,
    reach="alone point{s} as the whole output does, to a cosine similarity of {reached:.3f}",
    needs="Its direction needs paths of every length: leaving out the longest turns it by more than 0.01 in cosine "
    "similarity.",
)

CLASSES = Task(
    "image",
    "images",
    (accuracy("test accuracy"),),
    "{value:.2%} of {num:,} test images of {data} are classified correctly",
)
CHOICES = Task("image", "images", (agreement("{samples}"),), "{num:,} {samples} of {data} are classified")
TOKEN_CHOICES = Task(
    "sequence",
    "sequences",
    (agreement("tokens"),),
    "{rows:,} tokens in {num:,} {samples} of {data} are classified",
)
NEXT = Task(
    "sequence",
    "sequences",
    (accuracy("next-token accuracy"), LOSS),
    "{value:.2%} of {rows:,} next tokens in {num:,} {samples} of {data} are predicted correctly",
)
MASKED = Task(
    "sequence",
    "sequences",
    (accuracy("masked-token accuracy"), LOSS),
    "{value:.2%} of {rows:,} masked tokens in {num:,} {samples} of {data} are restored correctly",
    note="The model saw the text with 15 % of its tokens replaced by the mask token; what it says there is scored.",
)
SECOND_HALF = Task(
    "sequence",
    "sequences",
    (accuracy("next-token accuracy"), LOSS),
    "{value:.2%} of {rows:,} next tokens in the second halves of {num:,} {samples} of {data} are predicted correctly",
    note="The encoder read the first half of each sequence; the decoder was asked for the second half, token by token, "
    "given what comes before.",
)
EMBEDDING = Task(
    "image",
    "images",
    (SIMILARITY,),
    "{num:,} {samples} of {data} are embedded",
    "embedding",
    "The output is an embedding, for which there is no right answer: a part of it is compared with the whole.",
)
