"""quantize_dynamic makes of a fused module what it makes of nn.LSTM, or says that it does not."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import rand
from torch import nn

from fused_lstm import FusedLSTM, FusedLSTMCell, patch, restore_lstm

quantization = pytest.importorskip("torch.ao.quantization")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(deprecated|is faster|torch.quantize)"),
    pytest.mark.filterwarnings("error:torch.ao.quantization leaves"),
    pytest.mark.skipif(
        torch.backends.quantized.engine == "none", reason="needs a quantised engine"
    ),
]


class Model(nn.Module):
    def __init__(self, lstm, cell):
        super().__init__()
        self.lstm = lstm(3, 4, 2, bidirectional=True)
        self.cell = cell(8, 4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.cell(self.lstm(x)[0][-1])[0])


def pair():
    theirs, ours = Model(nn.LSTM, nn.LSTMCell), Model(FusedLSTM, FusedLSTMCell)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


TORCHS = {nn.LSTM, nn.LSTMCell}
FUSED = {FusedLSTM, FusedLSTMCell}


@pytest.mark.parametrize("kind", [torch.qint8, torch.float16], ids=["int8", "float16"])
@pytest.mark.parametrize(
    "named", [FUSED, {"lstm", "cell"}, FUSED | TORCHS], ids=["classes", "modules", "both"]
)
def test_named_in_the_specification(kind, named):
    ours, theirs = pair()
    x = rand(5, 2, 3, dtype=torch.float32)
    expected = quantization.quantize_dynamic(theirs, TORCHS, dtype=kind)
    quantised = quantization.quantize_dynamic(ours, named, dtype=kind)
    assert repr(quantised) == repr(expected)
    assert torch.equal(quantised(x), expected(x))
    assert not torch.equal(quantised(x), ours(x))  # which stays as it is
    assert type(ours.lstm) is FusedLSTM
    assert type(ours.cell) is FusedLSTMCell


@pytest.mark.parametrize("named", [TORCHS, None], ids=["nn.LSTM", "default"])
def test_passed_over_with_a_warning(named):
    ours, _ = pair()
    with (
        pytest.warns(UserWarning, match=r"fused_lstm.FusedLSTM in .*restore_lstm\(model\)"),
        pytest.warns(UserWarning, match="fused_lstm.FusedLSTMCell in "),
    ):
        quantised = quantization.quantize_dynamic(ours, named)
    assert type(quantised.lstm) is FusedLSTM
    assert not hasattr(quantised.lstm, "qconfig")


def test_restored_first():
    ours, theirs = pair()
    restore_lstm(ours, verbose=False)
    x = rand(5, 2, 3, dtype=torch.float32)
    expected = quantization.quantize_dynamic(theirs)
    quantised = quantization.quantize_dynamic(ours)
    assert repr(quantised) == repr(expected)
    assert torch.equal(quantised(x), expected(x))


@pytest.mark.parametrize("in_default", [True, False])
def test_while_patched(in_default):
    ours, theirs = pair()
    x = rand(5, 2, 3, dtype=torch.float32)
    expected = quantization.quantize_dynamic(theirs, TORCHS | {nn.Linear})
    with patch():
        named = None if in_default else {nn.LSTM, nn.LSTMCell, nn.Linear}
        quantised = quantization.quantize_dynamic(ours, named)
    assert repr(quantised) == repr(expected)
    assert torch.equal(quantised(x), expected(x))


def test_qconfig_is_an_ordinary_attribute_otherwise():
    module = FusedLSTM(3, 4)
    assert not hasattr(module, "qconfig")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.qconfig = quantization.default_dynamic_qconfig
    assert module.qconfig is quantization.default_dynamic_qconfig
    del module.qconfig
    assert not hasattr(module, "qconfig")
