"""Drop-in for nn.LSTM: the same module from the outside, and the same results for every call."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from oracle import assert_close, cast, evaluate, flatten, rand, rand_state, twin
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from fused_lstm import FusedLSTM

T, B, D, H = 5, 4, 3, 6
CONFIGURATIONS = {
    "defaults": {},
    "two layers": {"num_layers": 2},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 2},
    "everything": {
        "num_layers": 3,
        "bias": False,
        "batch_first": True,
        "bidirectional": True,
        "proj_size": 2,
    },
}
each_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS)


def pair(configuration="defaults", device="cpu", **more):
    """FusedLSTM and nn.LSTM in float64, each built from the same seed."""
    options = {"device": device, "dtype": torch.float64} | CONFIGURATIONS[configuration] | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout with one layer
        modules = []
        for kind in (FusedLSTM, nn.LSTM):
            torch.manual_seed(0)
            modules.append(kind(D, H, **options))
    return modules


def padded(module, device="cpu"):
    return rand(B, T, D, device=device) if module.batch_first else rand(T, B, D, device=device)


def assert_same_call(ours, theirs, *call):
    assert_close(evaluate(ours, *call), evaluate(theirs, *call))


# The module from the outside


@each_configuration
def test_construction(configuration):
    ours, theirs = pair(configuration)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert repr(ours) == repr(theirs).replace("LSTM", "FusedLSTM")
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    names = [name for name in vars(theirs) if not name.startswith("_")]
    assert {n: getattr(ours, n) for n in names} == {n: getattr(theirs, n) for n in names}


def test_positional_arguments():
    arguments = (3, 4, 2, False, True, 0.1, True, 2, "cpu", torch.float64)
    ours, theirs = FusedLSTM(*arguments), nn.LSTM(*arguments)
    assert repr(ours) == repr(theirs).replace("LSTM", "FusedLSTM")
    assert ours.weight_hr_l1_reverse.dtype == torch.float64


@each_configuration
def test_state_dict_both_ways(configuration):
    ours, theirs = pair(configuration)
    nn.init.uniform_(ours.weight_hh_l0)
    theirs.load_state_dict(ours.state_dict())
    assert_same_call(ours, theirs, padded(ours))
    nn.init.uniform_(theirs.weight_ih_l0)
    ours.load_state_dict(theirs.state_dict())
    assert_same_call(ours, theirs, padded(ours))


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("format", ["torch.save", "safetensors"])
@each_configuration
def test_weights_through_a_file_both_ways(tmp_path, configuration, format):
    path = str(tmp_path / "weights")
    if format == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        save, load = safetensors.save_model, safetensors.load_model
    else:

        def save(module, path):
            torch.save(module.state_dict(), path)

        def load(module, path):
            module.load_state_dict(torch.load(path))

    ours, theirs = pair(configuration)
    for source, target in [(ours, theirs), (theirs, ours)]:
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.uniform_(-1, 1)
        save(source, path)
        load(target, path)
        assert_same_call(ours, theirs, padded(ours))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file]
)
def test_copies(copied):
    ours, _ = pair("everything")
    again = copied(ours)
    assert_close(evaluate(again, x := padded(ours)), evaluate(ours, x))
    with torch.no_grad():
        again.weight_hh_l0.add_(1)
    assert not torch.equal(again(x)[0], ours(x)[0])


def test_flatten_parameters_is_harmless(device):
    ours, theirs = pair("two layers", device)
    before = [p.data_ptr() for p in ours.parameters()]
    ours.flatten_parameters()
    assert [p.data_ptr() for p in ours.parameters()] == before
    assert_same_call(ours, theirs, padded(ours, device))


# Calls


@pytest.mark.parametrize("state", [False, True])
@each_configuration
def test_padded(device, configuration, state):
    ours, theirs = pair(configuration, device)
    hx = rand_state(ours, B) if state else None
    assert_same_call(ours, theirs, padded(ours, device), hx)


@pytest.mark.parametrize("state", [False, True])
@each_configuration
def test_unbatched(device, configuration, state):
    ours, theirs = pair(configuration, device)
    hx = rand_state(ours, None) if state else None
    assert_same_call(ours, theirs, rand(T, D, device=device), hx)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
@each_configuration
def test_packed(device, configuration, enforce_sorted, state):
    ours, theirs = pair(configuration, device)
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    packed = pack_padded_sequence(
        padded(ours, device), lengths, ours.batch_first, enforce_sorted=enforce_sorted
    )
    hx = rand_state(ours, B) if state else None
    assert_same_call(ours, theirs, packed, hx)
    output, _ = ours(packed, hx)
    assert type(output) is PackedSequence
    assert output.batch_sizes is packed.batch_sizes
    assert output.sorted_indices is packed.sorted_indices
    assert output.unsorted_indices is packed.unsorted_indices


@each_configuration
def test_one_step_and_no_sequence(device, configuration):
    for shape in [(1, B, D), (T, 0, D), (1, 1, D)]:
        ours, theirs = pair(configuration, device, batch_first=False)
        x = rand(*shape, device=device)
        assert_same_call(ours, theirs, x, rand_state(ours, shape[1]))


def test_hx_may_be_a_list(device):
    ours, theirs = pair("two layers", device)
    x, hx = padded(ours, device), list(rand_state(ours, B))
    assert_close(flatten(ours(x, hx)), flatten(theirs(x, hx)))


@each_configuration
def test_memory_layout_of_the_results(configuration):
    ours, theirs = pair(configuration)
    x = padded(ours)
    for a, b in zip(flatten(ours(x)).values(), flatten(theirs(x)).values(), strict=True):
        assert a.stride() == b.stride()


def test_more_than_65535_steps(device):
    ours, theirs = pair(device=device)
    x = rand(65_537, 1, D, device=device)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        truth = theirs.cpu()(x.cpu())
        assert_close(flatten(ours(x)), {k: v.to(device) for k, v in flatten(truth).items()})
    ours(x)[0][-1].sum().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf(device, value):
    ours, theirs = pair("bidirectional", device)
    x = padded(ours, device)
    x[2, 1, 0] = value
    for name, true in flatten(theirs(x)).items():
        torch.testing.assert_close(flatten(ours(x))[name], true, equal_nan=True)


def test_infinite_states(device):
    ours, theirs = pair(device=device)
    x, (hidden, cell) = padded(ours, device), rand_state(ours, B)
    cell[0, 0, 0], cell[0, 1, 0], hidden[0, 2, 0] = torch.inf, torch.nan, torch.inf
    for name, true in flatten(theirs(x, (hidden, cell))).items():
        found = flatten(ours(x, (hidden, cell)))[name]
        torch.testing.assert_close(found, true, equal_nan=True)


# Modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(device, mode):
    ours, theirs = pair("everything", device)
    with mode():
        x = padded(ours, device)
        assert_close(found := flatten(ours(x)), flatten(theirs(x)))
        assert not any(t.requires_grad for t in found.values())
        assert all(t.is_inference() == torch.is_inference_mode_enabled() for t in found.values())


def test_autocast(device):
    ours, theirs = pair("two layers", device, dtype=torch.float32)
    x = padded(ours, device).float()
    with torch.autocast(device, torch.bfloat16):
        found, expected = ours(x), theirs(x)
    for name, true in flatten(expected).items():
        assert flatten(found)[name].dtype == true.dtype
        torch.testing.assert_close(flatten(found)[name], true, rtol=0.05, atol=0.02)
    found[0].sum().backward()
    expected[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("to", [lambda m: m.to(torch.bfloat16), nn.Module.half, nn.Module.float])
def test_other_dtypes_after_construction(device, to):
    ours, theirs = (to(module) for module in pair("two layers", device))
    x = padded(ours, device).to(ours.weight_ih_l0.dtype)
    truth = evaluate(twin(ours, dtype=torch.float64), *cast((x,), torch.float64))
    found = evaluate(ours, x)
    for name, true in truth.items():
        assert found[name].dtype == theirs.weight_ih_l0.dtype
        torch.testing.assert_close(found[name].double(), true, rtol=0.05, atol=0.2)


# Dropout


def test_dropout_takes_the_same_mask_from_the_same_seed(device):
    ours, theirs = pair(device=device, num_layers=3, dropout=0.4)
    if device == "cuda":
        pytest.skip("cuDNN draws its masks from a generator of its own")
    x = padded(ours, device)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        results.append(evaluate(module, x))
    assert_close(*results)


def test_dropout_between_layers_only(device):
    ours, _ = pair(device=device, num_layers=2, dropout=0.5)
    x = padded(ours, device)
    training = ours(x)
    assert not torch.equal(training[0], ours(x)[0])  # a fresh mask
    evaluation = ours.eval()(x)
    assert torch.equal(evaluation[0], ours(x)[0])
    for state, kept in zip(training[1], evaluation[1], strict=True):
        assert torch.equal(state[0], kept[0])  # the lower layer's, before dropout
        assert not torch.equal(state[1], kept[1])
    assert not (training[0] == 0).any()  # the last layer's output is whole


def test_dropout_of_one_layer_does_nothing(device):
    ours, theirs = pair(device=device, dropout=0.5)
    assert_same_call(ours, theirs, padded(ours, device))


def test_dropout_statistics(device):
    """Layer 1 reads one unit of layer 0, about 0.76, through gate g alone: g shows the mask."""
    ours, _ = pair(device=device, num_layers=2, bias=True)
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
        ours.bias_ih_l0.fill_(100.0)
        ours.weight_ih_l1[2 * H, 0] = 0.1
    x = rand(100, 100, D, device=device)
    for p in (0.1, 0.5, 1.0):
        ours.dropout = p  # read at each call
        *_, states = ours(x, return_states=True)
        g = states.gates[1][..., 2, 0]  # [T, B]
        dropped = (g == 0).double().mean().item()
        assert dropped == pytest.approx(p, abs=0.02)
        if p < 1:
            kept = (states.cells[0][..., 0].tanh() * 0.1 / (1 - p)).tanh()
            assert torch.equal(g != 0, (g - kept).abs() < 1e-9)


# Weights that are not plain parameters; whatever they are now is what counts


def weight_norm(module):
    return parametrizations.weight_norm(module, "weight_hh_l0")


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, "weight_hh_l0")


def pruned(module):
    return prune.l1_unstructured(module, "weight_ih_l0", 0.5)


def spectral_norm(module):
    torch.manual_seed(1)  # it starts from random vectors
    parametrizations.spectral_norm(module, "weight_hh_l1")
    module.parametrizations.eval()  # or each call would move its estimate
    return module


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(module):
    parametrize.register_parametrization(module, "bias_hh_l0", Doubled())
    return module


@pytest.mark.parametrize(
    "change", [weight_norm, old_weight_norm, spectral_norm, pruned, parametrized]
)
def test_wrapped_weights(device, change):
    ours, theirs = (change(module) for module in pair("two layers", device))
    x = padded(ours, device)
    assert_same_call(ours, theirs, x)
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        module(x)[0].sum().backward()
        optimizer.step()
    before = ours(x)[0]
    assert_same_call(ours, theirs, x)
    with torch.no_grad():
        next(p for p in ours.parameters() if p.requires_grad).mul_(3)
    assert not torch.equal(ours(x)[0], before)


class WeightDrop(nn.Module):
    """As in AWD-LSTM: before each call a recurrent weight is replaced by a tensor, partly zero."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm
        self.raw = nn.Parameter(lstm.weight_hh_l0.detach().clone())
        del lstm._parameters["weight_hh_l0"]

    def forward(self, x):
        self.lstm.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, self.training)
        return self.lstm(x)


