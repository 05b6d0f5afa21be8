"""Frozen layers: their numbers in each format, the contract of a call, files, copies, compilers."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import rounding
import torch
from oracle import (
    assert_accurate,
    assert_close,
    cast,
    error,
    flatten,
    in_fresh_process,
    rand,
    rand_state,
    reference_lstm,
    twin,
)
from test_contract import old_weight_norm, parametrized, pruned, spectral_norm, weight_norm
from test_cpu_kernels import SETS
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fused_lstm
from fused_lstm import (
    _C,
    FrozenLSTM,
    FrozenLSTMCell,
    FusedLSTM,
    FusedLSTMCell,
    freeze,
    models,
    ops,
)

FORMATS = ["float32", "bfloat16", "int8"]
T, B, D, H = 7, 5, 9, 19
LAYERS = {
    "one layer": {},
    "no bias": {"bias": False},
    "layers": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projection": {"num_layers": 2, "proj_size": 6},
    "batch first": {"batch_first": True},
    "everything": {
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "bidirectional": True,
        "proj_size": 6,
    },
}


def layer(name="one layer", features=D, units=H, dtype=torch.float32):
    return FusedLSTM(features, units, **LAYERS[name], dtype=dtype)


def padded(module, steps=T, batch=B):
    shape = (batch, steps) if module.batch_first else (steps, batch)
    return rand(*shape, module.input_size, dtype=torch.float32)


def dyadic(module):
    """Weights that int8 holds exactly, with scales that are powers of two."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-126, 127, parameter.shape) / 512)
            if parameter.dim() == 2:
                parameter[:, 0] = 127 / 512
    return module


def dyadic_rows(*shape):
    """Activations that int8 holds exactly, with scales that are powers of two."""
    rows = torch.randint(-126, 127, shape) / 64
    rows[..., 0] = 127 / 64
    return rows


def truth_of(module, input, hx=None, **options):
    """The results in float64, and what rounding in float32 may do to them."""
    wide = twin(module, FusedLSTM, torch.float64)
    call = (cast(input, torch.float64), cast(hx, torch.float64))
    return rounding.model(
        lambda: {
            name: result.detach()
            for name, result in flatten(reference_lstm(wide, *call, **options)).items()
        },
        torch.float32,
        1,
        set(),
    )


def errors_of(call, truth):
    return {name: error(result, truth[name]) for name, result in flatten(call).items()}


class TestNumbers:
    """Also run on each instruction set, by a test below."""

    @pytest.mark.parametrize("units", [1, 19, 64, 130])
    @pytest.mark.parametrize("name", LAYERS)
    def test_float32(self, name, units):
        module = layer(name, units=max(units, 7) if "proj_size" in LAYERS[name] else units)
        x, hx = padded(module), rand_state(module, B)
        assert_accurate(flatten(freeze(module)(x, hx)), truth_of(module, x, hx))

    @pytest.mark.parametrize("units", [1, 19, 64, 130])
    @pytest.mark.parametrize("name", LAYERS)
    def test_bfloat16(self, name, units):
        """The preactivations are off by 2^-8 of their terms at most, and typically much less."""
        module = layer(name, units=max(units, 7) if "proj_size" in LAYERS[name] else units)
        x, hx = padded(module), rand_state(module, B)
        truth = truth_of(module, x, hx).values
        for result, off in errors_of(freeze(module, "bfloat16")(x, hx), truth).items():
            assert off < 0.02, result

    @pytest.mark.parametrize("units", [1, 19, 64, 130])
    @pytest.mark.parametrize("name", LAYERS)
    def test_int8(self, name, units):
        """Where nothing is rounded to int8 all is as in float32: products are summed exactly."""
        options = LAYERS[name] | {"num_layers": 1}
        module = dyadic(FusedLSTM(D, max(units, 7), **options))
        states = 2 if module.bidirectional else 1
        if "proj_size" in options:  # h is rounded before it is projected
            with torch.no_grad():
                for parameter in (w for n, w in module.named_parameters() if "hr" in n):
                    parameter.zero_()
        h_0 = dyadic_rows(states, B, options.get("proj_size", module.hidden_size))
        x = dyadic_rows(*((B, 1) if module.batch_first else (1, B)), D)
        hx = (h_0, rand(states, B, module.hidden_size, dtype=torch.float32))
        assert_accurate(flatten(freeze(module, "int8")(x, hx)), truth_of(module, x, hx))

    def test_int8_by_its_definition(self):
        """The step of a layer: weights and activations rounded, the rest in float64."""
        module, x = layer(), padded(layer(), steps=1)
        frozen = freeze(module, "int8")
        stored = frozen.state_dict()
        scale = x.abs().amax(-1, keepdim=True) / 127
        rounded = (x / scale).round().double() * scale
        wide = twin(module, FusedLSTM, torch.float64)
        with torch.no_grad():
            for kind in ("weight_ih_l0", "weight_hh_l0"):
                scales = stored[f"{kind}_scale"].double()[:, None]
                getattr(wide, kind).copy_(stored[kind].double() * scales)
        expected = flatten(wide(rounded))
        assert_close(flatten(frozen(x)), expected)

    @pytest.mark.parametrize("kind", FORMATS)
    def test_packing_is_undone_to_the_bit(self, kind):
        frozen = freeze(layer("everything"), kind)
        packed = [buffer.clone() for buffer in frozen.buffers()]
        before = frozen.state_dict()
        frozen.load_state_dict(before)
        assert all(map(torch.equal, packed, frozen.buffers()))
        after = frozen.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.parametrize("kind", FORMATS)
    def test_nan_stays_in_its_sequence(self, kind):
        x = padded(layer())
        x[2, 1] = torch.nan
        output, _ = freeze(layer(), kind)(x)
        assert output[2:, 1].isnan().all()
        assert not output[:2].isnan().any()
        assert not output[:, 2:].isnan().any()


