# %% [markdown]
# # A residual network is a sum over paths
# Train a small tower on handwritten digits, then look at it as a sum: by orders in λ, and by path length.

# %%
import pathsum as ps
from pathsum.data import load, normalize

data = load("digits")
tower = ps.ResidualTower(depth=12, width=8, in_channels=1, encoder="conv3x3", norm="batch", scale="1/sqrt(n)", seed=0)
result = ps.fit(tower, data, ps.TrainConfig(lr=0.05, steps=60, augment=False))
print(f"test accuracy {result.best_test:.1%} after {result.steps} steps")

# %% [markdown]
# Put the knobs on it. Nothing about the tower is known to `knobs`: the joins are found by running it once.

# %%
x, y = normalize(data.test.images[:200], data.mean, data.std), data.test.labels[:200]
net = ps.knobs(tower.eval(), x)
print(net)

# %% [markdown]
# A lesion: without the branch of block 3 only, by λ₃ = 0.

# %%
lam = net.lam.clone()
lam[3] = 0
accuracy = (net(x, lam=lam).argmax(1) == y).double().mean()
print(f"accuracy without block 3: {accuracy:.1%}")

# %% [markdown]
# Orders in λ, with a verdict on whether they add up to the network; and path lengths, which always do.

# %%
e = ps.expand(net, x, order=6)
print(e.verdict, "–", e.verdict.reason)
print(e.table(y).round(4).to_string(index=False))

# %%
s = ps.spectrum(net, x)
print(s)
print(s.table(y).round(4).to_string(index=False))

# %% [markdown]
# λ written into the weights: a plain tower again, at no cost, here at half the strength of every branch.

# %%
half = net.rescale([0.5 * v for v in net.lam.tolist()]).fold(x)
print(type(half).__name__, f"at half strength: {(half(x).argmax(1) == y).double().mean():.1%}")
