"""Text files as sequences, and what is measured on them, against transformers' own losses and plain loops."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pathsum as ps
from pathsum.data.text import BYTES, Text, Tokenizer, from_transformers, read_text
from pathsum.errors import DataError
from pathsum.inspect import inspect
from pathsum.probes import text_probe
from pathsum.probes.text import Sequences
from tests import language

WRAPPED = Tokenizer(lambda text: list(text.encode()), 256, "bytes", prefix=(1,), suffix=(2, 3), pad=9)


@pytest.fixture
def file(tmp_path):
    """Write a text, get its path."""

    def write(text: str | bytes):
        path = tmp_path / "text.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def prose(file) -> str:
    return str(file(language.PROSE))


def ids(text: Text) -> list[list[int]]:
    return [sequence.tolist() for sequence in text.sequences]


# --- reading ---------------------------------------------------------------------------------------------


def test_running_text_is_cut_and_its_rest_dropped(file):
    assert ids(read_text(file("abcdefgh"), length=3)) == [[97, 98, 99], [100, 101, 102]]


def test_special_tokens_stand_around_each_sequence_and_count(file):
    assert ids(read_text(file("abcdefgh"), WRAPPED, length=6)) == [
        [1, 97, 98, 99, 2, 3],
        [1, 100, 101, 102, 2, 3],
    ]


def test_a_short_text_is_one_sequence(file):
    assert ids(read_text(file("ab"), WRAPPED, length=50)) == [[1, 97, 98, 2, 3]]


def test_lines_are_sequences_cut_and_empty_ones_skipped(file):
    text = read_text(file("abcdef\n\n  \nxyz\r\nq\nno"), length=4, lines=True)
    assert ids(text) == [[97, 98, 99, 100], [120, 121, 122], [110, 111]]  # "q" predicts nothing
    assert repr(text) == "Text(text.txt: 3 lines, 9 tokens)"


def test_a_byte_order_mark_is_no_text(file):
    assert ids(read_text(file(b"\xef\xbb\xbfab"), length=2)) == [[97, 98]]


def test_reads_no_further_than_needed(file):
    seen = []
    counting = Tokenizer(lambda text: seen.append(len(text)) or list(text.encode()), 256, "bytes")
    text = read_text(file("some words\n" * 100_000), counting, length=100, limit=3)
    assert len(text) == 3
    assert sum(seen) < 100_000  # of 1,100,000 characters


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"\xff\xfe\x00", {}, r"text\.txt is not UTF-8 text \(byte 0.*convert it"),
        ("", {}, r"text\.txt holds no text of at least two tokens"),
        ("\n a\n", {"lines": True}, r"text\.txt holds no line of at least two tokens"),
        ("abc", {"length": 1}, r"a length of 1 leaves room for 1 tokens"),
        ("abc", {"length": 4, "tokenizer": WRAPPED}, r"a length of 4 leaves room for 1 tokens of text beside special"),
    ],
)
def test_what_is_no_text(file, content, options, message):
    with pytest.raises(DataError, match=message):
        read_text(file(content), **options)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"no text file at .*gone\.txt"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"cannot be read as a text file"):
        read_text(tmp_path)


def test_batches_say_which_tokens_are_text(file):
    given, real, body = read_text(file("abcd\nxy"), WRAPPED, length=9, lines=True).batch(0, 5)
    assert given.tolist() == [[1, 97, 98, 99, 100, 2, 3], [1, 120, 121, 2, 3, 9, 9]]
    assert real.sum(1).tolist() == [7, 5]
    assert [row.nonzero()[:, 0].tolist() for row in body] == [[1, 2, 3, 4], [1, 2]]


def test_tokenizers_of_transformers():
    own = language.words()
    bert, gpt = from_transformers(own), from_transformers(language.letters())
    assert (bert.prefix, bert.suffix) == ((own.cls_token_id,), (own.sep_token_id,))
    assert (bert.mask, bert.pad, bert.longest) == (own.mask_token_id, own.pad_token_id, None)
    assert (gpt.prefix, gpt.suffix, gpt.mask, gpt.longest) == ((), (), None, 32)
    sentence = "The old sailor sees the sea."
    assert [*bert.prefix, *bert.encode(sentence), *bert.suffix] == own(sentence)["input_ids"]


# --- what is asked of a model ----------------------------------------------------------------------------


class Bag(nn.Module):
    """A byte model of a user's own: residual, causal by a running mean, no configuration, positional tokens."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)
        self.causal = causal

    def forward(self, tokens):
        x = self.embed(tokens)
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        seen = x.cumsum(1) / steps if self.causal else x.mean(1, keepdim=True).expand_as(x)
        return self.head(x + torch.tanh(self.mix(seen)))


