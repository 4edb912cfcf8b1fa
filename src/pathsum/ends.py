"""Where a branch ends: the parameters which, multiplied by a number, multiply the branch by it.

From the addition back through everything linear without a constant (reshapes, dropout, sums of branches, products with
something that does not depend on the same weights) to the layers whose weight and bias make the branch.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .care import tensors_in
from .functions import ADDITIONS, PASSING, _functions
from .graph import Node
from .sites import End, Fusion

if TYPE_CHECKING:
    from .recording import Recorder

_WEIGHT_AND_BIAS = ((1, "weight"), (2, "bias"))
# Of each layer the arguments its result is linear in together: position and name.
_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
LAYERS: dict[Any, tuple[tuple[int, str], ...]] = {
    **dict.fromkeys(_functions(f"{_CONVOLUTIONS} linear"), _WEIGHT_AND_BIAS),
    **dict.fromkeys(_functions("bilinear"), ((2, "weight"), (3, "bias"))),
    **dict.fromkeys(_functions("embedding rms_norm"), ((1, "weight"), (2, "weight"))),
    **dict.fromkeys(_functions("batch_norm instance_norm"), ((3, "weight"), (4, "bias"))),
    **dict.fromkeys(_functions("layer_norm group_norm"), ((2, "weight"), (3, "bias"))),
    **dict.fromkeys(_functions("multi_head_attention_forward"), ((11, "out_proj_weight"), (12, "out_proj_bias"))),
}
MAPS = _functions(f"{_CONVOLUTIONS} linear")  # a BatchNorm after one of these can be part of it
BATCH_NORMS = _functions("batch_norm")
FACTORS = _functions("mul multiply matmul mm bmm einsum __matmul__")
QUOTIENTS = _functions("div true_divide divide __truediv__")
ADDED_PRODUCTS = _functions("addmm baddbmm")
# Linear in their only tensor, without a constant: a factor before is a factor behind.
LINEAR = PASSING | _functions(
    "roll flip __getitem__ narrow select chunk split unbind index_select gather expand expand_as repeat tile movedim "
    "moveaxis swapaxes swapdims t view_as reshape_as neg negative mean sum cumsum avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate pixel_shuffle pixel_unshuffle fold unfold "
    "type half bfloat16 feature_dropout alpha_dropout unflatten"
)
JOINING = _functions("cat concat concatenate stack")


Key = tuple[str, int | None]  # a parameter's name, and the entry if it is one


class Reads:
    """Which of the model's parameters each call reads, directly or through a view."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(p): name for name, p in model.named_parameters()}
        owners = [(_memory(p), name, p) for name, p in model.named_parameters()]
        shared = Counter(memory for memory, _, _ in owners)
        self.memory: dict[int | None, tuple[str, nn.Parameter]] = {
            m: (name, p) for m, name, p in owners if m is not None and shared[m] == 1
        }
        self.uses: Counter[Key] = Counter()
        self.constants: list[dict[int | str, Key | None]] = []  # of each step: its tensors that are no nodes
        self.tensors: list[int] = []  # of each step: how many of its tensors are nodes, repeated ones included

    def see(self, args: tuple, kwargs: dict[str, Any], operands: list[int | None], inputs: list[int], out: Any) -> None:
        """Note a call before it is known to be part of the flow; a view of a parameter is no use of it."""
        constants: dict[int | str, Key | None] = {}
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for place, value in places:
            if isinstance(value, Tensor) and (isinstance(place, str) or operands[place] is None):
                constants[place] = self.key(value)
            elif isinstance(value, list | tuple):
                constants |= {
                    f"{place}.{i}": self.key(t) for i, t in enumerate(tensors_in(value)) if id(t) in self.names
                }
        if inputs or not (isinstance(out, Tensor) and _memory(out) in self.memory):
            self.uses.update(k for k in constants.values() if k is not None)
        self.constants.append(constants)
        self.tensors.append(len(inputs))

    def key(self, t: Tensor) -> Key | None:
        """The parameter this tensor is, or is a view of."""
        if id(t) in self.names:
            return self.names[id(t)], None
        found = self.memory.get(_memory(t))
        if found is None or t.dtype != found[1].dtype:
            return None
        name, owner = found
        entry = int(t.storage_offset() - owner.storage_offset())
        return (name, entry) if t.numel() == 1 < owner.numel() else (name, None)

    def end(self, key: Key) -> End:
        """A parameter or entry, with the number of calls that read it."""
        name, entry = key
        if entry is not None:
            return End(name, entry, self.uses[key] + self.uses[(name, None)])
        return End(name, None, sum(n for (other, _), n in self.uses.items() if other == name))

    def scale_of(self, step: int) -> End | None:
        """The parameter a branch is multiplied by in this call, if it is one."""
        return next((self.end(k) for k in self.constants[step].values() if k is not None), None)


def _memory(t: Tensor) -> int | None:
    plain = type(t) in (Tensor, nn.Parameter, nn.Buffer) and t.layout is torch.strided and t.device.type != "meta"
    return t.untyped_storage().data_ptr() if plain and t.numel() else None


class Stuck(Exception):
    """The branch does not end in a linear map of its own."""


