"""The tool that reads a step's cost from machine code: its parser, its clock, and that it sees what
no step may have. The kernels' own limits are held by `make sass`."""

from __future__ import annotations

import re
import shutil
import struct

import pytest
from machine_code import cubin, sass, step, timing
from machine_code.execute import Launch, Thread, UnknownInstruction, bits_float
from machine_code.launches import Pass, Recorded, read
from machine_code.shapes import LEAST_DISTANCE, Shape
from machine_code.table import Excess, Row, complaints, format_rows, unsound


def line(address, text, *, stall=1, write=7, read=7, wait=0):
    """Two lines as nvdisasm prints them, with a control code."""
    control = stall | write << 5 | read << 8 | wait << 11
    second = control << 41
    return (
        f"        /*{address:04x}*/   {text} ;   /* 0x0000000000000000 */\n"
        f"                            /* 0x{second:016x} */\n"
    )


def code_of(*instructions, labels=()):
    """A kernel of (text, control) or text; `labels`: of the instruction each precedes."""
    text = ".text.kernel:\n"
    for i, one in enumerate(instructions):
        one, control = one if isinstance(one, tuple) else (one, {})
        text += "".join(f".L_{name}:\n" for at, name in labels if at == i)
        text += line(16 * i, one, **control)
    return sass.parse(text)["kernel"]


def run(code, parameters=b"", regions=None, *, thread=0, limit=10_000):
    launch = Launch(4, 64, 2, 0, parameters, regions or {})
    running = Thread(code, launch, 0x210, thread=thread)
    running.run(limit)
    return running


def test_a_line_is_an_instruction():
    code = code_of(
        (
            "@!P0 LDG.E.128.STRONG.GPU R24, desc[UR6][R156.64+0x200]",
            {"stall": 4, "write": 2, "read": 0, "wait": 0b1001},
        ),
        "BRA `(.L_x)",
        labels=[(0, "x")],
    )
    load, branch = code.instructions
    assert (load.guard, load.negated, load.opcode) == ("P0", True, "LDG")
    assert load.modifiers == ("E", "128", "STRONG", "GPU")
    assert load.operands == ("R24", "desc[UR6][R156.64+0x200]")
    assert load.width == 16
    assert load.control == sass.Control(4, write_barrier=2, read_barrier=0, wait_mask=0b1001)
    assert branch.address == 16
    assert code.labels[branch.target] == 0


@pytest.mark.parametrize(
    ("instructions", "register", "value"),
    [
        (["MOV R1, 0x7", "IMAD R2, R1, 0x3, -R1"], 2, 14),
        (
            ["MOV R1, 0xffffffff", "IADD3 R2, P0, R1, 0x1, RZ", "IADD3.X R3, RZ, RZ, 0x5, P0, !PT"],
            3,
            6,
        ),
        (["MOV R1, 0x80000000", "SHF.R.S32.HI R2, RZ, 0x1f, R1"], 2, 0xFFFFFFFF),
        (["MOV R1, 0x0", "MOV R2, 0x1", "SHF.R.U64 R3, R1, 0x1, R2"], 3, 0x80000000),
        (
            ["MOV R1, 0x12345678", "PRMT R2, R1, 0x3210, RZ", "PRMT R3, R1, 0x0123, RZ"],
            3,
            0x78563412,
        ),
        (["MOV R1, 0xc", "LOP3.LUT R2, R1, 0xa, RZ, 0xc0, !PT"], 2, 8),
        (["MOV R1, 0xfffffffe", "IMAD.WIDE R2, R1, 0x4, RZ"], 3, 0xFFFFFFFF),
        (["MOV R1, 0x3", "LEA R2, R1, 0x100, 0x2"], 2, 0x10C),
        (["HFMA2 R1, -RZ, RZ, 1.875, 0"], 1, 0x3F800000),
        (["MOV R1, 0x5", "STS [R1+0x3], R1", "LDS R2, [UR4+0x8]"], 2, 5),
        (["MOV R1, 0x1", "ISETP.GE.U32.AND P1, PT, R1, 0x2, PT", "SEL R2, R1, 0x9, P1"], 2, 9),
        (["S2R R1, SR_TID.X"], 1, 37),
        (["LDC.64 R2, c[0x0][0x210]"], 3, 0x11),
        (
            [
                "UMOV UR4, 0x5",
                "UISETP.EQ.AND UP0, UPT, UR4, 0x5, UPT",
                "USEL UR5, UR4, URZ, UP0",
                "MOV R1, UR5",
            ],
            1,
            5,
        ),
    ],
)
def test_integers(instructions, register, value):
    parameters = struct.pack("<Q", 0x11 << 32)
    running = run(code_of(*instructions, "EXIT"), parameters, thread=37)
    assert running.finished
    assert running._registers[register] == value


