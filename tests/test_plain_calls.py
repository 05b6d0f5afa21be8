"""Plain calls, from Python straight to the layers: the results of the whole way, and the whole way
for every other call."""

from __future__ import annotations

import copy
import sys
import threading
import time
from typing import NamedTuple

import pytest
import torch
from oracle import rand, rand_state
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fused_lstm import FusedLSTM, FusedLSTMCell, ops

T, B, D, H = 4, 3, 5, 6


class Subclass(torch.Tensor):
    """One that changes nothing."""


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of a module was a plain one."""
    outcomes = []

    def spied(name):
        function = getattr(ops, name)

        def call(*arguments):
            result = function(*arguments)
            outcomes.append(result is not None)
            return result

        monkeypatch.setattr(ops, name, call)

    spied("plain_lstm")
    spied("plain_cell")
    return outcomes


@pytest.fixture
def the_whole_way(monkeypatch):
    """Calls a function while no call is a plain one."""

    def run(call):
        with monkeypatch.context() as context:
            context.setattr(ops, "plain_lstm", lambda *_: None)
            context.setattr(ops, "plain_cell", lambda *_: None)
            return call()

    return run


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in tensors(v)]


def assert_same(found, expected):
    """The same bits, laid out and recorded in the same way."""
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, check_stride=True)
        assert (a.requires_grad, a.is_inference(), a._is_view()) == (
            b.requires_grad,
            b.is_inference(),
            b._is_view(),
        )


def with_gradients(module, x, hx):
    leaves = [t.detach().requires_grad_() for t in (x, *(hx or ()))]
    results = tensors(module(leaves[0], tuple(leaves[1:]) or None))
    incoming = [torch.arange(t.numel(), dtype=t.dtype).view_as(t) % 7 - 3 for t in results]
    return results, torch.autograd.grad(results, [*leaves, *module.parameters()], incoming)


MODULES = {
    "one layer": lambda **k: FusedLSTM(D, H, **k),
    "no bias": lambda **k: FusedLSTM(D, H, bias=False, **k),
    "layers": lambda **k: FusedLSTM(D, H, 3, **k),
    "bidirectional": lambda **k: FusedLSTM(D, H, 2, bidirectional=True, **k),
    "projection": lambda **k: FusedLSTM(D, H, proj_size=2, **k),
    "batch first": lambda **k: FusedLSTM(D, H, batch_first=True, **k),
    "recompute": lambda **k: FusedLSTM(D, H, 2, recompute=True, **k),
    "everything": lambda **k: FusedLSTM(
        D, H, 2, True, True, 0.5, True, 2, recompute=True, **k
    ).eval(),
    "cell": lambda **k: FusedLSTMCell(D, H, **k),
    "cell without bias": lambda **k: FusedLSTMCell(D, H, bias=False, **k),
}


def make(name, dtype=torch.float64, unbatched=False):
    """A module, its input and its state."""
    module = MODULES[name](dtype=dtype)
    if isinstance(module, FusedLSTMCell):
        return module, rand(B, D, dtype=dtype), (rand(B, H, dtype=dtype), rand(B, H, dtype=dtype))
    shape = (T, D) if unbatched else (B, T, D) if module.batch_first else (T, B, D)
    return module, rand(*shape, dtype=dtype), rand_state(module, None if unbatched else B)


@pytest.mark.parametrize("zero", [True, False], ids=["zero state", "given state"])
@pytest.mark.parametrize("name", MODULES)
class TestThePlainWay:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_its_results(self, name, zero, mode, dtype, taken, the_whole_way):
        module, x, hx = make(name, dtype)
        with mode():
            arguments = (x.clone(), None if zero else tuple(s.clone() for s in hx))
            assert_same(module(*arguments), the_whole_way(lambda: module(*arguments)))
        assert taken == [True]

    def test_its_gradients(self, name, zero, dtype, taken, the_whole_way):
        module, x, hx = make(name, dtype)
        hx = None if zero else hx
        expected = the_whole_way(lambda: with_gradients(module, x, hx))
        assert_same(with_gradients(module, x, hx), expected)
        assert taken == [True]

    def test_without_a_batch(self, name, zero, dtype, taken, the_whole_way):
        if "cell" in name:
            pytest.skip("a cell without a batch goes the whole way")
        module, x, hx = make(name, dtype, unbatched=True)
        hx = None if zero else hx
        assert_same(module(x, hx), the_whole_way(lambda: module(x, hx)))
        assert_same(
            with_gradients(module, x, hx), the_whole_way(lambda: with_gradients(module, x, hx))
        )
        assert taken == [True, True]


@pytest.mark.parametrize("name", ["everything", "cell"])
def test_a_list_for_a_state(name, taken):
    module, x, hx = make(name)
    assert_same(module(x, list(hx)), module(x, hx))
    assert taken == [True, True]


@pytest.mark.parametrize("name", ["everything", "cell"])
def test_second_derivatives(name, taken):
    module, x, hx = make(name)
    leaves = [t.requires_grad_() for t in (x, *hx)]
    assert torch.autograd.gradgradcheck(
        lambda x, *hx: tuple(tensors(module(x, hx))), leaves, fast_mode=True
    )
    assert all(taken)


@pytest.mark.parametrize("name", ["one layer", "cell"])
def test_an_error_of_python_passes_through(name, taken):
    module, x, _ = make(name)
    calls = []

    def pack(tensor):
        calls.append(tensor)
        raise LookupError("of a hook")

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.raises(LookupError, match="of a hook"),
    ):
        module(x)
    assert len(calls) == 1
    assert taken == []  # it did not return


@pytest.mark.parametrize("name", ["one layer", "cell"])
def test_the_interpreter_goes_on_meanwhile(name):
    """Another thread runs Python while a call computes: the call itself lets go of the interpreter,
    as Python's own switching between threads is off meanwhile."""
    module = MODULES[name](dtype=torch.float32)
    x = rand(*((20000, D) if name == "cell" else (2000, 20, D)), dtype=torch.float32)
    calling, seen = False, threading.Event()
    deadline = time.monotonic() + 60  # a busy machine may give the other thread no time for long

    def look():
        while not seen.is_set() and time.monotonic() < deadline:
            if calling:
                seen.set()
            time.sleep(0)  # lets go of the interpreter

    thread, interval = threading.Thread(target=look), sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        thread.start()
        with torch.no_grad():
            while not seen.is_set() and time.monotonic() < deadline:
                calling = True
                module(x)
                calling = False
                time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen.is_set()


