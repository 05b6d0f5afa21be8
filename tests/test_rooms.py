"""The rooms of the house, by their includes and imports: CONTRIBUTING.md says what each is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "fused_lstm"
# What each room may include, its own files aside; operators/ is the highest
BELOW = {
    "core": (),
    "plan": ("core",),
    "device": ("core", "plan"),
    "cpu": ("core", "plan"),
    "cuda": ("core", "plan"),
    "frozen": ("core", "plan", "cpu"),
    "library": ("core", "plan", "cpu", "frozen"),
}
# Files that know ATen: the interface of a device, and those of cpu/ and cuda/ that implement it
ATEN = re.compile(r"^device/|/(.*launch\.cpp|(cublas|packed_fragments)\.(h|cpp)|passes\.h)$")
TORCH = re.compile(r"(torch|ATen|c10)/")
# What each Python file may import of the package
IMPORTS = {
    "reference": set(),
    "_torch": set(),
    "ops": {"_C", "_extension", "_torch", "reference"},
    "init": set(),
    "cell": {"init", "leaf", "legacy_onnx", "ops"},
    "lstm": {"init", "leaf", "legacy_onnx", "ops"},
    "frozen": {"_C", "cell", "graph_stream", "leaf", "lstm", "ops", "replace"},
    "graph_stream": {"ops"},
    "models": {"frozen", "init", "lstm", "ops"},
}


def climbing(file: str, text: str) -> list[str]:
    """The includes that a file of csrc/ must not have."""
    room, knows_aten = file.split("/")[0], bool(ATEN.search(file))
    allowed = (room, *BELOW[room], *["device"] * knows_aten)
    found = []
    for kind, name in re.findall(r'^#include ([<"])([^>"]+)', text, re.M):
        climbs = kind == '"' and name.split("/")[0] not in allowed
        is_torch = kind == "<" and bool(TORCH.match(name))
        found += [name] * (climbs or (is_torch and not knows_aten))
    return found


@pytest.mark.skipif(not CSRC.exists(), reason="no sources here")
@pytest.mark.parametrize("room", BELOW)
def test_no_include_climbs_and_no_kernel_file_knows_torch(room):
    # Examples are programs outside of the house.
    files = [path for path in (CSRC / room).rglob("*.*") if "examples" not in path.parts]
    files = [path for path in files if path.suffix != ".md"]
    assert files
    for path in files:
        file = path.relative_to(CSRC).as_posix()
        assert not climbing(file, path.read_text(encoding="utf-8")), file


@pytest.mark.parametrize(
    ("file", "include"),
    [
        ("core/cell.h", '"plan/plan.h"'),
        ("plan/plan.h", '"cuda/ptx.h"'),
        ("cpu/lstm.inl", "<ATen/core/Tensor.h>"),
        ("cpu/lstm.inl", '"device/device.h"'),
        ("cuda/launch.cpp", '"cpu/kernels.h"'),
        ("cuda/launch.cpp", '"operators/layer.h"'),
        ("device/device.h", '"operators/layer.h"'),
        ("frozen/packed_layer.h", '"library/model.h"'),
        ("library/model.h", '"device/device.h"'),
        ("library/fused_lstm.cpp", "<torch/library.h>"),
    ],
)
def test_a_climbing_include_is_seen(file, include):
    assert climbing(file, f"#pragma once\n#include {include}\n")


@pytest.mark.parametrize("name", IMPORTS)
def test_no_import_climbs(name):
    path = PACKAGE / f"{name}.py"
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "fused_lstm":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fused_lstm."):
            imported.add(node.module.split(".")[1])
    assert imported <= IMPORTS[name]
