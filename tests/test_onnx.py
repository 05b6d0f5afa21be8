"""torch.onnx.export: the standard operator LSTM, with the numbers of the module."""

from __future__ import annotations

import pytest
import torch
from oracle import flatten, in_fresh_process, rand, rand_state
from torch import Tensor, nn

from fused_lstm import FusedLSTM, FusedLSTMCell, ops
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
fused_lstm_onnx = pytest.importorskip("fused_lstm.onnx")

T, B, D, H = 5, 3, 4, 6
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
LAYERS = {
    "plain": {},
    "stacked": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True},
}


def export(module, inputs, path, dynamic_shapes, **options):
    program = torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        verbose=False,
        **options,
    )
    program.save(path)
    operators = [node.op_type for node in program.model.graph]
    return onnxruntime.InferenceSession(path), operators


def run(session, inputs):
    names = [value.name for value in session.get_inputs()]
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, given)]


def assert_same(session, module, *calls):
    """`calls` are tuples of tensors: the module's inputs, flat."""
    for inputs in calls:
        with torch.no_grad():
            result = module(*inputs)
        expected = [result] if isinstance(result, Tensor) else list(result)
        found = run(session, inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Flat(nn.Module):
    """A FusedLSTM whose call takes and returns tensors: x, then hx or lengths."""

    def __init__(self, state: bool = False, **arguments):
        super().__init__()
        self.lstm, self.state = FusedLSTM(D, H, **arguments), state

    def forward(self, x, *more):
        options = {} if self.state or not more else {"lengths": more[0]}
        named = flatten(self.lstm(x, more if self.state else None, **options))
        return tuple(named.values())


TIME, BATCH = torch.export.Dim("time", min=1), torch.export.Dim("batch", min=1)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(tmp_path, layer, state):
    module = Flat(state, **LAYERS[layer])

    def call(steps, batch):
        rows = (batch, steps) if module.lstm.batch_first else (steps, batch)
        x = rand(*rows, D, dtype=torch.float32)
        return (x, *rand_state(module.lstm, batch)) if state else (x,)

    time, batch = (1, 0) if module.lstm.batch_first else (0, 1)
    shapes = ({time: TIME, batch: BATCH}, *([({1: BATCH}, {1: BATCH})] if state else []))
    session, operators = export(module, call(T, B), tmp_path / "lstm.onnx", shapes)
    assert operators.count("LSTM") == module.lstm.num_layers
    assert_same(session, module, call(T, B), call(2, 7))


def test_lengths(tmp_path):
    """As sequence_lens, an empty sequence too: its outputs are zero, its states stay."""
    module = Flat(num_layers=2, bidirectional=True)
    calls = [
        (rand(T, B, D, dtype=torch.float32), torch.tensor([5, 0, 2])),
        (rand(4, 2, D, dtype=torch.float32), torch.tensor([1, 4])),
    ]
    shapes = ({0: TIME, 1: BATCH}, ({0: BATCH},))
    session, operators = export(module, calls[0], tmp_path / "lstm.onnx", shapes)
    assert operators.count("LSTM") == 2
    assert_same(session, module, *calls)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"lengths": True}], ids=str)
def test_the_operator_stack(tmp_path, monkeypatch, options, state):
    """Of several layers at once, on a device that takes them."""
    monkeypatch.setitem(ops.LARGEST_STACKED, "cpu", {4: 1 << 20})
    lengths = options.get("lengths", False)
    if lengths and state:
        pytest.skip("Flat has either")
    module = Flat(state, num_layers=3, bias=options.get("bias", True))

    def call(steps, batch):
        x = rand(steps, batch, D, dtype=torch.float32)
        states = rand_state(module.lstm, batch) if state else ()
        return (x, *states, *([torch.arange(batch) % (steps + 1)] if lengths else []))

    more = ([({1: BATCH}, {1: BATCH})] if state else []) + ([({0: BATCH},)] if lengths else [])
    shapes = ({0: TIME, 1: BATCH}, *more)
    program = torch.export.export(module.eval(), call(T, B), dynamic_shapes=shapes)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("fused_lstm.stack.default") == 1
    session, operators = export(module, call(T, B), tmp_path / "lstm.onnx", shapes)
    assert operators.count("LSTM") == 3
    assert_same(session, module, call(T, B), call(2, 7))


def test_what_onnx_lacks_in_a_stack_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(ops.LARGEST_STACKED, "cpu", {4: 1 << 20})
    module = With({"reset": torch.zeros(T, B, dtype=torch.bool)}, num_layers=2)
    with pytest.raises(torch.onnx.OnnxExporterError, match="has no counterpart of reset:"):
        export(module, (rand(T, B, D, dtype=torch.float32),), tmp_path / "lstm.onnx", None)


