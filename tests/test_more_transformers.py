"""Architectures beyond the zoo: their joins as defined, lengths that add up, a first order that is the slope."""

import pytest
import torch

import pathsum as ps
from tests.zoo.hf import BLOCK, GPT, GROUPED, IDS, PADDED, VISION, InDouble

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
transformers = pytest.importorskip("transformers")

HEADED = GROUPED | {"head_dim": 8}
UNPADDED = {"input_ids": IDS}
VISIBLE = {k: v for k, v in BLOCK.items() if k != "vocab_size"}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {"d_model": 16, "vocab_size": 50} | {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
STAGES = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2]}


def pixels(size: int = 16) -> dict:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()}


def sound(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


CAUSAL = {  # two layers: 4 joins, or 2 where attention and MLP are one branch
    "phi": ("Phi", GROUPED, 2),
    "phi3": ("Phi3", GROUPED | ENDS, 4),
    "falcon": ("Falcon", BLOCK, 2),
    "bloom": ("Bloom", {"n_layer": 2, "hidden_size": 16, "n_head": 2, "vocab_size": 50}, 4),
    "mpt": ("Mpt", {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": 50, "max_seq_len": 32}, 4),
    "qwen3": ("Qwen3", HEADED, 4),
    "gemma2": ("Gemma2", HEADED, 4),
    "olmo2": ("Olmo2", GROUPED | ENDS, 4),
    "stablelm": ("StableLm", GROUPED, 4),
    "cohere": ("Cohere", GROUPED | ENDS, 4),  # x + attention + MLP, added one after the other
    "granite": ("Granite", GROUPED, 4),
    "starcoder2": ("Starcoder2", GROUPED | ENDS, 4),
    "bigcode": ("GPTBigCode", GPT, 4),
    "codegen": ("CodeGen", GPT | {"n_head": 4, "rotary_dim": 4, "n_embd": 32}, 2),
    "persimmon": ("Persimmon", BLOCK, 4),
    "glm": ("Glm", HEADED | ENDS, 4),
    "nemotron": ("Nemotron", GROUPED, 4),
    "smollm3": ("SmolLM3", GROUPED | ENDS, 4),
}
DISTIL = {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
SEGFORMER = STAGES | {"sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
WHISPER = SEQ2SEQ | ENDS | {"max_source_positions": 8, "num_mel_bins": 4, "decoder_start_token_id": 1}
WAV2VEC = VISIBLE | {
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
OTHERS = {
    "distilbert": ("DistilBert", DISTIL, PADDED, 4),
    "albert": ("Albert", BLOCK | {"embedding_size": 8}, PADDED, 4),  # one block, applied twice
    "electra": ("Electra", BLOCK | {"embedding_size": 8}, PADDED, 4),
    "deberta-v2": ("DebertaV2", BLOCK | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, PADDED, 4),
    "mpnet": ("MPNet", BLOCK, PADDED, 4),
    "modernbert": ("ModernBert", BLOCK | ENDS | {"cls_token_id": 1, "sep_token_id": 2}, PADDED, 4),
    "fnet": ("FNet", BLOCK, UNPADDED, 2),  # Fourier mixing has no weights and so no join
    "bart": ("Bart", SEQ2SEQ, PADDED, 10),  # 2 layers of 2 joins, 2 of 3
    "pegasus": ("Pegasus", SEQ2SEQ, PADDED | {"decoder_input_ids": IDS}, 10),
    "whisper": ("Whisper", WHISPER, {"input_features": sound(2, 4, 16), "decoder_input_ids": IDS}, 10),
    "wav2vec2": ("Wav2Vec2", WAV2VEC, {"input_values": sound(2, 40)}, 5),  # and the convolution of positions
    "clip-vision": ("CLIPVision", VISION, pixels(), 4),
    "siglip": ("SiglipVision", VISION, pixels(), 5),  # and its pooling head
    "dinov2": ("Dinov2", {k: v for k, v in VISION.items() if k != "intermediate_size"}, pixels(), 4),
    "beit": ("Beit", VISION, pixels(), 4),
    "swin-v2": ("Swinv2", SWIN, pixels(), 8),
    "segformer": ("Segformer", SEGFORMER, pixels(), 4),
    "convnext-v2": ("ConvNextV2", {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2}, pixels(32), 2),
    "bit": ("Bit", {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "num_groups": 4}, pixels(32), 2),
    "mamba": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}, UNPADDED, 2),
    "rwkv": ("Rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50}, UNPADDED, 4),
    "xlnet": ("XLNet", {"n_layer": 2, "d_model": 16, "n_head": 2, "d_inner": 32, "vocab_size": 50}, PADDED, 4),
}
MODELS = {name: (f"{kind}ForCausalLM", f"{kind}Config", o, PADDED, n) for name, (kind, o, n) in CAUSAL.items()} | {
    name: (f"{kind}Model", f"{kind}Config", o, x, n) for name, (kind, o, x, n) in OTHERS.items()
}


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", MODELS)
def test_joins_lengths_and_first_order(name):
    kind, config, options, inputs, joins = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    model = model.double()
    with InDouble():
        with torch.no_grad():
            model(**inputs)  # RWKV divides its weights at the first call
        net = ps.knobs(model, **inputs)
        assert len(net.branches) == joins, [b.name for b in net.branches]
        assert ps.spectrum(net, **inputs).conservation < 1e-13
        e = ps.expand(net, order=1, **inputs)
        if all(b.lam == 1 for b in net.branches):
            lam = 1e-7  # near 0 a norm without a mean bends sharply, and small steps cost digits
            with torch.no_grad():
                slope = (net.pick(net(**inputs, lam=lam)) - net.pick(net(**inputs, lam=-lam))) / (2 * lam)
            assert float((e.terms[1] - slope).norm() / slope.norm()) < 1e-4
