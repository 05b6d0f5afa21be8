"""The operator stack: what as many calls of the operator layer compute, and where it is taken."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from emulated import EMULATED
from oracle import (
    assert_close,
    assert_same_bits,
    evaluate,
    flatten,
    on_device,
    rand,
    rand_state,
    reference_lstm,
    twin,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fused_lstm
from fused_lstm import FusedLSTM, ops, reference

T, B, D, H, L = 5, 4, 3, 6, 3
LENGTHS = torch.tensor([5, 0, 2, 4])
RESET = torch.arange(T * B).reshape(T, B) % 4 == 0  # at the first step too
OPTIONS = {
    "padded": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET, "lengths": LENGTHS},
    "reset to initial": {"reset": RESET, "reset_to_initial": True},
    "packed": {"batch_sizes": torch.tensor([4, 3, 2, 2, 1])},
    "states kept": {"keep_states": True},
    "recompute": {"recompute": True},
    "recompute, reset": {"recompute": True, "reset": RESET, "lengths": LENGTHS},
}
NAMES = ("output", "h_n", "c_n", "lower_outputs", "cells", "gates")
AT_ONCE = dict(ops.LARGEST_STACKED)  # as the device says, whatever a test sets
ALL = dict.fromkeys((2, 4, 8, 16), 1 << 20)


def by_layer(*arguments, **options):
    """The same results by the operator layer."""
    return reference.stack(*arguments, layer=ops.layer, **options)


def assert_same(device, found, expected):
    """The same bits where the device takes one layer after the other."""
    (assert_close if AT_ONCE[device] else assert_same_bits)(found, expected)


def arguments(device, dtype=torch.float32, options="padded", layers=L, **module):
    """input, h_0, c_0, weights, num_layers; and the options by name."""
    lstm = FusedLSTM(D, H, layers, device=device, dtype=dtype, **module)
    given = on_device(OPTIONS[options], device)
    rows = (12,) if "batch_sizes" in given else (T, B)
    x = rand(*rows, D, device=device, dtype=dtype)
    weights = [w.detach() for w in lstm._flat_weights]
    return (x, *rand_state(lstm, B), weights, layers), given


def requiring_grad(call):
    x, h_0, c_0, weights, layers = call
    x, h_0, c_0 = (t if t is None else t.detach().requires_grad_() for t in (x, h_0, c_0))
    return x, h_0, c_0, [w.detach().requires_grad_() for w in weights], layers


def leaves_of(call):
    return [t for t in (*call[:3], *call[3]) if t is not None and t.requires_grad]


def results_and_gradients(function, call, options, outputs=("output", "h_n", "c_n")):
    """By name; the incoming gradients are the same at each call."""
    named = dict(zip(NAMES, function(*call, **options), strict=True))
    if not options.get("keep_states"):
        del named["cells"], named["gates"]
    generator = torch.Generator().manual_seed(1)
    incoming = [
        (torch.randint(-8, 9, named[name].shape, generator=generator) / 8).to(named[name])
        for name in outputs
    ]
    gradients = torch.autograd.grad([named[name] for name in outputs], leaves_of(call), incoming)
    named |= {f"grad {k}": gradient for k, gradient in enumerate(gradients)}
    return {name: tensor.detach() for name, tensor in named.items()}


def compare(device, call, options, **more):
    call = requiring_grad(call)
    found, expected = (
        results_and_gradients(f, call, options, **more) for f in (ops.stack, by_layer)
    )
    assert_same(device, found, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_is_as_many_layers(device, dtype, options):
    call, given = arguments(device, dtype, options)
    compare(device, call, given)


@pytest.mark.parametrize("options", ["padded", "packed", "recompute, reset"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_without_biases(device, layers, options):
    call, given = arguments(device, torch.float32, options, layers, bias=False)
    compare(device, call, given)


@pytest.mark.parametrize("options", ["padded", "reset", "reset to initial", "packed", "recompute"])
@pytest.mark.parametrize("absent", ["h_0", "c_0", "both"])
def test_absent_states(device, absent, options):
    (x, h_0, c_0, *rest), given = arguments(device, torch.float32, options)
    h_0 = h_0 if absent == "c_0" else None
    c_0 = c_0 if absent == "h_0" else None
    compare(device, (x, h_0, c_0, *rest), given)


@pytest.mark.parametrize("outputs", [["output"], ["h_n"], ["c_n"], ["h_n", "c_n"]], ids=str)
def test_gradients_of_some_results(device, outputs):
    """The others' are zero; of h_n and c_n they enter at each layer."""
    call, given = arguments(device)
    compare(device, call, given, outputs=outputs)