@pytest.mark.parametrize("name", SETS)
def test_numbers_on_each_instruction_set(name):
    environment = os.environ | {"FUSED_LSTM_CPU_ISA": name}
    call = f"from fused_lstm import _C; assert _C.cpu_instruction_set() == {name!r}"
    known = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True)
    if known.returncode != 0:
        assert b"on this processor it can be" in known.stderr
        pytest.skip(f"this processor has no {name}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "TestNumbers"]
    done = subprocess.run(
        [*command, __file__], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("features", "units", "steps"), [(64, 64, 50), (10, 128, 30)])
def test_int8_is_no_further_off_than_quantize_dynamic(features, units, steps):
    module = nn.LSTM(features, units)
    x = torch.randn(steps, 4, features)
    model = nn.Sequential(module)  # the root itself is left as it is
    theirs = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, torch.qint8)
    truth = truth_of(twin(module, FusedLSTM), x).values
    theirs_off = errors_of(theirs(x), truth)
    for result, off in errors_of(freeze(module, "int8")(x), truth).items():
        assert off <= theirs_off[result], result


def test_bfloat16_is_no_further_off_than_a_bfloat16_layer():
    module = FusedLSTM(64, 128, 2)
    x = torch.randn(50, 4, 64)
    truth = truth_of(module, x).values
    theirs = errors_of(twin(module, FusedLSTM, torch.bfloat16)(x.bfloat16()), truth)
    for result, off in errors_of(freeze(module, "bfloat16")(x), truth).items():
        assert off <= theirs[result], result


@pytest.mark.parametrize("units", [1, 17, 65])
def test_the_stated_bound_of_int8(units):
    """Of one product, which the candidate gate shows: about K max|w| max|x| / 128."""
    module = FusedLSTM(D, units, bias=False)
    with torch.no_grad():
        module.weight_ih_l0.mul_(0.01)  # tanh is the identity, i is a half
    x = padded(module, steps=1)
    exact = (x[0].double() @ module.weight_ih_l0.double().T).chunk(4, 1)[2]
    _, (_, c_n) = freeze(module, "int8")(x)
    wide = twin(module, FusedLSTM, torch.float64)
    _, (_, true) = wide(x.double())
    most = module.weight_ih_l0.abs().amax() * x.abs().amax()
    assert exact.abs().max() > 0
    assert error(c_n, true) <= D * most.item() / 128


# A call as FusedLSTM takes it.


def calls(module):
    x, hx = padded(module), rand_state(module, B)
    lengths = torch.tensor([7, 0, 3, 1, 7])
    reset = torch.arange(T * B).view(T, B) % 4 == 0
    reset = reset.T.contiguous() if module.batch_first else reset
    one = x[0] if module.batch_first else x[:, 0]
    yield "zero state", (x,), {}
    yield "state", (x, hx), {}
    yield "a list for a state", (x, list(hx)), {}
    yield "no batch", (one, rand_state(module, None)), {}
    yield "no batch, zero state", (one,), {}
    yield "no batch, a length", (one,), {"lengths": torch.tensor(3)}
    yield "lengths", (x, hx), {"lengths": lengths}
    yield "reset", (x, hx), {"reset": reset}
    yield "reset to the state", (x, hx), {"reset": reset, "reset_to": "initial"}
    yield "lengths and reset", (x, hx), {"lengths": lengths, "reset": reset}
    yield "strided", (x.flip(0)[..., ::1].transpose(0, 1).contiguous().transpose(0, 1), hx), {}
    yield "no sequence", (x[:0] if module.batch_first else x[:, :0],), {}
    sorted_ = pack_padded_sequence(x, [7, 4, 4, 2, 1], batch_first=module.batch_first)
    yield "packed", (sorted_, hx), {}
    yield "packed, zero state", (sorted_,), {}
    unsorted = pack_sequence([rand(n, D, dtype=torch.float32) for n in (2, 5, 1)], False)
    yield "packed in any order", (unsorted, rand_state(module, 3)), {}


