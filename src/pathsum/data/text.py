"""Text files as sequences of tokens, read only as far as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pathsum.errors import DataError

BLOCK = 1 << 16  # characters that are tokenized at a time


@dataclass(frozen=True)
class Tokenizer:
    """From text to whole numbers below `size`, and the tokens that stand around them."""

    encode: Callable[[str], list[int]]
    size: int
    about: str
    prefix: tuple[int, ...] = ()  # before each sequence, such as [CLS] or <s>
    suffix: tuple[int, ...] = ()  # behind it, such as [SEP] or </s>
    pad: int = 0
    mask: int | None = None
    longest: int | None = None  # most tokens that the model was trained with


BYTES = Tokenizer(lambda text: list(text.encode()), 256, "UTF-8 bytes as tokens")


def from_transformers(tokenizer: Any) -> Tokenizer:
    """A tokenizer of transformers, its special tokens found by encoding one letter with and without them."""

    def encode(text: str, *, special: bool = False) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    plain, whole = encode("a"), encode("a", special=True)
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = tokenizer.model_max_length
    return Tokenizer(
        encode,
        len(tokenizer),
        "tokens of the model's own tokenizer",
        prefix=tuple(whole[:at]),
        suffix=tuple(whole[at + len(plain) :]),
        pad=pad or 0,
        mask=tokenizer.mask_token_id,
        longest=longest if longest < 1 << 30 else None,  # where there is no limit, a huge number stands
    )


@dataclass(frozen=True, eq=False, repr=False)
class Text:
    """Sequences of tokens from a file; each is prefix, text and suffix of its tokenizer."""

    name: str
    sequences: tuple[Tensor, ...]  # int64, one-dimensional
    tokenizer: Tokenizer
    lines: bool = False  # each is a line of the file

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, start: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences from `start` on as (ids, real, body), each (B, T): tokens, not padding, not special either."""
        chosen = self.sequences[start : start + size]
        ids = pad_sequence(list(chosen), batch_first=True, padding_value=self.tokenizer.pad)
        length = torch.tensor([len(s) for s in chosen])[:, None]
        at = torch.arange(ids.shape[1])
        body = (at >= len(self.tokenizer.prefix)) & (at < length - len(self.tokenizer.suffix))
        return ids, at < length, body

    def __repr__(self) -> str:
        kind = "lines" if self.lines else "sequences"
        return f"Text({self.name}: {len(self)} {kind}, {sum(map(len, self.sequences)):,} tokens)"


def read_text(
    path: str | Path,
    tokenizer: Tokenizer = BYTES,
    *,
    length: int = 128,
    limit: int | None = None,
    lines: bool = False,
) -> Text:
    """Cut a UTF-8 text file into sequences of `length` tokens, special ones included; the first `limit` of them.

    The text runs on from sequence to sequence, and what is left at the end is dropped; a text shorter than one
    sequence is a sequence of its own. With `lines` each line that is not empty is a sequence, cut at `length`. The
    file is read only as far as needed; memory holds the tokens. Raises DataError for a file that is missing, not text
    or empty, and for a length that leaves no room.
    """
    room = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    if room < 2:
        raise DataError(
            f"a length of {length} leaves room for {max(room, 0)} tokens of text beside special ones: 2 is least"
        )
    path = Path(path).expanduser()
    pieces = each_line(path, tokenizer, room) if lines else each_piece(path, tokenizer, room)
    sequences = []
    for tokens in pieces:
        sequences.append(torch.tensor([*tokenizer.prefix, *tokens, *tokenizer.suffix]))
        if len(sequences) == limit:
            break
    if not sequences:
        raise DataError(f"{path} holds no {'line' if lines else 'text'} of at least two tokens; give a file with text")
    return Text(path.name, tuple(sequences), tokenizer, lines)


def each_piece(path: Path, tokenizer: Tokenizer, room: int) -> Iterator[list[int]]:
    """The running text in pieces of `room` tokens."""
    tokens: list[int] = []
    whole = False
    for block in blocks(path):
        tokens += tokenizer.encode(block)
        full = len(tokens) // room
        whole = whole or full > 0
        for at in range(0, full * room, room):
            yield tokens[at : at + room]
        tokens = tokens[full * room :]
    if not whole and len(tokens) > 1:
        yield tokens


def each_line(path: Path, tokenizer: Tokenizer, room: int) -> Iterator[list[int]]:
    """The lines with at least two tokens, cut at `room`."""
    for block in blocks(path):
        for line in block.splitlines():
            tokens = tokenizer.encode(line.strip())
            if len(tokens) > 1:
                yield tokens[:room]


def blocks(path: Path) -> Iterator[str]:
    """The file in blocks of whole lines."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            while lines := file.readlines(BLOCK):
                yield "".join(lines)
    except FileNotFoundError:
        raise DataError(f"no text file at {path}; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); convert it, or give a text file"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as a text file ({error.strerror}); give a text file") from None
