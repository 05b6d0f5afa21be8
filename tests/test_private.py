"""Parts of torch that it does not promise to keep: one file each side has them, and each has a
stand-in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from oracle import in_fresh_process

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("folder", "home", "pattern"),
    [
        ("fused_lstm", "_torch.py", r"\b(torch|torch\.[\w.]+|forward_ad|nn|F)\._[A-Za-z]\w*"),
        (
            "csrc",
            "torch_private.h",
            r"\b(at::(detail|impl|native)|torch::detail|c10::(impl|detail))::",
        ),
    ],
)
def test_they_stand_in_one_file(folder, home, pattern):
    files = [path for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".cpp", ".h")]
    named = {path.name for path in files if re.search(pattern, path.read_text())}
    assert named == {home}


# A torch without each of them. What it needs for itself is put back once fused_lstm is imported.
CODE = """
    import torch
    from torch.autograd import forward_ad

    module, name = {module}, {name!r}
    private = getattr(module, name)
    delattr(module, name)
    import fused_lstm
    setattr(module, name, private)
    torch.manual_seed(0)
    lstm, cell = fused_lstm.FusedLSTM(3, 4).double(), fused_lstm.FusedLSTMCell(3, 4).double()
    x = torch.randn(5, 2, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x)
    assert "LayerFunction" in lstm(x)[0].grad_fn.name()  # not the reference
    for call in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(call(lambda x: lstm(x)[0])(x), jacobian)
    torch.testing.assert_close(torch.func.vmap(cell)(x), torch.func.vmap(cell)(x))
    torch.testing.assert_close(torch.func.vmap(cell)(x)[0][0], cell(x[0])[0])
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        output = lstm(forward_ad.make_dual(x, tangent))[0]
        found = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(found, torch.einsum("abcdef,def->abc", jacobian, tangent))
    print("works")
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch._C", "_are_functorch_transforms_active"), ("forward_ad", "_current_level")],
)
def test_a_torch_without_it(module, name, tmp_path):
    assert "works" in in_fresh_process(CODE.format(module=module, name=name), tmp_path)
