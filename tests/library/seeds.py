"""Small safetensors files, and a writer that also writes wrong ones: python seeds.py FOLDER."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8}


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def assemble(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A whole file of tensors, one after the other."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    return assemble(json.dumps(header).encode(), b"".join(t.data for t in tensors.values()))


def tensor(dtype: str, *shape: int) -> Tensor:
    """Random elements between -1 and 1, of I8 between -127 and 127."""
    count = 1
    for size in shape:
        count *= size
    if dtype == "I8":
        values = [random.randint(-127, 127) for _ in range(count)]
        return Tensor(dtype, shape, struct.pack(f"{count}b", *values))
    floats = [random.uniform(-1, 1) for _ in range(count)]
    if dtype == "BF16":
        data = b"".join(struct.pack("<f", value)[2:] for value in floats)
    else:
        data = struct.pack(f"<{count}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", *floats)
    return Tensor(dtype, shape, data)


def lstm(
    input_size: int,
    hidden_size: int,
    layers: int = 1,
    *,
    dtype: str = "F32",
    proj_size: int = 0,
    directions: int = 1,
    bias: bool = True,
    prefix: str = "",
) -> dict[str, Tensor]:
    """The tensors of an nn.LSTM, in its names; those of I8 with their scales."""
    tensors = {}
    features = proj_size or hidden_size
    for layer in range(layers):
        for direction in range(directions):
            suffix = f"_l{layer}" + "_reverse" * direction
            width = features * directions if layer else input_size
            shapes = {
                "weight_ih": (4 * hidden_size, width),
                "weight_hh": (4 * hidden_size, features),
            }
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for name, shape in shapes.items():
                tensors[prefix + name + suffix] = tensor(dtype, *shape)
                if dtype == "I8":
                    scales = struct.pack(f"<{shape[0]}f", *[1 / 64] * shape[0])
                    tensors[f"{prefix}{name}{suffix}_scale"] = Tensor("F32", shape[:1], scales)
            for name in ("bias_ih", "bias_hh") if bias else ():
                kind = "F32" if dtype == "I8" else dtype
                tensors[prefix + name + suffix] = tensor(kind, 4 * hidden_size)
    return tensors


def files() -> dict[str, bytes]:
    random.seed(1)
    head = {"fc.weight": tensor("F32", 2, 4), "fc.bias": tensor("F32", 2)}
    return {
        "plain": pack(lstm(3, 4)),
        "head": pack(lstm(3, 4, prefix="lstm.", bias=False) | head, {"format": "pt"}),
        "deep": pack(lstm(2, 3, 2, dtype="BF16", proj_size=2, directions=2)),
        "int8": pack(lstm(5, 4, 2, dtype="I8", prefix="lstm.")),
        "half": pack({"steps": Tensor("I64", (), bytes(8))} | lstm(1, 2, dtype="F16")),
        "double": pack(lstm(2, 2, dtype="F64") | {"empty": Tensor("F32", (0, 3), b"")}),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)
