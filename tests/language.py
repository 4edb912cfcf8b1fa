"""Tiny language models and tokenizers of transformers, made here: random weights, a vocabulary of a few hundred."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

T = pytest.importorskip("transformers", reason="pip install 'pathsum[hf]'")

PROSE = "\n".join(
    f"{who} {does} {what} {where}."
    for who in ("The old sailor", "A small dog", "My neighbor", "Nobody")
    for does, what in (("sees", "the sea"), ("forgets", "what was said"), ("carries", "three red apples"))
    for where in ("", "in the morning", "under the bridge by the river")
)
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
BLOCK = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
RANDOM = {"initializer_range": 0.3}  # so that branches matter
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0} | RANDOM
T5 = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "d_kv": 8, "decoder_start_token_id": 0}
VIT = BLOCK | RANDOM | {"image_size": 16, "patch_size": 4}


@functools.cache
def letters():
    """A tokenizer of words and pieces with nothing around a sequence, as GPT-2 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([PROSE], trainer)
    return T.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", model_max_length=32)


@functools.cache  # training one is not deterministic
def words():
    """A tokenizer that writes [CLS] … [SEP] around a sequence and has a mask, as BERT has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(SPECIAL.values()), show_progress=False)
    made.train_from_iterator([PROSE], trainer)
    around = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return T.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def build(name: str):
    """One of the models, in eval mode."""
    torch.manual_seed(0)
    bert = {"vocab_size": 120, "max_position_embeddings": 32} | BLOCK | RANDOM
    models = {
        "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=300, **GPT2)),
        "bytes": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=256, **GPT2)),
        "few": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=50, **GPT2)),
        "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(vocab_size=300, num_key_value_heads=1, **BLOCK, **RANDOM)),
        "bert": lambda: T.BertForMaskedLM(T.BertConfig(**bert)),
        "encoder": lambda: T.BertModel(T.BertConfig(**bert)),
        "classifier": lambda: T.BertForSequenceClassification(T.BertConfig(num_labels=3, **bert)),
        "tagger": lambda: T.BertForTokenClassification(T.BertConfig(num_labels=3, **bert)),
        "t5": lambda: T.T5ForConditionalGeneration(T.T5Config(vocab_size=120, **T5)),
        "t5-base": lambda: T.T5Model(T.T5Config(vocab_size=120, **T5)),
        "vit": lambda: T.ViTForImageClassification(T.ViTConfig(num_labels=10, **VIT)),
        "vit-5": lambda: T.ViTForImageClassification(T.ViTConfig(num_labels=5, **VIT)),
        "vit-base": lambda: T.ViTModel(T.ViTConfig(**VIT)),
    }
    return models[name]().eval()


def save(name: str, folder: Path) -> Path:
    """The model, with its tokenizer where it has one, as save_pretrained writes it."""
    build(name).save_pretrained(folder)
    if name in ("gpt2", "llama"):
        letters().save_pretrained(folder)
    elif name in ("bert", "encoder", "classifier", "tagger", "t5", "t5-base"):
        words().save_pretrained(folder)
    return folder
