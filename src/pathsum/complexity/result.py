"""What geometric complexity returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Method = Literal["exact", "hutchinson"]


@dataclass(frozen=True, eq=False)
class GeometricComplexity:
    """GC(f, D) = mean over D of ‖∂f/∂x‖_F², with what is known of its error.

    value: the mean. stderr: standard error as an estimate for the distribution that D was drawn from, chance of the
    probes included (nan for one sample). probe_stderr: of the probes alone, as an estimate for these very samples
    (0 if exact, nan for one probe a sample). per_sample: ‖∂f/∂x‖_F² of each (N,), float64, or its estimate.
    inputs: what the gradient is by: "as given", "normalized", "raw" (pixels in 0..1) or "embeddings".
    num_outputs: numbers in one output. probes: probes a sample, None if exact.
    """

    value: float
    stderr: float
    per_sample: Tensor
    num_samples: int
    num_outputs: int
    method: Method
    probes: int | None
    probe_stderr: float
    inputs: str

    def table(self) -> pd.DataFrame:
        """One row: value, standard errors, samples, outputs, method, probes, unit of the inputs."""
        import pandas as pd

        names = ("value", "stderr", "probe_stderr", "num_samples", "num_outputs", "method", "probes", "inputs")
        return pd.DataFrame([{name: getattr(self, name) for name in names}])

    def plot(self, ax: Axes | None = None) -> Axes:
        """How ‖∂f/∂x‖_F² is spread over the samples, and its mean."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        ax.hist(self.per_sample.numpy(), bins=30, color="#9ecae1")
        ax.axvline(self.value, color="#b2182b", label=f"mean {self.value:.4g}")
        ax.set(xlabel=f"‖∂f/∂x‖² of a sample (inputs {self.inputs})", ylabel="samples")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        how = "exact" if self.method == "exact" else f"Hutchinson, {self.probes} probes"
        count = f"{self.num_samples} sample{'' if self.num_samples == 1 else 's'}"
        error = "" if self.stderr != self.stderr else f" ± {self.stderr:.2g}"
        return f"GeometricComplexity({self.value:.4g}{error}, {count}, {how}, inputs {self.inputs})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.table().to_html(index=False)