TASKS = {
    "gpt2": "next-token accuracy",
    "llama": "next-token accuracy",
    "bert": "masked-token accuracy",
    "encoder": "cosine similarity to the whole",
    "classifier": "same choice as the whole network",
    "tagger": "same choice as the whole network",
    "t5": "next-token accuracy",
    "t5-base": "cosine similarity to the whole",
}


@pytest.mark.parametrize("name", TASKS)
def test_what_a_model_is_asked_follows_from_its_output(name, prose):
    tokenizer = from_transformers(language.letters() if name in ("gpt2", "llama") else language.words())
    task = text_probe(language.build(name), read_text(prose, tokenizer, length=20)).task
    assert task.lead.label == TASKS[name]
    assert (task.sample, task.samples) == ("sequence", "sequences")


def test_plain_modules_are_asked_too(prose):
    text = read_text(prose, length=16)
    assert text_probe(Bag(), text).task.lead.label == "next-token accuracy"
    unmasked = text_probe(Bag(causal=False), text).task
    assert unmasked.lead.label == "same choice as the whole network"  # bytes have no mask
    assert "a plain text does not say what is right" in unmasked.note


def test_chunks_hold_the_right_answers(prose):
    """Against loops over sequences and positions."""
    words = from_transformers(language.words())
    text = read_text(prose, words, length=24, lines=True)
    made = Sequences(language.build("bert"), text, seed=0)
    size = 7
    sequences = ids(text)[:size]
    heads, tails = len(words.prefix), len(words.suffix)

    after = made.next_tokens(0, size)
    expected = [s[t + 1] for s in sequences for t in range(heads - 1, len(s) - 1 - tails)]
    assert after.labels.tolist() == expected
    assert after.kwargs["attention_mask"].sum(1).tolist() == [len(s) for s in sequences]

    masked = made.masked(0, size)
    row, at = masked.where.nonzero().unbind(1)
    assert masked.labels.tolist() == [sequences[r][t] for r, t in zip(row.tolist(), at.tolist(), strict=True)]
    assert bool((masked.kwargs["input_ids"][masked.where] == words.mask).all())
    for r, sequence in enumerate(sequences):
        body = len(sequence) - heads - tails
        assert int((row == r).sum()) == max(1, round(0.15 * body))
    torch.testing.assert_close(made.masked(2, 3).where, masked.where[2:5, : made.masked(2, 3).where.shape[1]])
    assert Sequences(language.build("bert"), text, seed=1).masked(0, size).labels.tolist() != masked.labels.tolist()

    both = Sequences(language.build("t5"), text, seed=0).halves(0, size)
    row = 3
    body = sequences[row][heads : len(sequences[row]) - tails]
    middle = len(body) // 2
    read = both.kwargs["input_ids"][row][both.kwargs["attention_mask"][row].bool()].tolist()
    assert read == [*words.prefix, *body[:middle], *words.suffix]
    assert both.kwargs["decoder_input_ids"][row][both.where[row]].tolist() == [0, *body[middle:-1]]
    assert both.labels[both.owner() == row].tolist() == body[middle:]


