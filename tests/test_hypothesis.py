"""Whole configurations drawn at random, against the definition in float64."""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_close, cast, evaluate, flatten, rand, rand_state, reference_lstm, twin
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM


@st.composite
def configurations(draw):
    """Arguments of FusedLSTM, then those of a call: input, hx and options."""
    H = draw(st.integers(1, 40))
    arguments = {
        "input_size": draw(st.integers(1, 20)),
        "hidden_size": H,
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "proj_size": draw(st.integers(0, H - 1)),
        "recompute": draw(st.booleans()),
    }
    shape = {"steps": draw(st.integers(1, 9)), "batch": draw(st.integers(0, 20))}
    layout = draw(st.sampled_from(["padded", "unbatched", "packed", "packed unsorted"]))
    choices = {
        "layout": layout,
        "state": draw(st.booleans()),
        "lengths": draw(st.booleans()),
        "reset": draw(st.booleans()),
        "reset_to": draw(st.sampled_from(["zero", "initial"])),
        "return_states": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }
    return arguments, shape, choices


def build(configuration, device, dtype):
    arguments, shape, choices = configuration
    torch.manual_seed(choices["seed"])
    module = FusedLSTM(**arguments, device=device, dtype=dtype)
    T, B, D = shape["steps"], shape["batch"], module.input_size
    layout = choices["layout"]
    options = {"return_states": choices["return_states"]}
    if layout.startswith("packed"):
        lengths = torch.randint(1, T + 1, (max(B, 1),))
        if layout == "packed":
            lengths = lengths.sort(descending=True).values
        rows = (T, len(lengths))
    else:
        rows = (T,) if layout == "unbatched" else (T, B)
        if choices["lengths"]:
            options["lengths"] = torch.randint(0, T + 1, rows[1:], device=device)
        if choices["reset"]:
            options["reset"] = torch.rand(rows, device=device) < 0.3
            options["reset_to"] = choices["reset_to"]
    x = rand(*rows, D, device=device, dtype=dtype)
    if module.batch_first and len(rows) == 2:
        x = x.transpose(0, 1)
        if "reset" in options:
            options["reset"] = options["reset"].t()
    if layout.startswith("packed"):
        first = module.batch_first
        x = pack_padded_sequence(x, lengths, first, enforce_sorted=layout == "packed")
    batch = None if layout == "unbatched" else rows[1]
    hx = rand_state(module, batch) if choices["state"] else None
    return module, (x, hx), options


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(configuration=configurations(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_configuration(device, configuration, dtype):
    module, call, options = build(configuration, device, dtype)
    wide = twin(module, FusedLSTM, torch.float64)
    wide_call = (call[0].to(torch.float64), cast(call[1], torch.float64))
    truth = evaluate(wide, *wide_call, call=partial(reference_lstm, wide), **options)
    assert_close(evaluate(module, *call, **options), truth)
    with torch.no_grad():
        results = flatten(module(*call, **options))
    assert_close(results, {name: truth[name] for name in results})
