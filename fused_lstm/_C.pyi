from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_instruction_set() -> str: ...
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
    gpu: tuple[int, ...],
    length: int,
    batch: int,
    input: int,
    hidden: int,
    projection: int,
    directions: int,
    backward: bool,
    element_bytes: int,
    tensor_cores: bool,
    kernel_override: str | None = None,
) -> dict[str, Any]: ...
def gpu(index: int) -> tuple[int, int, int, int]: ...
def kernel_override() -> str | None: ...
def use_kernel(name: str | None) -> None: ...