def test_tokens_beyond_the_vocabulary_are_refused(prose):
    with pytest.raises(DataError, match=r"GPT2LMHeadModel knows 50 tokens, but text\.txt has token 1\d\d.*--tokenizer"):
        text_probe(language.build("few"), read_text(prose, length=20))


def test_sequences_that_are_too_long_are_refused(prose):
    with pytest.raises(DataError, match=r"GPT2LMHeadModel cannot take sequences of 60 tokens.*--length"):
        text_probe(language.build("bytes"), read_text(prose, length=60))


def test_lines_need_a_mask(prose):
    with pytest.raises(DataError, match=r"Bag's forward has no attention_mask, so lines of different lengths"):
        text_probe(Bag(), read_text(prose, lines=True))


# --- the numbers -----------------------------------------------------------------------------------------


def looked_at(name: str, prose: str, **options):
    """The model, its text, and what inspect says of both."""
    tokenizer = from_transformers(language.letters() if name in ("gpt2", "llama") else language.words())
    model = language.build(name)
    text = read_text(prose, tokenizer, length=20, limit=8)
    return model, text, inspect(model, text, **{"order": 2, "dtype": "float64", **options})


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_the_loss_is_the_models_own(name, prose):
    """transformers computes it from `labels`, −100 where nothing is asked."""
    model, text, result = looked_at(name, prose)
    chunk = text_probe(model, text).chunk(0, 8)
    if name == "gpt2":
        labels = chunk.kwargs["input_ids"]  # shifted inside
        given = {"input_ids": labels}
    else:
        labels = torch.full(chunk.where.shape, -100).masked_scatter(chunk.where, chunk.labels)
        given = {k: v for k, v in chunk.kwargs.items() if k != "decoder_input_ids"}
    with torch.no_grad():
        loss = float(model(**given, labels=labels).loss)
    assert result.scores["loss"] == pytest.approx(loss, rel=1e-6)
    assert result.num_rows == len(chunk.labels)
    assert result.lengths["loss"].iloc[-1] == pytest.approx(loss, rel=1e-6)
    assert result.lengths["perplexity"].iloc[-1] == pytest.approx(math.exp(loss), rel=1e-6)
    assert result.conservation < (1e-12 if name != "t5" else 1e-6)  # T5's softmax is in float32


def test_next_tokens_by_length_and_order_against_loops(prose):
    model, text, result = looked_at("gpt2", prose, chunk_size=3)
    given = torch.stack(text.sequences)
    s = ps.spectrum(model, input_ids=given, use_cache=False)
    e = ps.expand(model, input_ids=given, use_cache=False, order=2)
    for parts, table in ((s.terms, result.lengths), (e.contributions(), result.orders)):
        for k, row in table.iterrows():
            logits = parts[: k + 1].sum(0)
            hits, losses = [], []
            for b in range(len(given)):
                for t in range(given.shape[1] - 1):
                    hits.append(int(logits[b, t].argmax() == given[b, t + 1]))
                    losses.append(float(torch.logsumexp(logits[b, t], 0) - logits[b, t, given[b, t + 1]]))
            assert row["accuracy"] == pytest.approx(np.mean(hits))
            assert row["loss"] == pytest.approx(np.mean(losses))
    energy = s.terms[:, :, :-1].square().sum((2, 3))
    np.testing.assert_allclose(result.lengths["share"], energy.sum(1) / energy.sum(), rtol=1e-9)
    means = (torch.arange(len(energy)).double() @ (energy / energy.sum(0))).numpy()
    np.testing.assert_allclose(result.sample_lengths, means, rtol=1e-9)


