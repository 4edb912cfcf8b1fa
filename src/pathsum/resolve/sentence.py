"""Sentence encoders: a transformer whose tokens are pooled to one vector, as sentence-transformers stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


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
    pooling = read(f"{kinds['Pooling'].get('path')}/config.json") if "Pooling" in kinds else None
    modes = [
        k.removeprefix("pooling_mode_") for k, on in (pooling or {}).items() if k.startswith("pooling_mode_") and on
    ]
    most = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    known = {"mean_tokens": "mean", "cls_token": "cls"}
    if kinds.keys() - {"Transformer", "Pooling", "Normalize"} or len(modes) != 1 or modes[0] not in known:
        stored = ", ".join([*kinds, *modes])
        return model, f"; its sentence embedding ({stored}) is not known here, so its tokens are looked at", most
    whole = SentenceEncoder(model, pooling=known[modes[0]], normalize="Normalize" in kinds).eval()
    words = f"; a sentence is the {'mean of its tokens' if whole.pooling == 'mean' else 'first token'}"
    return whole, words + (", normalized" if whole.normalize else ""), most
