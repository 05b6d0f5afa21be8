"""The CPU kernels: each instruction set, the threads, the choice of a kernel, the activations."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_close, assert_same_bits, cast, evaluate, rand, rand_state, twin

from fused_lstm import _C, FusedLSTM

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
ISA = "FUSED_LSTM_CPU_ISA"
# Those of INT8 differ from the one before in frozen layers alone (test_frozen.py)
INT8 = ["avxvnni", "avx512vnni"]
SETS = ["portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"]


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def error_of_an_unknown_name():
    call = "from fused_lstm import _C; _C.cpu_instruction_set()"
    return python("-c", call, FUSED_LSTM_CPU_ISA="mmx")


def test_a_wrong_instruction_set(error_of_an_unknown_name):
    assert error_of_an_unknown_name.returncode == 1
    assert re.search(
        "RuntimeError: FUSED_LSTM_CPU_ISA is 'mmx'; on this processor it can be .*portable",
        error_of_an_unknown_name.stderr,
    )


def test_an_empty_name_counts_as_none():
    call = "from fused_lstm import _C; print(_C.cpu_instruction_set())"
    assert python("-c", call, FUSED_LSTM_CPU_ISA="").stdout.strip() in SETS


@pytest.mark.parametrize("name", [name for name in SETS if name not in INT8])
def test_accuracy_of_each_instruction_set(error_of_an_unknown_name, name):
    if name not in error_of_an_unknown_name.stderr:
        refused = python("-c", "from fused_lstm import _C; _C.cpu_instruction_set()", **{ISA: name})
        assert f"{ISA} is '{name}'; on this processor it can be" in refused.stderr
        pytest.skip(f"this processor has no {name}")
    call = f"from fused_lstm import _C; assert _C.cpu_instruction_set() == {name!r}; " + (
        "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    )
    selection = ["test_accuracy.py", "test_cpu_kernels.py", "-k", "odd_sizes or layers or ulps"]
    chosen = ["-m", "not cuda", "-q", "-p", "no:cacheprovider"]
    done = python("-c", call, *selection, *chosen, FUSED_LSTM_CPU_ISA=name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d\d+ passed", done.stdout)


@pytest.mark.parametrize("name", SETS)
def test_linkage_of_each_instruction_set(name):
    """Each of these files exports only its table: of an inline function that several files
    export, the linker keeps one copy, and if that is AVX-512's, every processor needs AVX-512."""
    folder = f"build/{sys.implementation.cache_tag}-torch-{torch.__version__}/csrc/cpu"
    compiled = TESTS.parent / folder / f"isa_{name}.cpp.o"
    if not compiled.exists() or not shutil.which("nm"):
        pytest.skip("needs nm, and the object files that `make build` leaves")
    command = ["nm", "-C", "--extern-only", "--defined-only", "--format=posix", compiled]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # "name type value size"; V is data, such as the exceptions' tables
    code = {s.rsplit(maxsplit=3)[0] for s in symbols.splitlines() if s.rsplit(maxsplit=3)[1] != "V"}
    tables = {
        "avxvnni": ("frozen_int8",),
        "avx512vnni": ("frozen_int8",),
        "avx512bf16": ("bf16_operands", "frozen_bfloat16"),
        "amx": ("bf16_operands", "frozen_bfloat16", "frozen_int8"),
    }.get(name, ("kernels", "frozen"))
    assert code == {f"fused_lstm::cpu::{table}_{name}()" for table in tables}


# Threads


def test_built_with_threads():
    """Without OpenMP, at::parallel_for in an extension is serial, without a warning."""
    assert _C.build_info()["openmp"]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 5}], ids=str)
def test_one_thread_or_more(threads, dtype, options):
    module = FusedLSTM(7, 65, dtype=dtype, **options)
    call = (rand(10, 33, 7, dtype=dtype), rand_state(module, 33))
    truth = evaluate(twin(module, dtype=torch.float64), *cast(call, torch.float64))
    for count in (1, 2, 3, 5):
        threads(count)
        assert_close(evaluate(module, *call), truth)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the threads from /proc")