def test_a_fast_sigmoid():
    running = run(code_of("MUFU.EX2 R1, RZ", "FADD R1, R1, 1", "MUFU.RCP R2, R1", "EXIT"))
    assert bits_float(running._registers[2]) == 0.5


def test_memory_is_what_was_recorded():
    code = code_of(
        "MOV R2, 0x1008", "LDG.E.64 R4, desc[UR4][R2.64]", "LDG.E R6, [R2.64+0x100]", "EXIT"
    )
    running = run(code, regions={0x1000: struct.pack("<4I", 1, 2, 3, 4)})
    assert running._registers[4:7] == [3, 4, 0]


def test_what_it_does_not_know_it_names():
    with pytest.raises(UnknownInstruction, match=re.escape("0x0 FROB R1, R2: no meaning of FROB")):
        run(code_of("FROB R1, R2", "EXIT"))


# A loop whose words carry the phase of the version that is waited for: R1 counts the steps
POLL = code_of(
    "MOV R1, RZ",
    "MOV R8, 0x1000",
    ("LDG.E.STRONG.GPU R4, desc[UR4][R8.64]", {"write": 0}),
    ("SHF.R.U32.HI R5, RZ, 0x1, R1", {"wait": 1}),
    "LOP3.LUT R6, R4, R5, RZ, 0x3c, !PT",
    "LOP3.LUT P0, RZ, R6, 0x1, RZ, 0xc0, !PT",
    "@P0 BRA `(.L_poll)",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "IADD3 R1, R1, 0x1, RZ",
    "ISETP.GE.AND P1, PT, R1, 0x20, PT",
    "@!P1 BRA `(.L_poll)",
    "EXIT",
    labels=[(2, "poll")],
)


def test_a_poll_succeeds_at_once_whatever_its_phase():
    running = run(POLL)
    assert running.finished
    assert len(running.trace) == 2 + 32 * 9 + 1
    measured = step.measure(POLL, running.trace, finished=True, steps=32)
    assert (measured.instructions, measured.taken_branches, measured.barriers) == (9, 0, 1)
    assert measured.exchange_cycles == timing.L2_EXCHANGE_CYCLES


def test_a_poll_for_a_value_that_is_never_there():
    code = code_of(
        "LDG.E.STRONG.GPU R4, [R8.64]",
        "ISETP.NE.AND P0, PT, R4, 0x1234, PT",
        "@P0 BRA `(.L_poll)",
        "EXIT",
        labels=[(0, "poll")],
    )
    with pytest.raises(UnknownInstruction, match="ends the poll"):
        run(code)


def timed(*instructions, **options):
    code = code_of(*instructions, "EXIT")
    return code, run(code).trace, timing.time_trace(code, run(code).trace, **options)


def test_stalls_and_scoreboards():
    _, _, result = timed(
        ("LDS R1, [R2]", {"stall": 2, "write": 0}),
        ("IADD3 R3, R3, 0x1, RZ", {"stall": 5}),
        ("IADD3 R1, R1, 0x1, RZ", {"stall": 4, "wait": 1}),
    )
    assert result.issued == [0, 2, timing.CYCLES["LDS"], timing.CYCLES["LDS"] + 4]
    assert result.waited == [0, 0, timing.CYCLES["LDS"] - 7, 0]


def test_a_taken_branch_costs_more():
    code = code_of("BRA `(.L_x)", "NOP", "EXIT", labels=[(2, "x")])
    trace = run(code).trace
    assert timing.time_trace(code, trace).issued == [0, 1 + timing.TAKEN_BRANCH_CYCLES]


LOOP = (
    "MOV R1, RZ",
    "@P6 BRA `(.L_head)",
    "LDG.E R4, [R8.64]",
    "IADD3 R1, R1, 0x1, RZ",
    "HMMA.16816.F32.BF16 R12, R16, R20, R12",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "ISETP.GE.AND P1, PT, R1, 0x40, PT",
    "@!P1 BRA `(.L_head)",
    "EXIT",
)


