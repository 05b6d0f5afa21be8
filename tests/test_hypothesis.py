"""Whole configurations drawn at random, against the reference in float64.

FUSED_LSTM_FUZZ=10000 (`make fuzz`) draws that many, new ones each time; else it is always the
same few.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import (
    assert_accurate,
    evaluate,
    flatten,
    rand,
    rand_state,
    truth_of,
    with_data,
)
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM


@st.composite
def configurations(draw):
    """Arguments of FusedLSTM, then those of a call: input, hx and options."""
    H = draw(st.integers(1, 40) | st.sampled_from([64, 65, 128]))
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
        "strided": draw(st.booleans()),
        "frozen": draw(st.sampled_from([0.0, 0.5, 0.9])),  # share of what requires no gradient
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
    if choices["strided"]:
        x = with_data(x, strided(x.data)) if layout.startswith("packed") else strided(x)
        hx = hx and tuple(map(strided, hx))
        for parameter in module.parameters():
            parameter.data = strided(parameter.data)
    names = ["input", *(["h_0", "c_0"] if hx else []), *dict(module.named_parameters())]
    drawn = torch.rand(len(names) - 1) < choices["frozen"]
    frozen = {name for name, chosen in zip(names[1:], drawn.tolist(), strict=True) if chosen}
    if drawn.any() and not drawn.all():
        frozen |= {"input"}
    return module, (x, hx), options | {"frozen": frozen}


def strided(tensor):
    """The same numbers, with others between them."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


FUZZ = os.environ.get("FUSED_LSTM_FUZZ", "")


@settings(
    max_examples=int(FUZZ or 200),
    derandomize=not FUZZ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    configuration=configurations(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_any_configuration(device, configuration, dtype):
    module, call, options = build(configuration, device, dtype)
    found = evaluate(module, *call, **options)
    assert_accurate(found, truth_of(module, *call, **options))
    del options["frozen"]
    with torch.no_grad():
        results = flatten(module(*call, **options))
    for name, tensor in results.items():
        assert torch.equal(tensor, found[name]), name