@pytest.mark.parametrize("needed", ["input", "h_0", "c_0", "weights", "weights of one layer"])
def test_gradients_that_are_needed(device, needed):
    (x, h_0, c_0, weights, layers), given = arguments(device, torch.float32, "recompute")
    of = {"input": [x], "h_0": [h_0], "c_0": [c_0], "weights": weights}
    for leaf in of.get(needed, weights[4:8]):
        leaf.requires_grad_()
    call = (x, h_0, c_0, weights, layers)
    found, expected = (results_and_gradients(f, call, given) for f in (ops.stack, by_layer))
    assert_same(device, found, expected)


@pytest.mark.parametrize(
    ("state", "biases"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (None, torch.float32)],
    ids=["both wide", "wide cells", "wide biases"],
)
def test_dtypes_beside_16_bits(device, state, biases):
    (x, h_0, c_0, weights, layers), given = arguments(device, torch.bfloat16)
    weights = [w.to(biases) if w.dim() == 1 else w for w in weights]
    c_0 = c_0.to(state or torch.bfloat16)
    call = (x, h_0, c_0, weights, layers)
    assert ops.stack(*call)[2].dtype == c_0.dtype
    compare(device, call, given)


def test_cells_narrower_than_the_input(device):
    (x, h_0, c_0, *rest), given = arguments(device)
    call = (x, h_0, c_0.bfloat16(), *rest)
    assert ops.stack(*call)[2].dtype == torch.float32
    compare(device, call, given)


@pytest.mark.parametrize("states", [True, False])
def test_one_step(device, states):
    """Whose output may be changed in place before backward."""
    (x, h_0, c_0, *rest), given = arguments(device)
    call = (x[:1], *((h_0, c_0) if states else (None, None)), *rest)
    compare(device, call, given)
    call = requiring_grad(call)
    output, h_n, c_n, *_ = ops.stack(*call)
    results = [output, h_n, c_n]
    expected = torch.autograd.grad(results, leaves_of(call), list(map(torch.ones_like, results)))
    results = list(ops.stack(*call)[:3])
    with torch.no_grad():
        for result in results:
            result.zero_()
    found = torch.autograd.grad(results, leaves_of(call), list(map(torch.ones_like, results)))
    assert all(map(torch.equal, found, expected))


def test_no_sequence(device):
    call, given = arguments(device)
    empty = (call[0][:, :0], call[1][:, :0], call[2][:, :0], *call[3:])
    compare(device, empty, given)


