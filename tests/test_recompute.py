"""recompute=True: the same gradients from a fifth of the memory or less."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracle import assert_accurate, assert_close, evaluate, flatten, rand, rand_state, truth_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from fused_lstm import FusedLSTM, ops, replace_lstm

T, B, D, H = 6, 5, 7, 9
LAYERS = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "deep": {"num_layers": 3, "bidirectional": True, "bias": False, "batch_first": True},
}
CALLS = ["padded", "lengths", "reset", "reset to initial", "packed", "packed unsorted", "unbatched"]


def call_of(module, kind):
    """x and hx, and options."""
    device, dtype = module.weight_ih_l0.device.type, module.weight_ih_l0.dtype
    lengths = torch.tensor([2, 6, 0, 4, 4])
    options = {}
    if kind == "unbatched":
        return (rand(T, D, device=device, dtype=dtype), rand_state(module, None)), options
    rows = (B, T) if module.batch_first else (T, B)
    x = rand(*rows, D, device=device, dtype=dtype)
    if kind.startswith("packed"):
        lengths = lengths.clamp(min=1)
        lengths = lengths.sort(descending=True).values if kind == "packed" else lengths
        x = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=kind == "packed")
    elif kind != "padded":
        options["lengths"] = lengths.to(device)
    if kind.startswith("reset"):
        reset = torch.arange(T * B, device=device).reshape(T, B) % 4 == 0
        options["reset"] = reset.t() if module.batch_first else reset
        options["reset_to"] = "initial" if kind == "reset to initial" else "zero"
    return (x, rand_state(module, B)), options


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients(device, dtype, layer, kind):
    """As near to the truth as rounding allows."""
    module = FusedLSTM(D, H, device=device, dtype=dtype, recompute=True, **LAYERS[layer])
    call, options = call_of(module, kind)
    assert_accurate(evaluate(module, *call, **options), truth_of(module, *call, **options))


def test_inner_states(device):
    module = FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)
    call, options = call_of(module, "reset")
    expected = evaluate(module, *call, return_states=True, **options)
    module.recompute = True
    assert_close(evaluate(module, *call, return_states=True, **options), expected)


def test_padding_does_not_matter(device):
    module = FusedLSTM(D, H, bidirectional=True, device=device, recompute=True)
    (x, hx), options = call_of(module, "lengths")
    expected = evaluate(module, x, hx, **options)
    padding = torch.arange(T, device=device)[:, None] >= options["lengths"]
    found = evaluate(module, x.masked_fill(padding[:, :, None], torch.nan), hx, **options)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("to", ["zero", "initial"])
def test_episodes_do_not_matter_to_one_another(device, to):
    """Neither as values that a mask would multiply by zero."""
    module = FusedLSTM(D, H, bidirectional=True, device=device, dtype=torch.float64, recompute=True)
    x, hx = rand(T, B, D, device=device), rand_state(module, B)
    x[2:4] = torch.inf
    reset = torch.zeros(T, B, dtype=torch.bool, device=device)
    reset[2] = reset[4] = True
    x.requires_grad_()
    output, _ = module(x, hx, reset=reset, reset_to=to)
    output[:2].sum().backward()
    found = x.grad[:2].clone()
    x.grad = None
    module.recompute = False
    module(x, hx, reset=reset, reset_to=to)[0][:2].sum().backward()
    assert found.any()
    torch.testing.assert_close(found, x.grad[:2])


def saved_bytes(module, *call, **options):
    """What a call keeps for its backward, beyond the caller's own tensors."""
    own = [*module.parameters(), call[0].data, *(call[1] if len(call) > 1 else ())]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(*call, **options)
    total = sum(sizes.values())
    del result  # up to here it kept all of it alive, so that no address was used twice
    return total


