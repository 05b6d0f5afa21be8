"""torch.compile, export and TorchScript."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from oracle import assert_close, evaluate, flatten, in_fresh_process, rand, rand_state
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_inductor_cache
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM, FusedLSTMCell
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

T, B, D, H = 4, 3, 5, 6
# TorchScript is deprecated, and is to work all the same.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:LSTM with projections:UserWarning"
)
LAYERS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 2, "bias": False},
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def compiled(module, backend="aot_eager", **options):
    return torch.compile(module, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize("layer", LAYERS)
def test_forward_and_backward(device, layer):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64, **LAYERS[layer])
    x = rand(*((B, T) if module.batch_first else (T, B)), D, device=device)
    hx = rand_state(module, B)
    for call in [(x,), (x, hx)]:
        assert_close(evaluate(module, *call, call=compiled(module)), evaluate(module, *call))


def test_options(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    given = {
        "lengths": torch.tensor([1, 4, 0], device=device),
        "reset": torch.arange(T * B, device=device).reshape(T, B) % 4 == 0,
        "return_states": True,
    }
    call = (rand(T, B, D, device=device), rand_state(module, B))
    found = evaluate(module, *call, call=compiled(module), **given)
    assert_close(found, evaluate(module, *call, **given))


def test_packed(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    x = pack_padded_sequence(rand(T, B, D, device=device), [4, 2, 1])
    found = torch.compile(module, backend="aot_eager")(x)
    assert_close(flatten(found), flatten(module(x)))


def test_lengths_of_time_and_batch_may_vary(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for steps, batch, compilations in [(4, 3, 1), (7, 2, 1), (5, 9, 1), (1, 9, 2), (5, 1, 3)]:
        x = rand(steps, batch, D, device=device)
        assert_close(evaluate(module, x, call=call), evaluate(module, x))
        assert counter.frame_count == compilations  # torch takes a size of 1 for a constant
    for steps, batch in [(6, 4), (1, 5), (8, 1)]:
        evaluate(module, rand(steps, batch, D, device=device), call=call)
    assert counter.frame_count == 3


def test_weights_are_not_frozen(device):
    module = FusedLSTM(D, H, device=device)
    call, x = compiled(module), rand(T, B, D, device=device, dtype=torch.float32)
    before = call(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    assert not torch.equal(call(x)[0], before)
    torch.testing.assert_close(call(x)[0], module(x)[0])


def test_dropout(device):
    module = FusedLSTM(D, H, 2, dropout=0.5, device=device)
    call, x = compiled(module), rand(T, B, D, device=device, dtype=torch.float32)
    assert not torch.equal(call(x)[0], call(x)[0])
    module.eval()
    torch.testing.assert_close(call(x)[0], module(x)[0])


# Models with the inputs of b sequences of t steps
MODELS = {
    "cell": (lambda: FusedLSTMCell(D, H), lambda t, b: (rand(b, D),)),
    "stacked": (
        lambda: FusedLSTM(D, H, 2, bidirectional=True),
        lambda t, b: (rand(t, b, D),),
    ),
    "classifier": (lambda: LSTMClassifier(D, H, 2, pooling="max"), lambda t, b: (rand(b, t, D),)),
    "predictor": (
        lambda: LSTMSequencePredictor(D, H, 2, summary="final_states"),
        lambda t, b: (rand(b, t, D),),
    ),
    "seq2seq": (lambda: Seq2Seq(D, H, 2), lambda t, b: (rand(b, t, D), rand(b, t + 1, 2))),
}


def results(model, call, inputs, **options):
    """The first result, and the gradients of the inputs and parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    result = call(*inputs, **options)
    output = result if isinstance(result, Tensor) else result[0]
    leaves = {f"input {k}": x for k, x in enumerate(inputs)} | dict(model.named_parameters())
    gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()))
    return {"output": output.detach()} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("name", MODELS)
def test_models_at_any_length_and_batch(device, name, dynamic):
    """No compilation after the first dynamic one: by default that is the second.

    Sizes that are equal in the first call would be taken for one and the same.
    """
    build, inputs = MODELS[name]
    model = build().to(device, torch.float64)
    call = compiled(model, dynamic=dynamic)
    sizes = [(7, 10), (9, 12), (2, 30), (33, 2)]
    for index, (t, b) in enumerate(sizes):
        x = [tensor.to(device) for tensor in inputs(t, b)]
        stance = "fail_on_recompile" if index > (dynamic is None) else "default"
        with torch.compiler.set_stance(stance):
            found = results(model, call, x)
        assert_close(found, results(model, model, x))