def test_without_a_batch(tmp_path):
    module = Flat(bidirectional=True)
    calls = [(rand(T, D, dtype=torch.float32),), (rand(3, D, dtype=torch.float32),)]
    session, _ = export(module, calls[0], tmp_path / "lstm.onnx", ({0: TIME},))
    assert_same(session, module, *calls)


def test_the_table_as_an_argument(tmp_path):
    module, x = Flat(), rand(T, B, D, dtype=torch.float32)
    table = {"custom_translation_table": fused_lstm_onnx.TRANSLATIONS}
    session, operators = export(module, (x,), tmp_path / "lstm.onnx", None, **table)
    assert operators.count("LSTM") == 1
    assert_same(session, module, (x,))


def test_an_exporter_used_before(tmp_path):
    """Its registry is full when fused_lstm is imported."""
    code = """
        import torch
        x = torch.zeros(2, 3, 4)
        torch.onnx.export(torch.nn.ReLU(), (x,), dynamo=True, verbose=False)
        from fused_lstm import FusedLSTM
        program = torch.onnx.export(FusedLSTM(4, 6).eval(), (x,), dynamo=True, verbose=False)
        print([node.op_type for node in program.model.graph].count("LSTM"))
    """
    assert in_fresh_process(code, tmp_path).splitlines()[-1] == "1"


def export_by_tracing(module, inputs, path):
    """The legacy exporter; the first two dimensions of the first input may vary."""
    torch.onnx.export(
        module.eval(),
        inputs,
        path,
        dynamo=False,
        input_names=[f"input{k}" for k in range(len(inputs))],
        dynamic_axes={"input0": {0: "first", 1: "second"}},
    )
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_by_tracing(tmp_path, layer):
    module = Flat(**LAYERS[layer])
    session = export_by_tracing(
        module, (rand(T, B, D, dtype=torch.float32),), tmp_path / "lstm.onnx"
    )
    assert_same(session, module, *((rand(*rows, D, dtype=torch.float32),) for rows in [(2, 7)]))


def test_a_module_itself_by_tracing(tmp_path):
    module, x = FusedLSTM(D, H), rand(T, B, D, dtype=torch.float32)
    (output, h_n, c_n) = run(export_by_tracing(module, (x,), tmp_path / "lstm.onnx"), (x,))
    torch.testing.assert_close((output, (h_n, c_n)), module(x), rtol=0, atol=1e-5)


def test_the_cell_by_tracing(tmp_path):
    module, x = FusedLSTMCell(D, H), rand(B, D, dtype=torch.float32)
    found = run(export_by_tracing(module, (x,), tmp_path / "cell.onnx"), (x,))
    torch.testing.assert_close(tuple(found), module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lengths", torch.tensor([5, 1, 2])),
        ("reset", torch.zeros(T, B, dtype=torch.bool)),
        ("return_states", True),
    ],
)
def test_what_tracing_lacks_is_named(tmp_path, name, value):
    x = rand(T, B, D, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match=f"dynamo=False.*no {name}: use dynamo=True"):
        export_by_tracing(With({name: value}), (x,), tmp_path / "lstm.onnx")


@pytest.mark.parametrize("bias", [True, False])
def test_the_cell(tmp_path, bias):
    module = FusedLSTMCell(D, H, bias)
    calls = [(rand(batch, D, dtype=torch.float32),) for batch in (B, 7)]
    session, operators = export(module, calls[0], tmp_path / "cell.onnx", ({0: BATCH},))
    assert operators.count("LSTM") == 1
    assert_same(session, module, *calls)


@pytest.mark.parametrize(
    ("model", "shapes", "layers"),
    [
        (LSTMClassifier(D, H, 2, pooling="max"), [(B, T, D)], 1),
        (LSTMSequencePredictor(D, H, 2, 2, summary="final_states"), [(B, T, D)], 2),
        (Seq2Seq(D, H, 2), [(B, T, D), (B, T + 1, 2)], 2),
    ],
    ids=["classifier", "predictor", "seq2seq"],
)
def test_models(tmp_path, model, shapes, layers):
    inputs = tuple(rand(*shape, dtype=torch.float32) for shape in shapes)
    session, operators = export(model, inputs, tmp_path / "model.onnx", None)
    assert operators.count("LSTM") == layers
    assert_same(session, model, inputs)


class With(nn.Module):
    def __init__(self, options, **arguments):
        super().__init__()
        self.lstm, self.options = FusedLSTM(D, H, **arguments), options

    def forward(self, x):
        return self.lstm(x, **self.options)[0]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (With({}, proj_size=2), "proj_size"),
        (With({}, proj_size=2, bidirectional=True, bias=False), "proj_size"),
        (With({"reset": torch.zeros(T, B, dtype=torch.bool)}), "reset"),
        (With({"return_states": True}), "return_states"),
    ],
)
def test_what_onnx_lacks_is_named(tmp_path, module, name):
    x = rand(T, B, D, dtype=torch.float32)
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"has no counterpart of {name}:"):
        export(module, (x,), tmp_path / "lstm.onnx", None)
