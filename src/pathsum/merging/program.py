"""A model under α as a graph of plain torch calls: traced by `torch.fx`, without in-place writes and linear units."""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathsum.care import untouched
from pathsum.errors import LambdaError, PathsumError
from pathsum.functions import UNITS
from pathsum.knobs import Knobs
from pathsum.sites import Anatomy, Unit

# Modules of torch that hold other modules, or units that are to be seen.
_OPENED = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


class Tracer(fx.Tracer):
    """Goes into every module but torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("torch.nn") and not isinstance(m, _OPENED)


class Shapes(fx.Interpreter):
    """Runs the graph once and notes the shape of each tensor."""

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            n.meta["shape"], n.meta["dtype"], n.meta["device"] = tuple(out.shape), out.dtype, out.device
        return out


def traced(model: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> fx.GraphModule:
    """A copy of the model as a graph, with the shapes of a run on these inputs.

    Raises `PathsumError` where its control flow depends on the values or the number of its inputs.
    """
    name = type(model).__name__
    model = copy.deepcopy(model)
    try:
        graph = Tracer().trace(model)
        net = fx.GraphModule(model, graph, name)
        given = inspect.signature(model.forward).bind(*inputs, **kwargs)
        given.apply_defaults()
        with torch.no_grad(), untouched(net):
            Shapes(net).run(*(given.arguments[str(n.target)] for n in graph.nodes if n.op == "placeholder"))
    except Exception as error:  # whatever the model's code makes of symbolic inputs
        reason = str(error).strip().split("\n")[0]
        raise PathsumError(
            f"{name} cannot be written as a fixed graph of torch calls ({type(error).__name__}: {reason}): merging "
            "follows a model's calls with torch.fx, which takes no control flow that depends on the input; keep the "
            "knobs, net(x, alpha=alpha)"
        ) from None
    return net


def without_writes(net: fx.GraphModule) -> None:
    """In-place calls become calls with a result of their own, read by all that read the argument after them."""
    place = {node: k for k, node in enumerate(net.graph.nodes)}
    for node in list(net.graph.nodes):
        if not node.args or not isinstance(node.args[0], fx.Node):
            continue
        module: Any = net.get_submodule(node.target) if node.op == "call_module" else None
        if module is not None and getattr(module, "inplace", False):
            module.inplace = False
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_function" and node.target is operator.iadd:
            node.target = operator.add
        elif node.op == "call_method" and node.target.endswith("_") and hasattr(Tensor, node.target[:-1]):
            node.target = node.target[:-1]
        else:
            continue
        target = node.args[0]
        for reader in list(target.users):
            if reader is not node and place[reader] > place[node]:
                reader.replace_input_with(target, node)


def without_dropout(net: fx.GraphModule) -> None:
    """Calls that do nothing in eval mode are left out."""
    for node in list(net.graph.nodes):
        still = False
        if node.op == "call_module":
            module = net.get_submodule(node.target)
            still = isinstance(module, nn.Identity) or (
                isinstance(module, nn.modules.dropout._DropoutNd) and not (module.training and module.p > 0)
            )
        elif node.op == "call_function" and "dropout" in getattr(node.target, "__name__", ""):
            still = node.kwargs.get("training") is False
        if still:
            pass_through(net, node)


def scaled_sums(net: fx.GraphModule) -> None:
    """a + λ·b in one call becomes a product and a sum, so that λ can go into the layer that makes b."""
    for node in list(net.graph.nodes):
        added = function_of(node) is torch.add or (node.op == "call_method" and node.target == "add")
        if added and len(node.args) == 2:
            scale, b = node.kwargs.get("alpha"), node.args[1]
            alone = isinstance(b, fx.Node) and b.op == "call_module" and len(b.users) == 1
            if isinstance(scale, int | float) and alone and len(node.kwargs) == 1:
                with net.graph.inserting_before(node):
                    product = net.graph.call_function(operator.mul, (b, scale))
                product.meta = {k: v for k, v in b.meta.items() if k in ("shape", "dtype", "device")}
                node.args, node.kwargs = (node.args[0], product), {}
        elif function_of(node) in (operator.mul, torch.mul) and isinstance(node.args[0], int | float):
            node.args = (*node.args[1::-1], *node.args[2:])


def function_of(node: fx.Node) -> Any:
    """What a node calls, if it is a function called with some positional argument."""
    return node.target if node.op == "call_function" and node.args else None


def pass_through(net: fx.GraphModule, node: fx.Node) -> None:
    """Leave a call out: what read its result reads its input."""
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    node.replace_all_uses_with(source)
    net.graph.erase_node(node)


def find_units(net: fx.GraphModule, knobbed: Knobs, anatomy: Anatomy) -> list[fx.Node]:
    """The node of each unit of the knobs; raises `PathsumError` where the graph has others."""
    units, steps = anatomy.units, anatomy.steps
    found: list[fx.Node] = []
    for node in net.graph.nodes:
        due = units[len(found)] if len(found) < len(units) else None
        kind = _kind(node)
        if node.op == "call_module" and due is not None:
            is_unit = steps[due.step].module == node.target
        else:
            is_unit = kind is not None
        if is_unit and (due is None or (kind is not None and kind != due.kind)):
            break
        if is_unit:
            found.append(node)
    if len(found) != len(units):
        raise PathsumError(
            f"the graph of {type(knobbed.model).__name__} does not show the {len(units)} units of the knobs in their "
            f"order (found {len(found)}): its calls cannot be followed; keep the knobs, net(x, alpha=alpha)"
        )
    return found


def _kind(node: fx.Node) -> str | None:
    if node.op == "call_function":
        return UNITS.get(node.target)
    if node.op == "call_method":
        return UNITS.get(getattr(Tensor, str(node.target), None))
    return None


def slopes(alpha: float | Tensor, unit: Unit) -> Tensor:
    """α of one unit as a float64 tensor, checked: one number, one a channel, or one an element."""
    values = torch.as_tensor(alpha).detach().double().cpu()
    if not bool(values.isfinite().all()):
        raise LambdaError(f"α of unit {unit.name} is not finite")
    channels = unit.shape[channel_axis(unit.shape)] if unit.shape else 1
    if values.numel() == 1:
        return values.reshape(())
    if values.ndim == 1:
        if len(values) != channels:
            raise LambdaError(
                f"α of unit {unit.name} has {len(values)} values; the unit has {channels} channels "
                f"({'×'.join(map(str, unit.shape))}): is it the α of another model?"
            )
        return values[0] if bool((values == values[0]).all()) else values
    try:
        torch.broadcast_shapes(values.shape, unit.shape)
    except RuntimeError:
        raise LambdaError(
            f"α of unit {unit.name} has shape {tuple(values.shape)}; the unit has shape {unit.shape}: is it the α of "
            "another model?"
        ) from None
    return values


def channel_axis(shape: tuple[int, ...]) -> int:
    """Along which axis a vector α runs: as `net(x, alpha=…)` has it."""
    return 1 if len(shape) in (4, 5) else len(shape) - 1


def mark_units(net: fx.GraphModule, knobbed: Knobs, alpha: list[float | Tensor], anatomy: Anatomy) -> list[Tensor]:
    """Leave linear units out of the graph, note α at the others; α of each unit."""
    checked = [slopes(a, unit) for a, unit in zip(alpha, knobbed.units, strict=True)]
    nodes = find_units(net, knobbed, anatomy)
    linear = [bool((a == 1).all()) for a in checked]
    left = {node for node, passes in zip(nodes, linear, strict=True) if not passes}
    net.meta["rounds"] = nonlinear_depth(net, set(nodes)), nonlinear_depth(net, left)
    for node, a, unit in zip(nodes, checked, anatomy.units, strict=True):
        node.meta["kind"] = unit.kind
        if node not in left:
            pass_through(net, node)
        elif bool((a != 0).any()):
            node.meta["alpha"] = a
    return checked


def nonlinear_depth(net: fx.GraphModule, units: set[fx.Node]) -> int:
    """The most units on a way through the graph."""
    depth: dict[fx.Node, int] = {}
    for node in net.graph.nodes:
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0) + (node in units)
    return max(depth.values(), default=0)