@pytest.mark.parametrize("name", ["classifier", "predictor", "seq2seq"])
def test_models_with_lengths(device, name):
    build, inputs = MODELS[name]
    model = build().to(device, torch.float64)
    call = compiled(model, dynamic=True)
    for t, b in [(7, 10), (9, 12)]:
        x = [tensor.to(device) for tensor in inputs(t, b)]
        lengths = torch.arange(b, device=device) % (t + 1)
        found = results(model, call, x, lengths=lengths)
        assert_close(found, results(model, model, x, lengths=lengths))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", ["cell", "seq2seq"])
def test_inductor(name, dynamic):
    """The default backend, in the two models that hold the others' parts: it is slow."""
    build, inputs = MODELS[name]
    model = build().double()
    call = compiled(model, "inductor", dynamic=dynamic)
    with fresh_inductor_cache():
        for t, b in [(7, 10), (9, 12)]:
            x = inputs(t, b)
            assert_close(results(model, call, x), results(model, model, x))


def test_compile_time():
    """Under three times that of a Linear of the same size, forward and backward."""

    def seconds(module):
        x = torch.randn(20, 8, 64)
        taken = []
        for _ in range(2):
            torch.compiler.reset()
            with fresh_inductor_cache():
                start = time.perf_counter()
                result = compiled(module, "inductor")(x)
                (result if isinstance(result, Tensor) else result[0]).sum().backward()
                taken.append(time.perf_counter() - start)
        return min(taken)

    seconds(nn.Linear(64, 64))  # what the first compilation of a process sets up
    assert seconds(FusedLSTM(64, 64)) < 3 * seconds(nn.Linear(64, 64))


class Output(nn.Module):
    def forward(self, result: tuple[Tensor, tuple[Tensor, Tensor]]):
        return result[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_export(device, layer):
    module = FusedLSTM(D, H, device=device, **LAYERS[layer]).eval()
    x = rand(3, 3, D, device=device, dtype=torch.float32)
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    assert "fused_lstm.layer" in str(program.graph)
    for shape in [(3, 3), (5, 2)]:
        other = rand(*shape, D, device=device, dtype=torch.float32)
        torch.testing.assert_close(program.module()(other), module(other))


def test_export_into_a_fresh_process(tmp_path):
    """Saved with dynamic sizes and loaded where only torch and fused_lstm are imported: as a
    program, and as the code that AOTInductor made of it (slow, so only once)."""
    module = FusedLSTM(D, H, 2, bidirectional=True).eval()
    calls = [(rand(t, b, D, dtype=torch.float32), torch.arange(b) % t) for t, b in [(7, 3), (2, 9)]]
    x, lengths = calls[0]
    time, batch = torch.export.Dim("time", min=1), torch.export.Dim("batch", min=1)
    program = torch.export.export(
        module,
        (x,),
        {"lengths": lengths},
        dynamic_shapes={"input": {0: time, 1: batch}, "lengths": {0: batch}},
    )
    torch.export.save(program, tmp_path / "program.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    expected = [(call, tuple(flatten(module(call[0], lengths=call[1])).values())) for call in calls]
    torch.save(expected, tmp_path / "expected.pt")
    in_fresh_process(
        """
        import torch, fused_lstm
        program = torch.export.load("program.pt2").module()
        package = torch._inductor.aoti_load_package("package.pt2")
        for (x, lengths), expected in torch.load("expected.pt"):
            for call in (program, package):
                output, state = call(x, lengths=lengths)
                torch.testing.assert_close((output, *state), expected)
        """,
        tmp_path,
    )


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_packed_input_says_what_to_do(strict):
    x = pack_padded_sequence(rand(T, B, D, dtype=torch.float32), [4, 2, 1])
    with pytest.raises(Exception, match="must be a padded tensor to be exported, with lengths="):
        torch.export.export(FusedLSTM(D, H).eval(), (x,), strict=strict)


@pytest.mark.parametrize("layer", LAYERS)
def test_trace(device, layer):
    module = FusedLSTM(D, H, device=device, **LAYERS[layer]).eval()
    x = rand(3, 3, D, device=device, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(module, (x,))
    assert "fused_lstm::layer" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), module(x))
    traced(x)[0].sum().backward()
    assert module.weight_ih_l0.grad is not None


@pytest.mark.parametrize("layer", LAYERS)
def test_script(device, layer):
    """TorchScript gets nn.LSTM with the same parameters."""
    module = FusedLSTM(D, H, device=device, **LAYERS[layer]).eval()
    model = torch.jit.script(nn.Sequential(module, Output()))
    x = rand(3, 3, D, device=device, dtype=torch.float32)
    torch.testing.assert_close(model(x), module(x)[0])
    assert (
        dict(model.named_parameters())["0.weight_ih_l0"].data_ptr()
        == module.weight_ih_l0.data_ptr()
    )


def test_script_of_the_cell(device):
    cell = FusedLSTMCell(D, H, device=device)
    x = rand(B, D, device=device, dtype=torch.float32)
    torch.testing.assert_close(torch.jit.script(cell)(x), cell(x))
