from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_instruction_set() -> str: ...
def plan(
    *,
    cuda: bool,
    threads: int,
    team: bool,
    length: int,
    batch: int,
    input: int,
    hidden: int,
    projection: int,
    directions: int,
    lanes: int = 16,
) -> dict[str, Any]: ...
