"""Frozen layers on a GPU, or on the emulator: FusedLSTM's results to the bit, from fragments that
were packed once; streams; what is stored."""

from __future__ import annotations

import copy
import io
import pickle

import emulated
import pytest
import torch
from oracle import NO_CUDA, assert_close, rand, rand_state
from torch import nn
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FrozenLSTM, FusedLSTM, FusedLSTMCell, freeze, graph_stream, ops, use_kernel

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(NO_CUDA) and not emulated.EMULATED, reason=str(NO_CUDA)),
]
DEVICE = "cpu" if emulated.EMULATED else "cuda"
FORMATS = ["float32", "bfloat16", "float16"]
T, B, D = 5, 3, 9
LAYERS = {
    "one layer": {},
    "no bias": {"bias": False},
    "layers": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projection": {"num_layers": 2, "proj_size": 6},
    "batch first": {"batch_first": True},
}


@pytest.fixture(autouse=True)
def _without_graphs(monkeypatch):
    """On the emulator a step of a stream is run again, not a graph of it."""

    def again(step, device):
        result = step()
        return lambda: result.copy_(step()), result

    if emulated.EMULATED:
        monkeypatch.setattr(graph_stream, "captured", again)


def layer(kind="float32", name="one layer", units=20):
    dtype = getattr(torch, kind)
    return FusedLSTM(D, units, **LAYERS[name], device=DEVICE, dtype=dtype).eval()


def inputs(module, steps=T, batch=B):
    shape = (batch, steps) if module.batch_first else (steps, batch)
    return rand(*shape, module.input_size, device=DEVICE, dtype=module.weight_ih_l0.dtype)


def flat(results):
    output, (h_n, c_n) = results
    return (output if isinstance(output, torch.Tensor) else output.data), h_n, c_n


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def fragments_of(frozen):
    return [t for t in frozen._packed() if t.dtype == torch.uint8 and t.numel()]


def clear(tensors):
    for tensor in tensors:
        tensor.zero_()


@pytest.mark.parametrize(
    ("kernel", "units"),
    [("block", 20), ("block", 64), ("cluster", 20), ("cluster", 130), ("grid", 1), ("grid", 65)],
)
@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_the_bits_of_the_layer(kind, kernel, units):
    with use_kernel(kernel):
        module = layer(kind, "bidirectional", units)
        frozen, x = freeze(module, kind), inputs(module, steps=3)
        assert_equal(flat(frozen(x)), flat(module(x)))


@torch.no_grad()
def test_stepwise():
    """Where the order of a sum is the library's."""
    with use_kernel("stepwise"):
        module = layer("float32", "bidirectional", 130)
        frozen, x = freeze(module), inputs(module)
        names = ("output", "h_n", "c_n")
        assert_close(
            dict(zip(names, flat(frozen(x)), strict=True)),
            dict(zip(names, flat(module(x)), strict=True)),
        )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_every_way_of_calling(kind, name, monkeypatch):
    """Layers one by one, as frozen ones go: at once their sums are in another order."""
    monkeypatch.setattr(ops, "LARGEST_STACKED", {"cpu": {}, "cuda": {}})
    module = layer(kind, name)
    frozen, x = freeze(module, kind), inputs(module)
    hx = rand_state(module, B)
    lengths = torch.tensor([2, 5, 0], device=DEVICE)
    reset = torch.rand(x.shape[:2], device=DEVICE) < 0.3
    calls = [
        (x,),
        (x, hx),
        (x, hx, lengths),
        (x, hx, None, reset, "initial"),
        (x[:, 0] if not module.batch_first else x[0],),
        (pack_padded_sequence(x, [2, 5, 3], module.batch_first, enforce_sorted=False), hx),
    ]
    for call in calls:
        assert_equal(flat(frozen(*call)), flat(module(*call)))


@pytest.mark.parametrize(("kernel", "units"), [("block", 40), ("cluster", 130), ("grid", 65)])
@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_kernels_load_the_fragments(kind, kernel, units):
    """And not the recurrent weights, which their launches would gather."""
    module = layer(kind, units=units)
    with use_kernel(kernel):
        frozen, x = freeze(module, kind), inputs(module)
        expected = flat(frozen(x))
        clear([frozen.packed_weight_hh_l0])
        assert_equal(flat(frozen(x)), expected)
        clear(fragments_of(frozen))
        assert not torch.equal(frozen(x)[0], expected[0])


@torch.no_grad()
def test_other_kernels_gather_the_weights():
    module = layer(units=130)
    with use_kernel("cluster"):
        frozen, x = freeze(module), inputs(module)
    clear(fragments_of(frozen))
    with use_kernel("grid"):
        assert_equal(flat(frozen(x)), flat(module(x)))


