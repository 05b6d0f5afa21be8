"""Times implementations in turn within one process: A B C A B C until the budget is spent.

``torch.utils.benchmark.Timer`` and pytest-benchmark finish one function before they begin the
next, so a machine that changes its speed meanwhile would favour one of them.
"""

import gc
import resource
import time
import timeit
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch.utils.benchmark import Measurement, TaskSpec

MIN_ROUNDS = 3  # also for a case that is over its budget
MAX_ROUNDS = 100
SAMPLE_SECONDS = 0.002  # one sample is as many calls in a row as fill this
WARM_SECONDS = 0.01  # of the same calls before each sample, at least one call
LONG_SECONDS = 0.1  # a call that takes longer outweighs how it began
TURNS = 100  # in which the functions' latencies are taken

Call = Callable[[], object]


class Sampler:
    """Times one function: ``calls`` calls in a row, without garbage collection, are one sample.

    Calls just before bring its weights back into the caches and its threads onto the cores; with
    ``flush``, which empties the caches, that is called instead, and a sample is one call.
    """

    def __init__(self, run: Call, device: str, flush: Call | None = None) -> None:
        self._run = run
        self._flush = flush
        self._on_cuda = device == "cuda"
        self._warms_up = True
        self._timer = timeit.Timer(run, timer=time.perf_counter)
        self.calls = 1
        self.samples: list[float] = []  # seconds a call
        self.cpu_samples: list[float] = []  # of the calling thread's time on a processor

    def calibrate(self, budget: float) -> float:
        """Choose ``calls``; return the seconds of a sample and of what comes before it."""
        if self._flush:
            start = time.perf_counter()
            self._flush()
            self._measure()
            return time.perf_counter() - start
        seconds = self._measure()
        if seconds < budget:  # or else this call was the warm-up
            self._warm_up()
            seconds = self._measure()
        while seconds * self.calls < SAMPLE_SECONDS:
            self.calls *= 2
            seconds = self._measure()
        self._warms_up = seconds < LONG_SECONDS
        return seconds * self.calls + (max(seconds, WARM_SECONDS) if self._warms_up else 0)

    def sample(self) -> None:
        if self._flush:
            self._flush()
        elif self._warms_up:
            self._warm_up()
        before = time.thread_time()
        self.samples.append(self._measure())
        self.cpu_samples.append((time.thread_time() - before) / self.calls)

    def _warm_up(self) -> None:
        end = time.perf_counter() + WARM_SECONDS
        self._run()
        while time.perf_counter() < end:
            self._run()

    def _measure(self) -> float:
        if not self._on_cuda:
            return self._timer.timeit(self.calls) / self.calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        self._timer.timeit(self.calls)
        end.record()
        end.synchronize()  # behind `end`, so not measured
        return start.elapsed_time(end) / 1e3 / self.calls


def alternate(
    calls: Mapping[str, Call], device: str, budget: float, flush: Call | None = None
) -> dict[str, Measurement]:
    """Take a sample of each implementation a round, in the rounds that ``budget`` seconds hold.

    A measurement's ``metadata["cpu"]`` has the thread CPU time of each sample, in seconds a call.
    """
    samplers = {name: Sampler(call, device, flush) for name, call in calls.items()}
    a_round = sum(sampler.calibrate(budget) for sampler in samplers.values())
    for _ in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round)))):
        for sampler in samplers.values():
            sampler.sample()
    return {
        name: Measurement(1, s.samples, TaskSpec(name, ""), {"cpu": s.cpu_samples})
        for name, s in samplers.items()
    }


@dataclass
class Latencies:
    """What each single call of one function took."""

    nanoseconds: "array[int]"
    preemptions: int = 0  # how often the system took the processor away meanwhile

    def percentiles(self) -> list[float]:
        """Microseconds: the least that 50, 99 and 99.9 % of the calls do not exceed; the worst."""
        ordered = sorted(self.nanoseconds)
        ranks = (ceil(len(ordered) * share) for share in (0.5, 0.99, 0.999, 1))
        return [ordered[rank - 1] / 1e3 for rank in ranks]


def latencies(calls: Mapping[str, Call], count: int) -> dict[str, Latencies]:
    """Time ``count`` single calls of each function, at most a hundredth of them in a row.

    Before them, a tenth as many bring its weights back into the caches. The clock's own time is in
    each. Garbage is collected between the functions' turns only.
    """
    found = {name: Latencies(array("q", bytes(8 * count))) for name in calls}
    a_turn, clock = ceil(count / TURNS), time.perf_counter_ns
    for first in range(0, count, a_turn):
        for name, run in calls.items():
            kept = found[name].nanoseconds
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                for _ in range(ceil(a_turn / 10)):
                    run()
                before = _preemptions()
                for i in range(first, min(first + a_turn, count)):
                    start = clock()
                    run()
                    kept[i] = clock() - start
                found[name].preemptions += _preemptions() - before
            finally:
                if was_enabled:
                    gc.enable()
    return found


def _preemptions() -> int:
    """Involuntary context switches of this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
