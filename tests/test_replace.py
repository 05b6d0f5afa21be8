"""replace_lstm and restore_lstm: a model's LSTMs change their class and keep everything else."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from oracle import rand
from test_contract import (
    Doubled,
    old_weight_norm,
    parametrized,
    pruned,
    spectral_norm,
    weight_norm,
)
from torch import nn
from torch.nn.utils import parametrize

from fused_lstm import FusedLSTM, FusedLSTMCell, replace_lstm, restore_lstm


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
    report = replace_lstm(Model())
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert printed.splitlines() == [
        "encoder.lstm: LSTM(3, 4, num_layers=2, batch_first=True, dropout=0.5) -> FusedLSTM",
        "layers.1: LSTM(3, 4, proj_size=2) -> FusedLSTM",
        "cell: LSTMCell(2, 4) -> FusedLSTMCell",
    ]
    replace_lstm(nn.GRU(3, 4))
    assert capsys.readouterr().out == "no LSTM to swap\n"
    replace_lstm(Model(), verbose=False)
    assert capsys.readouterr().out == ""


def test_a_module_in_two_places_stays_one():
    lstm = nn.LSTM(3, 3)
    model = nn.ModuleDict({"a": lstm, "b": nn.Sequential(lstm)})
    assert replace_lstm(model, verbose=False) == ["a", "b.0"]
    assert type(model["a"]) is FusedLSTM
    assert model["a"] is model["b"][0]


def test_references_from_elsewhere_see_the_swap():
    model = nn.Sequential(nn.LSTM(3, 4))
    elsewhere = [model[0]]
    replace_lstm(model, verbose=False)
    assert elsewhere[0] is model[0]
    assert type(elsewhere[0]) is FusedLSTM


def test_hooks_stay():
    model = nn.Sequential(nn.LSTM(3, 4))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    replace_lstm(model, verbose=False)
    model(torch.zeros(2, 1, 3))
    assert calls == ["forward"]


class Mine(nn.LSTM):
    pass


def test_what_is_left_and_why(capsys):
    class MyCell(nn.LSTMCell):
        pass

    class Output(nn.Module):
        def forward(self, result: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]):
            return result[0]

    model = nn.ModuleDict({"mine": Mine(3, 4), "wrapped": nn.LSTM(3, 4), "cell": MyCell(3, 4)})
    model["wrapped"].forward = model["wrapped"].forward  # as accelerate's hooks do
    model["scripted"] = torch.jit.script(nn.Sequential(nn.LSTM(3, 4), Output()))
    model["swapped"] = nn.LSTM(3, 4)
    report = replace_lstm(model)
    assert report == ["swapped"]
    assert report.left == {
        "mine": "Mine is a subclass of LSTM, whose forward may differ",
        "wrapped": "its forward was set on the module itself",
        "cell": "MyCell is a subclass of LSTMCell, whose forward may differ",
        "scripted.0": "compiled by TorchScript; swap before that",
    }
    assert [type(model[name]) for name in ("mine", "wrapped", "cell")] == [Mine, nn.LSTM, MyCell]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "mine: left: Mine is a subclass of LSTM, whose forward may differ" in lines


@pytest.mark.parametrize(
    "change",
    [weight_norm, old_weight_norm, spectral_norm, pruned, parametrized],
)
@pytest.mark.parametrize("way", [replace_lstm, restore_lstm])
@torch.no_grad()  # deepcopy refuses weights that a graph computed
def test_parametrised_modules(change, way):
    """They compute what they did, from the same parameters, and can be changed back."""
    before, after = (nn.LSTM, FusedLSTM) if way is replace_lstm else (FusedLSTM, nn.LSTM)
    model = nn.Sequential(change(before(3, 4, 2).double()))
    x = rand(5, 2, 3)
    expected, parameters = model(x)[0], dict(model.named_parameters())
    assert way(model, verbose=False) == ["0"]
    assert isinstance(model[0], after)
    assert not isinstance(model[0], before)
    assert list(model.state_dict()) == list(way_back(way, deepcopy(model)).state_dict())
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert len(parameters) == len(list(model.parameters()))
    for one in (model, deepcopy(model)):
        torch.testing.assert_close(one(x)[0], expected)
        next(one.parameters()).mul_(2)
        assert not torch.equal(one(x)[0], expected)


def way_back(way, model):
    (restore_lstm if way is replace_lstm else replace_lstm)(model, verbose=False)
    return model


def test_remove_parametrizations():
    lstm = nn.LSTM(3, 4)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    parametrize.register_parametrization(lstm, "bias_hh_l0", Doubled())
    other = deepcopy(lstm)  # torch lets a copy share the class
    x = rand(5, 2, 3, dtype=torch.float32)
    expected, _ = lstm(x)
    assert replace_lstm(lstm, verbose=False).swapped[""].endswith("-> ParametrizedFusedLSTM")
    for name in ("weight_hh_l0", "bias_hh_l0"):
        parametrize.remove_parametrizations(lstm, name)
        torch.testing.assert_close(lstm(x)[0], expected)
    assert type(lstm) is FusedLSTM
    assert type(other).__bases__ == (nn.LSTM,)
    torch.testing.assert_close(other(x)[0], expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_a_model_that_is_itself_an_lstm(kind):
    model, x = kind(3, 4), rand(5, 3, dtype=torch.float32)
    expected = model(x)[0]
    assert replace_lstm(model, verbose=False) == [""]
    assert type(model) is {nn.LSTM: FusedLSTM, nn.LSTMCell: FusedLSTMCell}[kind]
    torch.testing.assert_close(model(x)[0], expected)


@pytest.mark.parametrize("way", [replace_lstm, restore_lstm])
@pytest.mark.parametrize("model", [nn.LSTM, [nn.LSTM(3, 4)]], ids=["class", "list"])
def test_what_is_no_module(way, model):
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}, must be"):
        way(model)


def test_there_and_back():
    """An identical model, with which an optimizer made before goes on."""
    torch.manual_seed(0)
    model = Model().eval().double()
    kept = deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model, kept)]
    modules = list(model.modules())
    x = rand(2, 5, 3)
    for step in range(3):
        if step == 1:
            assert replace_lstm(model, verbose=False) == NAMES
        if step == 2:
            assert restore_lstm(model, verbose=False) == NAMES
        for one, optimizer in zip((model, kept), optimizers, strict=True):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for one, other in zip(model.modules(), kept.modules(), strict=True):
        assert type(one) is type(other)
        assert vars(one).keys() == vars(other).keys()
    assert repr(model) == repr(kept)
    pickle.loads(pickle.dumps(model))


def test_restored_modules_are_those_of_torch():
    model = nn.ModuleDict({"lstm": FusedLSTM(3, 4, recompute=True), "cell": FusedLSTMCell(3, 4)})
    report = restore_lstm(model, verbose=False)
    assert report == ["lstm", "cell"]
    assert report.swapped["lstm"] == "FusedLSTM(3, 4, recompute=True) -> LSTM, without recompute"
    for name, theirs in {"lstm": nn.LSTM(3, 4), "cell": nn.LSTMCell(3, 4)}.items():
        assert type(model[name]) is type(theirs)
        assert vars(model[name]).keys() == vars(theirs).keys()


def test_restored_weights_lie_as_cudnn_wants_them(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: flattened.append(self))
    model = FusedLSTM(3, 4)
    restore_lstm(model, verbose=False)
    assert flattened == [model]


def test_subclasses_of_the_fused_class_are_left():
    class OfFused(FusedLSTM):
        pass

    model = nn.Sequential(OfFused(3, 4))
    report = restore_lstm(model, verbose=False)
    assert report == []
    assert report.left == {"0": "OfFused is a subclass of FusedLSTM, whose forward may differ"}


def test_the_state_dict_stays():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    replace_lstm(model, verbose=False)
    assert list(model.state_dict()) == list(before)
    Model().load_state_dict(model.state_dict())
