"""Text as a probe: sequences of tokens for a model that predicts tokens, classifies, or embeds."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pathsum import tasks
from pathsum.data.batching import seeded
from pathsum.data.text import Text
from pathsum.errors import DataError
from pathsum.tasks import Chunk, Probe

from .trial import trial

MASKED_SHARE = 0.15  # of the tokens, as in BERT's training
UNLABELED = (
    "There is no accuracy: a plain text does not say what is right here. Instead, what a part of the network chooses "
    "is compared with the choice of the whole network."
)
HINT = "try a smaller --length, or the model's own --tokenizer"


def text_probe(model: nn.Module, text: Text, *, output: str | int | None = None, seed: int = 0) -> Probe:
    """The sequences of `text` for `model`, which predicts next or masked tokens, classifies, or embeds.

    A model with a decoder reads the first half of each sequence and predicts the second. Of other models whose output
    scores the vocabulary, those predict next tokens whose earlier outputs do not depend on the last token; the rest
    restore masked tokens, where the tokenizer has a mask. Other logits are judged by agreement with the whole
    network's choice, any other output by cosine similarity. Raises DataError for tokens or sequences that the model
    cannot take.
    """
    check_vocabulary(model, text)
    chunks = Sequences(model, text, seed)
    chunk = chunks.halves if chunks.decodes else chunks.tokens
    what = f"sequences of {max(map(len, text.sequences))} tokens ({text.tokenizer.about})"
    out, kind = trial(model, chunk(0, 2), output, what, HINT)
    task = tasks.EMBEDDING
    if kind != "features" and out.ndim == 3 and out.shape[2] in (vocabularies(model) or out.shape):
        if chunks.decodes:
            task = tasks.SECOND_HALF
        elif is_causal(model, chunks, output):
            task, chunk = tasks.NEXT, chunks.next_tokens
        elif text.tokenizer.mask is not None:
            task, chunk = tasks.MASKED, chunks.masked
        else:
            task = replace(tasks.TOKEN_CHOICES, note=UNLABELED)
    elif kind == "logits":
        task = replace(tasks.CHOICES if out.ndim == 2 else tasks.TOKEN_CHOICES, note=UNLABELED)
    if out.ndim != 3:
        chunk = chunks.whole
    sample = "line" if text.lines else "sequence"
    task = replace(task, sample=sample, samples=f"{sample}s")
    return Probe(text.name, len(text), task, chunk, (about(text),))


def about(text: Text) -> str:
    """How the text became sequences."""
    least, most = (function(map(len, text.sequences)) for function in (min, max))
    each = f"of {most} tokens" if least == most else f"of {least} to {most} tokens"
    kind = "lines" if text.lines else "sequences"
    return f"The text: the first {len(text):,} {kind} of {text.name}, each {each}; {text.tokenizer.about}."


def vocabularies(model: nn.Module) -> set[int]:
    """The sizes of a model's embeddings, one of which is its vocabulary."""
    return {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}


def check_vocabulary(model: nn.Module, text: Text) -> None:
    """Refuse tokens beyond the model's; of a plain module, beyond its largest embedding."""
    known = max(vocabularies(model), default=None)
    table: Any = getattr(model, "get_input_embeddings", None)
    if table is not None:
        known = getattr(table(), "num_embeddings", known)
    most = max(int(s.max()) for s in text.sequences)
    if known is not None and most >= known:
        raise DataError(
            f"{type(model).__name__} knows {known:,} tokens, but {text.name} has token {most} "
            f"({text.tokenizer.about}); give the model's own tokenizer with --tokenizer"
        )


def is_causal(model: nn.Module, chunks: Sequences, output: str | int | None) -> bool:
    """Whether no output depends on a later token: the last one is changed, and the earlier outputs are compared."""
    ids = chunks.text.batch(0, 1)[0]
    other = ids.clone()
    other[0, -1] += -1 if other[0, -1] > 0 else 1
    before, after = (
        trial(model, chunks.given(each, torch.ones_like(each)), output, "a changed token", HINT)[0][:, :-1].double()
        for each in (ids, other)
    )
    return float((before - after).norm()) <= 1e-6 * float(before.norm())


class Sequences:
    """Chunks of a text as a model takes them, in each form that a task needs."""

    def __init__(self, model: nn.Module, text: Text, seed: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        self.text, self.seed = text, seed
        self.decodes = "decoder_input_ids" in parameters
        self.named = "input_ids" in parameters
        self.masks = "attention_mask" in parameters
        self.options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
        start = getattr(getattr(model, "config", None), "decoder_start_token_id", None)
        self.start = text.tokenizer.pad if start is None else start
        if text.lines and not self.masks and len({len(s) for s in text.sequences}) > 1:
            raise DataError(
                f"{type(model).__name__}'s forward has no attention_mask, so lines of different lengths cannot be run "
                "together: leave --lines out"
            )

    def given(self, ids: Tensor, real: Tensor, **more: Any) -> Chunk:
        """What the model takes for token ids (B, T) of which some are `real`, others padding."""
        masks = {"attention_mask": real.long()} if self.masks else {}
        if not self.named:
            return Chunk((ids,), masks | more)
        return Chunk((), {"input_ids": ids} | masks | more | self.options)

    def whole(self, start: int, num: int) -> Chunk:
        """One output a sequence."""
        ids, real, _ = self.text.batch(start, num)
        return self.given(ids, real)

    def tokens(self, start: int, num: int) -> Chunk:
        """One output a token, special ones too."""
        ids, real, _ = self.text.batch(start, num)
        return replace(self.given(ids, real), where=real)

    def next_tokens(self, start: int, num: int) -> Chunk:
        """What comes next, wherever that is text: position t is to say token t+1."""
        ids, real, body = self.text.batch(start, num)
        where = body.roll(-1, 1)
        where[:, -1] = False
        return replace(self.given(ids, real), where=where, labels=ids.roll(-1, 1)[where])

    def masked(self, start: int, num: int) -> Chunk:
        """15 % of each sequence's text, one token at least, hidden behind the mask token; drawn from the seed."""
        ids, real, body = self.text.batch(start, num)
        where = torch.zeros_like(body)
        for row in range(len(ids)):
            there = body[row].nonzero()[:, 0]
            drawn = torch.randperm(len(there), generator=seeded(self.seed, "mask", start + row))
            where[row, there[drawn[: max(1, round(MASKED_SHARE * len(there)))]]] = True
        assert self.text.tokenizer.mask is not None
        return replace(
            self.given(ids.masked_fill(where, self.text.tokenizer.mask), real), where=where, labels=ids[where]
        )

    def halves(self, start: int, num: int) -> Chunk:
        """The first half of each text for the encoder; the decoder is to say the second, given what comes before."""
        know = self.text.tokenizer
        first, before, after = [], [], []
        for sequence in self.text.sequences[start : start + num]:
            body = sequence[len(know.prefix) : len(sequence) - len(know.suffix)]
            middle = len(body) // 2
            first.append(torch.tensor([*know.prefix, *body[:middle].tolist(), *know.suffix]))
            before.append(torch.cat([torch.tensor([self.start]), body[middle:-1]]))
            after.append(body[middle:])

        def padded(rows: list[Tensor], value: int) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=value)

        real = padded([torch.ones_like(row) for row in first], 0)
        where = padded([torch.ones_like(row) for row in after], 0).bool()
        chunk = self.given(padded(first, know.pad), real, decoder_input_ids=padded(before, know.pad))
        return replace(chunk, where=where, labels=padded(after, 0)[where])
