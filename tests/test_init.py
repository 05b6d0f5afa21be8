"""init_forget_bias and init_orthogonal of the layer and the cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fused_lstm import FusedLSTM, FusedLSTMCell

D, H, P = 3, 6, 2
MODULES = {
    "layer": lambda **more: FusedLSTM(D, H, **more),
    "deep": lambda **more: FusedLSTM(D, H, 2, bidirectional=True, **more),
    "projected": lambda **more: FusedLSTM(D, H, 2, proj_size=P, **more),
    "cell": lambda **more: FusedLSTMCell(D, H, **more),
}
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))


def changed(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@each_module
@pytest.mark.parametrize("value", [1.0, -2.5, 0.0])
def test_the_forget_gate_sees_the_value(make, value):
    module = make()
    before = snapshot(module)
    module.init_forget_bias(value)
    biases = {name for name in before if name.startswith("bias")}
    assert changed(module, before) == biases
    for name in (name for name in biases if name.startswith("bias_ih")):
        b_ih, b_hh = (module.get_parameter(n) for n in (name, name.replace("_ih", "_hh")))
        assert torch.equal((b_ih + b_hh)[H : 2 * H], torch.full((H,), value))
        for bias, was in ((b_ih, before[name]), (b_hh, before[name.replace("_ih", "_hh")])):
            assert torch.equal(bias[:H], was[:H])
            assert torch.equal(bias[2 * H :], was[2 * H :])
            assert bias.requires_grad


def test_the_default_is_one_in_the_gate_itself():
    module = FusedLSTM(D, H)
    nn.init.zeros_(module.weight_ih_l0)
    module.init_forget_bias()
    *_, states = module(torch.zeros(1, 1, D), return_states=True)
    expected = torch.full((H,), 1.0).sigmoid()
    torch.testing.assert_close(states.gates[0][0, 0, 1], expected)


@each_module
def test_without_biases_it_says_so(make):
    with pytest.raises(ValueError, match="bias is False, must be True"):
        make(bias=False).init_forget_bias()


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_gate_is_orthogonal(make, dtype):
    module = make(dtype=dtype)
    before = snapshot(module)
    torch.manual_seed(0)
    module.init_orthogonal(gain=0.5)
    names = {name for name in before if name.startswith("weight_hh")}
    assert changed(module, before) == names
    for name in names:
        blocks = module.get_parameter(name).detach().double().chunk(4)  # [H, P] each
        for block in blocks:
            eye = torch.eye(block.size(1), dtype=torch.float64)
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(block.t() @ block, 0.25 * eye, rtol=0, atol=tolerance)
        assert not torch.equal(blocks[0], blocks[1])


def test_it_draws_as_torch_does():
    module = FusedLSTM(D, H)
    torch.manual_seed(3)
    module.init_orthogonal()
    torch.manual_seed(3)
    expected = torch.cat([nn.init.orthogonal_(torch.empty(H, H)) for _ in range(4)])
    assert torch.equal(module.weight_hh_l0, expected)
    module.init_orthogonal(generator=torch.Generator().manual_seed(5))
    again = FusedLSTM(D, H)
    again.init_orthogonal(generator=torch.Generator().manual_seed(5))
    assert torch.equal(module.weight_hh_l0, again.weight_hh_l0)


def test_a_parametrised_weight_is_refused():
    module = FusedLSTM(D, H)
    parametrizations.weight_norm(module, "weight_hh_l0")
    with pytest.raises(RuntimeError, match="weight_hh_l0 is no parameter of its own"):
        module.init_orthogonal()
    module.init_forget_bias()
