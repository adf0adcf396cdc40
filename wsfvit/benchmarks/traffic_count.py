"""Counts in the plan that torch.compile makes of a model for a GPU: kernels, bytes, multiply-accumulates.

The plan is the schedule of inductor: a list of kernels, each a product, convolution or attention of a library, or one
generated from the operators that were fused. What each reads and writes is inductor's own count: every tensor once per
kernel, whole where a fused kernel takes a part of it, and nothing kept in a cache between kernels.
"""

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from wsfvit.benchmarks.generated_code import count_instructions
from wsfvit.benchmarks.kernel_code import Card, count_issued_by
from wsfvit.benchmarks.pretend_gpu import on_pretended_gpu, pretend_gpu, use_fused_attention
from wsfvit.wavelets.triton_haar import haar_swt2d_affine_gelu

aten = torch.ops.aten
KINDS = ("product", "convolution", "attention", "other library", "generated")
REST = "rest"


@dataclass(frozen=True)
class Kernel:
    """A kernel of the plan.

    Attributes:
        kind: One of ``KINDS``.
        module: Dotted path of the module whose operator ends it; "" if that is the model itself or unknown.
        bytes: Read and written.
        macs: Multiply-accumulates of a library's kernel, 0 for a generated one.
        instructions: Of all threads of a generated kernel, where they were counted.
    """

    kind: str
    module: str
    bytes: int
    macs: int
    instructions: float = 0.0

    def least_seconds(self, card: Card) -> float:
        """What moving its bytes or issuing its instructions takes at least, whichever is longer."""
        return max(self.bytes / card.bandwidth, self.instructions / card.issued_per_second)


@dataclass
class Plan:
    """The kernels of each compiled graph: "inference", or "forward" and "backward".

    Attributes:
        saved: Bytes that the forward pass writes for the backward alone; inputs and weights are not among them.
    """

    graphs: dict[str, list[Kernel]] = field(default_factory=dict)
    saved: int = 0


def plan_inference(model: nn.Module, x: Tensor, card: Card, machine_code: bool = False) -> Plan:
    """Plans a forward pass of a model in evaluation mode; model and images (B, C, H, W) lie on the CPU, in one dtype.

    The model's tensors are replaced by ones without values: it cannot be used afterwards.

    Args:
        machine_code: Also compile the generated kernels and count their instructions.
    """
    return _plan(model.eval(), x, card, None, machine_code)


def plan_training(
    model: nn.Module, x: Tensor, card: Card, autocast: torch.dtype | None, machine_code: bool = False
) -> Plan:
    """Plans forward and backward of a model in training mode, from the gradient of its output to those of its weights.

    Args:
        model: On the CPU; it cannot be used afterwards.
        x: Images (B, C, H, W) in the dtype of the weights.
        autocast: Its dtype; None: off.
        machine_code: Also compile the generated kernels and count their instructions.
    """
    return _plan(model.train(), x, card, autocast, machine_code)


def _plan(model: nn.Module, x: Tensor, card: Card, autocast: torch.dtype | None, machine_code: bool) -> Plan:
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering

    lowered: list[_Lowered] = []

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        compile_fx(use_fused_attention(gm), inputs)
        return _stop

    def count(graph: GraphLowering) -> _Unused:
        lowered.append(_read(graph, card if machine_code else None))
        return _Unused()

    with pretend_gpu(card), mock.patch.object(GraphLowering, "compile_to_module", count):
        with on_pretended_gpu(model, x) as (model, x), contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(model.training))
            if autocast is not None:
                stack.enter_context(torch.autocast("cuda", autocast))
            stack.enter_context(contextlib.suppress(_Planned))
            torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(x)
    assert {each.name for each in lowered} == ({"forward", "backward"} if model.training else {"inference"})
    return _collect(lowered)


class _Planned(Exception):
    """Compiling is over, and running would begin."""


def _stop(*args: Any) -> Any:
    raise _Planned


class _Unused:
    """In the place of the module that inductor would compile."""

    __file__ = ""
    call = staticmethod(_stop)


@dataclass
class _Lowered:
    """What is read off one graph: kernels, names of inputs, and of a forward pass what it leaves for the backward."""

    name: str
    kernels: list[Kernel]
    returned: dict[str, tuple[str, int]]
    inputs: set[str]


def _read(graph: Any, code_for: Card | None) -> _Lowered:
    graph.init_wrapper_code()
    graph._update_scheduler()
    nodes = list(graph.module.graph.nodes)
    place = {node.name: i for i, node in enumerate(nodes)}
    steps = [each for each in graph.scheduler.nodes if _is_kernel(each)]
    kernels = [_read_kernel(each, place) for each in steps]
    if code_for is not None:
        issued = count_instructions(graph, code_for)
        issued |= {
            step.get_name(): _count_stem_kernel(step.node, code_for) for step in steps if _is_stem_kernel(step.node)
        }
        kernels = [
            replace(kernel, instructions=issued.get(step.get_name(), 0.0))
            for step, kernel in zip(steps, kernels, strict=True)
        ]
    name = "backward" if graph.is_backward else "inference" if graph.is_inference else "forward"
    inputs = {node.name for node in nodes if node.op == "placeholder"}
    returned = _returned(graph, nodes[-1]) if name == "forward" else {}
    return _Lowered(name, kernels, returned, inputs)


