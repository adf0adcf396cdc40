"""Machine code of the kernels that torch.compile generates for a card, without the card: instructions that they issue.

A kernel that reads and writes little can still be slow for what it computes in between. Each generated kernel is
compiled as it would be on the card, once per configuration that inductor would try there, and its instructions are
counted: those of a loop as often as it runs, both sides of a branch. The configuration with the fewest is taken.

Like `pretend_gpu`, which this goes on from, it relies on internals of torch as they are in 2.11.
"""

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch._inductor.codecache import PyCodeCache
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import GridExpr
from torch._inductor.scheduler import Scheduler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from wsfvit.benchmarks.kernel_code import WARP, Card, run_tool

# A label, an instruction with what follows its name, and the target of a jump.
_SASS = (r"(\.L_x_\d+):", r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", r"^BRA.*`\((\.L_x_\d+)\)")
_PTX = (r"(\$L\w+):", r"\s+(?:@!?%p\d+ )?([a-z][\w.]*)(.*)", r"^bra.*?(\$L\w+)")


def count_instructions(graph: Any, card: Card) -> dict[str, float]:
    """Lets inductor write the code of a planned graph (`pretend_gpu`), and counts what its kernels issue.

    Args:
        graph: A `GraphLowering` with its schedule.
        card: The pretended one.

    Returns:
        Instructions, of all threads of a launch, by the name of the step of the schedule.
    """
    launches: dict[str, list[str]] = defaultdict(list)
    with _compiler_for(card), mock.patch.object(Scheduler, "enter_context", autospec=True) as enter:
        step = [""]
        enter.side_effect = lambda scheduler, node: step.__setitem__(0, node.get_name())
        with mock.patch.object(PythonWrapperCodegen, "generate_kernel_call", autospec=True) as launch:
            launch.side_effect = lambda wrapper, name, *args, **kwargs: launches[step[0]].append(name)
            graph.wrapper_code.push_codegened_graph(graph)
            graph.scheduler.codegen()
            code = graph.wrapper_code.generate(graph.is_inference)[0].value
            graph.wrapper_code.pop_codegened_graph()
        sources = dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", code, re.DOTALL))
        counts = {name: _count_kernel(name, source) for name, source in sources.items()}
    return {node: sum(counts.get(name, 0.0) for name in names) for node, names in launches.items()}


@contextmanager
def _compiler_for(card: Card) -> Iterator[None]:
    """Triton compiles for the card without asking a driver for it, and keeps the machine code."""
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", card.capability, WARP))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", target))
        stack.enter_context(mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        yield


def _count_kernel(name: str, source: str) -> float:
    """Instructions of a launch of a kernel that inductor wrote."""
    from torch._inductor import config

    with config.patch(use_static_cuda_launcher=False):  # it would not keep the machine code
        kernel = getattr(PyCodeCache.load(source), name)
        found = []
        for choice in kernel.configs:
            assembly = kernel._precompile_config(choice).kernel.asm
            threads = WARP * choice.num_warps
            sizes = {axis: int(size) for axis, size in re.findall(r"^ +(\w+numel) = (\d+)$", source, re.MULTILINE)}
            blocks = choice.kwargs
            grid = GridExpr.from_meta(kernel.inductor_meta, choice).eval_slow(sizes)
            rounds = math.ceil(sizes.get("r0_numel", 1) / blocks["R0_BLOCK"]) if "R0_BLOCK" in blocks else 1
            if "RSPLIT_SIZE" in blocks:  # sums along both axes: a program takes so many rows, XBLOCK at a time
                rounds = math.ceil(blocks["RSPLIT_SIZE"] / blocks["XBLOCK"])
            found.append(math.prod(grid) * threads * count_issued(assembly["cubin"], assembly["ptx"], rounds))
    return min(found)


def count_issued(cubin: bytes, ptx: str, rounds: int) -> float:
    """Instructions that one thread issues, with loops that run ``rounds`` times in the ``ptx`` of the machine code.

    The assembler unrolls loops. How often is seen from the loads in them, which it keeps.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code, loops = read_loops(run_tool("nvdisasm", "-c", file.name), _SASS)
    virtual, virtual_loops = read_loops(ptx, _PTX)
    loads = [sum(name.startswith("ld.global") for name in virtual[start:stop]) for start, stop in virtual_loops]
    weights = [1.0] * len(code)
    for number, (start, stop) in enumerate(loops):
        here = sum(name.startswith("LDG") for name in code[start:stop])
        wanted = loads[number] if len(loads) == len(loops) else max(loads, default=0)
        unrolled = max(here / wanted, 1) if wanted else 1
        for i in range(start, stop):
            weights[i] *= max(rounds / unrolled, 1)
    return sum(weights)


def read_loops(text: str, patterns: tuple[str, str, str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of the instructions of an assembly listing, and the ranges of them that a jump back repeats."""
    label, instruction, jump = map(re.compile, patterns)
    names: list[str] = []
    places: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if found := label.match(line):
            places[found[1]] = len(names)
        elif line.startswith("$__internal"):  # slow paths that are called for rare arguments
            break
        elif (found := instruction.match(line)) and found[1] != "NOP":
            target = jump.match(found[1] + found[2])
            names.append(found[1])
            # The trap behind the end jumps to itself.
            if target and target[1] in places and places[target[1]] < len(names) - 1:
                loops.append((places[target[1]], len(names)))
    return names, loops
