"""Tools that know torch's own classes by path, by name or by list: torch.fx, TorchScript's tracer,
safe globals, FlopCounterMode, tables of decompositions."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from oracle import in_fresh_process, rand, rand_state
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fused_lstm
from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 5, 3, 4, 6
LAYERS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 2, "bias": False},
}


def x(*shape):
    return rand(*(shape or (T, B, D)), dtype=torch.float32)


class Layer(nn.Module):
    """A model around a layer."""

    def __init__(self, kind=FusedLSTM, **arguments):
        super().__init__()
        self.lstm = kind(D, H, **arguments)

    def forward(self, input):
        output, (h_n, c_n) = self.lstm(input)
        return output * 2, h_n, c_n


class Stateful(Layer):
    def forward(self, input, h, c):
        output, state = self.lstm(input, (h, c))
        return self.lstm(input * 2, state)[0] + output


class Loop(nn.Module):
    """A model around a cell whose first input is no argument."""

    def __init__(self, kind=FusedLSTMCell):
        super().__init__()
        self.cell = kind(D, H)

    def forward(self, h, c, input):
        h, c = self.cell(torch.ones(B, D), (h, c))
        h, c = self.cell(input, (h, c))
        return h + 1, c


def calls_of(traced):
    return [(n.op, n.target) for n in traced.graph.nodes if n.op.startswith("call_module")]


@pytest.mark.parametrize("build", [Layer, Stateful])
@pytest.mark.parametrize("layer", LAYERS)
def test_fx_takes_the_layer_for_a_leaf(layer, build):
    model = build(**LAYERS[layer])
    rows = (B, T) if model.lstm.batch_first else (T, B)
    call = (x(*rows, D), *(rand_state(model.lstm, B) if build is Stateful else ()))
    traced = torch.fx.symbolic_trace(model)
    again = torch.fx.symbolic_trace(pickle.loads(pickle.dumps(traced)))
    for module in (traced, again):
        assert set(calls_of(module)) == {("call_module", "lstm")}
        torch.testing.assert_close(module(*call), model(*call))
    theirs = torch.fx.symbolic_trace(build(nn.LSTM, **LAYERS[layer]))
    assert str(traced.graph) == str(theirs.graph)


def test_fx_takes_the_cell_for_a_leaf():
    model = Loop()
    call = (x(B, H), x(B, H), x(B, D))
    traced = torch.fx.symbolic_trace(model)
    again = torch.fx.symbolic_trace(pickle.loads(pickle.dumps(traced)))
    for module in (traced, again):
        assert calls_of(module) == [("call_module", "cell")] * 2
        torch.testing.assert_close(module(*call), model(*call))


def test_fx_keeps_options():
    class Lengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FusedLSTM(D, H)

        def forward(self, input, lengths):
            return self.lstm(input, lengths=lengths, return_states=True)[2].cells[0]

    model = Lengths()
    call = (x(), torch.tensor([5, 0, 2]))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*call), model(*call))


def test_fx_takes_leaves_inside_other_tracers():
    """A tracer that names the layer takes it before its hooks run."""

    class Named(torch.fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return isinstance(m, FusedLSTM)

    model = nn.Sequential(FusedLSTM(D, H))
    model[0].register_forward_hook(lambda module, arguments, result: result[0] * 3)
    graph = Named().trace(model)
    input = x()
    torch.testing.assert_close(torch.fx.GraphModule(model, graph)(input), model(input))


class Doubled(FusedLSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


def hooked():
    lstm = FusedLSTM(D, H)
    lstm.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    return lstm


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FusedLSTM(D, H), "the root of the trace is a FusedLSTM"),
        (lambda: FusedLSTMCell(D, H), "the root of the trace is a FusedLSTMCell"),
        (lambda: nn.Sequential(Doubled(D, H)), "0 has hooks or a forward of its own"),
        (lambda: nn.Sequential(hooked()), "0 has hooks or a forward of its own"),
    ],
)
def test_fx_refuses_what_would_be_done_twice(build, message):
    with pytest.raises(torch.fx.proxy.TraceError, match=message):
        torch.fx.symbolic_trace(build())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": torch.tensor([5, 0, 2])},
        {"hx": (torch.ones(1, B, H), torch.ones(1, B, H)), "reset": torch.ones(T, B) > 0},
    ],
    ids=["plain", "lengths", "state and reset"],
)
def test_jit_trace_by_keyword(options):
    lstm = FusedLSTM(D, H).eval()
    inputs = {"input": x()} | options
    traced = torch.jit.trace(lstm, example_kwarg_inputs=inputs)
    torch.testing.assert_close(traced(**inputs), lstm(**inputs))


@pytest.mark.parametrize("build", [Layer, Loop])
def test_whole_models_load_with_the_safe_globals_of_torchs(build):
    """What a user has to list for nn.LSTM is enough."""
    file = io.BytesIO()
    model = build()
    torch.save(model, file)
    file.seek(0)
    theirs = io.BytesIO()
    torch.save(build({Layer: nn.LSTM, Loop: nn.LSTMCell}[build]), theirs)
    theirs.seek(0)
    needed = {Layer: nn.LSTM, Loop: nn.LSTMCell}[build]
    with torch.serialization.safe_globals([build, needed]):
        torch.load(theirs, weights_only=True)
        loaded = torch.load(file, weights_only=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_script_after_torch_was_patched(tmp_path):
    printed = in_fresh_process(
        """
        import warnings
        warnings.simplefilter("ignore")
        import torch
        from fused_lstm import FusedLSTM, FusedLSTMCell
        torch.nn.LSTM, torch.nn.LSTMCell = FusedLSTM, FusedLSTMCell

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = torch.nn.LSTM(3, 4)

            def forward(self, x):
                return self.lstm(x)[0]

        lstm, cell = Model(), torch.nn.LSTMCell(3, 4)
        print(type(lstm.lstm).__name__, type(cell).__name__)
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(torch.jit.script(lstm)(x), lstm(x))
        torch.testing.assert_close(torch.jit.script(cell)(x[0]), cell(x[0]))
        """,
        tmp_path,
    )
    assert printed.split() == ["FusedLSTM", "FusedLSTMCell"]


@pytest.fixture
def rnn_precision():
    """Sets the precision of RNNs alone; at the end both settings are again as conftest has them."""
    yield lambda setting: setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize(("setting", "kernel"), [("ieee", "grid"), ("tf32", "cluster")])
def test_explain_follows_the_setting_of_rnns(rnn_precision, setting, kernel):
    """Where it differs from that of convolutions, allow_tf32 cannot be asked."""
    rnn_precision(setting)
    (plan,) = fused_lstm.explain(FusedLSTM(64, 300), 16, 100, device="H200")
    assert plan.forward.kernel == kernel


@pytest.mark.parametrize("device", ["cpu", "H200"])
def test_explain_of_a_type_without_kernels(device):
    plans = fused_lstm.explain(FusedLSTM(3, 4, 2, dtype=torch.complex64), 1, 1, device=device)
    assert [plan.forward.kernel for plan in plans] == ["reference"] * 2
    assert str(plans[1]) == "layer 1: reference, in plain PyTorch: no kernel has its dtype"


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture
def _no_onednn():
    """Whose LSTM is one operator that FlopCounterMode does not know."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


