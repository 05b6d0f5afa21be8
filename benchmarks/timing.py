"""The alternating timer: some functions, one process, A B C A B C until the budget is spent."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_ROUNDS = 3  # also for a case that is over its budget
MAX_ROUNDS = 100
SAMPLE_SECONDS = 0.002  # one sample is as many calls in a row as fill this
WARM_SECONDS = 0.01  # of the same calls before each sample, at least one call
LONG_SECONDS = 0.1  # a call that takes longer outweighs how it began
WIDE_SPREAD = 0.10  # quartiles further apart than this part of the median mark a run as wide


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one contestant's samples, in microseconds a call."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> Spread:
        """The spread of samples given in seconds a call."""
        micros = [1e6 * s for s in seconds]
        if len(micros) == 1:
            return Spread(micros[0], micros[0], micros[0])
        low, median, high = statistics.quantiles(micros, n=4, method="inclusive")
        return Spread(median, low, high)

    @property
    def wide(self) -> bool:
        """Whether the quartiles lie too far apart for the median to be trusted."""
        return self.high - self.low > WIDE_SPREAD * self.median


class Sampler:
    """Times one function: ``calls`` calls in a row are one sample.

    The calls just before a sample are the same function's: they bring its weights back into the
    caches and its threads back onto the cores, and those of another fall asleep meanwhile.

    On a CPU a sample is read from the host's clock, on CUDA from two events on the current
    stream; the wait for the second lies outside what is measured.
    """

    def __init__(self, run: Callable[[], object], device: str) -> None:
        self._run = run
        self._measure = self._measure_cuda if device == "cuda" else self._measure_host
        self._warms_up = True
        self.calls = 1
        self.samples: list[float] = []  # seconds a call

    def calibrate(self, budget: float) -> float:
        """Warm up, choose ``calls``, and return the seconds that a sample and its warming take.

        A function whose one call exceeds the budget (seconds) is warmed up by that call alone.
        """
        seconds = self._measure()
        if seconds < budget:
            self._warm_up()
            seconds = self._measure()
        while seconds * self.calls < SAMPLE_SECONDS:
            self.calls *= 2
            seconds = self._measure()
        self._warms_up = seconds < LONG_SECONDS
        return seconds * self.calls + (max(seconds, WARM_SECONDS) if self._warms_up else 0)

    def take(self) -> float:
        """Take one sample: seconds a call."""
        # A collection would fall into one contestant's sample and not into the other's.
        gc.disable()
        try:
            if self._warms_up:
                self._warm_up()
            self.samples.append(self._measure())
        finally:
            gc.enable()
        return self.samples[-1]

    def _warm_up(self) -> None:
        end = time.perf_counter() + WARM_SECONDS
        self._run()
        while time.perf_counter() < end:
            self._run()

    def _measure_host(self) -> float:
        start = time.perf_counter()
        for _ in range(self.calls):
            self._run()
        return (time.perf_counter() - start) / self.calls

    def _measure_cuda(self) -> float:
        import torch  # here, so that this module and its tests need none

        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(self.calls):
            self._run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / self.calls


class Contest:
    """Several functions timed in turn: afterwards each has one sample a round.

    pytest-benchmark times one function, here the last. The others' samples are each round's
    setup, which it does not time, so all alternate. Its timer must be ``clock``.
    """

    def __init__(
        self, competitors: Mapping[str, Callable[[], object]], device: str, budget: float
    ) -> None:
        """Warm all up and choose how many rounds fit in ``budget`` seconds."""
        samplers = {name: Sampler(run, device) for name, run in competitors.items()}
        a_round = sum(sampler.calibrate(budget) for sampler in samplers.values())
        self.rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round)))
        self._samplers = samplers
        *self._others, self._last = samplers.values()

    def run_under(self, benchmark: Any) -> None:
        """Alternate inside pytest-benchmark's fixture."""
        benchmark.pedantic(
            self._time_last, setup=self._time_others, rounds=self.rounds, iterations=1
        )

    def run(self) -> None:
        """Alternate without pytest-benchmark."""
        for _ in range(self.rounds):
            self._time_others()
            self._time_last()

    @property
    def spreads(self) -> dict[str, Spread]:
        """What was measured of each, by name."""
        return {name: Spread.of(sampler.samples) for name, sampler in self._samplers.items()}

    def _time_others(self) -> None:
        for sampler in self._others:
            sampler.take()

    def _time_last(self) -> None:
        clock.advance(self._last.take())


class _Clock:
    """The timer handed to pytest-benchmark: it moves by what a ``Sampler`` measured.

    So pytest-benchmark's own table and JSON show the same seconds a call (many calls a sample,
    device events on CUDA) as ours, and not the length of a round.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def advance(self, seconds: float) -> None:
        self._seconds += seconds

    def read(self) -> float:
        return self._seconds


clock = _Clock()
