"""Sentence encoders: a transformer whose tokens are pooled to one vector, as sentence-transformers stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = {"mean": "the mean of its tokens", "cls": "its first token"}


class SentenceEncoder(nn.Module):
    """One vector a sentence: e = Σ_t m_t h_t / Σ_t m_t (or h_0), and e/‖e‖ where `normalize`.

    h (batch, tokens, features) are the transformer's last hidden states, m the attention mask. In `pathsum.spectrum`
    ‖e‖ is frozen at its real value, as LayerNorm's σ is, so that the parts add up to the embedding exactly.
    """

    main_input_name = "input_ids"

    def __init__(self, transformer: nn.Module, *, pooling: str = "mean", normalize: bool = True) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        """The embeddings, (batch, features)."""
        out = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        h_BTF = out.last_hidden_state
        if self.pooling == "cls":
            e_BF = h_BTF[:, 0]
        else:
            m_BT1 = attention_mask.unsqueeze(2).to(h_BTF.dtype)
            e_BF = (h_BTF * m_BT1).sum(1) / m_BT1.sum(1)
        return F.normalize(e_BF, dim=1) if self.normalize else e_BF


def sentence_encoder(model: nn.Module, read: Callable[[str], Any]) -> tuple[nn.Module, str, int | None]:
    """The model under the pooling that lies beside it: the whole, words for it, and most tokens of a sentence.

    `read` gives a JSON file of the model's folder, None where there is none. Without sentence-transformers'
    modules.json the model stays as it is.
    """
    modules = read("modules.json")
    if not isinstance(modules, list):
        return model, "", None
    kinds = {str(m.get("type")).rpartition(".")[2]: m for m in modules if isinstance(m, dict)}
    modes = modes_of(read(f"{kinds['Pooling'].get('path')}/config.json") if "Pooling" in kinds else None)
    most = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    if kinds.keys() - {"Transformer", "Pooling", "Normalize"} or len(modes) != 1 or modes[0] not in POOLINGS:
        stored = ", ".join([*kinds, *modes])
        return model, f"; its sentence embedding ({stored}) is not known here, so its tokens are looked at", most
    whole = SentenceEncoder(model, pooling=modes[0], normalize="Normalize" in kinds).eval()
    return whole, f"; a sentence is {POOLINGS[modes[0]]}{', normalized' if whole.normalize else ''}", most


def modes_of(pooling: dict[str, Any] | None) -> list[str]:
    """How tokens are pooled: one name, or, as older versions store it, a switch for each."""
    stored = (pooling or {}).get("pooling_mode")
    if stored is not None:
        return [stored] if isinstance(stored, str) else list(stored)
    on = [key.removeprefix("pooling_mode_") for key, value in (pooling or {}).items() if value is True]
    return [mode.removesuffix("_tokens").removesuffix("_token") for mode in on if mode != "include_prompt"]
