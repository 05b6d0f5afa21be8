"""Tools that go by a module's exact type: what they say of nn.LSTM they say of a restored model."""

from __future__ import annotations

import pytest
import torch
from oracle import rand
from torch import nn

from fused_lstm import FusedLSTM, FusedLSTMCell, restore_lstm

pytestmark = pytest.mark.filterwarnings("ignore")  # the tools' own
T, D, H = 5, 16, 32


class Model(nn.Module):
    def __init__(self, lstm=FusedLSTM, cell=FusedLSTMCell):
        super().__init__()
        self.lstm = lstm(D, H, 2, batch_first=True)
        self.cell = cell(H, H)
        self.linear = nn.Linear(H, 2)

    def forward(self, x):
        return self.linear(self.cell(self.lstm(x)[0][:, -1])[0])


def thop(model):
    count = pytest.importorskip("thop").profile
    return count(model, inputs=(torch.zeros(1, T, D),), verbose=False)


def thop_with_hooks(model):
    hooks = pytest.importorskip("thop.rnn_hooks")
    custom = {FusedLSTM: hooks.count_lstm, FusedLSTMCell: hooks.count_lstm_cell}
    count = pytest.importorskip("thop").profile
    return count(model, inputs=(torch.zeros(1, T, D),), custom_ops=custom, verbose=False)


def ptflops(model):
    count = pytest.importorskip("ptflops").get_model_complexity_info
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    return count(model, (T, D), **options)


def torch_pruning(model):
    pytest.importorskip("torch_pruning")
    from torch_pruning.utils import count_ops_and_params

    return count_ops_and_params(model, torch.zeros(1, T, D))


@pytest.mark.parametrize("count", [thop, ptflops, torch_pruning])
def test_counters_of_operations(count):
    restored = Model()
    restore_lstm(restored, verbose=False)
    counted = count(restored)
    assert counted == count(Model(nn.LSTM, nn.LSTMCell))
    weights = sum(p.numel() for p in restored.parameters())
    assert counted[1] == weights
    assert counted[0] > weights  # each weight of the layers is used T times


def test_hooks_for_thop():
    assert thop_with_hooks(Model()) == thop(Model(nn.LSTM, nn.LSTMCell))


def test_opacus():
    """ModuleValidator refuses the layer and makes a DPLSTM of it, which trains."""
    opacus = pytest.importorskip("opacus")
    from opacus.validators import ModuleValidator

    model = nn.Sequential(FusedLSTM(D, H, batch_first=True))
    x = rand(4, T, D, dtype=torch.float32)
    expected = model(x)[0]
    (refusal,) = ModuleValidator.validate(model)
    assert "FusedLSTM" in str(refusal)
    assert "must be a DPLSTM" in str(refusal)
    model = ModuleValidator.fix(model)
    assert type(model[0]).__name__ == "DPLSTM"
    torch.testing.assert_close(model(x)[0], expected)
    model = opacus.GradSampleModule(model, loss_reduction="sum")
    model(x)[0].square().sum().backward()
    (refusal,) = ModuleValidator.validate(nn.Sequential(FusedLSTMCell(D, H)))
    assert "FusedLSTMCell" in str(refusal)
    for parameter in model.parameters():
        assert parameter.grad_sample.shape == (4, *parameter.shape)
        torch.testing.assert_close(parameter.grad_sample.sum(0), parameter.grad)