def test_arguments_of_any_strides(device):
    (x, h_0, c_0, weights, layers), _ = arguments(device)

    def strided(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    call = (strided(x), strided(h_0), strided(c_0), [*map(strided, weights)], layers)
    assert not any(tensor.is_contiguous() for tensor in call[:3])
    expected = ops.stack(x, h_0, c_0, weights, layers)
    assert all(map(torch.equal, ops.stack(*call), expected))
    compare(device, call, {})


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_returned(device, kept, recorded):
    call, _ = arguments(device)
    call = requiring_grad(call) if recorded else call
    *first, lower_outputs, cells, gates = ops.stack(*call, keep_states=kept)
    assert [tensor.requires_grad for tensor in first] == [recorded] * 3
    assert not any(tensor.requires_grad for tensor in (lower_outputs, cells, gates))
    assert lower_outputs.shape == (L - 1, T, B, H)
    assert cells.shape == ((L, T, B, H) if kept else (0,))
    assert gates.shape == ((L, T, B, 4 * H) if kept else (0,))


def test_nothing_that_was_given_changes(device):
    call, _ = arguments(device)
    tensors = (*call[:3], *call[3])
    before = [tensor.clone() for tensor in tensors]
    ops.stack(*call)
    assert all(map(torch.equal, before, tensors))


# What PyTorch's own checks say


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck(device, options):
    call, given = arguments(device, torch.float32, options)
    opcheck(torch.ops.fused_lstm.stack.default, call, given)
    opcheck(torch.ops.fused_lstm.stack.default, requiring_grad(call), given)
    without = (call[0], None, None, *call[3:])
    opcheck(torch.ops.fused_lstm.stack.default, without, given)


@pytest.mark.parametrize("options", OPTIONS)
def test_opcheck_of_backward(device, options):
    # On a GPU the gradients of both biases share memory, side by side, which opcheck refuses
    bias = device == "cpu" and not EMULATED
    call, given = arguments(device, torch.float32, options, bias=bias)
    recompute = given.pop("recompute", False)
    given["keep_states"] = True
    output, h_n, c_n, lower_outputs, cells, gates = ops.stack(*call, **given)
    del given["keep_states"]
    for gradients in (map(torch.ones_like, (output, h_n, c_n)), (None, None, torch.ones_like(c_n))):
        states = (output, lower_outputs, None if recompute else cells, gates)
        backward = (*gradients, *call, *states)
        opcheck(torch.ops.fused_lstm.stack_backward.default, backward, given)
    fewer = given | {"input_needed": False, "weights_needed": False}
    opcheck(torch.ops.fused_lstm.stack_backward.default, backward, fewer)
    for k, name in ((8, "output"), (9, "lower_outputs")):
        missing = [None if i == k else argument for i, argument in enumerate(backward)]
        with pytest.raises(RuntimeError, match=f"^{name} is missing, must be given for more than"):
            torch.ops.fused_lstm.stack_backward(*missing, **given)


@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "states kept"])
def test_derivatives(device, options):
    call, given = arguments(device, torch.float64, options, layers=2)
    leaves = leaves_of(requiring_grad(call))

    def function(x, h_0, c_0, *weights):
        return ops.stack(x, h_0, c_0, weights, 2, **given)[:3]

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_batched_gradients(device):
    call = requiring_grad(arguments(device, torch.float64)[0])
    output = ops.stack(*call)[0]
    incoming = rand(2, *output.shape, device=device)
    found = torch.autograd.grad(
        output, leaves_of(call), incoming, is_grads_batched=True, retain_graph=True
    )
    for k in range(2):
        expected = torch.autograd.grad(output, leaves_of(call), incoming[k], retain_graph=True)
        torch.testing.assert_close([gradient[k] for gradient in found], list(expected))


def test_first_derivatives_of_backward_are_refused(device):
    call = requiring_grad(arguments(device)[0])
    output, _, _, lower_outputs, cells, gates = ops.stack(*call, keep_states=True)
    grad_input, *_ = torch.ops.fused_lstm.stack_backward(
        torch.ones_like(output), None, None, *call, output, lower_outputs, cells, gates
    )
    with pytest.raises(RuntimeError, match="stack_backward"):
        grad_input.sum().backward()


@pytest.mark.parametrize("options", ["padded", "packed", "recompute"])
def test_saves_no_more_than_layers(device, options):
    """Seen by hooks, which everything that is kept for backward passes through."""
    call, given = arguments(device, torch.float32, options)
    call = requiring_grad(call)
    own = {t.untyped_storage().data_ptr() for t in leaves_of(call)}

    def saved(function):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            results = function(*call, **given)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        assert own <= storages.keys()
        del results
        return sum(size for address, size in storages.items() if address not in own)

    rows = call[0].shape[:-1].numel()
    states = 0 if "recompute" in given else 5 * L * H
    sizes = given["batch_sizes"].nbytes if "batch_sizes" in given else 0
    assert saved(ops.stack) == rows * 4 * (L * H + states) + sizes
    assert saved(ops.stack) <= saved(by_layer)


# Other tools


@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", ["padded", "packed"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_has_the_types_and_numbers_of_layers(device, autocast, options, state):
    (x, h_0, c_0, *rest), given = arguments(device, torch.float32, options)
    states = (None, None) if state is None else (h_0.to(state), c_0.to(state))
    call = requiring_grad((x, *states, *rest))
    with torch.autocast(device, autocast):
        found, expected = (results_and_gradients(f, call, given) for f in (ops.stack, by_layer))
    assert {k: t.dtype for k, t in found.items()} == {k: t.dtype for k, t in expected.items()}
    assert_same(device, found, expected)


