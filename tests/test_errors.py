"""Bad input: the exception types of nn.LSTM, and messages that say what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import NO_CUDA
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_lstm
from fused_lstm import _C, FusedLSTM, FusedLSTMCell, ops

T, B, D, H = 5, 4, 3, 6


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


def packed(data, batch_sizes):
    return PackedSequence(data, torch.tensor(batch_sizes))


def hx(hidden=(1, B, H), cell=(1, B, H)):
    return zeros(hidden), zeros(cell)


CONSTRUCTIONS = {
    "hidden_size of zero": ((3, 0), {}, "hidden_size"),
    "hidden_size of the wrong type": ((3, 4.0), {}, "hidden_size"),
    "num_layers of zero": ((3, 4, 0), {}, "num_layers"),
    "dropout above one": ((3, 4), {"dropout": 1.5}, "dropout"),
    "dropout below zero": ((3, 4), {"dropout": -0.5}, "dropout"),
    "dropout of the wrong type": ((3, 4), {"dropout": True}, "dropout"),
    "proj_size of hidden_size": ((3, 4), {"proj_size": 4}, "proj_size"),
    "proj_size below zero": ((3, 4), {"proj_size": -1}, "proj_size"),
    "an unknown argument": ((3, 4), {"hidden": 4}, "hidden"),
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_construction(case):
    arguments, options, message = CONSTRUCTIONS[case]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever nn.LSTM raises
        nn.LSTM(*arguments, **options)
    with pytest.raises(theirs.type, match=message):
        FusedLSTM(*arguments, **options)


def test_a_warning_about_dropout_in_one_layer():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        FusedLSTM(3, 4, dropout=0.5)


# input and hx of FusedLSTM(D, H), where nn.LSTM raises too; and what the message must say
CALLS = {
    "1-D input": ((zeros(D),), "input.*2D or 3D.*1D"),
    "4-D input": ((zeros(1, T, B, D),), "input.*2D or 3D.*4D"),
    "wrong number of features": ((zeros(T, B, D + 1),), r"input.*3.*4"),
    "no time steps": (
        (zeros(0, B, D),),
        "^Expected sequence length to be larger than 0 in RNN$",  # nn.LSTM's words
    ),
    "no time steps, no batch": (
        (zeros(0, D),),
        "^Expected sequence length to be larger than 0 in RNN$",
    ),
    "wrong dtype of the input": ((zeros(T, B, D, dtype=torch.float64),), "input.*float64|Double"),
    "integers": ((zeros(T, B, D, dtype=torch.int64),), "input.*int64|Long"),
    "too few layers in hx": (
        (zeros(T, B, D), hx((0, B, H), (0, B, H))),
        r"hidden\[0\].*\(1, 4, 6\).*\[0, 4, 6\]",
    ),
    "too many layers in hx": (
        (zeros(T, B, D), hx((2, B, H), (2, B, H))),
        r"hidden\[0\].*\(1, 4, 6\).*\[2, 4, 6\]",
    ),
    "wrong batch in hx": (
        (zeros(T, B, D), hx((1, 3, H), (1, 3, H))),
        r"hidden\[0\].*\(1, 4, 6\).*\[1, 3, 6\]",
    ),
    "wrong batch in cx": (
        (zeros(T, B, D), hx(cell=(1, 3, H))),
        r"hidden\[1\].*\(1, 4, 6\).*\[1, 3, 6\]",
    ),
    "wrong size of hx": ((zeros(T, B, D), hx((1, B, 5))), r"hidden\[0\].*\(1, 4, 6\).*\[1, 4, 5\]"),
    "wrong size of cx": (
        (zeros(T, B, D), hx(cell=(1, B, 5))),
        r"hidden\[1\].*\(1, 4, 6\).*\[1, 4, 5\]",
    ),
    "2-D hx for a batch": ((zeros(T, B, D), hx((1, H), (1, H))), "batched 3-D.*3-D.*2-D, 2-D"),
    "3-D hx without a batch": ((zeros(T, D), hx()), "unbatched 2-D.*2-D.*3-D, 3-D"),
    "wrong dtype of hx": (
        (zeros(T, B, D), (hx()[0].double(), hx()[1].double())),
        "h_0.*[Dd]ouble",
    ),
    "wrong dtype of cx": ((zeros(T, B, D), (hx()[0], hx()[1].double())), "c_0.*[Dd]ouble"),
    "hx on another device": (
        (zeros(T, B, D), (hx()[0].to("meta"), hx()[1])),
        "not at the same device, found input tensor at cpu and hidden tensor at meta",
    ),
    "hx with one state": ((zeros(T, B, D), hx()[:1]), "index"),
    "hx with three states": ((zeros(T, B, D), (*hx(), hx()[0])), "hx|hidden states"),
    "hx that is a tensor": ((zeros(T, B, D), hx()[0]), "hx and cx|out of bounds"),
    "no tensor": (([[1.0]],), "list"),
    "hx of None, packed": ((packed(zeros(6, D), [4, 2]), (None, None)), r"hx\[0\].*NoneType"),
    "hx that is a tensor, packed": ((packed(zeros(6, D), [4, 2]), hx()[0]), "hx is a tensor"),
    "wrong features, packed": ((packed(zeros(6, D + 1), [4, 2]),), "input.*3.*4"),
    "wrong batch in hx, packed": (
        (packed(zeros(6, D), [4, 2]), hx((1, 2, H), (1, 2, H))),
        r"hidden\[0\].*\(1, 4, 6\).*\[1, 2, 6\]",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(case):
    call, message = CALLS[case]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever nn.LSTM raises
        nn.LSTM(D, H)(*call)
    with pytest.raises(theirs.type, match=message):
        FusedLSTM(D, H)(*call)


def test_the_dtype_of_packed_input():
    """Checked as dense input is."""
    with pytest.raises(ValueError, match=r"input.*float64"):
        FusedLSTM(D, H)(packed(zeros(6, D).double(), [4, 2]))


# Calls that crash nn.LSTM 2.13, or that it computes something for


def test_packed_input_with_states_of_the_wrong_shape():
    states = (zeros(4, 1, 1), zeros(3, 2, 1))
    with pytest.raises(RuntimeError, match=r"hidden\[0\].*\(3, 3, 4\).*\[4, 1, 1\]"):
        FusedLSTM(3, 4, 3)(packed(zeros(5, 3), [3, 2]), states)
    with pytest.raises(RuntimeError, match=r"hidden\[0\].*\(3, 10, 4\).*\[4, 1, 1\]"):
        FusedLSTM(8, 4, 3)(packed(zeros(10, 8), [10]), states)


WEIGHTS = {
    "weight_ih_l0": zeros(4 * H, D + 1),
    "weight_hh_l0": zeros(4 * H, H - 1),
    "bias_ih_l0": zeros(4 * H - 1),
    "bias_hh_l0": zeros(4 * H, 1),
    "weight_hh_l1": zeros(4 * H, H, dtype=torch.float64),
    "weight_ih_l1": zeros(4 * H, H + 2),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_weight_that_does_not_fit(name, kind):
    module = FusedLSTM(D, H, 2)
    setattr(module, name, nn.Parameter(WEIGHTS[name]))
    x = zeros(T, B, D) if kind == "padded" else packed(zeros(6, D), [4, 2])
    with pytest.raises(RuntimeError, match=f"{name[:-3]}.* must be"):
        module(x)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"])
@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
def test_a_weight_that_is_none(name, kind, called):
    module = FusedLSTM(D, H, 2)
    x = zeros(T, B, D) if kind == "padded" else packed(zeros(6, D), [4, 2])
    if called:
        module(x)
    setattr(module, name, None)
    with pytest.raises(TypeError, match=f"^{name} is None, must be a tensor$"):
        module(x)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_a_weight_of_the_cell_that_is_none(name):
    cell = FusedLSTMCell(5, 3)
    setattr(cell, name, None)
    with pytest.raises(TypeError, match=f"^{name} is None, must be a tensor$"):
        cell(zeros(2, 5))


@pytest.mark.parametrize("names", [["bias_ih"], ["bias_hh"], ["bias_ih", "bias_hh"]], ids=str)
def test_a_bias_of_the_cell_that_is_none_counts_as_zeros(names):
    """As in nn.LSTMCell."""
    theirs, ours = nn.LSTMCell(5, 3), FusedLSTMCell(5, 3)
    ours.load_state_dict(theirs.state_dict())
    for cell in (ours, theirs):
        for name in names:
            setattr(cell, name, None)
    x = torch.ones(2, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_under_autocast(dtype):
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r"^input has dtype torch\.\w+, must have the weights'"),
    ):
        FusedLSTMCell(5, 3)(zeros(2, 5, dtype=dtype))


def test_a_weight_on_another_device_is_named():
    module = FusedLSTM(D, H)
    module.bias_ih_l0 = nn.Parameter(module.bias_ih_l0.detach().to("meta"))
    with pytest.raises(RuntimeError, match=r"weights\[2\] is on meta, must be on .* cpu"):
        module(zeros(T, B, D))


@pytest.mark.parametrize(
    ("variable", "code", "kind"),
    [
        ("FUSED_LSTM_KERNEL", "import fused_lstm", "ValueError"),
        (
            "FUSED_LSTM_CPU_ISA",
            "import torch, fused_lstm; fused_lstm.FusedLSTM(3, 4)(torch.zeros(1, 1, 3))",
            "RuntimeError",
        ),
    ],
)
def test_a_variable_that_names_nothing(variable, code, kind):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {variable: "foo", "PYTHONPATH": str(Path(fused_lstm.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(rf"{kind}: {variable} is 'foo'[,;] .*(must|can) be ", last), done.stderr


def test_a_projection_that_does_not_fit():
    module = FusedLSTM(D, H, proj_size=2)
    module.weight_hr_l0 = nn.Parameter(zeros(3, H))
    with pytest.raises(RuntimeError, match=r"weight_hr has shape \[3, 6\], must be \[2, 6\]"):
        module(zeros(T, B, D))


@pytest.mark.parametrize(
    ("batch_sizes", "message"),
    [
        ([2, 4], "must not increase, got 4 at step 1"),
        ([4, 0, 2], "must be positive.*got 0 at step 1"),
        ([7, -1], "must be positive.*got -1 at step 1"),
        ([4, 1], "add up to 5, must add up to the 6 rows"),
        ([4, 3], "add up to 7, must add up to the 6 rows"),
    ],
    ids=str,
)
def test_batch_sizes_that_do_not_fit(batch_sizes, message):
    with pytest.raises(RuntimeError, match=f"batch_sizes.*{message}"):
        FusedLSTM(D, H)(packed(zeros(6, D), batch_sizes))


def test_indices_that_do_not_fit():
    x = PackedSequence(
        zeros(6, D), torch.tensor([4, 2]), torch.tensor([0, 1]), torch.tensor([0, 1])
    )
    with pytest.raises(RuntimeError, match=r"h_0 has shape \[1, 2, 6\], must be \[1, 4, 6\]"):
        FusedLSTM(D, H)(x, hx())


# lengths and reset

LENGTHS = torch.tensor([1, 2, 3, 4])
RESET = torch.zeros(T, B, dtype=torch.bool)
OPTIONS = {
    "lengths of another batch": ({"lengths": LENGTHS[:3]}, RuntimeError, r"lengths.*\[3\].*\[4\]"),
    "lengths of floats": ({"lengths": LENGTHS.float()}, RuntimeError, "lengths.*float32.*int64"),
    "lengths of int32": ({"lengths": LENGTHS.int()}, RuntimeError, "lengths.*int32.*int64"),
    "lengths too long": ({"lengths": LENGTHS + 2}, RuntimeError, r"lengths\[3\] is 6.*0 and.*5"),
    "lengths below zero": ({"lengths": LENGTHS - 2}, RuntimeError, r"lengths\[0\] is -1.*0 and"),
    "lengths elsewhere": ({"lengths": LENGTHS.to("meta")}, RuntimeError, "lengths.*meta.*cpu"),
    "lengths of a list": ({"lengths": [1, 2, 3, 4]}, TypeError, "lengths.*list.*tensor"),
    "reset transposed": ({"reset": RESET.t()}, RuntimeError, r"reset.*\[4, 5\].*\[5, 4\]"),
    "reset of numbers": ({"reset": RESET.float()}, RuntimeError, "reset.*float32.*bool"),
    "reset elsewhere": ({"reset": RESET.to("meta")}, RuntimeError, "reset.*meta.*cpu"),
    "reset of a list": ({"reset": [[True]]}, TypeError, "reset.*list.*tensor"),
    "reset to elsewhere": ({"reset_to": "start"}, ValueError, "reset_to.*'start'.*'initial'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    options, kind, message = OPTIONS[case]
    with pytest.raises(kind, match=message):
        FusedLSTM(D, H)(zeros(T, B, D), **options)


@pytest.mark.parametrize(
    "options", [{"lengths": LENGTHS}, {"reset": RESET}], ids=["lengths", "reset"]
)
def test_options_beside_a_packed_sequence(options):
    x = pack_padded_sequence(zeros(T, B, D), [5, 5, 2, 1])
    with pytest.raises(ValueError, match=r"lengths and reset.*PackedSequence"):
        FusedLSTM(D, H)(x, **options)


def test_options_by_position():
    """Tools that call by the signature pass them so (torch.jit.trace, the legacy ONNX exporter)."""
    module, x = FusedLSTM(D, H), torch.randn(T, B, D)
    found, _ = module(x, None, LENGTHS, RESET)
    assert torch.equal(found, module(x, lengths=LENGTHS, reset=RESET)[0])


# The cell, of 5 features and 3 units

CELL_CALLS = {
    "3-D input": ((zeros(1, 2, 5),), "input.*1D or 2D.*3D"),
    "0-D input": ((zeros(()),), "input.*1D or 2D.*0D"),
    "wrong number of features": ((zeros(2, 4),), "input.*4.*5"),
    "wrong batch of hx": ((zeros(2, 5), (zeros(3, 3), zeros(3, 3))), "hidden0|h_0 has|hx"),
    "wrong batch of cx": ((zeros(2, 5), (zeros(2, 3), zeros(3, 3))), "hidden1"),
    "wrong size of hx": ((zeros(2, 5), (zeros(2, 4), zeros(2, 4))), "hidden0|h_0 has|hx"),
    "wrong size of cx": ((zeros(2, 5), (zeros(2, 3), zeros(2, 4))), "hidden1"),
    "wrong dtype of the input": ((zeros(2, 5).double(),), "^input.*float64.*float32$"),
    "wrong dtype of the input beside hx": (
        (zeros(2, 5).double(), (zeros(2, 3), zeros(2, 3))),
        "^input.*float64.*float32$",
    ),
    "integers": ((zeros(2, 5).long(),), "^input.*int64.*float32$"),
    "wrong dtype of hx": (
        (zeros(2, 5), (zeros(2, 3).double(), zeros(2, 3))),
        "hidden0|h_0 has|hx",
    ),
    "3-D hx": ((zeros(2, 5), (zeros(1, 2, 3), zeros(1, 2, 3))), r"hx\[0\].*1D or 2D.*3D"),
    "hx without the batch": ((zeros(2, 5), (zeros(3), zeros(3))), "hidden0|h_0 has|hx"),
    "hx with one state": ((zeros(2, 5), (zeros(2, 3),)), "lstm_cell expects two hidden states"),
    "hx with three states": (
        (zeros(2, 5), (zeros(2, 3),) * 3),
        "lstm_cell expects two hidden states",
    ),
    "hx that is a tensor": ((zeros(2, 5), zeros(2, 3)), "hx"),
    "no tensor": (([1.0],), "list"),
}


@pytest.mark.parametrize("case", CELL_CALLS)
def test_cell_calls(case):
    call, message = CELL_CALLS[case]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever nn.LSTMCell raises
        nn.LSTMCell(5, 3)(*call)
    with pytest.raises(theirs.type, match=message):
        FusedLSTMCell(5, 3)(*call)


def test_cell_with_a_batch_in_the_state_alone():
    """This one crashes nn.LSTMCell 2.13."""
    with pytest.raises(RuntimeError, match=r"hx\[0\] is 2D, must be 1D"):
        FusedLSTMCell(5, 3)(zeros(5), (zeros(2, 3), zeros(2, 3)))


# The operators, called without the modules' checks


def test_operators_check_for_themselves():
    x, hidden, cell = zeros(T, B, D), zeros(1, B, H), zeros(1, B, H)
    weights = [zeros(4 * H, D), zeros(4 * H, H)]
    for call, message in [
        ((x[0], hidden, cell, weights), "input must be"),
        ((x, hidden[0], cell, weights), "h_0 and c_0 must be"),
        ((x, hidden.expand(3, B, H), cell, weights), "directions"),
        ((x, hidden, cell, weights[:1]), "weights has 1"),
        ((x, hidden, cell, weights * 3), "weights has 6"),
        ((x, hidden[..., :5], cell, weights), "h_0 has 5 features"),
        ((x[:0], hidden, cell, weights), "no time steps"),
        ((x.int(), hidden, cell, weights), "dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.layer(*call)
    with pytest.raises(RuntimeError, match="no CPU kernel for dtype"):
        ops.layer(x.int(), hidden.int(), cell.int(), [w.int() for w in weights])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_layer_is_not_called_as_a_cell_nor_a_cell_as_a_layer(needs_grad):
    weights = [zeros(4 * H, D).requires_grad_(needs_grad), zeros(4 * H, H)]
    sizes = torch.tensor([B])
    with pytest.raises(RuntimeError, match=r"must be \[directions, B, P\]"):
        ops.layer(zeros(B, D), zeros(B, H), zeros(B, H), weights, batch_sizes=sizes)
    with pytest.raises(RuntimeError, match=r"must be \[B, D\], \[B, H\] and \[B, H\]"):
        ops.cell(zeros(1, B, D), zeros(1, B, H), zeros(1, B, H), weights)


@pytest.mark.cuda
@pytest.mark.skipif(bool(NO_CUDA), reason=str(NO_CUDA))
@pytest.mark.parametrize("elsewhere", ["input", "hx", "lengths", "module"])
def test_tensors_on_two_devices(elsewhere):
    device = dict.fromkeys(("input", "hx", "lengths", "module"), "cuda") | {elsewhere: "cpu"}
    module = FusedLSTM(D, H, device=device["module"])
    with pytest.raises(RuntimeError, match="cpu"):
        module(
            zeros(T, B, D, device=device["input"]),
            tuple(state.to(device["hx"]) for state in hx()),
            lengths=LENGTHS.to(device["lengths"]),
        )


@pytest.mark.skipif(
    not torch.cuda.is_available() or _C.build_info()["cuda"],
    reason="needs a CUDA GPU and a build without CUDA",
)
def test_a_build_without_cuda_says_so():
    with pytest.raises(RuntimeError, match="built without CUDA; rebuild"):
        FusedLSTM(D, H, device="cuda")(zeros(T, B, D, device="cuda"))