def test_threads_share_the_work():
    """CPU time of the threads other than the main one, in calls where the recurrence is nearly all
    of the work (the input has one feature). Idle threads sleep."""
    script = """
        import threading
        from pathlib import Path
        import torch
        from fused_lstm import FusedLSTM

        def cpu_time():  # ns of the main thread, and of all others
            times = {t.name: int((t / "schedstat").read_text().split()[0])
                     for t in Path("/proc/self/task").iterdir()}
            main = times.pop(str(threading.get_native_id()))
            return main, sum(times.values())

        torch.set_num_threads(2)
        module, x = FusedLSTM(1, 256), torch.zeros(60, 64, 1)
        module(x)[0].sum().backward()
        before = cpu_time()
        for _ in range(3):
            with torch.no_grad():
                module(x)
        after = cpu_time()
        print((after[1] - before[1]) / (after[0] - before[0]))
    """
    done = python("-c", textwrap.dedent(script), OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.4


def test_calls_from_several_threads():
    module = FusedLSTM(5, 33, 2, bidirectional=True)
    inputs = [rand(6, 9, 5, dtype=torch.float32) for _ in range(4)]
    expected = [evaluate(module, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda x: evaluate(module, x), inputs)
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(a, b)


# Sigmoid and tanh


def activations(x):
    """The gates i (sigmoid) and g (tanh) of the preactivations x, by one step."""
    module = FusedLSTM(1, 17, bias=False, dtype=x.dtype)  # a whole vector and a part of one
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
        _, _, states = module(x.view(1, -1, 1), return_states=True)
    gates = states.gates[0][0]  # [len(x), 4, 17]
    one = gates[..., :1].expand_as(gates)
    torch.testing.assert_close(gates, one, rtol=0, atol=0, equal_nan=True)
    return gates[:, 0, 0], gates[:, 2, 0]


def ulps(found, truth):
    """Errors of float32 in units in the last place."""
    spacing = np.spacing(np.abs(truth.float().numpy()))
    return np.abs(found.double().numpy() - truth.numpy()) / spacing


def test_activations_in_ulps():
    near = torch.logspace(-30, 0, 20_001, 2.0)
    x = torch.cat([torch.linspace(-87, 87, 200_001), near, -near])
    sigmoid, tanh = activations(x)
    limit = 3 if _C.cpu_instruction_set() == "portable" else 2  # which has no fused multiply-add
    assert ulps(sigmoid, x.double().sigmoid()).max() <= limit
    assert ulps(tanh, x.double().tanh()).max() <= limit


def test_activations_in_float64():
    x = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    sigmoid, tanh = activations(x)
    torch.testing.assert_close(sigmoid, x.sigmoid(), rtol=1e-15, atol=0)
    torch.testing.assert_close(tanh, x.tanh(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_at_the_ends(dtype):
    far = torch.tensor(
        [torch.nan, -torch.inf, -1e30, -100.0, 0.0, -0.0, 100.0, torch.inf], dtype=dtype
    )
    sigmoid, tanh = activations(far)
    torch.testing.assert_close(sigmoid, far.sigmoid(), equal_nan=True)
    torch.testing.assert_close(tanh, far.tanh(), equal_nan=True)
    smallest = torch.tensor([torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny], dtype=dtype)
    assert torch.equal(activations(smallest)[1], smallest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_value_of_16_bits(dtype):
    """Loading, rounding and storing, for every finite bit pattern."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    sigmoid, tanh = activations(x)
    for found, true in [(sigmoid, x.double().sigmoid()), (tanh, x.double().tanh())]:
        # The nearest value or, where the truth is halfway, its other neighbour
        allowed = (true.to(dtype).double() - true).abs() + 1e-6 * true.abs() + 1e-7
        assert ((found.double() - true).abs() <= allowed).all()


# AMX tiles


@pytest.mark.skipif(not CSRC.exists(), reason="no sources here")
def test_frozen_layers_in_emulated_tiles(tmp_path, error_of_an_unknown_name):
    """int8 in AMX tiles has the bits of VNNI's, bfloat16 its sums in another order."""
    sets = error_of_an_unknown_name.stderr
    compiler = shutil.which("g++")
    if compiler is None or "avx512bf16" not in sets or "avx512vnni" not in sets:
        pytest.skip("needs g++ and a processor with AVX512-BF16 and AVX512-VNNI")
    processors = TESTS / "processors"
    isa = [CSRC / f"cpu/isa_{name}.cpp" for name in ("amx", "avx512bf16", "avx512vnni")]
    plain = [
        CSRC / "frozen/packed_layer.cpp",
        CSRC / "cpu/barrier.cpp",
        *(CSRC / "plan").glob("*.cpp"),
    ]
    options = [compiler, "-std=c++17", "-O2", "-pthread", f"-I{CSRC}"]
    # Before what it includes is compiled for the instruction set, as its intrinsics are
    tiles = ["-mavx512f", "-mamx-tile", "-include", processors / "amx_tiles.h"]
    objects = [tmp_path / f"{path.stem}.o" for path in isa]
    for path, compiled in zip(isa, objects, strict=True):
        emulated = tiles if path.stem == "isa_amx" else []
        subprocess.run([*options, *emulated, "-c", path, "-o", compiled], check=True)
    program = tmp_path / "amx_frozen"
    sources = [processors / "amx_frozen.cpp", *plain]
    subprocess.run([*options, *sources, *objects, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "30 cases, 0 wrong\n"), done.stdout