@pytest.mark.parametrize("name", LAYERS)
def test_every_call_of_a_layer(name):
    module = layer(name)
    frozen = freeze(module)
    for what, arguments, options in calls(module):
        ours, theirs = frozen(*arguments, **options), module(*arguments, **options)
        assert type(ours[0]) is type(theirs[0]), what
        assert_close(flatten(ours), {k: v.detach() for k, v in flatten(theirs).items()})
        if not isinstance(ours[0], torch.Tensor):
            assert torch.equal(ours[0].batch_sizes, theirs[0].batch_sizes)
            assert (ours[0].unsorted_indices is None) == (theirs[0].unsorted_indices is None)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_outside(dtype, kind):
    """A model in 16 bits, whose results are those of float32, rounded."""
    module = layer("layers", dtype=dtype)
    frozen = freeze(module, kind)
    x, hx = padded(module).to(dtype), rand_state(module, B)
    ours = flatten(frozen(x, hx))
    exact = flatten(
        freeze(twin(module, FusedLSTM, torch.float32), kind)(*cast((x, hx), torch.float32))
    )
    for result, value in ours.items():
        assert value.dtype == dtype
        assert torch.equal(value, exact[result].to(dtype))
    _, (h_n, c_n) = frozen(x, (hx[0], hx[1].float()))
    assert (h_n.dtype, c_n.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("cell", [nn.LSTMCell, FusedLSTMCell])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell(cell, bias, kind):
    module = cell(D, H, bias)
    frozen = freeze(module, kind)
    assert type(frozen) is FrozenLSTMCell
    tolerance = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.05}[kind]
    x, hx = rand(B, D, dtype=torch.float32), tuple(rand(2, B, H, dtype=torch.float32))
    for arguments in ((x,), (x, hx), (x[0], (hx[0][0], hx[1][0])), (x[0],)):
        ours, theirs = frozen(*arguments), module(*arguments)
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    assert [n.removesuffix("_scale") for n in frozen.state_dict() if "scale" not in n] == [
        n for n, _ in module.named_parameters()
    ]


def wrong_calls():
    frozen = freeze(layer("layers"))
    x, hx = padded(frozen), rand_state(layer("layers"), B)
    yield (x[None],), ValueError, "FrozenLSTM: Expected input to be 2D or 3D, got 4D"
    yield (x[..., 1:],), RuntimeError, "must be equal to input_size. Expected 9, got 8"
    yield (x.double(),), ValueError, "input has dtype torch.float64, must be float32, bfloat16"
    yield (x[:0],), RuntimeError, "Expected sequence length to be larger than 0"
    yield (x, hx[0]), RuntimeError, "hx and cx should also be 3-D but got"
    yield (x, torch.stack(hx)), TypeError, "hx is a tensor, must be a tuple"
    yield (x, (hx[0][1:], hx[1])), RuntimeError, r"Expected hidden\[0\] size \(3, 5, 19\)"
    yield (x, (hx[0], hx[1][..., 1:])), RuntimeError, r"Expected hidden\[1\] size"
    yield (x, (hx[0], hx[1].double())), RuntimeError, "c_0 has dtype Double, must be float32"
    yield (x, None, torch.tensor([1, 2])), RuntimeError, r"lengths has shape \[2\], must be \[5\]"
    yield (x, None, torch.full((B,), 8)), RuntimeError, r"lengths\[0\] is 8, must be between"
    yield (x, None, None, torch.zeros(T, B)), RuntimeError, "reset has dtype torch.float32"
    yield (x, None, None, None, "one"), ValueError, "reset_to is 'one', must be"
    yield (x, None, None, None, "zero", True), ValueError, "return_states is True, must be False"
    yield (x.to("meta"),), RuntimeError, r"packed\[0\] is on cpu, must be on the input's device"
    leaf = x.clone().requires_grad_()
    yield (leaf,), RuntimeError, "input requires grad, but a frozen layer has no"
    state = (hx[0].clone().requires_grad_(), hx[1])
    yield (x, state), RuntimeError, "h_0 requires grad, but .* train the layer it was"


@pytest.mark.parametrize(("arguments", "kind", "message"), list(wrong_calls()))
def test_errors_of_a_call(arguments, kind, message):
    with pytest.raises(kind, match=message):
        freeze(layer("layers"))(*arguments)


