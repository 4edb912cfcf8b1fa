"""What the anatomy of a model says: its joins, its units, and the calls of the run that showed them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .flow import Flow

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class End:
    """A parameter, or one entry of it, that multiplies a branch."""

    parameter: str
    entry: int | None = None
    uses: int = 1  # calls of the run that read it


@dataclass(frozen=True)
class Fusion:
    """A BatchNorm, and the layer before it that it can become part of."""

    norm: str
    layer: str  # "" if there is none
    why: str = ""  # there is none


@dataclass(frozen=True, eq=False)
class Branch:
    """One residual join: `skip + lam·branch`."""

    index: int
    name: str  # where the branch is computed, and the call: "layer1.0.add"
    module: str  # qualified path of the module that computes the branch
    shape: tuple[int, ...]
    lam: float  # the model's own scale of the branch when the anatomy was taken (1 unless it multiplies by a number)
    identity: bool  # the shortcut is the identity
    after: tuple[str, ...]  # what reads the join's result first: "relu", "layer_norm", …
    call: str  # the addition, as called
    modules: tuple[str, ...] = field(repr=False, default=())  # whose calls make up the branch
    step: int = field(repr=False, default=-1)
    fork: int = field(repr=False, default=-1)  # the step whose result the branch starts from; -1: an input
    skip: int = field(repr=False, default=0)  # which argument of the addition is the skip, which the branch
    branch: int = field(repr=False, default=1)
    signs: tuple[int, int] = field(repr=False, default=(1, 1))  # of skip and branch in the result
    own: str = field(repr=False, default="")  # how the model scales the branch: "" | "mul" | "alpha"
    last: str = field(repr=False, default="")  # the layer that ends the branch, if its call serves this join alone
    ends: tuple[End, ...] = field(repr=False, default=())  # what to multiply so that the branch is multiplied
    stuck: str = field(repr=False, default="")  # why there is nothing to multiply
    scale: End | None = field(repr=False, default=None)  # the parameter that the model itself multiplies it by, if any
    stage: int = field(repr=False, default=0)  # joins on one stream of one size have one stage


@dataclass(frozen=True, eq=False)
class Unit:
    """One call of a nonlinearity: `alpha·a + (1 − alpha)·φ(a)`."""

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    step: int = field(repr=False, default=-1)


@dataclass(frozen=True)
class Step:
    """One call in the recorded run."""

    func: Any
    module: str
    depth: int | None  # joins whose branch side every way from here to the output passes; None: no way to it
    last: tuple[int, ...]  # arguments that nothing reads after this call: they may be overwritten


@dataclass(frozen=True)
class Anatomy:
    """What one run of a model showed: its joins, its units, and the sequence of calls."""

    branches: tuple[Branch, ...]
    units: tuple[Unit, ...]
    steps: tuple[Step, ...]
    scalings: dict[int, int] = field(repr=False, default_factory=dict)  # step of a branch's own multiplication -> join
    fusions: tuple[Fusion, ...] = field(repr=False, default=())
    flow: Flow = field(repr=False, default_factory=Flow)

    def compare(self, other: Anatomy) -> str:
        """How the sites of another run of the model differ from these; empty where they are the same.

        A branch may pass more modules in one mode than in another (stochastic depth), and so have another name.
        """
        for kind, here, there in (("branches", self.branches, other.branches), ("units", self.units, other.units)):
            if len(here) != len(there):
                return f"{len(there)} {kind}, not {len(here)}"
        for a, b in zip(self.branches, other.branches, strict=True):
            if not (set(a.modules) <= set(b.modules) or set(b.modules) <= set(a.modules)):
                return f"branch {b.name} for {a.name}"
        for u, v in zip(self.units, other.units, strict=True):
            if u.name != v.name:
                return f"unit {v.name} for {u.name}"
        return ""

    def table(self) -> pd.DataFrame:
        """The joins as a table, in the order they are computed."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "branch": b.name,
                    "lam": b.lam,
                    "shortcut": "identity" if b.identity else "mapped",
                    "after": ", ".join(b.after) or "–",
                    "shape": "×".join(map(str, b.shape)),
                    "call": b.call,
                }
                for b in self.branches
            ],
            columns=["branch", "lam", "shortcut", "after", "shape", "call"],
        )

    def unit_table(self) -> pd.DataFrame:
        """The units as a table, in the order they are computed."""
        import pandas as pd

        return pd.DataFrame(
            [{"unit": u.name, "kind": u.kind, "shape": "×".join(map(str, u.shape))} for u in self.units],
            columns=["unit", "kind", "shape"],
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the stream with its joins: an arc for each branch, as high as it has calls, and a tick for each unit."""
        from .anatomy_plot import draw_anatomy

        return draw_anatomy(self, ax)