def test_transforms_go_by_the_reference(device):
    (x, *rest), _ = arguments(device, torch.float64)
    many = torch.stack([x, -x])
    found = vmap(lambda x: ops.stack(x, *rest)[:3])(many)
    for k in range(2):
        expected = list(ops.stack(many[k], *rest)[:3])
        torch.testing.assert_close([tensor[k] for tensor in found], expected)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.stack(leaf, *rest)[0].sum(), leaf)
    _, tangent = jvp(lambda x: ops.stack(x, *rest)[0].sum(), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, gradient.sum())


@pytest.mark.parametrize("options", ["padded", "packed"])
def test_transforms_have_the_types_of_autocast(device, options):
    (x, *rest), given = arguments(device, torch.float32, options)
    with torch.autocast(device, torch.bfloat16):
        found = vmap(lambda x: ops.stack(x, *rest, **given)[:3])(x[None])
        expected = ops.stack(x, *rest, **given)[:3]
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]


def test_complex_numbers_go_by_the_reference():
    call, _ = arguments("cpu", torch.complex128)
    assert torch.equal(ops.stack(*call)[0], by_layer(*call)[0])


NEEDED = {"forward": (), "weights": ("w",), "input": ("x", "w"), "state": ("h", "c"), "all": "xhcw"}


@pytest.mark.parametrize("needed", NEEDED)
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("options", ["padded", "packed", "recompute"])
def test_flops_are_those_of_layers(options, states, needed):
    if needed == "state" and not states:
        pytest.skip("no state")
    (x, h_0, c_0, weights, layers), given = arguments("cpu", torch.float32, options)
    call = (x, *((h_0, c_0) if states else (None, None)), weights, layers)
    for kind, tensors in (("x", [x]), ("h", [h_0]), ("c", [c_0]), ("w", weights)):
        for tensor in tensors:
            tensor.requires_grad_(kind in NEEDED[needed])

    def flops(function):
        with FlopCounterMode(display=False) as counter:
            output = function(*call, **given)[0]
            if needed != "forward":
                output.sum().backward()
        return counter.get_total_flops()

    assert flops(ops.stack) == flops(by_layer) > 0


# The module, on a device that takes stacks


@pytest.fixture
def calls(monkeypatch):
    """Every device takes stacks; the list of calls that do."""
    seen = []
    stack = ops.stack

    def seen_stack(*arguments, **options):
        seen.append(arguments)
        return stack(*arguments, **options)

    for device in ops.LARGEST_STACKED:
        monkeypatch.setitem(ops.LARGEST_STACKED, device, ALL)
    monkeypatch.setattr(ops, "stack", seen_stack)
    return seen


KINDS = {
    "padded": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "unbatched": {},
    "packed": {},
    "packed unsorted": {"batch_first": True},
    "dropout in eval mode": {"dropout": 0.5},
    "two layers": {"num_layers": 2},
}


def input_for(lstm, kind, device, dtype=torch.float64):
    """And hx."""
    if kind == "unbatched":
        return rand(T, D, device=device, dtype=dtype), rand_state(lstm, None)
    x = rand(*((B, T) if lstm.batch_first else (T, B)), D, device=device, dtype=dtype)
    if kind.startswith("packed"):
        lengths = LENGTHS.clamp(min=1)
        lengths = lengths if kind == "packed unsorted" else lengths.sort(descending=True).values
        x = pack_padded_sequence(x, lengths, lstm.batch_first, kind == "packed")
    return x, rand_state(lstm, B)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_module_is_nn_lstm(device, calls, kind, state):
    arguments = {"num_layers": L, "device": device, "dtype": torch.float64} | KINDS[kind]
    lstm = FusedLSTM(D, H, **arguments).eval()
    x, hx = input_for(lstm, kind, device)
    call = (x, hx) if state else (x,)
    found = evaluate(lstm, *call)
    assert len(calls) == 1
    assert_close(found, evaluate(twin(lstm), *call))
    with torch.no_grad():
        without = flatten(lstm(*call))
    assert len(calls) == 2
    assert_same_bits(without, {name: found[name] for name in without})


