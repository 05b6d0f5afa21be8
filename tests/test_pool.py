"""The pool of CPU memory: kept from call to call, bounded, given back, seen by torch's tools."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from oracle import assert_same_bits, evaluate, in_fresh_process
from torch.profiler import ProfilerActivity, profile

import fused_lstm
from fused_lstm import FusedLSTM

T, B, D, H = 40, 64, 16, 128  # gates of 5.2 MB
MEGABYTE = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, madvise and getrusage")


def train(module, x):
    module.zero_grad()
    module(x)[0].sum().backward()


@pytest.fixture
def large():
    fused_lstm.empty_cache()
    yield FusedLSTM(D, H), torch.randn(T, B, D)
    fused_lstm.empty_cache()


def test_memory_is_kept_and_given_back(large):
    assert fused_lstm.cached_bytes() == 0
    train(*large)
    gc.collect()
    kept = fused_lstm.cached_bytes()
    assert kept > 2 * 4 * T * B * 4 * H  # gates and their gradients, at least
    train(*large)
    assert fused_lstm.cached_bytes() == kept  # the same blocks
    fused_lstm.empty_cache()
    assert fused_lstm.cached_bytes() == 0


@linux
def test_a_second_call_touches_no_new_pages(large):
    def faults():
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        with torch.no_grad():
            module(x, return_states=True)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    module, x = large
    faults()
    fused_lstm.empty_cache()
    first = faults()
    assert min(faults() for _ in range(5)) < max(20, first / 4)


@linux
def test_what_is_given_back_leaves_the_process(large):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    train(*large)
    kept, before = fused_lstm.cached_bytes(), resident()
    fused_lstm.empty_cache()
    assert before - resident() > kept / 2


@pytest.mark.parametrize("megabytes", [0, 7])
def test_the_limit(tmp_path, megabytes, monkeypatch):
    monkeypatch.setenv("FUSED_LSTM_CACHE_MB", str(megabytes))
    printed = in_fresh_process(
        f"""
        import fused_lstm, torch
        module = fused_lstm.FusedLSTM({D}, {H})
        for _ in range(3):
            module(torch.randn({T}, {B}, {D}))[0].sum().backward()
            print(fused_lstm.cached_bytes())
        """,
        tmp_path,
    )
    kept = [int(line) for line in printed.split()]
    assert len(kept) == 3
    assert all(bytes <= megabytes * MEGABYTE for bytes in kept)
    assert (kept[-1] > 0) == (megabytes > 0)


@pytest.mark.parametrize("megabytes", ["abc", "-1", "3 MB"])
def test_a_wrong_limit(megabytes):
    done = subprocess.run(
        [sys.executable, "-c", "import fused_lstm; fused_lstm.cached_bytes()"],
        env=os.environ | {"FUSED_LSTM_CACHE_MB": megabytes},
        capture_output=True,
        text=True,
    )
    message = f"FUSED_LSTM_CACHE_MB is '{megabytes}', must be a number of megabytes, 0 or more"
    assert message in done.stderr


def test_a_tensor_that_is_kept_is_not_used_again(large):
    module, x = large
    _, _, states = module(x, return_states=True)
    before = [gates.clone() for gates in states.gates]
    for _ in range(3):
        train(module, torch.randn_like(x))
    for gates, copy in zip(states.gates, before, strict=True):
        assert torch.equal(gates, copy)


def test_threads_share_it(large):
    module, _ = large
    inputs = [torch.randn(T, B, D) for _ in range(4)]
    expected = [evaluate(module, x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            found = threads.map(lambda x: evaluate(module, x), inputs)
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own(tmp_path):
    printed = in_fresh_process(
        f"""
        import os, torch
        from fused_lstm import FusedLSTM, cached_bytes

        torch.set_num_threads(1)
        module, x = FusedLSTM({D}, {H}), torch.randn({T}, {B}, {D})
        with torch.no_grad():
            expected = module(x, return_states=True)[2].gates[0].clone()
            assert cached_bytes() > 0
            child = os.fork()
            for _ in range(3):
                found = module(x if child else -x, return_states=True)[2].gates[0]
                assert torch.equal(found, expected) == bool(child)
        if not child:
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """,
        tmp_path,
    )
    assert printed.strip() == "0"


def test_the_profiler_sees_it(large):
    module, x = large
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
        results = module(x)
    kept = sum(event.self_cpu_memory_usage for event in memory.key_averages())
    gates_and_cells = 4 * T * B * 5 * H
    outputs = 4 * (T * B * H + 2 * B * H)
    assert kept >= gates_and_cells + outputs
    assert kept < 1.1 * (gates_and_cells + outputs)
    del results
