"""What the Triton kernels compile to, counted without a GPU: instructions and accesses to memory per element.

    python -m benchmarks.kernel_code --out results/cpu/kernel_code.json

Every operator is compiled ahead of time with the arguments that it would be launched with, and its machine code is
counted. A kernel that reads and writes once can run at the speed of the memory only if its instructions are issued
faster than that: the last column is the traffic at which issuing them would take all the time, as a multiple of the
card's memory bandwidth. It is a bound and not a measurement; what stays below 1 cannot reach the bandwidth.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks.common import build_parser, markdown_table, write_run
from wsfvit.utils.errors import run_main
from wsfvit.wavelets.triton import haar

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}
WARP = 32
HEADER = ("instructions per element", "bytes per load", "bytes per store", "registers", "shared memory", "x bandwidth")


@dataclass(frozen=True)
class Card:
    """Multiprocessors, boost clock in Hz and memory bandwidth in bytes/s as its vendor states them."""

    capability: int
    multiprocessors: int
    clock: float
    bandwidth: float
    issued_per_clock: int = 4 * WARP

    @property
    def issued_per_second(self) -> float:
        """Instructions of single threads."""
        return self.multiprocessors * self.issued_per_clock * self.clock


CARDS = {"H200": Card(90, 132, 1.98e9, 4.8e12), "A100": Card(80, 108, 1.41e9, 2.04e12)}
# (B, C, H, W) and whether channels-last: stem images, feature maps, sizes that no wide access divides.
CASES = (
    ((64, 3, 224, 224), False),
    ((64, 64, 56, 56), False),
    ((64, 64, 56, 56), True),
    ((64, 96, 28, 28), True),
    ((64, 3, 224, 224), True),
    ((64, 64, 55, 55), False),
)
OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "DWT": lambda x, y, s: haar.haar_dwt2d(x),
    "IDWT": lambda x, y, s: haar.haar_idwt2d(y, (x.shape[2], x.shape[3])),
    "SWT": lambda x, y, s: haar.haar_swt2d(x, "zero"),
    "SWT adjoint": lambda x, y, s: haar.haar_swt2d_adjoint(s, "zero"),
    "SWT, BatchNorm, GELU": lambda x, y, s: run_stem(x),
}
# Elements of image and subbands that are read and written for a column of a line of a tile: in the decimated transforms
# four pixels make four coefficients, in the undecimated ones one pixel does, and in the stem that of three channels.
ELEMENTS = {"DWT": 8, "IDWT": 8, "SWT": 5, "SWT adjoint": 5, "SWT, BatchNorm, GELU": 15}


@dataclass(frozen=True)
class KernelCode:
    """Of one thread: instructions, accesses by width in bytes, registers; of a program: bytes of shared memory."""

    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]
    registers: int
    shared_memory: int
    instructions_per_element: float


def run_stem(x: Tensor) -> Tensor:
    """The fused stem of an RGB image (B, 3, H, W) in evaluation."""
    channels = x.new_empty(12)
    return haar.haar_swt2d_affine_gelu(x, channels, channels, False, x.dtype)


def compile_launch(operator: Callable[[], Any], capability: int) -> tuple[CompiledKernel, haar.Launch]:
    """Compiles what ``operator``, a call of `haar` on tensors of any device, would launch.

    Returns:
        The kernel for that compute capability, and its launch.
    """
    launches: list[haar.Launch] = []
    with mock.patch.object(haar, "_start", launches.append):
        operator()
    (launch,) = launches
    signature, constants, attributes = _specialize(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, WARP)
    return triton.compile(source, target=target, options={"num_warps": haar.THREADS // WARP}), launch


def _specialize(launch: haar.Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """Types, constants and known multiples of a kernel's arguments, as Triton derives them when it launches."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    values = iter(launch.arguments)
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.constants[name] if name in launch.constants else next(values)
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif name in launch.constants or value == 1:
            signature[name], constants[(place,)] = "constexpr", value
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def count(compiled: CompiledKernel, elements: float) -> KernelCode:
    """Reads the machine code of a kernel of which every thread reads and writes ``elements`` elements."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code = run_tool("nvdisasm", "-c", file.name)
        resources = run_tool("cuobjdump", "--dump-resource-usage", file.name)
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    # Without the end of the program and the padding behind it.
    names = [name for name in names if not name.startswith(("NOP", "BRA", "EXIT"))]
    registers = re.search(r"REG:(\d+)", resources)
    assert names and registers
    return KernelCode(
        instructions=len(names),
        loads=_widths(names, "LDG"),
        stores=_widths(names, "STG"),
        registers=int(registers[1]),
        shared_memory=compiled.metadata.shared,
        instructions_per_element=len(names) / elements,
    )


def count_issued_by(operator: Callable[[], Any], card: Card) -> float:
    """Instructions of all threads that ``operator``, a call of `haar`, starts."""
    compiled, launch = compile_launch(operator, card.capability)
    return count(compiled, 1).instructions * float(launch.programs * haar.THREADS)


def run_tool(tool: str, *arguments: str) -> str:
    """What one of the NVIDIA programs prints that come with Triton."""
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def _widths(names: list[str], kind: str) -> dict[int, int]:
    bytes_of = {"U8": 1, "U16": 2, "64": 8, "128": 16}
    accesses = (name.split(".") for name in names if name.startswith(kind))
    return dict(Counter(next((bytes_of[part] for part in parts if part in bytes_of), 4) for parts in accesses))


def measure(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, card: Card) -> dict[str, dict[str, Any]]:
    """Code of the operators that take an image (B, C, H, W), and the multiple of the card's bandwidth it allows."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
    with mock.patch.object(haar, "_start"):
        y, s = haar.haar_dwt2d(x), haar.haar_swt2d(x, "zero")
    found = {}
    for name, operator in OPERATORS.items():
        if name == "SWT, BatchNorm, GELU" and (shape[1] != 3 or dtype == torch.float64):
            continue
        compiled, launch = compile_launch(partial(operator, x, y, s), card.capability)
        tile = launch.constants["LINES"] * launch.constants["STRIPS"] * launch.constants["COLUMNS"]
        code = count(compiled, tile / haar.THREADS * ELEMENTS[name])
        bound = card.issued_per_second / code.instructions_per_element * x.element_size() / card.bandwidth
        found[name] = asdict(code) | {"bandwidth_bound": bound}
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("kernel_code", __doc__)
    parser.add_argument("--card", choices=list(CARDS), default="H200", help="to compile for")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    results: list[dict[str, Any]] = []
    for shape, channels_last in CASES:
        for dtype in (torch.bfloat16, torch.float32):
            case = {"shape": list(shape), "channels_last": channels_last, "dtype": str(dtype).removeprefix("torch.")}
            results.append(case | {"operators": measure(shape, channels_last, dtype, CARDS[args.card])})
            print(f"{len(results)}/{2 * len(CASES)}", end="\r", file=sys.stderr, flush=True)
    print(
        markdown_table(
            ["shape", "layout", "dtype", "operator", *HEADER], [row for case in results for row in _rows(case)]
        )
    )
    write_run(args, card=asdict(CARDS[args.card]), results=results)


def _rows(case: dict[str, Any]) -> list[list[str]]:
    layout = "channels-last" if case["channels_last"] else "NCHW"
    start = ["x".join(map(str, case["shape"])), layout, case["dtype"]]
    return [
        [
            *start,
            name,
            f"{code['instructions_per_element']:.1f}",
            ", ".join(map(str, sorted(code["loads"]))),
            ", ".join(map(str, sorted(code["stores"]))),
            str(code["registers"]),
            str(code["shared_memory"]),
            f"{code['bandwidth_bound']:.1f}",
        ]
        for name, code in case["operators"].items()
    ]


if __name__ == "__main__":
    run_main(main)