@torch.no_grad()
def test_a_narrow_input_is_in_the_fragments_of_one_step():
    """A small layer has two kinds: a single step takes the input into the same launch."""
    module = layer("bfloat16", units=40)
    frozen, x = freeze(module, "bfloat16"), inputs(module, steps=1)
    assert len(fragments_of(frozen)) == 2 or not emulated.EMULATED
    expected = flat(module(x))
    clear([frozen.packed_weight_hh_l0, frozen.packed_weight_ih_l0])
    assert_equal(flat(frozen(x)), expected)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_dtypes(kind, given):
    """The results have the input's; c_n is rounded to it alone."""
    module = layer("float32", "layers")
    frozen, x = freeze(module, kind), inputs(module)
    output, (h_n, c_n) = frozen(x.to(given))
    assert output.dtype == h_n.dtype == c_n.dtype == given
    expected, (h, c) = module(x)
    tolerance = {"atol": 0.03, "rtol": 0}
    for found, other in ((output, expected), (h_n, h), (c_n, c)):
        torch.testing.assert_close(found.float(), other, **tolerance)
    hx = (h.to(given), c)
    assert frozen(x.to(given), hx)[1][1].dtype == torch.float32
    if given == torch.float32:
        assert not torch.equal(c_n, c_n.to(getattr(torch, kind)).float())


@torch.no_grad()
def test_biases_are_not_rounded():
    """Of one in 16 bits the second is what the first has lost."""
    module = layer("float32")
    module.bias_ih_l0.fill_(0.1234567)
    module.bias_hh_l0.zero_()
    frozen = freeze(module, "bfloat16")
    both = frozen.packed_bias_ih_l0.float() + frozen.packed_bias_hh_l0.float()
    assert frozen.packed_bias_ih_l0.dtype == torch.bfloat16
    assert (both - 0.1234567).abs().max() < 0.1234567 * 2**-15
    assert torch.equal(frozen.state_dict()["bias_ih_l0"], module.bias_ih_l0)


@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_stored_as_plain_weights(kind):
    module = layer("float32", "bidirectional", 130)
    frozen, x = freeze(module, kind), inputs(module)
    expected = flat(frozen(x))
    state = frozen.state_dict()
    assert list(state) == list(module.state_dict())
    for name, tensor in state.items():
        dtype = torch.float32 if name.startswith("bias") else getattr(torch, kind)
        assert torch.equal(tensor, module.state_dict()[name].to(dtype))

    other = freeze(layer("float32", "bidirectional", 130), kind)
    other.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
    assert other._packed()[0].device.type == DEVICE
    copies = [other, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))]
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    buffer.seek(0)
    copies.append(torch.load(buffer, weights_only=False))
    for one in copies:
        assert_equal(flat(one(x)), expected)


@torch.no_grad()
def test_a_copy_of_its_own():
    module = layer(units=130)
    frozen, x = freeze(module), inputs(module)
    expected = flat(frozen(x))
    for parameter in module.parameters():
        parameter.zero_()
    assert_equal(flat(frozen(x)), expected)
    clear(frozen.state_dict().values())
    assert_equal(flat(frozen(x)), expected)
    assert_equal(flat(nn.Sequential(frozen).half()[0](x)), expected)


@torch.no_grad()
def test_cells_and_whole_models():
    cell = FusedLSTMCell(D, 20, device=DEVICE).eval()
    model = nn.ModuleDict({"cell": cell, "lstm": nn.LSTM(D, 20, device=DEVICE)})
    frozen, x = freeze(model), rand(B, D, device=DEVICE, dtype=torch.float32)
    assert isinstance(frozen["lstm"], FrozenLSTM)
    assert_equal(frozen["cell"](x), cell(x))
    assert_close({"output": frozen["lstm"](x[None])[0]}, {"output": model["lstm"](x[None])[0]})


def test_what_needs_no_fragments():
    frozen = freeze(layer(name="projection"))
    assert not fragments_of(frozen)


