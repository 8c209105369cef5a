"""A recorded graph with less to do: no operations that change nothing, signs and factors on the smaller operand, and what depends on
constants alone done only when a constant has changed.

Handlers and autograd leave many of these: copies, detached values, scales and their logarithms, the same at every step of a chain.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from inference.mcmc.workspace import reuse

__all__ = ["simplified"]

aten = torch.ops.aten
FILLED = {aten.ones_like.default: 1.0, aten.new_ones.default: 1.0, aten.zeros_like.default: 0.0, aten.new_zeros.default: 0.0}
COPIES = {aten.detach.default, aten.alias.default, aten.expand.default, aten.view.default, aten._unsafe_view.default}
RANDOM = torch.Tag.nondeterministic_seeded


def simplified(recorded: GraphModule) -> Callable[..., tuple[Tensor, ...]]:
    """The same function as a graph recorded by ``make_fx``, without gradients.

    What depends on the graph's constants alone (parameters, buffers, images) is kept until one of them is written to, as its version
    counter tells; writing through ``.data`` or NumPy goes by unseen, and so do fused optimizers (``fused=True``). A graph that writes to
    tensors in place is left as it is.
    """
    graph = recorded.graph
    if any(isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in graph.nodes):
        return recorded
    for node in list(graph.nodes):
        _forward_unchanged(node)
        _fill(graph, node)
    graph.eliminate_dead_code()
    constant: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and _steady(node, constant)):
            constant.add(node)
    for node in list(graph.nodes):
        _gather(graph, node, constant)
    for node in list(graph.nodes):
        _shift(graph, node, constant)
    graph.eliminate_dead_code()
    before = [node for node in graph.nodes if node in constant]
    kept = [node for node in before if any(user not in constant for user in node.users)]
    tensors = {node.target: _attribute(recorded, node.target) for node in before if node.op == "get_attr"}
    if any(value.is_inference() for value in tensors.values()):
        recorded.recompile()
        return recorded
    prologue = GraphModule(recorded, _prologue(before, kept)).forward  # what a module's call does beside is felt
    rest = _body(graph, constant, kept)
    memory = reuse(rest)
    body = GraphModule(recorded, rest).forward
    held: list[object] = [None, ()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        versions = [(value._version, value.data_ptr()) for value in tensors.values()]
        if held[0] != versions:
            held[:] = versions, prologue()
        return body(*memory, *held[1], *inputs)

    return run


def _forward_unchanged(node: Node) -> None:
    """Lets users of a node that changes nothing take its input."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return  # no operation, or one of numbers alone
    source, same = node.args[0], False
    if _kind(node) is None or _kind(node) != _kind(source):
        return
    if node.target in COPIES:
        same = True
    elif node.target is aten.pow.Tensor_Scalar:
        same = node.args[1] == 1
    elif node.target is aten.add.Tensor:
        same = isinstance(node.args[1], float | int) and node.args[1] == 0
    if same:
        node.replace_all_uses_with(source)


def _fill(graph: Graph, node: Node) -> None:
    """Makes tensors of zeros or ones without the tensor whose shape they have."""
    value = node.meta.get("val")
    if node.op == "call_function" and node.target in FILLED and isinstance(value, Tensor):
        with graph.inserting_before(node):
            full = graph.call_function(aten.full.default, (list(value.shape), FILLED[node.target]),
                                       {"dtype": value.dtype, "device": value.device})
        full.meta["val"] = value
        node.replace_all_uses_with(full)


def _kind(node: Node) -> tuple[torch.Size, torch.dtype] | None:
    """Shape and type of what a node gives, as recorded."""
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = _attribute(node.graph.owning_module, node.target)
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _steady(node: Node, constant: set[Node]) -> bool:
    """Whether a node is the same at every call, as long as constants are."""
    if node.target is operator.getitem:
        return node.args[0] in constant
    if not isinstance(node.target, torch._ops.OpOverload) or RANDOM in node.target.tags:
        return False
    return node.target is aten.full.default or bool(node.all_input_nodes) and all(source in constant for source in node.all_input_nodes)