GRADIENTS = {  # whether the input and the initial state need one; None: no backward
    "forward": None,
    "weights": (False, False),
    "input": (True, False),
    "state": (False, True),
    "all": (True, True),
}


@pytest.mark.parametrize("needed", GRADIENTS)
@pytest.mark.parametrize("bias", [True, False])
def test_flops_of_the_cell_are_those_of_nn_lstmcell(bias, needed):
    def call(cell):
        input, hx = x(B, D), (x(B, H), x(B, H))
        if GRADIENTS[needed] is None:
            return cell(input, hx)
        of_input, of_state = GRADIENTS[needed]
        input.requires_grad_(of_input)
        hx = tuple(s.requires_grad_(of_state) for s in hx)
        h, c = cell(input, hx)
        (h.sum() + c.sum()).backward()

    counts = [flops(lambda k=k: call(k(D, H, bias))) for k in (FusedLSTMCell, nn.LSTMCell)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("needed", GRADIENTS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.usefixtures("_no_onednn")
def test_flops_of_the_layer_are_those_of_nn_lstm(layer, needed):
    def call(lstm):
        input, hx = x(B, B, D), rand_state(lstm, B)
        if GRADIENTS[needed] is None:
            return lstm(input, hx)
        of_input, of_state = GRADIENTS[needed]
        input.requires_grad_(of_input)
        output, _ = lstm(input, tuple(s.requires_grad_(of_state) for s in hx))
        output.sum().backward()

    counts = [flops(lambda k=k: call(k(D, H, **LAYERS[layer]))) for k in (FusedLSTM, nn.LSTM)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.usefixtures("_no_onednn")
def test_flops_of_a_packed_batch_are_those_of_its_steps(backward):
    def call(lstm):
        output = lstm(pack_padded_sequence(x(), [5, 3, 1]))[0].data
        output.sum().backward() if backward else None

    counts = [flops(lambda k=k: call(k(D, H))) for k in (FusedLSTM, nn.LSTM)]
    assert counts[0] == counts[1] > 0


def test_flops_of_recompute():
    """The GEMMs of the gates once more, where the backward has to recompute them."""

    def step(recompute):
        lstm = FusedLSTM(D, H, recompute=recompute)
        return flops(lambda: lstm(x())[0].sum().backward())

    assert step(True) - step(False) == 2 * T * B * 4 * H * (D + H)


def test_a_module_that_is_looked_for_before_it_is_imported(tmp_path):
    code = """
        import importlib.util
        import torch
        from fused_lstm import FusedLSTMCell
        assert importlib.util.find_spec("torch.utils.flop_counter")
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            FusedLSTMCell(3, 4)(torch.zeros(2, 3))
        print(counter.get_total_flops())
    """
    assert int(in_fresh_process(code, tmp_path)) == 2 * 2 * 16 * (3 + 4)


def test_a_failing_registration_stops_nobodys_import(tmp_path):
    code = """
        import sys, warnings
        from fused_lstm.hooks import after_import
        after_import("wave", lambda: 1 / 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import wave
        print(wave.open.__name__, *[w.message for w in caught if "fused_lstm" in str(w.message)])
    """
    printed = "open fused_lstm cannot register with wave: division by zero"
    assert in_fresh_process(code, tmp_path).strip() == printed
