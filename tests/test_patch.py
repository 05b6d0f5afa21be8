"""patch: torch.nn.LSTM and LSTMCell name the fused modules, and afterwards torch's own again."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types

import pytest
import torch
from oracle import in_fresh_process, rand, twin
from torch import nn
from torch._dynamo.exc import Unsupported

from fused_lstm import FusedLSTM, FusedLSTMCell, patch, replace_lstm

NAMESPACES = (nn, nn.modules, nn.modules.rnn)
LSTM, LSTMCell = nn.LSTM, nn.LSTMCell


def named():
    return [(place.LSTM, place.LSTMCell) for place in NAMESPACES]


@pytest.fixture(autouse=True)
def _undone():
    yield
    assert named() == [(LSTM, LSTMCell)] * 3


def test_every_name():
    with patch():
        assert named() == [(FusedLSTM, FusedLSTMCell)] * 3
        from torch.nn import LSTM as imported

        assert imported is FusedLSTM
        assert type(nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5)) is FusedLSTM
        assert isinstance(nn.LSTMCell(3, 4), nn.LSTMCell)
    assert named() == [(LSTM, LSTMCell)] * 3


def test_as_a_call():
    handle = patch()
    assert nn.LSTM is FusedLSTM
    handle.undo()
    assert nn.LSTM is LSTM
    handle.undo()
    assert nn.LSTM is LSTM


def test_an_error_inside_undoes_it():
    with pytest.raises(ZeroDivisionError), patch():
        _ = 1 // 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_of_several_undoes_it(order):
    handles = [patch(), patch()]
    handles[order[0]].undo()
    handles[order[0]].undo()
    assert named() == [(FusedLSTM, FusedLSTMCell)] * 3
    handles[order[1]].undo()
    assert named() == [(LSTM, LSTMCell)] * 3


def test_names_return_as_they_were_found(monkeypatch):
    class Other(nn.LSTM):
        pass

    with monkeypatch.context() as context:
        context.setattr(nn, "LSTM", Other)
        with patch():
            assert nn.LSTM is FusedLSTM
        assert nn.LSTM is Other
        assert nn.modules.rnn.LSTM is LSTM


PACKAGE = """
import torch
from torch.nn import LSTMCell
from torch.nn.modules.rnn import LSTM

class Base(torch.nn.RNNBase):  # as in pytorch-forecasting
    def forward(self, x, hx=None, lengths=None):
        return super().forward(x, hx=hx)

class Zeroed(Base, torch.nn.LSTM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.nn.init.zeros_(self.bias_hh_l0)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(3, 4, bidirectional=True)
        self.zeroed = Zeroed(input_size=8, hidden_size=4)
        self.cell = LSTMCell(4, 4)

    def forward(self, x):
        x, _ = self.zeroed(self.lstm(x)[0])
        return self.cell(x[-1])[0]
"""


def imported(monkeypatch):
    module = types.ModuleType("package_with_lstms")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(PACKAGE, vars(module))
    return module


def test_a_package_imported_meanwhile(monkeypatch):
    """The same model with the same numbers, subclasses with a forward of their own included."""
    theirs = imported(monkeypatch).Model()
    with patch():
        package = imported(monkeypatch)
        ours = package.Model()
    assert package.Zeroed.__mro__[:3] == (package.Zeroed, package.Base, FusedLSTM)
    assert type(ours.lstm) is FusedLSTM
    assert type(ours.cell) is FusedLSTMCell
    assert type(package.Model().lstm) is FusedLSTM  # built afterwards
    ours.load_state_dict(theirs.state_dict())
    x = rand(5, 2, 3, dtype=torch.float32)
    outputs = [model(x) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4)
    torch.manual_seed(0)
    with patch():
        ours = nn.LSTM(3, 4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_whole_models_go_through_files():
    with patch():
        model = nn.Sequential(nn.LSTM(3, 4))
        file = io.BytesIO(pickle.dumps(model))
        copies = [copy.deepcopy(model), pickle.load(file)]
    file.seek(0)
    copies.append(pickle.load(file))  # the class has a name of its own, patched or not
    assert [type(one[0]) for one in copies] == [FusedLSTM] * 3


def test_replace_lstm_meanwhile():
    model = nn.Sequential(nn.LSTM(3, 4))
    with patch():
        assert replace_lstm(model, verbose=False) == ["0"]
    assert type(model[0]) is FusedLSTM


def test_compiled_afterwards():
    """In one graph; while the patch holds, torch.compile takes the module for an nn.LSTM."""
    torch.compiler.reset()
    with patch():
        model = nn.LSTM(3, 4)
        x = rand(5, 2, 3, dtype=torch.float32)
        expected, _ = twin(model, LSTM)(x)
        with pytest.raises(Unsupported):  # as nn.LSTM is, in other words from release to release
            torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.compiler.reset()
    output, _ = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(output, expected)


def test_other_threads_see_it(tmp_path):
    assert (
        in_fresh_process(
            """
            import threading
            from torch import nn
            import fused_lstm

            handles = []

            def several():
                for _ in range(200):
                    with fused_lstm.patch():
                        assert nn.LSTM is fused_lstm.FusedLSTM

            threads = [threading.Thread(target=several) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            print(nn.LSTM.__module__, nn.LSTMCell.__module__)
            """,
            tmp_path,
        )
        == "torch.nn.modules.rnn torch.nn.modules.rnn\n"
    )