@pytest.mark.parametrize("name", ["everything", "cell"])
class TestParameters:
    """Whatever has become of the parameters, a call reads those that the module has now."""

    def check(self, module, x, the_whole_way, taken, plain):
        before = module(x)
        expected = the_whole_way(lambda: module(x))
        assert not torch.equal(tensors(self.initial)[0], tensors(expected)[0])
        assert_same(flat(before), flat(expected))
        assert taken == [plain]

    @pytest.fixture(autouse=True)
    def _made(self, name, the_whole_way):
        self.module, self.x, _ = make(name)
        self.initial = the_whole_way(lambda: self.module(self.x))
        self.first = next(iter(self.module._parameters))  # weight_ih, of the first layer

    def test_written_to(self, taken, the_whole_way):
        with torch.no_grad():
            self.module._parameters[self.first].mul_(2)
        self.check(self.module, self.x, the_whole_way, taken, True)

    def test_with_other_data(self, taken, the_whole_way):
        parameter = self.module._parameters[self.first]
        parameter.data = parameter.data * 2
        self.check(self.module, self.x, the_whole_way, taken, True)

    def test_replaced(self, taken, the_whole_way):
        new = nn.Parameter(self.module._parameters[self.first].detach() * 2)
        setattr(self.module, self.first, new)
        self.check(self.module, self.x, the_whole_way, taken, True)

    def test_copied(self, taken, the_whole_way):
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            module._parameters[self.first].mul_(2)
        self.check(module, self.x, the_whole_way, taken, True)

    def test_replaced_behind_the_modules_back(self, name, taken, the_whole_way):
        new = nn.Parameter(self.module._parameters[self.first].detach() * 2)
        self.module._parameters[self.first] = new
        self.check(self.module, self.x, the_whole_way, taken, name == "cell")

    def test_of_a_subclass(self, taken, the_whole_way):
        data = self.module._parameters[self.first].detach() * 2
        setattr(self.module, self.first, nn.Parameter(data.as_subclass(Subclass)))
        self.check(self.module, self.x, the_whole_way, taken, False)

    def test_parametrized(self, taken, the_whole_way):
        weight_norm(self.module, self.first)
        original = getattr(self.module.parametrizations, self.first).original0
        with torch.no_grad():
            original.mul_(2)
        self.check(self.module, self.x, the_whole_way, taken, False)

    def test_of_a_functional_call(self):
        new = {n: p.detach() * 2 for n, p in self.module.named_parameters()}
        found = functional_call(self.module, new, (self.x,))
        for n, p in self.module.named_parameters():
            p.data = new[n]
        torch.testing.assert_close(tensors(found), tensors(self.module(self.x)))