def test_embeddings_are_compared_with_the_whole(prose):
    model, text, result = looked_at("encoder", prose)
    s = ps.spectrum(model, input_ids=torch.stack(text.sequences))
    partial = s.terms.cumsum(0)
    expected = nn.functional.cosine_similarity(partial, s.output[None], dim=-1).mean((1, 2))
    np.testing.assert_allclose(result.lengths["similarity"], expected, rtol=1e-9)
    assert result.accuracy is None
    assert result.conservation < 1e-13


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "classifier", "t5"])
def test_padding_and_chunks_change_nothing(name, prose):
    """Lines alone need no padding, lines together do; transformers takes another way through its code then."""
    tokenizer = from_transformers(language.letters() if name in ("gpt2", "llama") else language.words())
    text = read_text(prose, tokenizer, length=20, limit=7, lines=True)
    assert len({len(s) for s in text.sequences}) > 1
    model = language.build(name)
    one, some, all_ = (
        inspect(model, text, order=2, chunk_size=size, dtype="float64", max_length=3) for size in (1, 2, 7)
    )
    # T5's softmax and Llama's norms are in float32 whatever the weights are.
    rough = 1e-4 if name in ("t5", "llama") else 1e-9
    for other in (one, some):
        for table in ("orders", "lengths"):
            pd.testing.assert_frame_equal(getattr(other, table), getattr(all_, table), rtol=rough, atol=rough)
        np.testing.assert_allclose(other.sample_lengths, all_.sample_lengths, rtol=rough)


def test_recomputed_patterns_are_another_split_of_the_same_whole(prose):
    _, _, frozen = looked_at("gpt2", prose)
    _, _, anew = looked_at("gpt2", prose, recompute=("norm", "attention"))
    assert anew.conservation < 1e-12
    assert anew.lengths["loss"].iloc[-1] == pytest.approx(frozen.lengths["loss"].iloc[-1])
    assert anew.lengths["loss"].iloc[0] != pytest.approx(frozen.lengths["loss"].iloc[0], rel=1e-3)
    assert anew.notes[-1] == "For the paths up to each length, norm and attention were computed anew, not frozen."


# --- inputs of the library -------------------------------------------------------------------------------


class Whole(nn.Module):
    """Takes a tokenizer's output as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = language.build("encoder")

    def forward(self, batch):
        return self.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output


@pytest.fixture
def tokens():
    given = language.words()(["Nobody sees the sea.", "A small dog forgets."], padding=True, return_tensors="pt")
    given.pop("token_type_ids", None)
    return given


@pytest.mark.parametrize("convert", [dict, lambda tokens: tokens], ids=["dict", "tokenizer output"])
def test_a_tokenizers_output_as_one_argument(tokens, convert):
    model = Whole().double().eval()
    s = ps.spectrum(ps.knobs(model, convert(tokens)), convert(tokens), chunk_size=2)
    torch.testing.assert_close(s.output, model(tokens))
    assert s.conservation < 1e-13


def test_which_output_is_looked_at(tokens):
    model = language.build("encoder").double()
    out = model(**tokens)
    for output, expected in {
        None: out.last_hidden_state,
        "pooler_output": out.pooler_output,
        lambda result: result.last_hidden_state[:, 0]: out.last_hidden_state[:, 0],
    }.items():
        s = ps.spectrum(ps.knobs(model, output=output, **tokens), **tokens)
        torch.testing.assert_close(s.output, expected)
        assert s.conservation < 1e-13


def test_caches_change_nothing_and_are_not_kept():
    """A language model returns keys and values of all layers unless told not to; here they would be series."""
    model = language.build("gpt2")
    given = torch.arange(24).view(2, 12)
    returned = []
    net = ps.knobs(model, input_ids=given, output=lambda out: returned.append(weakref.ref(out)) or out.logits)
    runs = [ps.spectrum(net, input_ids=given), ps.spectrum(net, input_ids=given, use_cache=True)]
    torch.testing.assert_close(runs[0].terms, runs[1].terms, rtol=0, atol=0)
    without = ps.spectrum(model, input_ids=given, use_cache=False)
    torch.testing.assert_close(runs[0].terms, without.terms)
    gc.collect()
    assert len(returned) >= 4
    assert not any(ref() for ref in returned)


def test_bytes_are_the_default_tokens(prose):
    assert read_text(prose, length=8).tokenizer is BYTES
