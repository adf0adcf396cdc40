"""Compiles the launches of the Triton kernels ahead of time, without a GPU, and prints a JSON list, one entry each.

Run in a process without TRITON_INTERPRET, which makes kernels that cannot be compiled.
"""

import json
import re
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wsfvit.wavelets.triton import haar

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
AMPERE, HOPPER = 80, 90
# Capability, shape, channels-last, dtype. Odd sizes, which no wide access divides, are counted in 64 bits.
CASES = (
    (AMPERE, (64, 3, 64, 64), False, torch.bfloat16),
    (AMPERE, (64, 3, 64, 64), False, torch.float32),
    (HOPPER, (64, 3, 64, 64), False, torch.bfloat16),
    (HOPPER, (64, 24, 16, 16), True, torch.bfloat16),
    (HOPPER, (64, 3, 64, 64), False, torch.float64),
    (HOPPER, (2, 3, 5, 7), True, torch.float32),
)


def specialise(launch: haar.Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """Types, constants and known multiples of a kernel's arguments, as Triton derives them at a launch."""
    signature, constants, attributes = {}, {}, {}
    values = iter(launch.arguments)
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.constants[name] if name in launch.constants else next(values)
        if name in launch.constants or (not isinstance(value, Tensor) and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
            continue
        is_pointer = isinstance(value, Tensor)
        signature[name] = POINTERS[value.dtype] if is_pointer else "i32" if value < 2**31 else "i64"
        if is_pointer or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: haar.Launch, capability: int) -> dict[str, Any]:
    """Kernel, bytes of its widest load and store, bytes of shared memory."""
    signature, constants, attributes = specialise(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": haar.THREADS // 32}
    compiled = triton.compile(source, target=target, options=options)
    widths = {"ld": 0, "st": 0}
    for kind, count, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b", compiled.asm["ptx"]):
        widths[kind] = max(widths[kind], int(count or 1) * int(bits) // 8)
    name, shared = launch.kernel.__name__, compiled.metadata.shared
    return {"kernel": name, "load": widths["ld"], "store": widths["st"], "shared": shared}


def main() -> None:
    launches: list[haar.Launch] = []
    results: list[dict[str, Any]] = []
    haar._start = launches.append

    def compile_all(capability: int, **case: Any) -> None:
        results.extend({**case, **compile_launch(launch, capability)} for launch in launches)
        launches.clear()

    for capability, shape, channels_last, dtype in CASES:
        haar.COUNTED_IN_32_BITS = 0 if shape[3] % 2 else 2**31
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        haar.haar_idwt2d(haar.haar_dwt2d(x), shape[2:])
        haar.haar_swt2d_adjoint(haar.haar_swt2d(x, "zero"), "zero")
        if shape[1] == 3 and dtype != torch.float64:
            haar.haar_swt2d_affine_gelu(x, x.new_empty(12), x.new_empty(12), False, dtype)
        compile_all(capability, case="odd" if shape[3] % 2 else "even")
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.empty(2, 4, 8, 8, device="meta").contiguous(memory_format=layout)
        haar.haar_swt2d_adjoint(haar.haar_swt2d(x, "periodic", True, True), "periodic", True, True)
        compile_all(HOPPER, case="periodic")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