def test_errors():
    module = layer()
    with pytest.raises(ValueError, match="weights is 'int8', must be 'float32', 'bfloat16' or"):
        freeze(module, "int8")
    frozen, x = freeze(module), inputs(module)
    with pytest.raises(RuntimeError, match="FrozenLSTM is moved to meta, must stay on"):
        frozen.to("meta")
    with pytest.raises(RuntimeError, match="input requires grad"):
        frozen(x.requires_grad_())
    x = x.detach()
    packed = frozen._packed()
    for tensors, message in (
        (packed[:-1], r"packed has 6 tensors, must have the weights of each layer"),
        ([*packed[:-1], packed[0]], "fragments of layer 0 are Float"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.frozen_lstm(x, None, tensors, 20, 0, False)
    with pytest.raises(RuntimeError, match=r"weight_hh of layer 0 has shape \[80, 20\], must be"):
        ops.frozen_lstm(x, None, packed, 21, 0, False)
    state = frozen.state_dict()
    state["weight_hh_l0"] = torch.zeros(80, 20, dtype=torch.int8)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 has dtype torch\.int8"):
        frozen.load_state_dict(state)


@pytest.mark.parametrize("name", ["one layer", "bidirectional"])
def test_the_operator(name):
    module = layer("bfloat16", name)
    frozen, x = freeze(module, "bfloat16"), inputs(module)
    arguments = (x, None, None, frozen._packed(), 20, 0, module.bidirectional)
    opcheck(torch.ops.fused_lstm.frozen_lstm.default, arguments)
    call = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    assert_equal(flat(call(x)), flat(frozen(x)))
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(frozen, (x,), dynamic_shapes=(sizes,))
    other = inputs(module, 7, 2)
    assert_equal(flat(program.module()(other)), flat(frozen(other)))


class TestStreams:
    @pytest.mark.parametrize("kind", FORMATS)
    @pytest.mark.parametrize("name", ["one layer", "layers", "projection", "batch first"])
    def test_steps_and_chunks(self, name, kind):
        module = layer(kind, name)
        frozen = freeze(module, kind)
        x = rand(B, 8, D, device=DEVICE, dtype=torch.float32)
        expected, state = frozen(x if frozen.batch_first else x.transpose(0, 1))
        expected = expected if frozen.batch_first else expected.transpose(0, 1)
        stream = frozen.stream(B)
        assert stream.batch_size == B
        found = [stream(x[:, t]).clone()[:, None] for t in range(3)]
        found += [stream(x[:, 3:7]).clone(), stream(x[:, 7])[:, None]]
        atol = 1e-6 if kind == "float32" else 2e-2
        torch.testing.assert_close(torch.cat(found, 1), expected, atol=atol, rtol=0)
        torch.testing.assert_close(stream.state, state, atol=atol, rtol=0)

    def test_state(self):
        frozen = freeze(layer(name="layers"))
        x = rand(B, 4, D, device=DEVICE, dtype=torch.float32)
        stream = frozen.stream(B)
        zero = tuple(s.clone() for s in stream.state)
        assert all(not s.any() for s in zero)
        stream(x[:, 0])
        fork, kept = stream.fork(), stream.state
        after = stream(x[:, 1]).clone()
        assert_equal(fork.state, kept)
        assert torch.equal(fork(x[:, 1]), after)
        stream.state = kept
        assert torch.equal(stream(x[:, 1]), after)
        mask = torch.tensor([True, False, True], device=DEVICE)
        before = stream.state
        stream.reset(mask)
        for now, its in zip(stream.state, before, strict=True):
            assert not now[:, mask].any()
            assert torch.equal(now[:, ~mask], its[:, ~mask])
        stream.reset()
        assert_equal(stream.state, zero)
        stream.state[0].fill_(7)  # of a copy
        assert_equal(stream.state, zero)

    def test_errors(self):
        frozen = freeze(layer())
        x = rand(B, D, device=DEVICE, dtype=torch.float32)
        stream = frozen.stream(B)
        for wrong, error, message in (
            ([1.0], TypeError, "x is a list, must be a tensor"),
            (x.long(), TypeError, "x has dtype torch.int64, must be a floating dtype"),
            (x[:2], ValueError, r"x has shape \[2, 9\], must be \[B, D\] or"),
            (x[:, None, :][:, :0], ValueError, "one step or more"),
            (x.to("meta"), ValueError, "x is on meta, must be on"),
            (x.clone().requires_grad_(), RuntimeError, "x requires grad"),
        ):
            with pytest.raises(error, match=message):
                stream(wrong)
        with pytest.raises(ValueError, match="batch_size is 0, must be 1 or more"):
            frozen.stream(0)
        with pytest.raises(ValueError, match="the layer is bidirectional"):
            freeze(layer(name="bidirectional")).stream()
        for state, error, message in (
            (x, TypeError, "state must be a tuple"),
            ((x, x), ValueError, r"state\[0\] has shape \[3, 9\], must be \[1, 3, 20\]"),
        ):
            with pytest.raises(error, match=message):
                stream.state = state
        with pytest.raises(ValueError, match=r"mask is torch\.float32 of shape"):
            stream.reset(x[:, 0])
        assert repr(stream) == "GraphStream(9, 20, layers=1, batch_size=3)"

    @pytest.mark.skipif(not emulated.EMULATED, reason="the emulator counts")
    @pytest.mark.parametrize(
        ("kind", "units", "features", "layers", "launches", "gemms"),
        [
            ("bfloat16", 64, 16, 1, 1, 0),  # the input in the same launch
            ("bfloat16", 64, 100, 1, 1, 1),
            ("float32", 256, 80, 2, 2, 2),
        ],
    )
    def test_launches_of_a_step(self, kind, units, features, layers, launches, gemms):
        module = FusedLSTM(features, units, layers, device=DEVICE, dtype=getattr(torch, kind))
        stream = freeze(module, kind).stream()
        before = emulated.counts()
        stream._advanced(0)
        after = emulated.counts()
        assert after.launches - before.launches == launches
        assert after.gemms - before.gemms == gemms