def loop(at_use, between=1):
    """A load in a loop; the instruction `at_use` waits for it, and `between` cycles pass a line."""
    lines = [(text, {"stall": between}) for text in LOOP]
    lines[2] = (LOOP[2], {"stall": between, "write": 0})
    lines[at_use] = (LOOP[at_use], {"stall": between, "wait": 1})
    return code_of(*lines, labels=[(2, "head")])


def test_distance_of_a_load_to_its_use():
    code = loop(at_use=4, between=10)
    measured = step.measure(code, run(code).trace, finished=True, steps=64)
    assert measured.least_distance == 20
    assert measured.cycles == timing.MEMORY_CYCLES + 4 * 10 + timing.TAKEN_BRANCH_CYCLES


def test_distance_to_a_use_in_the_next_step():
    code = loop(at_use=3, between=15)
    # The load goes after its use, to the end of the step
    order = [0, 1, 3, 4, 5, 2, 6, 7, 8]
    lines = [
        (one.text, {"stall": 15, "write": one.control.write_barrier, "wait": one.control.wait_mask})
        for one in (code.instructions[i] for i in order)
    ]
    moved = code_of(*lines, labels=[(2, "head")])
    measured = step.measure(moved, run(moved).trace, finished=True, steps=64)
    assert measured.least_distance == 3 * 15 + timing.TAKEN_BRANCH_CYCLES
    assert measured.cycles == 6 * 15 + timing.TAKEN_BRANCH_CYCLES
    assert measured.late_cycles == timing.MEMORY_CYCLES - measured.least_distance


def test_a_loop_of_two_steps():
    code = loop(at_use=4)
    running = run(code)
    one = step.measure(code, running.trace, finished=True, steps=64)
    two = step.measure(code, running.trace, finished=True, steps=128)
    assert (two.instructions, two.cycles) == (one.instructions / 2, one.cycles / 2)


def test_names_of_host_and_device_agree():
    device = "_ZN2ns53_GLOBAL__N__c09e6590_20_persistent_kernel_cu_79d747556kernelINS0_4PassEEEvi"
    host = "_ZN2ns12_GLOBAL__N_16kernelINS0_4PassEEEvi"
    assert cubin.same_everywhere(device) == cubin.same_everywhere(host)
    assert cubin.same_everywhere(host) != cubin.same_everywhere(host.replace("Pass", "Past"))


def test_a_recorded_launch(tmp_path, monkeypatch):
    library = b"/lib/of/kernels.so"
    monkeypatch.setattr(
        "machine_code.launches._functions", lambda path: {0x40: f"kernel of {path}"}
    )
    fields = struct.pack("<2Q", 0x40, len(library)) + library
    fields += struct.pack("<4Q", 64, 256, 4, 1000) + struct.pack("<Q", 8) + bytes(range(8))
    fields += struct.pack("<2Q", 0x7000, 3) + b"abc"
    (tmp_path / "0.launch").write_bytes(fields)
    recorded = read(tmp_path / "0.launch")
    assert recorded.kernel == "kernel of /lib/of/kernels.so"
    assert recorded.launch == Launch(64, 256, 4, 1000, bytes(range(8)), {0x7000: b"abc"})


