"""replace_lstm: the fused modules take the place of nn.LSTM's, with the same parameters."""

from __future__ import annotations

import pytest
import torch
from oracle import rand
from torch import nn

from fused_lstm import FusedLSTM, FusedLSTMCell, replace_lstm


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True)})
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.LSTM(3, 4, proj_size=2)])
        self.cell = nn.LSTMCell(2, 4)
        self.gru = nn.GRU(4, 4)

    def forward(self, x):
        output, _ = self.encoder["lstm"](x)
        output, _ = self.layers[1](self.layers[0](output))
        return self.gru(self.cell(output[0])[0])[0]


NAMES = ["encoder.lstm", "layers.1", "cell"]


def test_every_lstm_is_swapped():
    model = Model().eval().double()
    x = rand(2, 5, 3)
    expected, parameters = model(x), list(model.parameters())
    settings = {name: model.get_submodule(name).extra_repr() for name in NAMES}
    assert replace_lstm(model) == NAMES
    kinds = [type(model.get_submodule(name)) for name in NAMES]
    assert kinds == [FusedLSTM, FusedLSTM, FusedLSTMCell]
    assert type(model.gru) is nn.GRU
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert {name: model.get_submodule(name).extra_repr() for name in NAMES} == settings
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    assert replace_lstm(model) == []


def test_an_optimizer_made_before_goes_on():
    torch.manual_seed(0)
    swapped = Model().eval().double()
    torch.manual_seed(0)
    kept = Model().eval().double()
    optimizers = [torch.optim.Adam(model.parameters()) for model in (swapped, kept)]
    x = rand(2, 5, 3)
    for step in range(4):
        if step == 2:
            replace_lstm(swapped, verbose=False)
        for model, optimizer in zip((swapped, kept), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(swapped.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_printed(capsys):
    replace_lstm(Model())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == NAMES
    assert lines[0].endswith("-> FusedLSTM")
    assert lines[2].endswith("-> FusedLSTMCell")
    replace_lstm(Model(), verbose=False)
    assert capsys.readouterr().out == ""


def test_a_module_in_two_places_stays_one():
    lstm = nn.LSTM(3, 3)
    model = nn.ModuleDict({"a": lstm, "b": nn.Sequential(lstm)})
    assert replace_lstm(model, verbose=False) == ["a", "b.0"]
    assert type(model["a"]) is FusedLSTM
    assert model["a"] is model["b"][0]


def test_hooks_stay():
    model = nn.Sequential(nn.LSTM(3, 4))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    replace_lstm(model, verbose=False)
    model(torch.zeros(2, 1, 3))
    assert calls == ["forward"]


def test_subclasses_are_left_alone():
    class Mine(nn.LSTM):
        pass

    model = nn.ModuleList([Mine(3, 4)])
    assert replace_lstm(model) == []
    assert type(model[0]) is Mine


def test_weight_norm_stays():
    model = nn.Sequential(nn.LSTM(3, 4).double())
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    x = rand(5, 2, 3)
    expected, _ = model(x)
    replace_lstm(model, verbose=False)
    torch.testing.assert_close(model(x)[0], expected)


@pytest.mark.parametrize("model", [nn.LSTM(3, 4), nn.LSTMCell(3, 4)], ids=["LSTM", "LSTMCell"])
def test_a_model_that_is_itself_an_lstm(model):
    kind = type(model).__name__
    with pytest.raises(TypeError, match=f"model is itself an {kind}.*Fused{kind}"):
        replace_lstm(model)


def test_the_state_dict_stays():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    replace_lstm(model, verbose=False)
    assert list(model.state_dict()) == list(before)
    Model().load_state_dict(model.state_dict())
