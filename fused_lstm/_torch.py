"""Parts of torch that it does not promise to keep; each says what is done where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

if hasattr(torch._C, "_are_functorch_transforms_active"):

    def transforms_active(*tensors: Tensor | Sequence[Tensor] | None) -> bool:
        """A transform of torch.func (vmap, grad, jvp, ...) sees what is computed."""
        return torch._C._are_functorch_transforms_active()

else:

    def transforms_active(*tensors: Tensor | Sequence[Tensor] | None) -> bool:
        """A transform of torch.func has wrapped one of `tensors`: it has no memory of its own.

        Nor has a fake tensor outside torch.compile, which then runs the reference: the same
        results, slower.
        """
        return not torch.compiler.is_compiling() and any(map(_has_no_memory, _flat(tensors)))


if hasattr(forward_ad, "_current_level"):

    def forward_mode(*tensors: Tensor | Sequence[Tensor] | None) -> bool:
        """Inside forward_ad.dual_level()."""
        return forward_ad._current_level >= 0

else:

    def forward_mode(*tensors: Tensor | Sequence[Tensor] | None) -> bool:
        """One of `tensors` has a tangent; slower to ask."""
        return any(forward_ad.unpack_dual(one).tangent is not None for one in _flat(tensors))


def _flat(tensors: tuple[Tensor | Sequence[Tensor] | None, ...]) -> Iterator[Tensor]:
    for one in tensors:
        yield from [one] if isinstance(one, Tensor) else one or ()


def _has_no_memory(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


ONNX_OPERATORS = "torch.onnx._internal.exporter._torchlib.ops"
"""The module that the ONNX exporter imports to fill its registry."""


def register_onnx(operator: Callable[..., object], function: Callable[..., object]) -> None:
    """Makes `function` the ONNX exporter's translation of `operator`.

    Where its registry is missing, callers pass `custom_translation_table`.
    """
    try:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl
    except ImportError:
        return
    onnx_impl(operator, trace_only=True)(function)
