"""The operators in ATen operations, for compilers that know no others."""

from __future__ import annotations

import pytest
import torch
from oracle import rand
from torch import nn

import fused_lstm
from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 5, 3, 4, 6
LAYERS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2, "bias": False},
}


class Model(nn.Module):
    """A layer with all its options, and a cell."""

    def __init__(self, **arguments):
        super().__init__()
        self.lstm = FusedLSTM(D, H, dtype=torch.float64, **arguments)
        self.cell = FusedLSTMCell(D, H, dtype=torch.float64)

    def forward(self, x, lengths, reset):
        output, (h_n, c_n) = self.lstm(x, lengths=lengths, reset=reset)
        *_, states = self.lstm(x, return_states=True)
        return output, h_n, c_n, *states.cells, *states.gates, *self.cell(x[0])


def inputs(batch=B):
    lengths = torch.arange(batch) % (T + 1)
    return rand(T, batch, D), lengths, torch.rand(T, batch) < 0.3


def fused(program):
    return [n for n in program.graph.nodes if str(n.target).startswith("fused_lstm.")]


@pytest.mark.parametrize("layer", LAYERS)
def test_any_batch(layer):
    model, batch = Model(**LAYERS[layer]), torch.export.Dim("batch")
    shapes = ({1: batch}, {0: batch}, {1: batch})
    program = torch.export.export(model, inputs(), dynamic_shapes=shapes)
    assert len(fused(program)) == 2 * model.lstm.num_layers + 1
    decomposed = program.run_decompositions(fused_lstm.decompositions())
    assert not fused(decomposed)
    for call in (inputs(), inputs(B + 4)):
        torch.testing.assert_close(decomposed.module()(*call), model(*call))


def test_a_length_that_may_vary_is_refused():
    time = torch.export.Dim("time")
    module = FusedLSTM(D, H)
    x = rand(T, B, D, dtype=torch.float32)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: time},))
    with pytest.raises(RuntimeError, match=r"input has \w+ time steps, must have a fixed number"):
        program.run_decompositions(fused_lstm.decompositions())


def test_torch_compile_keeps_the_fused_operators():
    seen = []

    def backend(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    fused_lstm.decompositions()
    torch.compile(FusedLSTM(D, H), backend=backend, fullgraph=True, dynamic=True)(
        rand(T, B, D, dtype=torch.float32)
    )
    assert "fused_lstm.layer.default" in seen
