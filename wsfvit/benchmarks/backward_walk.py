"""The backward pass of autograd by a walk in Python, for tensors on a device that has no driver.

Autograd's engine asks the driver about each device; the derivatives themselves do not, and each node of the graph can
be called. The walk sends gradients along the graph as the engine does: the latest operator first, sums where paths
meet, each gradient in the shape and dtype of what it belongs to.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import traceback as fx_traceback


def run_backward(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    keep_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor],
    allow_unreachable: bool,
    accumulate_grad: bool,
) -> tuple[Tensor | None, ...]:
    """Stands in for the engine behind `torch.autograd.grad`, whose flags keep their defaults but ``allow_unused``.

    Hooks of tensors and nodes are not called, and the graph is not freed.

    Args:
        outputs: What to differentiate, and ``grad_outputs``, of the same shapes.
        inputs: By what.
        keep_graph, create_graph, allow_unreachable, accumulate_grad: See torch; only gradients of first order.

    Returns:
        A gradient per input, None for one that no output depends on.
    """
    assert not create_graph and not accumulate_grad
    roots = [torch.autograd.graph.get_gradient_edge(y) for y in outputs]
    leaves = [torch.autograd.graph.get_gradient_edge(x) for x in inputs]
    wanted = {(leaf.node, leaf.output_nr): i for i, leaf in enumerate(leaves)}
    found: list[Tensor | None] = [None] * len(inputs)
    received: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    waits_for = _count_edges([root.node for root in roots])
    ready: list[tuple[int, int, Any]] = []
    turns = itertools.count()

    def send(node: Any, place: int, grad: Tensor | None) -> None:
        if grad is not None:
            before = received[node].get(place)
            received[node][place] = grad if before is None else before + grad

    def push_if_ready(node: Any) -> None:
        if not waits_for[node]:
            heapq.heappush(ready, (-node._sequence_nr(), next(turns), node))

    with torch.no_grad():
        for root, grad in zip(roots, grad_outputs, strict=True):
            send(root.node, root.output_nr, grad)
        for node in dict.fromkeys(root.node for root in roots):
            push_if_ready(node)
        while ready:
            node = heapq.heappop(ready)[-1]
            grads = received.pop(node, {})
            for place, grad in grads.items():
                if (node, place) in wanted:
                    found[wanted[node, place]] = grad
            edges = _edges(node)
            if grads and edges:
                with _marked(node):
                    for edge, grad in zip(edges, _call(node, grads), strict=True):
                        send(*edge, _fit(grad, *edge))
            for following, _ in edges:
                if following is not None:
                    waits_for[following] -= 1
                    push_if_ready(following)
    return tuple(found)


def _count_edges(roots: Sequence[Any]) -> dict[Any, int]:
    """How many edges lead to each node behind ``roots``."""
    counts: dict[Any, int] = dict.fromkeys(roots, 0)
    unseen = list(counts)
    while unseen:
        for following, _ in _edges(unseen.pop()):
            if following is None:
                continue
            if following not in counts:
                counts[following] = 0
                unseen.append(following)
            counts[following] += 1
    return counts


def _edges(node: Any) -> list[tuple[Any, int]]:
    """Where a node sends its gradients: (node, which of its inputs); a Python function's without the unneeded ones."""
    return [edge for edge in node.next_functions if callable(node) or edge[0] is not None]


@contextmanager
def _marked(node: Any) -> Iterator[None]:
    """Tells what traces the derivatives to which forward operator they belong."""
    fx_traceback.set_grad_fn_seq_nr(node._sequence_nr())
    try:
        yield
    finally:
        fx_traceback.reset_grad_fn_seq_nr()


def _call(node: Any, grads: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that a node sends on, by edge."""
    metadata = node._input_metadata
    given = [grads.get(i) for i in range(len(metadata))]
    if callable(node):
        return _as_tuple(node(*given))
    # A Python function takes no None, and makes one gradient per argument, also for those that are no tensors.
    made = node.apply(*(_zeros(like) if grad is None else grad for like, grad in zip(metadata, given, strict=True)))
    return tuple(grad for grad, needed in zip(_as_tuple(made), node.needs_input_grad, strict=True) if needed)


def _as_tuple(sent: Any) -> tuple[Tensor | None, ...]:
    return sent if isinstance(sent, tuple) else (sent,)


def _zeros(like: Any) -> Tensor:
    return torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)


def _fit(grad: Tensor | None, node: Any, place: int) -> Tensor | None:
    """A gradient in the shape and dtype of what it belongs to; derivatives leave sums over broadcast axes to this."""
    if grad is None or node is None:
        return None
    wanted = node._input_metadata[place]
    if grad.shape != tuple(wanted.shape):
        grad = grad.sum_to_size(tuple(wanted.shape))
    return grad.to(wanted.dtype)
