"""Times implementations in turn within one process: A B C A B C until the budget is spent.

``torch.utils.benchmark.Timer`` and pytest-benchmark finish one function before they begin the
next, so a machine that changes its speed meanwhile would favour one of them.
"""

import time
import timeit
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import Measurement, TaskSpec

MIN_ROUNDS = 3  # also for a case that is over its budget
MAX_ROUNDS = 100
SAMPLE_SECONDS = 0.002  # one sample is as many calls in a row as fill this
WARM_SECONDS = 0.01  # of the same calls before each sample, at least one call
LONG_SECONDS = 0.1  # a call that takes longer outweighs how it began

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
        self.calls = 1
        self.samples: list[float] = []  # seconds a call

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
        self.samples.append(self._measure())

    def _warm_up(self) -> None:
        end = time.perf_counter() + WARM_SECONDS
        self._run()
        while time.perf_counter() < end:
            self._run()

    def _measure(self) -> float:
        if not self._on_cuda:
            return timeit.timeit(self._run, timer=time.perf_counter, number=self.calls) / self.calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        timeit.timeit(self._run, number=self.calls)
        end.record()
        end.synchronize()  # behind `end`, so not measured
        return start.elapsed_time(end) / 1e3 / self.calls


def alternate(
    calls: Mapping[str, Call], device: str, budget: float, flush: Call | None = None
) -> dict[str, Measurement]:
    """Take a sample of each implementation a round, in the rounds that ``budget`` seconds hold."""
    samplers = {name: Sampler(call, device, flush) for name, call in calls.items()}
    a_round = sum(sampler.calibrate(budget) for sampler in samplers.values())
    for _ in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round)))):
        for sampler in samplers.values():
            sampler.sample()
    return {name: Measurement(1, s.samples, TaskSpec(name, "")) for name, s in samplers.items()}
