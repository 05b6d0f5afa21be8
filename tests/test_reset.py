"""reset=: the same as running each episode on its own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    assert_close,
    assert_same_bits,
    assert_same_without_boundaries,
    evaluate,
    rand,
    rand_state,
    reference_lstm,
)

from fused_lstm import FusedLSTM

T, B, D, H = 7, 4, 3, 5
LAYERS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2, "bidirectional": True, "bias": False},
}
# Episode boundaries nowhere, everywhere, at the first and the last step, twice in a row; [T, B]
RESET = torch.tensor(
    [
        [False, True, True, False],
        [False, True, False, False],
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, False],
        [False, True, False, False],
        [False, True, True, False],
    ]
)
LENGTHS = [5, 7, 6, 3]


def episodes_apart(module, x, hx, reset_to, lengths):
    """The reference over each episode; a state crosses no boundary. x is [T, B, D]."""
    directions = 2 if module.bidirectional else 1
    outputs, finals = [], []
    for b, length in enumerate(lengths):
        edges = [0, *(t for t in range(1, length) if RESET[t, b]), length]
        pieces, ends = [], []
        for k in range(len(edges) - 1):
            # The first episode goes on from hx, in reverse the last; a boundary at step 0 counts.
            afresh = [k > 0 or bool(RESET[0, b]), k < len(edges) - 2] * module.num_layers
            kept = torch.tensor(afresh[:: 3 - directions], device=x.device).logical_not()[:, None]
            state = [s[:, b] * kept if reset_to == "zero" else s[:, b] for s in hx]
            episode = x[edges[k] : edges[k + 1], b : b + 1]
            state = tuple(s[:, None] for s in state)
            output, end = reference_lstm(module, episode, state)
            pieces.append(output[:, 0])
            ends.append(end)
        outputs.append(F.pad(torch.cat(pieces), (0, 0, 0, T - length)))
        # The reverse direction ends at the first episode.
        of_direction = [ends[-1], ends[0]][:directions] * module.num_layers
        finals.append([[e[s][k] for k, e in enumerate(of_direction)] for s in (0, 1)])
    h_n, c_n = (torch.cat([torch.stack(final[s]) for final in finals], dim=1) for s in (0, 1))
    return torch.stack(outputs, 1), (h_n, c_n)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("reset_to", ["zero", "initial"])
@pytest.mark.parametrize("layer", LAYERS)
def test_episodes_apart(device, layer, reset_to, with_lengths):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64, **LAYERS[layer])
    x, hx = rand(T, B, D, device=device), rand_state(module, B)
    lengths = LENGTHS if with_lengths else [T] * B
    options = {"reset": RESET.to(device), "reset_to": reset_to}
    if with_lengths:
        options["lengths"] = torch.tensor(lengths, device=device)
    expected = evaluate(
        module, x, hx, call=lambda x, hx: episodes_apart(module, x, hx, reset_to, lengths)
    )
    assert_close(evaluate(module, x, hx, **options), expected)


@pytest.mark.parametrize("reset_to", ["zero", "initial"])
def test_layouts(device, reset_to):
    """[B, T] with batch_first and [T] without a batch."""
    module = FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)
    x, hx, reset = rand(T, B, D, device=device), rand_state(module, B), RESET.to(device)
    output, (h_n, c_n) = module(x, hx, reset=reset, reset_to=reset_to)
    for b in range(B):
        one = tuple(s[:, b] for s in hx)
        found, state = module(x[:, b], one, reset=reset[:, b], reset_to=reset_to)
        torch.testing.assert_close(found, output[:, b])
        torch.testing.assert_close(state, (h_n[:, b], c_n[:, b]))
    module.batch_first = True
    found, state = module(x.transpose(0, 1), hx, reset=reset.t(), reset_to=reset_to)
    assert torch.equal(found.transpose(0, 1), output)
    assert torch.equal(state[0], h_n)


def test_nothing_crosses_an_episode_boundary(device):
    """NaN in one episode does not reach the next one, in either direction."""
    module = FusedLSTM(D, H, 2, bidirectional=True, device=device)
    x = rand(T, 1, D, device=device, dtype=torch.float32)
    reset = torch.zeros(T, 1, dtype=torch.bool, device=device)
    reset[2] = reset[4] = True
    clean, _ = module(x, reset=reset)
    x[3] = torch.nan
    found, _ = module(x, reset=reset)
    assert found[2:4].isnan().all()
    assert torch.equal(found[:2], clean[:2])
    assert torch.equal(found[4:], clean[4:])


def test_from_zero_without_hx_is_from_initial(device):
    module = FusedLSTM(D, H, device=device)
    call = (rand(T, B, D, device=device, dtype=torch.float32),)
    reset = RESET.to(device)
    zero, initial = (
        evaluate(module, *call, reset=reset, reset_to=to) for to in ("zero", "initial")
    )
    assert_same_bits(zero, initial)


def test_no_reset_at_all(device):
    module = FusedLSTM(D, H, bidirectional=True, device=device)
    call = (rand(T, B, D, device=device, dtype=torch.float32), rand_state(module, B))
    never = torch.zeros(T, B, dtype=torch.bool, device=device)
    with_resets = evaluate(module, *call, reset=never)
    assert_same_without_boundaries(device, with_resets, evaluate(module, *call))


def test_one_step(device):
    module = FusedLSTM(D, H, bidirectional=True, device=device, dtype=torch.float64)
    x, hx = rand(1, 2, D, device=device), rand_state(module, 2)
    reset = torch.tensor([[True, False]], device=device)
    found = evaluate(module, x, hx, reset=reset)
    expected = evaluate(module, x, hx, call=partial(reference_lstm, module), reset=reset)
    assert_close(found, expected)
    # The forward direction of the first sequence starts from zero, the reverse one from hx.
    assert not found["grad of h_0"][0, 0].any()
    assert found["grad of h_0"][1, 0].any()