class Tail:
    """The end of one branch: `ends` to scale, or the reason in `stuck` why there are none."""

    def __init__(self, run: Recorder, node: int, readers: list[list[int]], kept: set) -> None:
        self.nodes, self.operands, self.reads = run.nodes, run.operands, run.reads
        self.readers, self.kept = readers, kept
        self.layers: list[str] = []
        self.ends: tuple[End, ...] = ()
        self.stuck = ""
        try:
            self.ends = tuple(dict.fromkeys(self.of(node)))
        except Stuck as reason:
            self.stuck = str(reason)

    @property
    def layer(self) -> str:
        """The one layer that makes the whole branch and nothing else; "" if there is none."""
        alone = len(self.layers) == 1 and all(e.uses == 1 for e in self.ends)
        return self.layers[0] if alone and not self.stuck else ""

    def of(self, node: int) -> list[End]:
        """The parameters to scale so that this tensor is scaled, and nothing else."""
        made = self.nodes[node]
        where = f"{_name(made.func)} in '{made.module}'"
        if made.func is None:
            raise Stuck("it ends in an input of the model")
        if len(self.readers[node]) > 1:
            raise Stuck(f"the result of {where} is read {len(self.readers[node])} times")
        if node in self.kept:
            raise Stuck(f"the result of {where} is an output of the model as well")
        if made.func in LAYERS:
            return self.layer_of(made, where)
        constants, operands = self.reads.constants[made.step], self.operands[made.step]
        if made.func in ADDED_PRODUCTS:
            behind = {p: k for p, k in constants.items() if p != 0}
            return [
                *self.summand(operands[0], 0 in constants, constants.get(0), where),
                *self.factor([n for n in operands[1:] if n is not None], behind, where),
            ]
        if made.func in ADDITIONS and len(operands) > 1:
            return [
                end
                for i, operand in enumerate(operands[:2])
                for end in self.summand(operand, i in constants, constants.get(i), where)
            ]
        if made.func in FACTORS:
            if self.reads.tensors[made.step] > len(made.inputs):
                raise Stuck(f"it ends in a product of a tensor with itself ({where})")
            return self.factor(list(made.inputs), constants, where)
        if made.func in QUOTIENTS and operands[0] is not None and operands[0] not in operands[1:]:
            return self.of(operands[0])
        if made.func in JOINING and len(made.inputs) == self.reads.tensors[made.step] and not constants:
            return [end for i in made.inputs for end in self.of(i)]
        if made.func in LINEAR and len(made.inputs) == 1:
            return self.of(made.inputs[0])
        raise Stuck(f"it ends in {where}, which is not linear")

    def layer_of(self, made: Node, where: str) -> list[End]:
        constants, operands = self.reads.constants[made.step], self.operands[made.step]
        found: list[End] = []
        for position, name in LAYERS[made.func]:
            place = position if position in constants else name
            if place in constants:
                key = constants[place]
                if key is None or key[1] is not None:
                    raise Stuck(f"the {name.split('_')[-1]} of {where} is computed, no parameter of the model")
                found.append(self.reads.end(key))
            elif position < len(operands) and operands[position] is not None:
                raise Stuck(f"the {name} of {where} depends on the input")
        if not found:
            raise Stuck(f"it ends in {where}, which has no weights")
        self.layers.append(made.module)
        return found

    def summand(self, node: int | None, constant: bool, key: Key | None, where: str) -> list[End]:
        if node is not None:
            return self.of(node)
        if constant and key is not None:
            return [self.reads.end(key)]
        raise Stuck(f"a constant is added to it ({where})")

    def factor(self, nodes: list[int], constants: dict[int | str, Key | None], where: str) -> list[End]:
        """One factor of a product is enough."""
        for key in constants.values():
            if key is not None:
                return [self.reads.end(key)]
        reasons = []
        for node in nodes:
            try:
                return self.of(node)
            except Stuck as reason:
                reasons.append(str(reason))
        raise Stuck("; ".join(reasons) or f"it ends in {where}")


def fusions(run: Recorder, readers: list[list[int]], kept: set) -> tuple[Fusion, ...]:
    """Each call of a BatchNorm with the layer it can be part of, or the reason why there is none."""
    calls = Counter(module for func, module in run.steps if func in MAPS or func in BATCH_NORMS)
    found = []
    for step, (func, module) in enumerate(run.steps):
        if func not in BATCH_NORMS:
            continue
        source = run.operands[step][0] if run.operands[step] else None
        made: Node | None = run.nodes[source] if source is not None else None
        layer, why = "", ""
        if made is None or source is None or made.func is None:
            why = "it reads the model's input"
        elif made.func not in MAPS:
            why = f"it follows {_name(made.func)}"
        elif len(readers[source]) > 1 or source in kept:
            why = f"the result of '{made.module}' is read elsewhere too"
        elif calls[module] > 1 or calls[made.module] > 1:
            why = f"'{module if calls[module] > 1 else made.module}' is called more than once"
        elif _name(made.func) == "linear" and len(made.shape) != 2:
            why = f"the channels it normalizes are not the features of '{made.module}'"
        elif not _own_weight(made, run.reads):
            why = f"the weight of '{made.module}' is computed or shared"
        else:
            layer = made.module
        found.append(Fusion(module, layer, why))
    return tuple(found)


def _own_weight(made: Node, reads: Reads) -> bool:
    """Whether a layer's weight and bias are parameters of its own module that nothing else reads."""
    constants = reads.constants[made.step]
    keys = [constants[p] for place in _WEIGHT_AND_BIAS for p in place if p in constants]
    own = all(k is not None and k[0].rpartition(".")[0] == made.module and k[1] is None for k in keys)
    return bool(keys) and own and all(reads.end(k).uses == 1 for k in keys if k is not None)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))