def _gather(graph: Graph, node: Node, constant: set[Node]) -> None:
    """(x · c) · d as x · (c · d), with c · d a constant."""
    if node.target is not aten.mul.Tensor or node in constant:
        return
    last = [part for part in node.args if part in constant]
    inner = next((part for part in node.args if part not in constant), None)
    if len(last) != 1 or not isinstance(inner, Node) or len(inner.users) != 1:
        return
    if inner.target is aten.mul.Scalar:
        x, factor, kind = inner.args[0], inner.args[1], aten.mul.Scalar
    elif inner.target is aten.mul.Tensor and sum(part in constant for part in inner.args) == 1:
        factor, kind = next(part for part in inner.args if part in constant), aten.mul.Tensor
        x = next(part for part in inner.args if part not in constant)
    else:
        return
    with graph.inserting_before(node):
        product = graph.call_function(kind, (last[0], factor))
    constant.add(product)
    node.args = (x, product)


def _shift(graph: Graph, node: Node, constant: set[Node]) -> None:
    """-(s · x) as (-s) · x and s · (x · 2) as (s · 2) · x, where s is spread over many pixels."""
    if node in constant:
        return
    if node.target is aten.neg.default and isinstance(node.args[0], Node) and node.args[0].target is aten.mul.Tensor:
        product, factor = node.args[0], -1.0
        if len(product.users) != 1:
            return
        first, second = product.args
    elif node.target is aten.mul.Tensor:
        scaled = next((part for part in node.args if isinstance(part, Node) and part.target in (aten.mul.Scalar, aten.mul.Tensor)
                       and isinstance(part.args[1], float | int) and len(part.users) == 1 and part not in constant), None)
        if scaled is None:
            return
        factor, second = scaled.args[1], scaled.args[0]
        first = node.args[1] if node.args[0] is scaled else node.args[0]
    else:
        return
    spread, wide = (first, second) if _is_spread(first) else (second, first)
    if not (_is_spread(spread) and isinstance(wide, Node) and _kind(wide) and _kind(wide)[1] == _kind(spread)[1] == _kind(node)[1]
            and _kind(node)[1].is_floating_point):
        return
    with graph.inserting_before(node):
        small = graph.call_function(aten.mul.Scalar, (spread.args[0], factor))
        small.meta["val"] = spread.args[0].meta.get("val")
        again = graph.call_function(aten.expand.default, (small, *spread.args[1:]))
        again.meta["val"] = spread.meta["val"]
        changed = graph.call_function(aten.mul.Tensor, (again, wide))
        changed.meta["val"] = node.meta["val"]
    if spread in constant:
        constant |= {small, again}
    node.replace_all_uses_with(changed)


def _is_spread(node: object) -> bool:
    """Whether a node repeats what has many fewer numbers."""
    if not isinstance(node, Node) or node.target is not aten.expand.default or not isinstance(node.args[0], Node):
        return False
    wide, source = _kind(node), _kind(node.args[0])
    return wide is not None and source is not None and 4 * source[0].numel() <= wide[0].numel()


def _prologue(before: list[Node], kept: list[Node]) -> Graph:
    graph, copies = Graph(), {}
    for node in before:
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in kept))
    return graph


def _body(whole: Graph, constant: set[Node], kept: list[Node]) -> Graph:
    graph = Graph()
    copies = {node: graph.placeholder(f"kept_{i}") for i, node in enumerate(kept)}
    for node in whole.nodes:
        if node.op == "output":  # what is handed out may be written to
            for source in set(node.all_input_nodes) & constant:
                copies[source] = graph.call_function(aten.clone.default, (copies[source],))
        if node not in constant:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return graph


def _attribute(module: torch.nn.Module, name: str) -> Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module
