"""Parts of torch that it does not promise to keep; each says what is done where it is missing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

if hasattr(torch._C, "_are_functorch_transforms_active"):

    def transforms_active(tensors: Iterable[Tensor]) -> bool:
        """A transform of torch.func (vmap, grad, jvp, ...) sees what is computed."""
        return bool(torch._C._are_functorch_transforms_active())

else:

    def transforms_active(tensors: Iterable[Tensor]) -> bool:
        """A transform of torch.func has wrapped one of `tensors`: it has no memory of its own.

        Nor has a fake tensor outside torch.compile, which then takes the definition: the same
        numbers, slower.
        """
        return not torch.compiler.is_compiling() and any(map(_has_no_memory, tensors))


if hasattr(forward_ad, "_current_level"):

    def forward_mode(tensors: Iterable[Tensor]) -> bool:
        """Inside forward_ad.dual_level()."""
        return bool(forward_ad._current_level >= 0)

else:

    def forward_mode(tensors: Iterable[Tensor]) -> bool:
        """One of `tensors` has a tangent; slower to ask."""
        return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _has_no_memory(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False
