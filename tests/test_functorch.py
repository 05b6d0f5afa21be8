"""torch.func and forward-mode derivatives: they go through the reference."""

from __future__ import annotations

import pytest
import torch
from oracle import rand, rand_state
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 4, 3, 2, 3


@pytest.fixture
def module(device):
    return FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)


@pytest.fixture
def x(device):
    return rand(T, B, D, device=device)


def test_grad(module, x):
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, x):
        return functional_call(module, parameters, (x,))[0].square().sum()

    found = grad(loss)(parameters, x)
    module(x)[0].square().sum().backward()
    torch.testing.assert_close(found, {n: p.grad for n, p in module.named_parameters()})


def test_vmap_over_samples(module, device):
    many = rand(5, T, B, D, device=device)
    found, (h_n, c_n) = vmap(module)(many)
    for k, one in enumerate(many):
        expected, state = module(one)
        torch.testing.assert_close(found[k], expected)
        torch.testing.assert_close((h_n[k], c_n[k]), state)


def test_an_ensemble(device):
    """vmap over the weights."""
    modules = [FusedLSTM(D, H, device=device, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(modules)
    x = rand(T, B, D, device=device)

    def call(parameters, buffers):
        return functional_call(modules[0], (parameters, buffers), (x,))[0]

    found = vmap(call)(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([module(x)[0] for module in modules]))


def test_gradients_per_sample(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x = rand(B, T, D, device=device)

    def loss(parameters, sequence):
        return functional_call(module, parameters, (sequence,))[0].sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for b in range(B):
        module.zero_grad()
        module(x[b])[0].sum().backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(found[name][b], p.grad)


def test_jvp_is_the_transpose_of_vjp(module, x):
    tangent, cotangent = rand(*x.shape).to(x), rand(T, B, 2 * H).to(x)
    output, forward = jvp(lambda x: module(x)[0], (x,), (tangent,))
    _, pull = vjp(lambda x: module(x)[0], x)
    torch.testing.assert_close((forward * cotangent).sum(), (pull(cotangent)[0] * tangent).sum())
    torch.testing.assert_close(output, module(x)[0])


def test_jacobians(module, x):
    def call(x):
        return module(x)[0][-1]

    expected = torch.autograd.functional.jacobian(call, x)
    torch.testing.assert_close(jacrev(call)(x), expected)
    torch.testing.assert_close(jacfwd(call)(x), expected)


def test_hessian(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    x = rand(2, 1, D, device=device)

    def loss(x):
        return module(x)[0].square().sum()

    torch.testing.assert_close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


def test_forward_mode(module, x):
    tangent = rand(*x.shape).to(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        found = forward_ad.unpack_dual(module(dual)[0]).tangent
    _, expected = jvp(lambda x: module(x)[0], (x,), (tangent,))
    torch.testing.assert_close(found, expected)


def test_options(module, x, device):
    lengths = torch.tensor([4, 0, 2], device=device)
    reset = torch.arange(T * B, device=device).reshape(T, B) % 4 == 0
    hx = rand_state(module, B)

    def call(x):
        return module(x, hx, lengths=lengths, reset=reset, reset_to="initial")[0]

    torch.testing.assert_close(jacrev(call)(x), torch.autograd.functional.jacobian(call, x))


def test_the_cell(device):
    cell = FusedLSTMCell(D, H, device=device, dtype=torch.float64)
    x = rand(B, D, device=device)

    def call(x):
        return cell(x)[0]

    torch.testing.assert_close(jacfwd(call)(x), torch.autograd.functional.jacobian(call, x))
    torch.testing.assert_close(vmap(call)(x[:, None])[:, 0], call(x))