class Seen(TorchDispatchMode):
    """The names of the operators called in it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class SeenFromPython(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "name", lambda: "")())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["one layer", "cell"])
class TestModes:
    """What sees the operators, or changes what they mean, sees and changes them in every call."""

    @pytest.fixture(autouse=True)
    def _made(self, name, grad):
        self.module, self.x, _ = make(name, torch.float32)
        self.operator = "fused_lstm::cell" if name == "cell" else "fused_lstm::layer"
        with torch.set_grad_enabled(grad):
            yield

    @pytest.mark.parametrize("mode", [Seen, SeenFromPython])
    def test_dispatch_and_function_modes(self, mode, taken):
        with mode() as seen:
            self.module(self.x)
        assert self.operator in seen.names
        assert taken == [False]

    def test_a_profiler(self, taken):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            self.module(self.x)
        assert self.operator in {event.key for event in seen.key_averages()}
        self.module(self.x)
        assert taken == [False, True]

    def test_autocast(self, taken, the_whole_way):
        with torch.autocast("cpu", torch.bfloat16):
            found = self.module(self.x)
            assert_same(found, the_whole_way(lambda: self.module(self.x)))
            assert (
                tensors(found)[0].dtype != tensors(self.module.double()(self.x.double()))[0].dtype
            )
        assert taken == [False, False]

    def test_a_default_device(self, taken):
        with torch.device("cpu"):
            self.module(self.x)
        assert taken == [False]

    def test_below_autograd(self, grad, taken):
        """Where the kernel of an operator in Python calls a module."""
        with torch._C._AutoDispatchBelowAutograd():
            found = self.module(self.x)
        assert not any(t.requires_grad for t in tensors(found))
        assert taken == [not grad]

    def test_vmap(self, taken):
        many = torch.stack([self.x, -self.x])
        expected = [self.module(x) for x in many]
        found = vmap(self.module)(many)
        torch.testing.assert_close(
            tensors(found),
            [torch.stack(each) for each in zip(*map(tensors, expected), strict=True)],
        )
        assert taken == [True, True, False]

    def test_forward_mode(self, taken):
        with forward_ad.dual_level():
            found = self.module(forward_ad.make_dual(self.x, torch.ones_like(self.x)))
            assert all(forward_ad.unpack_dual(t).tangent is not None for t in tensors(found))
        assert taken == [False]

    def test_forward_mode_of_a_parameter(self, taken):
        with forward_ad.dual_level():
            parameters = {
                name: forward_ad.make_dual(p.detach(), torch.ones_like(p))
                for name, p in self.module.named_parameters()
            }
            found = functional_call(self.module, parameters, (self.x,))
            assert all(forward_ad.unpack_dual(t).tangent is not None for t in tensors(found))
        assert taken == [False]

    def test_jit_trace(self, taken):
        traced = torch.jit.trace(self.module, self.x, check_trace=False)
        assert self.operator in str(traced.inlined_graph)
        assert not any(taken)

    def test_make_fx(self, taken):
        traced = make_fx(self.module)(self.x)
        assert self.operator.replace("::", ".") in traced.code
        assert taken == [False]

    def test_fake_tensors(self, taken):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert all(isinstance(t, FakeTensor) for t in tensors(self.module(self.x)))
        assert taken == [False]

    def test_a_meta_device(self, taken):
        found = self.module.to("meta")(self.x.to("meta"))
        assert all(t.is_meta for t in tensors(found))
        assert taken == [False]

    def test_a_compiler(self, taken):
        compiled = torch.compile(self.module, backend="eager", fullgraph=True)
        compiled(self.x)
        assert taken == []

    def test_hooks(self, taken):
        seen = []
        self.module.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
        self.module.register_forward_hook(lambda module, arguments, result: seen.append(result))
        found = self.module(self.x)
        assert_same(found, self.module.forward(self.x * 2))
        assert seen[0] is found
        assert taken == [True, True]


def unusual_inputs(name):
    """Inputs of a call that are right, but not plain."""
    module, x, hx = make(name, torch.bfloat16)
    yield "a subclass", module, (x.as_subclass(Subclass), hx)
    yield "a subclass in the state", module, (x, (hx[0], hx[1].as_subclass(Subclass)))
    yield "a tuple of its own class", module, (x, Pair(*hx))
    complex_module, complex_x = copy.deepcopy(module).to(torch.complex64), x.to(torch.complex64)
    yield "complex numbers", complex_module, (complex_x,)
    yield "nothing in the batch", module, (x[..., :0, :], tuple(s[..., :0, :] for s in hx))
    if name == "cell":
        yield "no batch", module, (x[0], (hx[0][0], hx[1][0]))
        yield "a wider cell state", module, (x, (hx[0], hx[1].float()))
        return
    yield "lengths", module, (x, hx, torch.tensor([1, 4, 2]))
    yield "reset", module, (x, hx, None, torch.arange(T * B).view(T, B) % 5 == 0)
    yield "reset to the initial state", module, (x, hx, None, None, "initial")
    yield "states", module, (x, hx, None, None, "zero", True)
    yield "packed", module, (pack_sequence([x[:3, 0], x[:2, 1]]),)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        pytest.param(module, arguments, id=f"{name}, {what}")
        for name in ("one layer", "cell")
        for what, module, arguments in unusual_inputs(name)
    ],
)
def test_unusual_inputs(module, arguments, taken, the_whole_way):
    assert_same(flat(module(*arguments)), flat(the_whole_way(lambda: module(*arguments))))
    assert not any(taken)


def flat(value):
    """The plain tensors in nested tuples, packed sequences among them."""
    if isinstance(value, torch.Tensor):
        return [value.as_subclass(torch.Tensor)]
    return [] if value is None else [t for v in value for t in flat(v)]


def test_dropout_between_layers(taken):
    module, x = FusedLSTM(D, H, 2, dropout=0.5), rand(T, B, D, dtype=torch.float32)
    torch.manual_seed(0)
    first = module(x)[0]
    torch.manual_seed(1)
    assert not torch.equal(module(x)[0], first)
    assert not taken
    module.eval()(x)
    assert taken == [True]


def wrong_inputs(name):
    module, x, hx = make(name, torch.float32)
    yield "dimensions", module, (x[None, None], None)
    yield "features", module, (x[..., 1:], None)
    yield "dtype", module, (x.double(), None)
    yield "complex", module, (x.to(torch.complex64), None)
    yield "integers", module, (x.long(), None)
    yield "not a tensor", module, (None, None)
    yield "batch of h_0", module, (x, (hx[0][..., 1:, :], hx[1]))
    yield "features of c_0", module, (x, (hx[0], hx[1][..., 1:]))
    yield "dtype of h_0", module, (x, (hx[0].double(), hx[1]))
    yield "one state", module, (x, hx[0])
    yield "three states", module, (x, (*hx, hx[0]))
    yield "no tensor for a state", module, (x, (hx[0], 1))
    yield "dimensions of a state", module, (x, (hx[0][0], hx[1][0]))
    other = copy.deepcopy(module)
    other._parameters[next(iter(other._parameters))].data = torch.ones(4 * H, D + 1)
    yield "a weight's shape", other, (x, None)
    other = copy.deepcopy(module)
    list(other.parameters())[1].data = torch.ones(4 * H, H, dtype=torch.float64)
    yield "a weight's dtype", other, (x, None)
    other = copy.deepcopy(module)
    setattr(other, list(other._parameters)[1], None)
    yield "a missing weight", other, (x, None)
    other = copy.deepcopy(module)
    other.input_size = D + 1
    yield "another input_size", other, (x, None)
    if name == "one layer":
        layers = FusedLSTM(D, H, 2)
        state, longer = rand_state(layers, B), rand_state(FusedLSTM(D, H, 3), B)
        yield "too many hidden states", layers, (x, (longer[0], state[1]))
        yield "too many cell states", layers, (x, (state[0], longer[1]))
        yield "a state without a batch", layers, (x, rand_state(layers, None))
        yield "dtype of c_0", module, (x, (hx[0], hx[1].double()))
        yield "no steps", module, (x[:0], None)
        yield "no such reset_to", module, (x, None, None, None, "nothing")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        pytest.param(module, arguments, id=f"{name}, {what}")
        for name in ("one layer", "cell")
        for what, module, arguments in wrong_inputs(name)
    ],
)
def test_an_error_is_that_of_the_whole_way(module, arguments, grad, taken, the_whole_way):
    def error():
        with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is the question)
            module(*arguments)
        return type(caught.value), str(caught.value)

    with torch.set_grad_enabled(grad):
        assert error() == the_whole_way(error)
    assert taken == [False]