def test_weight_drop(device):
    ours, theirs = (WeightDrop(module) for module in pair("two layers", device))
    x, outputs = padded(ours.lstm, device), []
    for seed in (1, 2):
        results = []
        for module in (ours, theirs):
            torch.manual_seed(seed)
            output = module(x)[0]
            module.zero_grad()
            output.square().sum().backward()
            gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
            results.append({"output": output.detach()} | gradients)
        assert_close(*results)
        outputs.append(results[0]["output"])
    assert not torch.equal(*outputs)  # another mask, another weight


def changed_in_place(module):
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)


def changed_data(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data * 2


def new_parameter(module):
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)


def deleted_parameter(module):
    """As torch.nn.utils.weight_norm and DataParallel do: a plain tensor takes its place."""
    weight = module.weight_hh_l0.detach() * 2
    del module._parameters["weight_hh_l0"]
    module.weight_hh_l0 = weight


def new_flat_weights(module):
    module._flat_weights = [weight.detach() * 2 for weight in module._flat_weights]


def stepped(module):
    module(torch.ones(T, B, D).to(module.weight_hh_l0))[0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def copied(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.flip(0))


def loaded(module):
    module.load_state_dict({name: 2 * w for name, w in module.state_dict().items()})


def assigned(module):
    other = {name: 2 * w for name, w in module.state_dict().items()}
    module.load_state_dict(other, assign=True)


def moved(module):
    """Away, changed there, and back."""
    home = module.weight_hh_l0.device
    module.to("cpu", torch.float32)
    changed_in_place(module)
    module.to(home, torch.float64)


def moved_as_new_parameters(module):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        moved(module)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def moved_by_swapping(module):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        moved(module)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        changed_data,
        new_parameter,
        deleted_parameter,
        new_flat_weights,
        stepped,
        copied,
        loaded,
        assigned,
        moved,
        moved_as_new_parameters,
        moved_by_swapping,
    ],
)
def test_no_weight_is_stale(device, change):
    ours, theirs = pair("bidirectional", device)
    x = padded(ours, device)
    with torch.no_grad():  # what is alive of a graph cannot be swapped
        before = flatten(ours(x))
        assert_close(before, flatten(theirs(x)))
    for module in (ours, theirs):
        change(module)
    assert_close(after := flatten(ours(x)), flatten(theirs(x)))
    assert not torch.equal(after["output"], before["output"])