@pytest.mark.parametrize("kind", ["padded", "lengths", "packed"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3}, {"proj_size": 16}],
    ids=["one layer", "both directions", "three layers", "projected"],
)
def test_saved_bytes(device, dtype, arguments, kind):
    """h of each step, where the gates are 4 H more, and the cell states 1 H in float32 or wider."""
    module = FusedLSTM(D, 64, device=device, dtype=dtype, **arguments).train()
    (x, hx), options = call_of(module, kind)
    kept = saved_bytes(module, x, hx, **options)
    module.recompute = True
    assert kept >= 5 * saved_bytes(module, x, hx, **options) > 0


def test_nothing_else_is_made(device):
    """Unless asked for, cells and gates stay empty in training as well."""
    module = FusedLSTM(D, H, device=device)
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    x = rand(T, B, D, device=device, dtype=torch.float32)
    output, _, _, cells, gates = ops.layer(x, *rand_state(module, B), weights, recompute=True)
    assert output.requires_grad
    assert not cells.requires_grad
    assert not gates.requires_grad
    assert cells.numel() == gates.numel() == 0


def test_checkpoint(device):
    module = FusedLSTM(D, H, 2, device=device, dtype=torch.float64, recompute=True)
    x = rand(T, B, D, device=device)
    found = evaluate(module, x, call=lambda x, hx: checkpoint(module, x, hx, use_reentrant=False))
    assert_close(found, evaluate(module, x))


def test_autocast(device):
    module = FusedLSTM(D, H, 2, device=device, recompute=True)
    x = rand(T, B, D, device=device, dtype=torch.float32)

    def call(*inputs):
        with torch.autocast(device, torch.bfloat16):
            return module(*inputs)

    found = evaluate(module, x, call=call)
    module.recompute = False
    expected = evaluate(module, x, call=call)
    for name, true in expected.items():
        assert found[name].dtype == true.dtype
        torch.testing.assert_close(found[name], true, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_backward_inside_autocast(device, dtype, autocast):
    """It does not choose types where the states are recomputed."""
    module = FusedLSTM(D, H, device=device, dtype=dtype, bidirectional=True, recompute=True)
    x, expected = rand(T, B, D, device=device, dtype=dtype), []
    for enabled in (False, True):
        module.zero_grad()
        output = module(x)[0]
        with torch.autocast(device, autocast, enabled=enabled):
            output.sum().backward()
        expected.append([p.grad.clone() for p in module.parameters()])
    assert all(map(torch.equal, *expected))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(device, backend):
    module = FusedLSTM(D, H, 2, device=device, dtype=torch.float64, recompute=True)
    call, options = call_of(module, "lengths")
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_close(
        evaluate(module, *call, call=compiled, **options), evaluate(module, *call, **options)
    )


def test_a_second_derivative(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64, recompute=True)
    x = rand(T, B, D, device=device).requires_grad_()

    def penalty():
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(module.parameters()))

    found = penalty()
    module.recompute = False
    torch.testing.assert_close(found, penalty())


# The attribute


def test_it_is_keyword_only_and_shown():
    with pytest.raises(TypeError, match="positional"):
        FusedLSTM(D, H, 1, True, False, 0.0, False, 0, None, None, True)
    assert "recompute=True" in repr(FusedLSTM(D, H, recompute=True))
    assert "recompute" not in repr(FusedLSTM(D, H))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_it(copied):
    assert copied(FusedLSTM(D, H, recompute=True)).recompute
    assert not copied(FusedLSTM(D, H)).recompute


def test_state_dicts_do_not_hold_it():
    module = FusedLSTM(D, H, recompute=True)
    assert list(module.state_dict()) == list(nn.LSTM(D, H).state_dict())
    module.load_state_dict(nn.LSTM(D, H).state_dict())
    assert module.recompute


def test_swapped_modules_have_it():
    model = nn.ModuleDict({"new": nn.LSTM(D, H), "old": FusedLSTM(D, H, recompute=True)})
    assert replace_lstm(model, verbose=False) == ["new"]
    assert model["old"].recompute
    assert model["new"].recompute is False
    x = rand(T, B, D, dtype=torch.float32)
    kept = saved_bytes(model["new"], x)
    model["new"].recompute = True
    assert saved_bytes(model["new"], x) < kept
    assert flatten(model["new"](x))["output"].shape == (T, B, H)