def test_without_recording_an_input_may_require_grad():
    x = padded(layer()).requires_grad_()
    with torch.no_grad():
        output, _ = freeze(layer())(x)
    assert not output.requires_grad


def operator(*packed, x=None, hidden_size=H, proj_size=0, bidirectional=False, **options):
    x = rand(T, B, D, dtype=torch.float32) if x is None else x
    function = torch.ops.fused_lstm.frozen_lstm.default
    return function(x, None, None, list(packed), hidden_size, proj_size, bidirectional, **options)


def test_errors_of_the_operator():
    (packed,) = freeze(layer()).buffers()
    wrong = [
        (lambda: operator(), "packed is empty, must have a tensor for each layer"),
        (lambda: operator(packed.view(1, -1)), r"packed\[0\] has shape .*, must be \[bytes\]"),
        (lambda: operator(packed.char()), r"packed\[0\] has dtype Char, must be Byte"),
        (lambda: operator(packed[:50]), r"packed\[0\]: a frozen layer of 50 bytes, must be"),
        (lambda: operator(packed[:-64]), rf"packed\[0\]: a frozen layer of {len(packed) - 64} "),
        (lambda: operator(torch.zeros_like(packed)), "the bytes are no frozen layer"),
        (lambda: operator(packed, packed), r"packed\[1\] has input_size 9, must have 19"),
        (lambda: operator(packed, hidden_size=8), "has hidden_size 19, must have 8"),
        (lambda: operator(packed, proj_size=3), "has proj_size 0, must have 3"),
        (lambda: operator(packed, bidirectional=True), "has directions 1, must have 2"),
        (lambda: operator(packed, x=torch.zeros(T, B, 3)), "input has 3 features, must have 9"),
        (lambda: operator(packed, x=torch.zeros(T, D)), "input must be .*, got 2 dimensions"),
        (lambda: operator(packed, x=torch.zeros(T, B, D).double()), "input has dtype Double"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_at_any_address(kind):
    frozen = freeze(layer(), kind)
    (packed,) = frozen.buffers()
    x = padded(frozen)
    moved = torch.zeros(len(packed) + 1, dtype=torch.uint8)[1:]
    moved.copy_(packed)
    assert torch.equal(operator(moved, x=x)[0], operator(packed, x=x)[0])


@pytest.mark.skipif(_C.cpu_instruction_set() == "portable", reason="has the portable layout")
def test_bytes_of_another_processor(tmp_path):
    """They are packed again in each call, with one warning, and unpacked to the bit."""
    for kind in FORMATS:
        frozen = freeze(layer("everything"), kind)
        x = padded(frozen)
        torch.save((frozen._packed(), x, frozen(x)[0], frozen.state_dict()), tmp_path / kind)
    code = f"""
import torch
from fused_lstm import _C, ops
for kind, off in (("float32", 1e-6), ("bfloat16", 0.01), ("int8", 0.01)):
    packed, x, expected, stored = torch.load(kind)
    for _ in range(2):
        output, h_n, c_n = ops.frozen_lstm(x.transpose(0, 1), None, packed, {H}, 6, True)
        torch.testing.assert_close(output.transpose(0, 1), expected, atol=off, rtol=0)
    weights = iter(stored.values())
    for each in packed:
        tensors, scales = _C.frozen_unpack(each)
        own = _C.frozen_pack(tensors, scales, kind, 2)
        assert not torch.equal(own, each)
        for a, b in zip(tensors + scales, sum(_C.frozen_unpack(own), []), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, next(weights))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ
        | {
            "FUSED_LSTM_CPU_ISA": "portable",
            "PYTHONPATH": str(Path(fused_lstm.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("was packed for another processor") == 1


# freeze


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(3, 4)
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(4, 6, 2, dropout=0.5, batch_first=True)})
        self.fused = FusedLSTM(6, 5, batch_first=True)
        self.again = self.fused
        self.cell = nn.LSTMCell(5, 4)
        self.dropout = nn.Dropout()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        x, _ = self.encoder["lstm"](self.embedding(x))
        x, _ = self.again(x)
        return self.linear(self.dropout(self.cell(x[:, -1])[0]))


def test_a_model():
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = rand(2, 5, 3, dtype=torch.float32)
    frozen = freeze(model)
    kinds = [type(m) for m in (frozen.encoder["lstm"], frozen.fused, frozen.cell, frozen.linear)]
    assert kinds == [FrozenLSTM, FrozenLSTM, FrozenLSTMCell, nn.Linear]
    assert frozen.again is frozen.fused
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    found = frozen(x)  # in eval mode, and nothing is recorded

    assert model.training
    assert model.encoder["lstm"].training
    assert type(model.fused) is FusedLSTM
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    torch.testing.assert_close(found, model.eval()(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(x), found)


@pytest.mark.parametrize("kind", [nn.LSTM, FusedLSTM])
def test_a_bare_layer(kind):
    frozen = freeze(kind(3, 4, 2, bidirectional=True))
    assert type(frozen) is FrozenLSTM
    assert repr(frozen) == ("FrozenLSTM(3, 4, weights='float32', num_layers=2, bidirectional=True)")


def power_iterated(module):
    return nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change", [weight_norm, old_weight_norm, pruned, spectral_norm, parametrized, power_iterated]
)
def test_weights_that_are_computed(change):
    """Frozen at their present values, which stay for the module itself: its buffers too."""
    module = change(FusedLSTM(3, 4, 2))
    x = rand(5, 2, 3, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if re.search("orig|_g|_v", name):
                parameter.add_(torch.rand_like(parameter))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    frozen = freeze(module)
    assert module.training
    assert all(torch.equal(module.state_dict()[name], t) for name, t in before.items())
    torch.testing.assert_close(frozen(x)[0], module.eval()(x)[0])


def test_hooks_stay():
    module, seen = FusedLSTM(3, 4), []
    module.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    module.register_forward_hook(lambda module, arguments, result: seen.append(type(module)))
    x = rand(5, 2, 3, dtype=torch.float32)
    torch.testing.assert_close(freeze(module)(x)[0], module(x)[0])
    assert seen == [FrozenLSTM, FusedLSTM]


class Subclass(nn.LSTM):
    """One whose forward may differ."""


def test_what_is_left():
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": Subclass(3, 4)})
    with pytest.warns(UserWarning, match=r"freeze leaves b \(Subclass is a subclass of LSTM"):
        frozen = freeze(model)
    assert (type(frozen["a"]), type(frozen["b"])) == (FrozenLSTM, Subclass)
    with pytest.raises(ValueError, match="no LSTM to freeze; b: Subclass is a subclass of LSTM"):
        freeze(nn.ModuleDict({"b": Subclass(3, 4)}))


@pytest.mark.parametrize(
    ("make", "weights", "kind", "message"),
    [
        (lambda: 1, "float32", TypeError, "model is a int, must be a torch.nn.Module"),
        (lambda: nn.Linear(2, 2), "float32", ValueError, "model has no LSTM to freeze"),
        (lambda: nn.LSTM(2, 2), "int4", ValueError, "weights is 'int4', must be 'float32'"),
        (
            lambda: nn.LSTM(2, 2),
            "float16",
            ValueError,
            "weights is 'float16', must be 'float32', 'bfloat16' or 'int8' for a layer on cpu",
        ),
        (
            lambda: nn.Sequential(nn.LSTM(2, 2).double()),
            "int8",
            ValueError,
            "0: weight_ih_l0 has dtype torch.float64, must be float32",
        ),
        (
            lambda: nn.LSTM(2, 2, device="meta"),
            "int8",
            ValueError,
            "weight_ih_l0 is on meta, must be on the CPU",
        ),
    ],
)
def test_errors_of_freeze(make, weights, kind, message):
    with pytest.raises(kind, match=message):
        freeze(make(), weights)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_no_int8_of_what_is_not_finite(value):
    module = nn.LSTM(2, 2)
    with torch.no_grad():
        module.weight_hh_l0[1, 1] = value
    with pytest.raises(ValueError, match="weight_hh_l0 has infinite or NaN elements"):
        freeze(module, "int8")
    assert not freeze(module)(torch.ones(3, 1, 2))[0].isfinite().all()


def test_classes_ask_for_what_they_freeze():
    with pytest.raises(TypeError, match=r"layer is a LSTMCell, must be an nn.LSTM or a FusedLSTM"):
        FrozenLSTM(nn.LSTMCell(2, 2))
    with pytest.raises(TypeError, match=r"layer is a LSTM, must be an nn.LSTMCell or"):
        FrozenLSTMCell(nn.LSTM(2, 2))


def test_memory():
    """Packed weights are the only ones: of a quarter, half or all of float32's bytes."""
    module = nn.LSTM(256, 256)
    reference = weakref.ref(module.weight_hh_l0)
    bytes_ = sum(w.nbytes for w in module.parameters() if w.dim() == 2)
    frozen = {kind: freeze(module, kind) for kind in FORMATS}
    del module
    gc.collect()
    assert reference() is None
    for kind, share in zip(FORMATS, (1, 1 / 2, 1 / 4), strict=True):
        held = gc.get_referents(*vars(frozen[kind]).values())
        tensors = [t for t in held if isinstance(t, torch.Tensor)]
        assert {id(t) for t in tensors} == {id(t) for t in frozen[kind].buffers()}
        assert share * bytes_ < sum(t.nbytes for t in tensors) < share * bytes_ + 40_000


def test_it_is_not_trained():
    model = freeze(Model())
    with pytest.raises(RuntimeError, match="FrozenLSTM cannot be trained: train the layer that"):
        model.train()
    with pytest.raises(RuntimeError, match="FrozenLSTMCell cannot be trained"):
        model.cell.train()
    model.eval()
    model.fused.train(False)
    assert list(model.fused.parameters()) == []
    with pytest.raises(AttributeError, match="weight_hh_l0 of a FrozenLSTM is packed: change the"):
        model.fused.weight_hh_l0 = torch.zeros(20, 5)
    with pytest.raises(AttributeError, match="bias_ih of a FrozenLSTMCell is packed"):
        model.cell.bias_ih = None


def test_moves():
    frozen = freeze(layer())
    x = padded(frozen)
    expected = frozen(x)[0]
    for same in (frozen.half(), frozen.bfloat16(), frozen.to("cpu"), frozen.share_memory()):
        assert torch.equal(same(x)[0], expected)
    for move in (lambda: frozen.to("meta"), lambda: nn.Sequential(frozen).to("meta")):
        with pytest.raises(RuntimeError, match="FrozenLSTM is moved to meta, must stay on the CPU"):
            move()
    with pytest.raises(RuntimeError, match=r"converted to torch.float64, but it computes in float"):
        frozen.double()


# Files and copies


def through_pickle(frozen):
    return pickle.loads(pickle.dumps(frozen))


def through_torch_save(frozen):
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_state_dict(frozen):
    other = freeze(Model(), frozen.fused.format)
    file = io.BytesIO()
    torch.save(frozen.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def through_safetensors(frozen):
    safetensors = pytest.importorskip("safetensors.torch")
    other = freeze(Model(), frozen.fused.format)
    other.load_state_dict(safetensors.load(safetensors.save(frozen.state_dict())))
    return other


WAYS = [copy.deepcopy, through_pickle, through_state_dict, through_safetensors]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("way", WAYS)
def test_files_and_copies(way, kind):
    frozen = freeze(Model(), kind)
    other, x = way(frozen), rand(2, 5, 3, dtype=torch.float32)
    assert other.again is other.fused
    assert torch.equal(other(x), frozen(x))
    assert all(map(torch.equal, other.buffers(), frozen.buffers()))
    assert all(a is not b for a, b in zip(other.buffers(), frozen.buffers(), strict=True))


def test_packed_bytes_stay_in_the_process():
    frozen = freeze(layer())
    (packed,) = frozen.buffers()
    magic = bytes(packed[:8].tolist())
    assert magic in pickle.dumps(packed)
    assert magic not in pickle.dumps(frozen)
    assert not any(torch.equal(packed, tensor) for tensor in frozen.state_dict().values())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("module", [nn.LSTM(D, H, 2), nn.LSTMCell(D, H)])
def test_a_whole_layer_in_a_file(module, kind):
    frozen = freeze(module, kind)
    other = through_torch_save(frozen)
    assert repr(other) == repr(frozen)
    assert all(map(torch.equal, other.buffers(), frozen.buffers()))


def test_what_is_stored():
    module = nn.LSTM(D, H, 2, proj_size=6)
    plain = {name: tuple(p.shape) for name, p in module.named_parameters()}
    for kind, dtype in zip(FORMATS, (torch.float32, torch.bfloat16, torch.int8), strict=True):
        stored = freeze(module, kind).state_dict()
        scales = {n.removesuffix("_scale"): t for n, t in stored.items() if n.endswith("_scale")}
        weights = {n: t for n, t in stored.items() if not n.endswith("_scale")}
        assert {n: tuple(t.shape) for n, t in weights.items()} == plain
        for name, tensor in weights.items():
            assert tensor.dtype == (dtype if name.startswith("weight") else torch.float32)
            value, exact = tensor.double(), getattr(module, name).double()
            if name.startswith("weight") and kind == "int8":
                scale = scales.pop(name)
                torch.testing.assert_close(scale, exact.abs().amax(1).float() / 127)
                value = value * scale[:, None].double()
                bound = exact.abs().amax(1, keepdim=True) / 253
            else:
                bound = exact.abs() * {"float32": 0, "bfloat16": 2**-8, "int8": 0}[kind]
            assert ((value - exact).abs() <= bound).all(), name
        assert not scales


@pytest.mark.parametrize("kind", FORMATS)
def test_floating_weights_are_frozen_by_loading(kind):
    module, frozen = nn.LSTM(D, H, 2), freeze(nn.LSTM(D, H, 2), kind)
    frozen.load_state_dict(module.state_dict())
    assert all(map(torch.equal, frozen.buffers(), freeze(module, kind).buffers()))


def test_errors_of_loading():
    frozen = freeze(nn.Sequential(nn.LSTM(D, H)), "int8")
    before = [buffer.clone() for buffer in frozen.buffers()]
    good = frozen.state_dict()

    def message(**changed):
        state = {k: v for k, v in (good | changed).items() if v is not None}
        with pytest.raises(RuntimeError) as caught:
            frozen.load_state_dict(state)
        assert all(map(torch.equal, before, frozen.buffers()))
        return str(caught.value)

    assert 'Missing key(s) in state_dict: "0.weight_hh_l0"' in message(**{"0.weight_hh_l0": None})
    assert '"0.weight_hh_l0_scale"' in message(**{"0.weight_hh_l0_scale": None})
    assert 'Unexpected key(s) in state_dict: "0.weight_hh_l1"' in message(
        **{"0.weight_hh_l1": torch.zeros(1)}
    )
    assert "0.weight_ih_l0 has shape (3, 2), must be (76, 9)" in message(
        **{"0.weight_ih_l0": torch.zeros(3, 2)}
    )
    assert "0.bias_ih_l0 has dtype torch.int8, must be one of float32" in message(
        **{"0.bias_ih_l0": torch.zeros(76, dtype=torch.int8)}
    )
    assert "0.weight_ih_l0 has infinite or NaN" in message(
        **{"0.weight_ih_l0": torch.full((76, 9), torch.nan)}
    )
    wide = freeze(nn.Sequential(nn.LSTM(D, H)))
    with pytest.raises(RuntimeError, match=r"has dtype torch.int8, must be one of float32"):
        wide.load_state_dict(good, strict=False)


def test_a_part_of_a_file():
    """Not strict: nothing is taken of a layer that is not there as a whole."""
    frozen = freeze(nn.LSTM(D, H))
    before = [buffer.clone() for buffer in frozen.buffers()]
    result = frozen.load_state_dict({"bias_hh_l0": torch.zeros(4 * H), "x": torch.ones(1)}, False)
    assert result.missing_keys == ["bias_ih_l0", "weight_ih_l0", "weight_hh_l0"]
    assert all(map(torch.equal, before, frozen.buffers()))


# Compilers, transforms, threads


@pytest.mark.parametrize("kind", FORMATS)
def test_compile(kind):
    torch.compiler.reset()
    model = freeze(Model(), kind)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for shape in ((2, 5, 3), (4, 7, 3)):
        x = rand(*shape, dtype=torch.float32)
        assert torch.equal(compiled(x), model(x))
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_export(kind):
    module = freeze(FusedLSTM(D, H, 2, bidirectional=True), kind)
    sizes = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    x, lengths = padded(module), torch.tensor([7, 3, 0, 1, 2])
    program = torch.export.export(
        module,
        (x,),
        {"lengths": lengths},
        dynamic_shapes={"input": sizes, "lengths": {0: sizes[1]}},
    )
    called = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [str(n.target) for n in called].count("fused_lstm.frozen_lstm.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other, ends = rand(3, 4, D, dtype=torch.float32), torch.tensor([3, 0, 1, 2])
    for run in (program.module(), loaded):
        for call in ((x, lengths), (other, ends)):
            ours, theirs = run(call[0], lengths=call[1]), module(call[0], lengths=call[1])
            assert all(map(torch.equal, flatten(ours).values(), flatten(theirs).values()))


def test_aot_inductor(tmp_path):
    module = freeze(FusedLSTM(D, H, 2), "int8")
    x = padded(module)
    program = torch.export.export(module, (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "a.pt2"))
    output, _ = torch._inductor.aoti_load_package(path)(x)
    assert torch.equal(output, module(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_opcheck(name):
    module = layer(name)
    frozen = freeze(module, "int8")
    arguments = (
        rand(T, B, D, dtype=torch.float32),
        *rand_state(module, B),
        frozen._packed(),
        H,
        module.proj_size,
        module.bidirectional,
    )
    function = torch.ops.fused_lstm.frozen_lstm.default
    zero = (arguments[0], None, None, *arguments[3:])
    sixteen = (arguments[0].half(), arguments[1].half(), *arguments[2:])
    for call in (arguments, zero, sixteen):
        opcheck(function, call)
    lengths = torch.tensor([7, 0, 3, 1, 7])
    reset = torch.arange(T * B).view(T, B) % 4 == 0
    opcheck(function, arguments, {"lengths": lengths, "reset": reset, "reset_to_initial": True})
    packed = (arguments[0].flatten(0, 1)[:8], *rand_state(module, 3), *arguments[3:])
    opcheck(function, packed, {"batch_sizes": torch.tensor([3, 3, 2])})


def test_fx_takes_it_for_a_leaf():
    model = freeze(Model())
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"][1:4] == [
        "encoder.lstm",
        "fused",
        "cell",
    ]
    x = rand(2, 5, 3, dtype=torch.float32)
    assert torch.equal(traced(x), model(x))


def test_flops():
    """As many as of the layer that was frozen."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(module):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(padded(module))
        return counter.get_total_flops()

    for name in LAYERS:
        assert flops(freeze(layer(name), "int8")) == flops(layer(name))


@pytest.mark.parametrize("kind", FORMATS)
def test_threads_call_one_layer_at_once(kind):
    module = freeze(FusedLSTM(32, 48, 2), kind)
    inputs = [rand(20, 3, 32, dtype=torch.float32) for _ in range(4)]
    expected, found = [module(x)[0] for x in inputs], [[] for _ in inputs]

    def run(k):
        for _ in range(20):
            found[k].append(module(inputs[k])[0])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, all_ in zip(expected, found, strict=True):
        assert len(all_) == 20
        assert all(torch.equal(one, output) for output in all_)


@pytest.mark.parametrize("kind", FORMATS)
def test_threads_share_the_work(kind, tmp_path):
    """Sequences and directions are divided among threads."""
    in_fresh_process(
        f"""
        import torch
        from fused_lstm import FusedLSTM, freeze
        from torch.nn.utils.rnn import pack_padded_sequence
        torch.manual_seed(0)
        tolerance = {dict(zip(FORMATS, (1e-6, 1e-2, 1e-2), strict=True))[kind]}
        for options in ({{}}, {{"bidirectional": True}}):
            module = freeze(FusedLSTM(64, 96, 2, **options), {kind!r})
            x = torch.randn(20, 9, 64)
            packed = pack_padded_sequence(x, [20, 20, 19, 12, 12, 7, 3, 1, 1])
            lengths = torch.tensor([20, 0, 3, 5, 19, 20, 20, 1, 2])
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append([*module(x, lengths=lengths)[:1], module(packed)[0].data])
            for other in results[1:]:
                torch.testing.assert_close(results[0], other, atol=tolerance, rtol=0)
        """,
        tmp_path,
    )


def test_a_task_model(monkeypatch):
    """The models of fused_lstm.models hand lengths to a frozen layer as to a FusedLSTM."""
    monkeypatch.setattr(models, "pack_padded_sequence", None)
    model = models.LSTMSequencePredictor(3, 8, 2, summary="final_states").eval()
    x, lengths = rand(4, 6, 3, dtype=torch.float32), torch.tensor([6, 0, 2, 5])
    torch.testing.assert_close(freeze(model)(x, lengths=lengths), model(x, lengths=lengths))


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of a layer went straight to the kernels."""
    outcomes, function = [], ops.plain_frozen

    def call(*arguments):
        result = function(*arguments)
        outcomes.append(result is not None)
        return result

    monkeypatch.setattr(ops, "plain_frozen", call)
    return outcomes


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_plain_calls(name, kind, taken, monkeypatch):
    """Straight to the kernels, with the bits and strides of the whole way."""
    module = layer(name)
    frozen = freeze(module, kind)
    x, hx = padded(module), rand_state(module, B)
    one = x[0] if module.batch_first else x[:, 0]
    plain = [(x,), (x, hx), (x, list(hx)), (one,), (one, rand_state(module, None))]
    plain += [cast((x, hx), torch.bfloat16), (x.transpose(0, 1).contiguous().transpose(0, 1),)]
    found = [flatten(frozen(*arguments)) for arguments in plain]
    with torch.inference_mode():
        frozen(x.clone())
    with torch.no_grad():
        frozen(x.clone().requires_grad_())
    assert taken == [True] * (len(plain) + 2)
    monkeypatch.setattr(ops, "plain_frozen", lambda *_: None)
    for arguments, ours in zip(plain, found, strict=True):
        theirs = flatten(frozen(*arguments))
        for result in ours:
            torch.testing.assert_close(
                ours[result], theirs[result], rtol=0, atol=0, check_stride=True
            )


def test_calls_that_are_not_plain(taken):
    frozen = freeze(layer())
    x = padded(frozen)
    frozen(x, lengths=torch.full((B,), T))
    frozen(x, reset=torch.zeros(T, B, dtype=torch.bool))
    assert taken == []
    frozen(x, None, None, None, "initial")
    frozen(x.as_subclass(type("Subclass", (torch.Tensor,), {})))
    frozen(pack_sequence([x[:3, 0], x[:2, 1]]))
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(x)[0].dtype == torch.float32
    with torch.profiler.profile() as profiler:
        frozen(x)
    assert "fused_lstm::frozen_lstm" in {event.key for event in profiler.key_averages()}
    assert taken == [False] * 5