@pytest.mark.parametrize("options", ["lengths", "reset", "reset to initial"])
def test_the_module_is_the_reference(device, calls, options):
    lstm = FusedLSTM(D, H, L, device=device, dtype=torch.float64)
    given = on_device(OPTIONS[options], device)
    given["reset_to"] = "initial" if given.pop("reset_to_initial", False) else "zero"
    call = input_for(lstm, "padded", device)
    found = evaluate(lstm, *call, **given)
    assert len(calls) == 1
    assert_close(found, evaluate(lstm, *call, call=partial(reference_lstm, lstm), **given))


PER_LAYER = {
    "one layer": {"num_layers": 1},
    "both directions": {"bidirectional": True},
    "projected": {"proj_size": 2},
    "dropout": {"dropout": 0.5},
    "recompute": {"recompute": True},
    "inner states": {},
}


@pytest.mark.parametrize("kind", PER_LAYER)
def test_other_modules_go_layer_by_layer(device, calls, kind):
    lstm = FusedLSTM(D, H, **({"num_layers": L, "device": device} | PER_LAYER[kind]))
    x, hx = input_for(lstm, "padded", device, torch.float32)
    given = {"lengths": LENGTHS.to(device)}  # not a plain call, which takes another way
    lstm(x, hx, return_states=kind == "inner states", **given)
    assert not calls
    if kind == "dropout":
        lstm.eval()(x, hx, **given)
        assert calls


@pytest.mark.parametrize("given", [{}, {"lengths": LENGTHS}], ids=["plain", "lengths"])
def test_what_a_device_says_is_heeded(monkeypatch, calls, given):
    lstm = FusedLSTM(D, H, L)
    x, hx = input_for(lstm, "padded", "cpu", torch.float32)
    expected = flatten(lstm(x, hx, **given))
    assert calls
    calls.clear()
    monkeypatch.setitem(ops.LARGEST_STACKED, "cpu", {})
    found = flatten(lstm(x, hx, **given))
    assert not calls
    assert_same("cpu", found, expected)


def test_a_cpu_takes_no_stacks():
    assert ops.LARGEST_STACKED.keys() == {"cpu", "cuda"}
    assert not any(AT_ONCE.values()) or fused_lstm._C.build_info()["cuda"]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["padded", "batch first", "lengths"])