def _is_kernel(node: Any) -> bool:
    """Whether a step of the schedule is launched: a buffer that others write is not, nor an output or a view of one."""
    from torch._inductor import ir
    from torch._inductor.scheduler import NopKernelSchedulerNode

    if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
        return False
    operator = getattr(node.node, "op_overload", None)
    return (
        operator is None
        or not any(result.alias_info for result in operator._schema.returns)
        or operator._schema.is_mutable
    )


def _read_kernel(node: Any, place: dict[str, int]) -> Kernel:
    origins = [origin for each in node.get_nodes() for origin in each.node.origins if _module_of(origin) is not None]
    last = max(origins, key=lambda origin: place.get(origin.name, -1), default=None)
    module = "" if last is None else _module_of(last) or ""
    kind, macs = _read_library(node.node) if node.is_extern() else ("generated", 0)
    return Kernel(kind, module, node.get_read_write_buffers_sizes(), macs)


def _read_library(kernel: Any) -> tuple[str, int]:
    """Kind and multiply-accumulates of a library's kernel."""
    operator = getattr(kernel.op_overload, "overloadpacket", None)
    name = str(operator)
    kinds = {"scaled_dot_product": "attention", "convolution": "convolution", "mm": "product"}
    kind = next((kind for part, kind in kinds.items() if part in name), "other library")
    node = next((each for each in kernel.origins if getattr(each.target, "overloadpacket", None) is operator), None)
    return kind, 0 if node is None else _count_macs(operator, node)


def _count_macs(operator: Any, node: fx.Node) -> int:
    args, kwargs, out = tree_map_only(fx.Node, lambda each: each.meta["val"], (node.args, node.kwargs, node))
    if operator is aten.convolution_backward:
        # torch's formula takes every channel for connected with every other one in the gradient of grouped weights.
        grad, _, weight, *_, needed = args
        return prod(grad.shape) * prod(weight.shape[1:]) * sum(needed[:2])
    if operator is aten._addmm_activation:
        operator, kwargs = aten.addmm, {}
    if operator not in flop_registry:
        return 0
    return flop_registry[operator](*args, **kwargs, out_val=out) // 2


def _is_stem_kernel(kernel: Any) -> bool:
    return getattr(kernel, "op_overload", None) is torch.ops.wsfvit.haar_swt2d_affine_gelu.default


def _count_stem_kernel(kernel: Any, card: Card) -> float:
    """Instructions of this project's kernel for the stem, which inductor takes for a library's."""
    (node,) = (each for each in kernel.origins if each.target is kernel.op_overload)
    arguments = tree_map_only(
        fx.Node,
        lambda each: torch.empty_strided(
            each.meta["val"].shape, each.meta["val"].stride(), dtype=each.meta["val"].dtype, device="meta"
        ),
        node.args,
    )
    return count_issued_by(partial(haar_swt2d_affine_gelu, *arguments), card)


def _module_of(node: fx.Node) -> str | None:
    """Dotted path of the module that an operator, or the forward operator of a derivative, was called in."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return None
    path, _ = list(stack.values())[-1]
    return path.removeprefix("L['self']").removeprefix(".")


def part_of(path: str, names: int = 3) -> str:
    """The part of a model that a module belongs to: the first names of its path, without the numbers of blocks.

    ``stem.conv1`` is in ``stem``, ``stages.0.blocks.1.attn_local.mlp.fc1`` in ``stages.0.blocks.*.attn_local``.

    Args:
        path: Dotted path of a module; empty: of the model itself.
        names: How many names to keep, numbers not counted, where the path has a number.
    """
    pieces = path.split(".")
    if not any(piece.isdigit() for piece in pieces):
        return pieces[0] or REST
    kept, numbers = [], 0
    for piece in pieces:
        if piece.isdigit():
            kept.append("*" if numbers else piece)
            numbers += 1
        elif names:
            kept.append(piece)
            names -= 1
        else:
            break
    return ".".join(kept)


def _returned(graph: Any, output: fx.Node) -> dict[str, tuple[str, int]]:
    """Name in the graph, buffer and its bytes of each tensor that a graph computes and returns to autograd alone."""
    visible_places = output.meta.get("user_visible_output_idxs", ())
    visible = {graph.graph_outputs[i].get_name() for i in visible_places}
    found = {}
    for node, value in zip(output.args[0], graph.graph_outputs, strict=True):  # type: ignore[arg-type]
        buffer = graph.name_to_buffer.get(value.get_name()) if hasattr(value, "get_name") else None
        if isinstance(node, fx.Node) and buffer is not None and value.get_name() not in visible:
            size = prod(map(int, buffer.get_size())) * buffer.get_dtype().itemsize
            found[node.name] = (value.get_name(), size)
    return found


def _collect(lowered: list[_Lowered]) -> Plan:
    graphs = {graph.name: graph for graph in lowered}
    plan = Plan({name: graphs[name].kernels for name in ("inference", "forward", "backward") if name in graphs})
    if "backward" in graphs:
        saved = {
            buffer: size
            for name, (buffer, size) in graphs["forward"].returned.items()
            if name in graphs["backward"].inputs
        }
        plan.saved = sum(saved.values())
    return plan
