from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

def build_info() -> dict[str, Any]: ...
def cpu_instruction_set() -> str: ...
def largest_stacked(device: str, element_bytes: int) -> int: ...
def cached_bytes() -> int: ...
def empty_cache() -> None: ...
def machine() -> dict[str, Any]: ...
def cpu_plan(
    *,
    threads: int,
    concurrent_threads: bool,
    length: int,
    batch: int,
    input: int,
    hidden: int,
    projection: int,
    directions: int,
    backward: bool = False,
    element_bytes: int = 4,
    operand_bytes: int = 4,
    machine_figures: str = "",
) -> dict[str, Any]: ...
def gpu_plan(
    *,
    gpu: tuple[Any, ...],
    length: int,
    batch: int,
    input: int,
    hidden: int,
    projection: int,
    directions: int,
    backward: bool,
    element_bytes: int,
    tensor_cores: bool,
    ragged: bool = False,
    kernel_override: str | None = None,
    layers: int = 1,
) -> dict[str, Any]: ...
def gpu(
    index: int,
) -> tuple[int, int, int, int, list[int] | None, list[tuple[str, int, str]]]: ...
def kernel_override() -> str | None: ...
def use_kernel(name: str | None) -> None: ...
def measured_kernel(device: int, problem: tuple[list[int], bool, int, bool]) -> str | None: ...
def set_measured_kernel(
    device: int, problem: tuple[list[int], bool, int, bool], kernel: str
) -> None: ...
def forget_measured_kernels() -> None: ...
def frozen_pack(
    weights: list[Tensor], scales: list[Tensor], format: str, directions: int
) -> Tensor: ...
def frozen_unpack(packed: Tensor) -> tuple[list[Tensor], list[Tensor]]: ...
def frozen_keeps_fragments(device: torch.device) -> bool: ...
def frozen_pack_fragments(weights: list[Tensor], directions: int) -> list[Tensor]: ...
def frozen_step(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    h_n: Tensor,
    c_n: Tensor,
    packed: Sequence[Tensor],
    hidden_size: int,
    proj_size: int,
) -> Tensor: ...

class Stream:
    state: tuple[Tensor, Tensor]
    @property
    def batch_size(self) -> int: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...
    def reset(self, mask: Tensor | None = None) -> None: ...
    def fork(self) -> Stream: ...

def make_stream(packed: list[Tensor], batch_size: int) -> Stream: ...
def plain_lstm(
    input: object,
    hx: object,
    reset_to: object,
    weights: list[Tensor | None],
    names: list[str],
    parameters: dict[str, Parameter | None],
    num_layers: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    recompute: bool,
    /,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None: ...
def plain_cell(
    input: object,
    hx: object,
    parameters: dict[str, Parameter | None],
    bias: bool,
    input_size: int,
    hidden_size: int,
    /,
) -> tuple[Tensor, Tensor] | None: ...
def plain_frozen(
    input: object,
    hx: object,
    reset_to: object,
    packed: list[Tensor],
    input_size: int,
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    /,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | None: ...