@pytest.mark.usefixtures("calls")
def test_compile(device, kind, dynamic):
    lstm = FusedLSTM(D, H, L, batch_first=kind == "batch first", device=device)
    call = input_for(lstm, kind, device, torch.float32)
    given = {"lengths": LENGTHS.to(device)} if kind == "lengths" else {}
    targets = []

    def backend(graph, example_inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    torch.compile(lstm, fullgraph=True, backend=backend)(*call, **given)
    assert targets.count("fused_lstm.stack.default") == 1
    assert "fused_lstm.layer.default" not in targets
    torch.compiler.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    found = evaluate(lstm, *call, call=compiled, **given)
    assert_same_bits(found, evaluate(lstm, *call, **given))


@pytest.mark.usefixtures("calls")
def test_the_module_under_autocast(device):
    """The types and numbers of nn.LSTM, whichever operator it takes."""
    lstm = FusedLSTM(D, H, L, device=device)
    for kind in ("padded", "packed"):
        x, hx = input_for(lstm, kind, device, torch.float32)
        for call in ((x,), (x, hx)):
            with torch.autocast(device, torch.bfloat16):
                found = evaluate(lstm, *call)
                expected = evaluate(twin(lstm), *call)
            assert {k: t.dtype for k, t in found.items()} == {
                k: t.dtype for k, t in expected.items()
            }
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = FusedLSTM(D, H, L, dtype=torch.float64)

    def forward(self, x, lengths, reset):
        output, (h_n, c_n) = self.lstm(x, lengths=lengths, reset=reset)
        return output, h_n, c_n, *self.lstm(x)[1]


@pytest.mark.usefixtures("calls")
def test_export_and_decompositions():
    def inputs(batch):
        return rand(T, batch, D), torch.arange(batch) % (T + 1), torch.rand(T, batch) < 0.3

    model, batch = Model(), torch.export.Dim("batch")
    shapes = ({1: batch}, {0: batch}, {1: batch})
    program = torch.export.export(model, inputs(B), dynamic_shapes=shapes)

    def fused(program):
        found = [str(node.target) for node in program.graph.nodes]
        return [name for name in found if name.startswith("fused_lstm.")]

    assert fused(program) == ["fused_lstm.stack.default"] * 2
    decomposed = program.run_decompositions(fused_lstm.decompositions())
    assert not fused(decomposed)
    for call in (inputs(B), inputs(B + 4)):
        torch.testing.assert_close(program.module()(*call), model(*call))
        torch.testing.assert_close(decomposed.module()(*call), model(*call))


def test_decomposed_states(device):
    """Results have the shapes of the operator, whether the states are kept or not."""
    call, _ = arguments(device, torch.float64)
    table = fused_lstm.decompositions()
    for kept in (False, True):
        found = table[torch.ops.fused_lstm.stack.default](*call, keep_states=kept)
        torch.testing.assert_close(found, ops.stack(*call, keep_states=kept))


# Errors


def test_errors_name_the_argument(device):
    (x, h_0, c_0, weights, layers), _ = arguments(device)

    def replaced(k, weight):
        return [weight if i == k else w for i, w in enumerate(weights)]

    upper = rand(4 * H, D, device=device, dtype=torch.float32)
    for call, message in [
        ((x[0], h_0, c_0, weights, layers), r"^input must be \[T, B, D\], got 2 dim"),
        ((x[:0], h_0, c_0, weights, layers), "^input has no time steps"),
        ((x, h_0[0], c_0, weights, layers), r"^h_0 and c_0 must be \[layers, B, H\], got"),
        ((x, h_0[:2], c_0, weights, layers), r"^h_0 has shape \[2, 4, 6\], must be \[3, 4, 6\]"),
        ((x, h_0, c_0[:2], weights, layers), r"^c_0 has shape \[2, 4, 6\], must be \[3, 4, 6\]"),
        ((x, h_0[..., :5], c_0, weights, layers), "^h_0 has 5 features, must have c_0's 6"),
        ((x, h_0[..., :5], None, weights, layers), "^h_0 has 5 features, must have the weights'"),
        ((x, h_0.double(), c_0, weights, layers), "^h_0 has dtype Double, must be the input's"),
        ((x, h_0, c_0, weights, 0), "^num_layers is 0, must be at least 1"),
        ((x, h_0, c_0, weights, 5), "^weights has 12 tensors, must have 2 or 4 for each of 5"),
        ((x, h_0, c_0, weights, 4), "^weights has 12 tensors, must have 2 or 4 for each of 4"),
        ((x, h_0, c_0, replaced(0, weights[1]), layers), r"^weight_ih has shape \[24, 6\], must"),
        ((x, h_0, c_0, replaced(4, upper), layers), r"^weight_ih of layer 1 has shape \[24, 3\]"),
        ((x, h_0, c_0, replaced(9, upper), layers), r"^weight_hh of layer 2 has shape \[24, 3\]"),
        ((x, h_0, c_0, replaced(6, upper), layers), r"^bias_ih of layer 1 has shape \[24, 3\]"),
        (
            (x, h_0, c_0, replaced(11, weights[11].bfloat16()), layers),
            "^bias_hh of layer 2 has dtype BFloat16, must be the input's dtype Float",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.stack(*call)
    with pytest.raises(RuntimeError, match=r"^reset has shape \[4, 4\], must be \[5, 4\]"):
        ops.stack(x, h_0, c_0, weights, layers, reset=RESET[1:].to(device))
    with pytest.raises(RuntimeError, match=r"no C\w+ kernel for dtype"):
        ops.stack(x.int(), h_0.int(), c_0.int(), [w.int() for w in weights], layers)


def test_a_weight_elsewhere_is_named():
    x, h_0, c_0, weights, layers = arguments("meta")[0]
    with pytest.raises(RuntimeError, match=r"^weights\[4\] is on cpu, must be on the input's"):
        ops.stack(x, h_0, c_0, [*weights[:4], weights[4].new_empty(1, device="cpu")], layers)
