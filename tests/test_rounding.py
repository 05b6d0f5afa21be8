"""The rule that judges accuracy: other right kernels meet it, and small faults do not."""

from __future__ import annotations

import itertools
from functools import cache, partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_accurate, cast, evaluate, rand, rand_state, reference_lstm, truth_of, twin
from test_accuracy import SHAPES

from fused_lstm import FusedLSTM

LONG = [shape for shape in SHAPES if shape[0] > 1]


@cache
def case(shape, dtype):
    """A layer, a call of it, and what that returns."""
    torch.manual_seed(0)
    T, B, D, H = shape
    module = FusedLSTM(D, H, dtype=dtype)
    call = (rand(T, B, D, dtype=dtype), rand_state(module, B))
    return module, call, truth_of(module, *call, return_states=True)


def computed_in_float64(module, *call):
    """What the reference says, each result rounded once."""
    dtype, wide = module.weight_ih_l0.dtype, twin(module, FusedLSTM, torch.float64)
    call = cast(call, torch.float64)
    found = evaluate(wide, *call, call=partial(reference_lstm, wide), return_states=True)
    return {
        name: tensor.to(torch.promote_types(dtype, torch.float32) if "cells" in name else dtype)
        for name, tensor in found.items()
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_once_is_right(dtype, shape):
    module, call, truth = case(shape, dtype)
    assert_accurate(computed_in_float64(module, *call), truth)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nn_lstm_is_right(shape):
    module, call, _ = case(shape, torch.float32)
    assert_accurate(evaluate(twin(module), *call), truth_of(module, *call))


# Faults: of a function of torch that the reference calls, or of a result


class Changed(torch.autograd.Function):
    """The identity, with a change of the values forward or of the gradients backward."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_change = backward
        return x.clone() if forward is None else forward(x)

    @staticmethod
    def backward(ctx, grad):
        change = ctx.backward_change
        return grad if change is None else change(grad), None, None


def bfloat16(x):
    return x.bfloat16().double()


def float16(x):
    return x.half().double()


def coarse(function, factor):
    return lambda x: Changed.apply(function(x), lambda y: y * factor, None)


linear = F.linear
cat = torch.cat


def product_without_a_term(x, weight, bias=None):
    return linear(x[..., 1:], weight[:, 1:], bias)


def product_without_a_bias(x, weight, bias=None):
    H = len(weight) // 4
    kept = torch.ones(4 * H, dtype=torch.float64)
    kept[H : 2 * H] = 0  # the forget gate's
    return linear(x, weight, bias * kept)


def product_rounded(rounded):
    return lambda x, *weights: Changed.apply(linear(x, *weights), rounded, None)


def weights_gradient_rounded(x, weight, *bias):
    return linear(x, Changed.apply(weight, None, bfloat16), *bias)


def gradient_of_the_first_step_missing():
    calls = itertools.count()

    def call(x, weight, *bias):
        return linear(x, weight.detach() if next(calls) < 2 else weight, *bias)  # two a step

    return call


def state_rounded(rounded):
    """torch.cat of two puts the states of a step together with those of sequences that are over."""
    return lambda parts, dim=0: (
        Changed.apply(cat(parts, dim), rounded, None) if len(parts) == 2 else cat(parts, dim)
    )


LINEAR = partial(mock.patch.object, F, "linear")
FLOAT32 = {
    "tanh off by 1e-5": lambda: mock.patch.object(
        torch.Tensor, "tanh", coarse(torch.tanh, 1 + 1e-5)
    ),
    "sigmoid off by 16 units in the last place": lambda: mock.patch.object(
        torch.Tensor, "sigmoid", coarse(torch.sigmoid, 1 + 16 * 2.0**-24)
    ),
    "products in bfloat16": lambda: LINEAR(product_rounded(bfloat16)),
    "a term of each sum is left out": lambda: LINEAR(product_without_a_term),
    "a gate's bias is left out": lambda: LINEAR(product_without_a_bias),
    "weights' gradients in bfloat16": lambda: LINEAR(weights_gradient_rounded),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fault", FLOAT32)
def test_faults_of_float32(fault, shape):
    module, call, truth = case(shape, torch.float32)
    with FLOAT32[fault]():
        found = computed_in_float64(module, *call)
    with pytest.raises(AssertionError, match="what rounding may do"):
        assert_accurate(found, truth)


@pytest.mark.parametrize("shape", LONG, ids=str)
def test_a_step_that_is_missing_in_the_weights_gradients(shape):
    module, call, truth = case(shape, torch.float32)
    with LINEAR(gradient_of_the_first_step_missing()):
        found = computed_in_float64(module, *call)
    with pytest.raises(AssertionError, match="grad of weight_ih_l0 is off"):
        assert_accurate(found, truth)


@pytest.mark.parametrize("shape", LONG, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("fault", ["products", "states"])
def test_faults_of_16_bits(fault, dtype, shape):
    """What is to be summed up in float32 is not."""
    rounded = bfloat16 if dtype == torch.bfloat16 else float16
    patched = (
        LINEAR(product_rounded(rounded))
        if fault == "products"
        else mock.patch.object(torch, "cat", state_rounded(rounded))
    )
    module, call, truth = case(shape, dtype)
    with patched, pytest.raises(AssertionError, match="what rounding may do"):
        assert_accurate(computed_in_float64(module, *call), truth)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stale_row(dtype, shape):
    """One row of one result is that of the row before it."""
    module, call, truth = case(shape, dtype)
    right = computed_in_float64(module, *call)
    for name, tensor in right.items():
        rows = tensor.clone().reshape(-1, tensor.size(-1))
        if len(rows) > 1 and tensor.dim() > 1:
            rows[-1] = rows[-2]
            with pytest.raises(AssertionError, match="what rounding may do"):
                assert_accurate(right | {name: rows.view(tensor.shape)}, truth)
