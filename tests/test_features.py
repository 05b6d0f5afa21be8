"""The README's table of features: what it says of FusedLSTM and of nn.LSTM is tried on both."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from oracle import rand
from test_contract import WeightDrop, pruned, spectral_norm, weight_norm
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm
from fused_lstm import FusedLSTM

T, B, D, H = 5, 4, 3, 6
README = Path(__file__).resolve().parents[1] / "README.md"
pytestmark = [
    pytest.mark.skipif(not README.exists(), reason="no README here"),
    pytest.mark.filterwarnings("ignore"),  # of what is deprecated, and to work all the same
]


def x():
    return rand(T, B, D, dtype=torch.float32)


def compiled(lstm):
    torch.compiler.reset()
    torch.compile(lstm(D, H), fullgraph=True, backend="eager")(x())


def exported(lstm):
    sizes = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    program = torch.export.export(lstm(D, H).eval(), (x(),), dynamic_shapes=(sizes,))
    program.module()(torch.zeros(T + 2, B + 3, D))


def exported_packed(lstm):
    packed = pack_padded_sequence(x(), [5, 3, 2, 1])
    torch.export.export(lstm(D, H).eval(), (packed,))


def in_onnx(lstm):
    pytest.importorskip("onnxscript")
    module = lstm(D, H).eval()
    program = torch.onnx.export(module, (x(),), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph].count("LSTM") == 1
    torch.onnx.export(module, (x(),), io.BytesIO(), dynamo=False)


def in_aten(lstm):
    program = torch.export.export(lstm(D, H).eval(), (x(),))
    program = program.run_decompositions(fused_lstm.decompositions())
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in function getitem>")) for target in targets)


def without_packing(lstm):
    lstm(D, H)(x(), lengths=torch.tensor([5, 0, 1, 2]), reset=torch.zeros(T, B, dtype=torch.bool))


def inner_states(lstm):
    *_, states = lstm(D, H)(x(), return_states=True)
    sum(kept[0].sum() for kept in (states.cells, states.gates, states.hidden)).backward()


def recomputed(lstm):
    lstm(D, H, recompute=True)(x())[0].sum().backward()


def double_backward(lstm):
    module, leaf = lstm(D, H), x().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf)[0].sum(), leaf, create_graph=True)
    gradient.square().sum().backward()


def per_sample(lstm):
    module = lstm(D, H)
    parameters = dict(module.named_parameters())

    def loss(parameters, sequence):
        return functional_call(module, parameters, (sequence,))[0].sum()

    vmap(grad(loss), in_dims=(None, 0))(parameters, x())
    jacrev(lambda x: module(x)[0][-1].sum())(x())


def vectorised_inputs(lstm):
    vmap(lstm(D, H))(x()[None])


def vectorised_weights(lstm):
    modules, input = [lstm(D, H) for _ in range(2)], x()
    vmap(lambda p: functional_call(modules[0], p, (input,))[0])(stack_module_state(modules)[0])


def forward_mode(lstm):
    module = lstm(D, H)
    jvp(lambda x: module(x)[0], (x(),), (x(),))


def autocast(lstm):
    """1000 steps of 1/256 each: a bfloat16 sum does not go beyond 1."""
    module = lstm(D, H)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[: 2 * H] = 100.0
        module.bias_ih_l0[2 * H : 3 * H] = 1 / 256
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, c_n) = module(torch.zeros(1000, 1, D))
    assert c_n.dtype == torch.bfloat16
    assert c_n.max() > 3


def eval_backward(lstm):
    lstm(D, H).eval()(x())[0].sum().backward()


def files(lstm):
    safetensors = pytest.importorskip("safetensors.torch")
    module, other = lstm(D, H), (nn.LSTM if lstm is FusedLSTM else FusedLSTM)(D, H)
    expected, file = module(x := rand(T, B, D, dtype=torch.float32))[0], io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    for weights in (safetensors.load(safetensors.save(module.state_dict())), torch.load(file)):
        other.load_state_dict({name: torch.zeros_like(w) for name, w in weights.items()})
        other.load_state_dict(weights)
        torch.testing.assert_close(other(x)[0], expected)


def wrapped(lstm):
    """What stands behind the weight is changed, and the next call shows it."""
    input = x()
    for wrapper in (weight_norm, spectral_norm, pruned, WeightDrop):
        module = wrapper(lstm(D, H, 2))
        originals = [p for name, p in module.named_parameters() if re.search("orig|raw", name)]
        outputs = []
        for _ in range(2):
            torch.manual_seed(0)  # of the dropped weights
            outputs.append(module(input)[0])
            with torch.no_grad():
                for parameter in originals:
                    parameter.add_(torch.rand_like(parameter))
        assert not torch.equal(*outputs)


def frozen(lstm):
    for weights in ("float32", "bfloat16", "int8"):
        module = fused_lstm.freeze(lstm(D, H), weights)
        assert isinstance(module, fused_lstm.FrozenLSTM)
        torch.compile(module, fullgraph=True, backend="eager")(x())
        module.load_state_dict(module.state_dict())


def streams(lstm):
    stream = fused_lstm.freeze(lstm(D, H), "int8").stream(batch_size=B)
    outputs = [stream(step) for step in x()]
    assert all(output is outputs[0] for output in outputs)
    stream.fork().reset(torch.tensor([True, False, True, False]))


class Output(nn.Module):
    def forward(self, result: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]):
        return result[0]


def torchscript(lstm):
    torch.jit.script(nn.Sequential(lstm(D, H), Output()))(x())
    torch.jit.trace(lstm(D, H), (x(),), check_trace=False)(x())


def old_torchscript(lstm):
    class Model(torch.jit.ScriptModule):
        def __init__(self):
            super().__init__()
            self.lstm = lstm(D, H)

        @torch.jit.script_method
        def forward(self, x):
            return self.lstm(x)[0]

    Model()(x())


# By the first words of the row. A string names the test that tries both.
FEATURES = {
    "`torch.compile(fullgraph=True)`": [compiled],
    "`torch.export`, AOTInductor": [exported],
    "... of a packed sequence": [exported_packed],
    "ONNX's `LSTM`": [in_onnx],
    "ATen operations alone": [in_aten],
    "lengths without packing": [without_packing],
    "cell states and gates": [inner_states],
    "`recompute=True`": [recomputed],
    "double backward": [double_backward],
    "`torch.func.grad`": [per_sample],
    "`vmap`": [vectorised_inputs, vectorised_weights],
    "`jvp`": [forward_mode],
    "autocast": [autocast],
    "backward in eval mode": [eval_backward],
    "DistributedDataParallel": "test_processes.py::test_ddp_and_fsdp",
    "DataLoader workers": "test_processes.py::test_data_loader_workers_after_use",
    "`freeze`": [frozen],
    "streams": [streams],
    "safetensors": [files],
    "`weight_norm`": [wrapped],
    "CUDA graphs": "test_cuda.py::test_a_graphed_callable",
    "out of memory": "test_memory_limit.py::test_out_of_memory",
    "`torch.jit.trace`": [torchscript],
    "inside a subclass": [old_torchscript],
}

# How a "no" shows
REFUSALS = {
    "`torch.compile(fullgraph=True)`": "Dynamo does not support RNN, GRU, or LSTM",
    "`torch.export`, AOTInductor": "Constraints violated",
    "... of a packed sequence": "must be a padded tensor to be exported|data-dependent",
    "lengths without packing": "unexpected keyword argument",
    "cell states and gates": "unexpected keyword argument",
    "`recompute=True`": "unexpected keyword argument",
    "`vmap`": "Batching rule not implemented",
    "`jvp`": "forward AD",
    "autocast": "assert",
    "inside a subclass": "Unknown type annotation",
}


def rows():
    """What stands before, in and behind the table's columns, by the first words of each row."""
    table = README.read_text(encoding="utf-8").split("<!-- features:")[1].split("\n\n")[0]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()[3:]]
    return {key: row for row in cells for key in FEATURES if row[0].startswith(key)}, len(cells)


def test_every_row_is_tried():
    found, count = rows()
    assert len(found) == len(FEATURES) == count


@pytest.mark.parametrize("column", [1, 2], ids=["FusedLSTM", "nn.LSTM"])
@pytest.mark.parametrize("feature", [f for f, tried in FEATURES.items() if isinstance(tried, list)])
def test_the_table_is_true(feature, column):
    answer = rows()[0][feature][column]
    assert answer.startswith(("yes", "no"))
    for attempt in FEATURES[feature]:
        if answer.startswith("yes"):
            attempt((FusedLSTM, nn.LSTM)[column - 1])
        else:
            with pytest.raises(Exception, match=REFUSALS[feature]):
                attempt((FusedLSTM, nn.LSTM)[column - 1])


@pytest.mark.parametrize("test", [t for t in FEATURES.values() if isinstance(t, str)])
def test_the_tests_elsewhere_exist(test):
    file, name = test.split("::")
    source = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert f"def {name}(" in source
    assert "nn.LSTM" in source  # which it tries as well
