"""Instructions of generated kernels: loops count as often as they run, and every kernel of a plan has some."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wsfvit.benchmarks import generated_code
from wsfvit.benchmarks.kernel_code import CARDS
from wsfvit.benchmarks.traffic_count import Kernel

CARD = CARDS["H200"]
SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_0:
        /*0020*/                   LDG.E R2, [R2.64] ;
        /*0030*/                   FADD R3, R3, R2 ;
        /*0038*/               @P3 LDG.E R2, [R2.64+0x8] ;
.L_x_1:
        /*0040*/              @!P2 FFMA R3, R3, R3, R3 ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
        /*0060*/              @!P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0070*/                   STG.E [R4.64], R3 ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
        /*00a0*/                   NOP;
$__internal_0_$__cuda_sm20_div_f32_slowpath:
        /*00b0*/                   MUFU.RCP R0, R0 ;
"""


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """What instructions.py prints: Triton's interpreter, on which tests rely elsewhere, cannot be left in a process."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    program = [sys.executable, "-m", "tests.benchmarks.instructions"]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_loops_count_as_often_as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_code, "run_tool", lambda *arguments: SASS)
    loop = "$L__BB0_1:\n\tld.global.b32 %r1, [%rd1];\n{}\t@%p1 bra \t$L__BB0_1;\n\tret;\n"
    # Two before the loop, six in it, the store, the end and the trap behind it.
    assert generated_code.count_issued(b"", loop.format(""), 1) == 2 + 6 + 3
    once, twice = loop.format("\t@%p2 ld.global.b32 %r2, [%rd2];\n"), loop.format("")
    assert generated_code.count_issued(b"", once, 8) == 2 + 8 * 6 + 3
    assert generated_code.count_issued(b"", twice, 8) == 2 + 4 * 6 + 3  # unrolled: two loads where there was one


def test_instructions_grow_with_the_tensor(counted: dict[str, Any]) -> None:
    small, large = counted["add"]
    assert large == 4 * small and 1 < small / 2**22 < 5  # load, convert, add, convert, store; some do two at once
    small, large = counted["sum"]  # in loops that are not the same
    assert 1 < small / 2**24 < 4 and 1 < large / 2**26 < 4


def test_every_generated_kernel_has_some(counted: dict[str, Any]) -> None:
    assert {kind for kind, _ in counted["training"]} == {"generated", "convolution"}
    assert all((instructions > 0) == (kind == "generated") for kind, instructions in counted["training"])


def test_the_longer_of_moving_and_issuing_counts() -> None:
    slow_memory = Kernel("generated", "", bytes=48 * 10**11, macs=0, instructions=1.0)
    assert slow_memory.least_seconds(CARD) == pytest.approx(1)
    slow_code = Kernel("generated", "", bytes=8, macs=0, instructions=2 * 132 * 128 * 1.98e9)
    assert slow_code.least_seconds(CARD) == pytest.approx(2)


def test_compiled_gelu_takes_fewer_instructions(counted: dict[str, Any]) -> None:
    plain, ours = counted["tanh"]
    assert ours < 0.65 * plain
    plain, ours = counted["erf"]
    assert ours == plain


def test_compiled_transforms_take_fewer_instructions(counted: dict[str, Any]) -> None:
    for name, share in (("dwt", 0.5), ("swt", 0.2)):
        plain, ours = counted[name]
        assert ours < share * plain, name


def test_the_stems_own_kernel_moves_and_issues_less(counted: dict[str, Any]) -> None:
    plain, own = counted["stem"]["reference"], counted["stem"]["triton"]
    image, activations, weights = 16 * 3 * 64 * 64, 16 * 12 * 64 * 64, 2 * 12
    [(kind, moved, issued)] = own
    assert (kind, moved) == ("other library", 2 * (image + activations + weights))
    assert 10 < issued / activations < 25
    assert moved < 0.6 * sum(each for _, each, _ in plain) and issued < 0.7 * sum(each for *_, each in plain)
