"""The operators as PyTorch's own checks see them: schema, fake tensors, autograd, compilation."""

from __future__ import annotations

import pytest
import torch
from oracle import on_device, rand, rand_state
from torch.library import opcheck

from fused_lstm import FusedLSTM, FusedLSTMCell, ops

T, B, D, H = 4, 3, 5, 6
LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 2},
    "both": {"proj_size": 2, "bidirectional": True, "bias": False},
}
OPTIONS = {
    "padded": {},
    "states kept": {"keep_states": True},
    "recompute": {"recompute": True},
    "packed": {"batch_sizes": torch.tensor([3, 2, 2, 1])},
    "lengths": {"lengths": torch.tensor([0, 4, 2])},
    "reset": {"reset": torch.arange(T * B).reshape(T, B) % 4 == 0, "reset_to_initial": True},
}

# Each kind of layer padded, and each option with the layer that has everything
CASES = [(layer, "padded") for layer in LAYERS] + [("both", option) for option in OPTIONS]
CASES.remove(("both", "padded"))


def arguments(device, layer, options):
    module = FusedLSTM(D, H, device=device, **LAYERS[layer])
    given = on_device(OPTIONS[options], device)
    rows = (8,) if "batch_sizes" in given else (T, B)
    x = rand(*rows, D, device=device, dtype=torch.float32)
    return (x, *rand_state(module, B), [w.detach() for w in module._flat_weights]), given


def requiring_grad(arguments):
    *tensors, weights = arguments
    return (*(t.requires_grad_() for t in tensors), [w.requires_grad_() for w in weights])


@pytest.mark.parametrize(("layer", "options"), CASES)
def test_layer(device, layer, options):
    call, given = arguments(device, layer, options)
    opcheck(torch.ops.fused_lstm.layer.default, call, given)
    opcheck(torch.ops.fused_lstm.layer.default, requiring_grad(call), given)


@pytest.mark.parametrize(("layer", "options"), CASES)
def test_layer_backward(device, layer, options):
    (*inputs, weights), given = arguments(device, layer, options)
    recompute = given.pop("recompute", False)
    given["keep_states"] = True
    output, h_n, c_n, cells, gates = ops.layer(*inputs, weights, **given)
    del given["keep_states"]
    gradients = [torch.ones_like(t) for t in (output, h_n, c_n, cells, gates)]
    for present in ([0, 1, 2, 3, 4], [2]):
        some = [g if k in present else None for k, g in enumerate(gradients)]
        call = (*some, *inputs, weights, output, cells, None if recompute else gates)
        opcheck(torch.ops.fused_lstm.layer_backward.default, call, given)
    with pytest.raises(RuntimeError, match="output is missing, must be given for more than one"):
        torch.ops.fused_lstm.layer_backward(*call[:9], None, cells, gates, **given)
    fewer = given | {"input_needed": False, "weights_needed": False}
    opcheck(torch.ops.fused_lstm.layer_backward.default, call, fewer)


@pytest.mark.parametrize("absent", ["h_0", "c_0", "both"])
@pytest.mark.parametrize(("layer", "options"), CASES)
def test_absent_states(device, layer, options, absent):
    """None stands for zeros, and has no gradient."""
    (x, h_0, c_0, weights), given = arguments(device, layer, options)
    left = (None if absent != "c_0" else h_0, None if absent != "h_0" else c_0)
    zeros = (
        torch.zeros_like(h_0) if left[0] is None else h_0,
        torch.zeros_like(c_0) if left[1] is None else c_0,
    )
    opcheck(torch.ops.fused_lstm.layer.default, (x, *left, weights), given)

    def evaluated(states):
        leaves = [t.detach().clone().requires_grad_() for t in (x, *weights)]
        results = ops.layer(leaves[0], *states, leaves[1:], **given)
        outputs = [r for r in results if r.requires_grad]
        ones = [torch.ones_like(r) for r in outputs]
        return [*results, *torch.autograd.grad(outputs, leaves, ones)]

    for one, other in zip(evaluated(left), evaluated(zeros), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [True, False])
def test_cell(device, bias):
    module = FusedLSTMCell(D, H, bias, device=device)
    weights = [w.detach() for w in module.parameters()]
    tensors = [rand(B, n, device=device, dtype=torch.float32) for n in (D, H, H)]
    opcheck(torch.ops.fused_lstm.cell.default, (*tensors, weights))
    kept = {"keep_states": True}
    opcheck(torch.ops.fused_lstm.cell.default, (*tensors, weights), kept)
    opcheck(torch.ops.fused_lstm.cell.default, requiring_grad((*tensors, weights)))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_states_are_kept_only_on_request(device, kept, recorded):
    call, _ = arguments(device, "plain", "padded")
    *_, cells, gates = ops.layer(*(requiring_grad(call) if recorded else call), keep_states=kept)
    assert cells.shape == ((1, T, B, H) if kept else (0,))
    assert gates.shape == ((1, T, B, 4 * H) if kept else (0,))

    x, h_0, c_0, weights = call
    call = (x[0], h_0[0], c_0[0], weights)
    *_, cells, gates = torch.ops.fused_lstm.cell(
        *(requiring_grad(call) if recorded else call), keep_states=kept
    )
    assert cells.shape == ((B, H) if kept else (0,))
    assert gates.shape == ((B, 4 * H) if kept else (0,))


def test_the_state_that_goes_in_may_come_out(device):
    """Nothing that the caller gave is changed."""
    call, _ = arguments(device, "bidirectional", "padded")
    *tensors, weights = call
    before = [t.clone() for t in (*tensors, *weights)]
    ops.layer(*call)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors, *weights), strict=True))
