"""Memory that a recorded graph writes to at every call, in the place of memory asked for and given back.

On a CPU large tensors go back to the system when they are freed, and fresh pages cost several times what arithmetic on them does. On a
GPU PyTorch's allocator keeps them, so that nothing is to be gained there.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node

__all__ = ["keep_pages", "reuse"]

aten = torch.ops.aten
LARGE = 1 << 16  # bytes; the C library keeps what is smaller
ELEMENTWISE = {aten.add.Tensor: aten.add.out, aten.sub.Tensor: aten.sub.out, aten.mul.Tensor: aten.mul.out, aten.mul.Scalar: aten.mul.out,
               aten.div.Tensor: aten.div.out, aten.pow.Tensor_Scalar: aten.pow.Tensor_Scalar_out, aten.neg.default: aten.neg.out,
               aten.exp.default: aten.exp.out, aten.log.default: aten.log.out, aten.reciprocal.default: aten.reciprocal.out,
               aten.sqrt.default: aten.sqrt.out, aten.abs.default: aten.abs.out, aten.sgn.default: aten.sgn.out,
               aten.tanh.default: aten.tanh.out, aten.sigmoid.default: aten.sigmoid.out, aten.sin.default: aten.sin.out,
               aten.cos.default: aten.cos.out, aten.where.self: aten.where.self_out}
OTHERS = {aten.mm.default: aten.mm.out, aten.bmm.default: aten.bmm.out, aten.addmm.default: aten.addmm.out}


def keep_pages() -> None:
    """Has the C library keep blocks of up to 32 MiB that are freed from here on, in this whole process.

    glibc does so once a block of that size, which it had asked the system for, is freed (mallopt(3), ``M_MMAP_THRESHOLD``); elsewhere
    nothing happens.
    """
    torch.empty((1 << 25) - (1 << 14), dtype=torch.uint8)


def reuse(graph: Graph) -> list[Tensor]:
    """Lets a graph write its large results on a CPU to memory that is handed in before its other inputs; returns that memory.

    Results of elementwise operations take the place of an operand that nobody needs any more. What the graph returns is fresh.
    """
    nodes, roots = list(graph.nodes), {}
    for node in nodes:
        roots[node] = roots[node.args[0]] if _is_view(node) else node
    last = {roots[source]: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    returned = {roots[source] for source in nodes[-1].all_input_nodes}
    memory: list[Tensor] = []
    places: list[Node] = []
    free: list[int] = []
    held: dict[Node, int] = {}  # which memory a result lies in
    for i, node in enumerate(nodes):
        ending = {roots[source] for source in node.all_input_nodes if last[roots[source]] == i} & held.keys()
        if _can_be_placed(node) and node not in returned:
            target = _operand_in_place_of(node, roots, ending)
            if target is not None:
                held[node] = held[roots[target]]
                ending.remove(roots[target])
            else:
                value = node.meta["val"]
                held[node] = next((k for k in free if memory[k].shape == value.shape and memory[k].dtype == value.dtype), len(memory))
                if held[node] < len(memory):
                    free.remove(held[node])
                else:
                    memory.append(torch.empty(value.shape, dtype=value.dtype, device=value.device))
                    with graph.inserting_before(nodes[0]):
                        places.append(graph.placeholder(f"memory_{held[node]}"))
                target = places[held[node]]
            node.target = ELEMENTWISE.get(node.target) or OTHERS[node.target]
            node.kwargs = {**node.kwargs, "out": target}
        free.extend(held[root] for root in ending)
    return memory


def _is_view(node: Node) -> bool:
    """Whether what a node gives shares its first argument's memory."""
    if node.target in (operator.getitem, aten._unsafe_view.default):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and any(result.alias_info is not None for result in node.target._schema.returns)


def _can_be_placed(node: Node) -> bool:
    value = node.meta.get("val")
    return ((node.target in ELEMENTWISE or node.target in OTHERS) and isinstance(value, Tensor) and value.device.type == "cpu"
            and value.is_contiguous() and value.numel() * value.element_size() >= LARGE)


def _operand_in_place_of(node: Node, roots: dict[Node, Node], ending: set[Node]) -> Node | None:
    """An operand that an elementwise operation may write over: of its shape, and the last look at its memory."""
    if node.target not in ELEMENTWISE:
        return None
    value, sources = node.meta["val"], node.all_input_nodes
    for source in sources:
        there = source.meta.get("val")
        if (roots[source] in ending and there is not None and there.shape == value.shape and there.dtype == value.dtype
                and there.is_contiguous() and all(other is source or roots[other] is not roots[source] for other in sources)):
            return source
    return None
