"""How far from the truth rounding alone may carry a result: a statistical test.

A rounded operation returns its exact value times 1 + delta, and the deltas are taken for
independent random numbers of mean zero (Higham & Mary, "A New Approach to Probabilistic Rounding
Error Analysis", SIAM J. Sci. Comput. 41, 2019). The error of a sum of n terms then grows as
sqrt(n), not as n.

`model` runs a float64 reference, forward and backward, with such a delta after each operation
("Monte Carlo arithmetic": Parker 1997). Each run is a sample of the error of every element of every
result. The depth of the recurrence, the lengths of all sums and the condition of the values at
hand are in it; no processor is.

`ratios` tests an error that was found against the samples. A kernel rounds in other places than the
reference, so that only the size of errors counts, by two statistics of each tensor:

- the mean square over all elements, as chi-squared. It sees a small error that all elements have,
  such as too coarse a tanh. Errors of one tensor depend on one another: the degrees of freedom are
  Satterthwaite's (1946) estimate from the samples. The tail is bounded as by Laurent & Massart
  (2000).
- the largest element, in units of its own standard deviation, as the largest of normal variables
  (a union bound, which dependent ones meet too). It sees one wrong element among many.

Chance exceeds either in one of 1e9 tensors. MARGIN is for what is not chance: roundings that are
not independent, and a few more of them than the model has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Results = dict[str, Tensor]

DRAWS = 8
MARGIN = 1.25
LOG_CONFIDENCE = math.log(1e9)


class Format(NamedTuple):
    """Binary floating point: the distance of 1 to its successor, and the smallest normal number."""

    eps: float
    tiny: float

    def spacing(self, x: Tensor) -> Tensor:
        """The distance of neighbours around x."""
        exponent = torch.frexp(x.abs().clamp(min=self.tiny)).exponent
        return torch.ldexp(torch.full_like(x, self.eps), exponent - 1)


def format_of(dtype: torch.dtype) -> Format:
    return Format(torch.finfo(dtype).eps, torch.finfo(dtype).tiny)


FLOAT32 = format_of(torch.float32)
TF32 = Format(2.0**-9, FLOAT32.tiny)  # 10 bits after the point, cut off and not rounded

aten = torch.ops.aten
# Operations that round, with the variance in squared roundings. Kernels have sigmoid and tanh right
# to 2 or 3 units in the last place (test_activations_in_ulps); their derivatives are 3 operations.
VARIANCE = {
    aten.add: 1,
    aten.add_: 1,
    aten.mul: 1,
    aten.sigmoid: 9,
    aten.tanh: 9,
    aten.sigmoid_backward: 3,
    aten.tanh_backward: 3,
}


class Rounding(TorchDispatchMode):
    """Arithmetic on float64 tensors that rounds at random, as a kernel for `dtype` may.

    Results of operations are rounded to float32, cell states too. With a dtype of 16 bits, what a
    kernel may keep or multiply in it is rounded to that first: the factors of matrix products, the
    terms of biases' gradients, and the gates where backward reads them. `factors` rounds those of
    the products alone, to TF32, say.

    Autograd adds up a weight's gradient step by step; a kernel may add up all `rows` of each step
    in the same sum, with as many roundings. The weights' shapes are in `summed`.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        rows: int,
        summed: Collection[torch.Size],
        seed: int,
        factors: Format | None = None,
    ) -> None:
        super().__init__()
        self.storage = format_of(dtype) if dtype.itemsize == 2 else None
        self.factors = factors or self.storage
        self.rows, self.summed = rows, summed
        self.gates: dict[int, Tensor] = {}  # by address
        self.generator = torch.Generator().manual_seed(seed)

    def noisy(self, x: Tensor, deviation: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return x + deviation * noise.to(x.device)

    def rounded(self, x: Tensor, variance: Tensor) -> Tensor:
        """x with the error of rounding numbers whose squares add up to `variance`."""
        return self.noisy(x, FLOAT32.eps / 2 / math.sqrt(3) * variance.sqrt())

    def kept(self, x: Tensor, format: Format | None) -> Tensor:
        """x as `format` holds it: some of what a caller passes it holds exactly."""
        if format is None:
            return x
        spacing = format.spacing(x)
        noisy = self.noisy(x, spacing / math.sqrt(12))
        return torch.where(x.remainder(spacing) == 0, x, noisy)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation, kwargs = func.overloadpacket, kwargs or {}
        backward = not torch.is_grad_enabled()
        if operation in (aten.mm, aten.addmm):
            a, b = (self.kept(factor, self.factors) for factor in args[-2:])
            return self.total(a @ b, a.square() @ b.square(), a.size(1), *args[:-2])
        if operation is aten.sum and backward:
            terms = self.kept(args[0], self.storage)
            result = func(terms, *args[1:], **kwargs)
            squares = func(terms.square(), *args[1:], **kwargs)
            return self.total(result, squares, terms.numel() // max(result.numel(), 1))
        if backward and self.storage:
            args = [self.kept(x, self.storage) if self.is_gate(x) else x for x in args]
        result = func(*args, **kwargs)
        if operation not in VARIANCE:
            return result
        times = VARIANCE[operation]
        if operation in (aten.add, aten.add_) and result.shape in self.summed:
            times *= self.rows
        noisy = self.rounded(result, times * result.square())
        if operation in (aten.sigmoid, aten.tanh) and args[0].numel() < whole_size(args[0]):
            self.gates[noisy.data_ptr()] = noisy  # of a quarter of the preactivations
        return result.copy_(noisy) if operation is aten.add_ else noisy

    def is_gate(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.data_ptr() in self.gates

    def total(self, total: Tensor, squares: Tensor, terms: int, *addend: Tensor) -> Tensor:
        """The sum of `terms` terms, added one by one.

        The square of the partial sum of k of n terms in a random order is, on average,
        (k/n)^2 total^2 + k/n (1 - k/n) squares.
        """
        variance = terms * (total.square() / 3 + squares / 6)
        for bias in addend:
            total = total + bias
            variance = variance + total.square()
        return self.rounded(total, variance)


def whole_size(x: Tensor) -> int:
    return x.untyped_storage().nbytes() // x.itemsize


class Truth(NamedTuple):
    """Results in float64, and samples of what rounding may do to them, [DRAWS, ...] each."""

    values: Results
    errors: Results


def model(
    evaluate: Callable[[], Results],
    dtype: torch.dtype,
    rows: int,
    summed: Collection[torch.Size],
    factors: Format | None = None,
) -> Truth:
    """What `evaluate` returns in float64, and how far a kernel for `dtype` may be from it."""
    values = evaluate()
    samples = []
    for seed in range(DRAWS):
        with Rounding(dtype, rows, summed, seed, factors):
            samples.append(evaluate())
    errors = {k: torch.stack([sample[k] - v for sample in samples]) for k, v in values.items()}
    if dtype == torch.float64:
        # To first order, errors are proportional to eps. The values are no nearer to the truth.
        scale = math.sqrt(2) * torch.finfo(dtype).eps / FLOAT32.eps
        errors = {name: scale * error for name, error in errors.items()}
    return Truth(values, errors)


def ratios(found: Tensor, true: Tensor, errors: Tensor) -> tuple[float, float]:
    """Both statistics over what is allowed: root mean square, and largest element.

    NaN if there is NaN in `found`.
    """
    error = found.double() - true
    squares = errors.square()  # [DRAWS, ...]
    if found.dtype.itemsize == 2:
        squares = squares + format_of(found.dtype).spacing(true).square() / 12
    by_draw = squares.flatten(1).mean(1)
    mean = by_draw.mean()
    if not found.numel() or (mean == 0 and not error.any()):
        return 0.0, 0.0
    freedom = (2 * mean.square() / by_draw.var()).clamp(1, found.numel()).item()
    tail = LOG_CONFIDENCE / freedom
    allowed = mean.sqrt() * math.sqrt(1 + 2 * math.sqrt(tail) + 2 * tail)
    # A few draws say little about one element: half of its variance is the mean of all.
    deviation = ((squares.mean(0) + mean) / 2).sqrt()
    furthest = math.sqrt(2 * (LOG_CONFIDENCE + math.log(2 * found.numel())))
    return (
        (error.square().mean().sqrt() / (MARGIN * allowed)).item(),
        ((error.abs() / deviation).max() / (MARGIN * furthest)).item(),
    )