# A step that is as it should be, and what may be planted in it
KERNEL = """
#include <cstdint>
__global__ void __launch_bounds__(128) step(const float* x, const unsigned char* bytes,
                                            const uint32_t* words, float* out, int T) {{
  __shared__ float shared[128];
  float sums[4] = {{}}, next = x[threadIdx.x];
  const uint32_t a = __float_as_uint(x[0]);
  for (int t = 0; t < T; ++t) {{
    uint32_t word;
    do {{
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
                   : "=r"(word) : "l"(words + (t & 1)) : "memory");
    }} while ((word & 1) != ((t >> 1) & 1));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{{%0, %1, %2, %3}}, {{%4, %4, %4, %4}}, {{%5, %5}}, {{%0, %1, %2, %3}};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a), "r"(word));
    shared[threadIdx.x] = sums[0];
    __syncthreads();
    sums[1] += shared[threadIdx.x ^ 1];
    {planted}
    __syncthreads();
  }}
  out[threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3] + next;
}}
"""
PLANTED = {
    "nothing": ("", None, None),
    "a fence": ("__threadfence();", "1 MEMBARs (at most 0)", "MEMBARs in its loop"),
    "byte loads": (
        "for (int i = 0; i < 9; ++i) sums[i & 3] += bytes[9 * t + i];",
        "9 byte accesses (at most 0)",
        "9 loads of bytes in its loop (at most 8)",
    ),
    "taken branches": (
        "for (int i = 0; i < (t | 3); i += 1 + t / 3) __stcg(out + i, sums[i & 1] + t);",
        "taken branches (at most 0)",
        None,
    ),
    "local memory": (
        "float many[64] = {}; for (int i = 0; i < (t | 3); ++i) many[i * word & 63] += sums[i & 1];"
        " sums[2] += many[word >> 3 & 63];",
        "accesses to local memory (at most 0)",
        "accesses to local memory (at most 0)",
    ),
    "a load at its use": (
        "sums[3] += x[t];",
        f"cycles from a load to its use (at least {LEAST_DISTANCE})",
        None,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_refused(name, tmp_path):
    try:
        cubin.find_nvcc()
        cubin.find_nvdisasm()
    except cubin.NotInstalled as error:
        pytest.skip(str(error))
    planted, of_step, of_code = PLANTED[name]
    source = tmp_path / "step.cu"
    source.write_text(KERNEL.format(planted=planted))
    shape, length = Shape("bfloat16", 768, 768), 64
    for architecture in (80, 90, 120):
        [kernel] = cubin.kernels_of(source, architecture, tmp_path)
        found = list(map(str, unsound([kernel])))
        assert bool(found) == bool(of_code), found
        if of_code:
            [one] = [each for each in found if of_code in each]
            assert f"sm_{architecture} " in one
        if architecture == 120:
            continue
        parameters = struct.pack("<4Qi", *(i << 20 for i in range(1, 5)), length)
        launch = Launch(1, 128, 1, 0, parameters)
        running = Thread(kernel.code, launch, kernel.parameters_at)
        running.run(100_000)
        measured = step.measure(kernel.code, running.trace, finished=True, steps=length)
        row = Row(Pass(shape, "forward", "grid", 100, ()), Recorded("step", launch), measured)
        printed = format_rows([row], waits=True)
        assert "forward bfloat16 H 768" in printed
        found = list(map(str, complaints([row])))
        assert bool(found) == bool(of_step), found
        if of_step:
            assert any(of_step in each for each in found), found


def test_a_step_over_its_limits_is_refused():
    code = loop(at_use=4)
    measured = step.measure(code, run(code).trace, finished=True, steps=64)
    launch = Launch(1, 32, 1, 0, b"")

    def found(shape, microseconds=100.0, step_=measured):
        one = Pass(shape, "forward", "grid", microseconds, ())
        return " ".join(map(str, complaints([Row(one, Recorded("kernel", launch), step_)])))

    limited = Shape("bfloat16", 768, 768)
    assert "instructions" not in found(limited)
    heavy = step.Step(**{**vars(measured), "instructions": 301, "cycles": 951, "code_bytes": 6145})
    for what in ("301 instructions (at most 300)", "951 cycles (at most 950)", "kB of code"):
        assert what in found(limited, step_=heavy)
    with_lengths = Shape("bfloat16", 768, 768, "lengths")
    assert "instructions" not in found(with_lengths, step_=heavy)
    assert "0.10 us a step that the plan says" in found(limited, 0.1)
    assert not found(Shape("bfloat16", 100, 100), 0.1, heavy)
    assert "persistent kernels that the plan chooses" in found(limited, step_=None)


def test_what_is_known_may_not_get_worse():
    known = {"a kernel": {"cycles": 1000, "cycles from a load to its use": 100}}
    assert Excess("a kernel", "cycles", 1010, 950).is_known(known)
    assert not Excess("a kernel", "cycles", 1030, 950).is_known(known)
    assert not Excess("a kernel", "instructions", 301, 300).is_known(known)
    assert not Excess("another", "cycles", 1000, 950).is_known(known)
    use = "cycles from a load to its use"
    assert Excess("a kernel", use, 99, 400, least=True).is_known(known)
    assert not Excess("a kernel", use, 97, 400, least=True).is_known(known)


def test_tools_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("site.getsitepackages", list)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(cubin.NotInstalled, match="nvcc is not on PATH"):
        cubin.find_nvcc()
    with pytest.raises(cubin.NotInstalled, match="pip install nvidia-cuda-nvdisasm"):
        cubin.find_nvdisasm()
