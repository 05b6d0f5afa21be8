"""What a driver may refuse, and what it says of its GPU: on the emulator, as other GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import EMULATED

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs the emulator: make emulate")

HEADER = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from emulated import counts, last_error, on_allocation
from oracle import assert_accurate, evaluate, rand, rand_state, truth_of

import fused_lstm
from fused_lstm import _C
from fused_lstm.explain import Gpu

torch.manual_seed(0)
torch.backends.cudnn.allow_tf32 = False


def gpu():
    return Gpu(*_C.gpu(0))


def make(D=3, H=40, B=5, dtype=torch.bfloat16, **options):
    module = fused_lstm.FusedLSTM(D, H, dtype=dtype, **options)
    return module, rand(3, B, D, dtype=dtype), rand_state(module, B)


def check(*call):
    assert_accurate(evaluate(*call), truth_of(*call))
    assert last_error() == "no error", last_error()


def passes(module, B=5):
    [plan] = fused_lstm.explain(module, B, 3, device=gpu())
    return plan.forward, plan.backward
"""


def run(gpu: str, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEADER + program, str(Path(__file__).resolve().parent)],
        env=os.environ | {"EMULATED_GPU": gpu},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kernel", ["cluster", "grid"])
@pytest.mark.parametrize(
    "gpu", ["green", "fewer-sms", "no-clusters-of-16", "ptx-8.0-on-9.0", "ada"]
)
def test_another_kernel_takes_what_one_cannot(gpu, kernel):
    """Results are right, no error is left behind, and nothing is tried twice in vain."""
    run(
        gpu,
        f"""
with fused_lstm.use_kernel({kernel!r}):
    for H in (40, 200):
        call = make(H=H)
        check(*call)
        before = counts()
        check(*call)
        after = counts()
        assert after.launches > before.launches
        assert after.refused == before.refused, (before, after)
""",
    )


def test_explain_names_the_refusal():
    run(
        "green",
        """
call = make(H=100)
assert all(one.candidates["cluster"].obstacle is None for one in passes(call[0]))
for kernel in ("cluster", "grid"):
    with fused_lstm.use_kernel(kernel):
        check(*call)
for one in passes(call[0]):
    obstacles = {name: candidate.obstacle for name, candidate in one.candidates.items()}
    assert obstacles["cluster"] == "the driver refused its launch: invalid cluster size", obstacles
    assert obstacles["grid"] == "the driver refused its launch: operation not supported", obstacles
    assert obstacles["stepwise"] is None
    with fused_lstm.use_kernel("grid"):
        assert passes(call[0])[0].kernel not in ("cluster", "grid")
""",
    )


def test_a_smaller_launch_of_the_refused_kernel_is_tried():
    """A cooperative launch of more than 5 blocks is refused; one of larger slices has fewer."""
    run(
        "fewer-sms",
        """
call = make(H=40, B=11)


def blocks(one):
    its = one.candidates["grid"]
    return its.slices * its.blocks


with fused_lstm.use_kernel("grid"):
    assert blocks(passes(call[0], B=11)[0]) > 5  # forward
    check(*call)
    for one in passes(call[0], B=11):
        assert one.kernel == "grid"
        assert blocks(one) <= 5
""",
    )


@pytest.mark.parametrize(
    ("gpu", "facts"),
    [
        ("hopper", (90, 12, 8, (6, 3, 1, 0))),
        ("hopper-132", (90, 132, 16, (66, 30, 14, 6))),
        ("no-clusters-of-16", (90, 32, 8, (16, 8, 4, 0))),
        ("ptx-8.0-on-9.0", (80, 12, 0, (0, 0, 0, 0))),
        ("ada", (80, 12, 0, (0, 0, 0, 0))),
    ],
)
def test_what_the_driver_says_of_a_gpu(gpu, facts):
    """Compute capability is what the kernels were compiled for; clusters live inside a GPC."""
    run(
        gpu,
        f"""
its = gpu()
assert (*its[:2], its.largest_cluster, tuple(its.clusters)) == {facts}, its
assert its.refusals == []
assert last_error() == "no error", last_error()
before = counts()
gpu()
assert counts() == before
""",
    )


def test_a_kernel_is_prepared_once():
    """Between a smaller limit, set by another thread, and the launch, a larger one would fail."""
    run(
        "hopper",
        """
with fused_lstm.use_kernel("cluster"):
    check(*make(H=40))
    before = counts().attributes_set
    assert before > 0
    check(*make(H=100))  # the same tilings
    assert counts().attributes_set == before
""",
    )


def test_the_tf32_mode_is_read_once_a_call():
    """Another thread may set it at any time: here at each allocation of a call in turn. How many
    of the weights are in shared memory depends on the mode."""
    run(
        "hopper",
        """
module, x, state = make(H=200, dtype=torch.float32)
x = x.requires_grad_()


def flip():
    global left
    left -= 1
    if left == 0:
        torch._C._set_cudnn_allow_tf32(False)


def flipped(function, *arguments):
    global left
    before = counts().allocations
    torch.backends.cudnn.allow_tf32 = True
    expected = function(*arguments)
    for n in range(counts().allocations - before):
        left = n + 1
        torch.backends.cudnn.allow_tf32 = True
        with on_allocation(flip):
            result = function(*arguments)
        torch.testing.assert_close(result, expected, rtol=0.01, atol=0.003)


def call():
    return module(x, state)[0].detach()


def gradient(output):
    return torch.autograd.grad(output.sum(), x, retain_graph=True)[0]


with fused_lstm.use_kernel("grid"):
    flipped(call)
    torch.backends.cudnn.allow_tf32 = True
    flipped(gradient, module(x, state)[0])
""",
    )


def test_explain_reads_the_mode_as_the_call_does():
    """fp32_precision, set for RNNs, for cuDNN, for all of torch, or inherited."""
    run(
        "hopper",
        """
backends, cudnn = torch.backends, torch.backends.cudnn
call = make(H=40, dtype=torch.float32)
seen = set()
for everything in ("ieee", "tf32"):
    for library in ("none", "ieee", "tf32"):
        for rnn in ("none", "ieee", "tf32"):
            backends.fp32_precision = everything
            cudnn.fp32_precision = library
            cudnn.rnn.fp32_precision = rnn
            with fused_lstm.use_kernel("block"), torch.no_grad():
                rounded = call[0](*call[1:])[0]
                cudnn.rnn.fp32_precision = "ieee"
                exact = call[0](*call[1:])[0]
            took = bool((rounded != exact).any())
            cudnn.rnn.fp32_precision = rnn
            says = sys.modules["fused_lstm.explain"].uses_tensor_cores(torch.float32)
            passes(call[0])
            assert took == says, (everything, library, rnn, took, says)
            seen.add(took)
assert seen == {False, True}
""",
    )