def test_functional_call(device):
    ours, theirs = pair("two layers", device)
    other = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    x = padded(ours, device)
    found = torch.func.functional_call(ours, other, (x,))
    assert_close(flatten(found), flatten(torch.func.functional_call(theirs, other, (x,))))
    assert_close(flatten(ours(x)), flatten(theirs(x)))


def test_replicas_of_data_parallel(device):
    ours, _ = pair("two layers", device)
    replica = ours._replicate_for_data_parallel()
    for name in ours._flat_weights_names:
        setattr(replica, name, getattr(ours, name) * 2)
    doubled = copy.deepcopy(ours)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    x = padded(ours, device)
    assert torch.equal(replica(x)[0], doubled(x)[0])


def test_tied_weights(device):
    """One parameter in two places gets the sum of both gradients."""
    ours, theirs = pair("bidirectional", device)
    for module in (ours, theirs):
        module.weight_hh_l0_reverse = module.weight_hh_l0
    x = padded(ours, device)
    assert_close(evaluate(ours, x), evaluate(theirs, x))


def test_sequences_in_any_order(device):
    """What pack_sequence makes, in any order, comes back in that order."""
    ours, theirs = pair(device=device)
    sequences = [rand(n, D, device=device) for n in (2, 5, 1)]
    assert_same_call(ours, theirs, pack_sequence(sequences, enforce_sorted=False))
