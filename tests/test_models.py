"""The three task models: contracts, lengths, parity between FusedLSTM and nn.LSTM, generation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fused_lstm import FusedLSTM, replace_lstm
from fused_lstm.models import Decoder, Encoder, LSTMClassifier, LSTMSequencePredictor, Seq2Seq

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ],
    ),
]
LSTMS = [FusedLSTM, nn.LSTM]
POOLINGS = ["last", "mean", "max"]
SUMMARIES = ["last_step", "final_states"]

BATCH, SEQ, INPUT, HIDDEN, OUTPUT, LAYERS = 5, 7, 3, 6, 4, 2
LENGTHS = [7, 1, 4, 0, 6]

# A model of each kind by name; each takes x and lengths, so that one test covers all of them.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"classifier-{pooling}": partial(
            LSTMClassifier, INPUT, HIDDEN, OUTPUT, LAYERS, pooling=pooling
        )
        for pooling in POOLINGS
    },
    **{
        f"predictor-{summary}": partial(
            LSTMSequencePredictor, INPUT, HIDDEN, OUTPUT, LAYERS, summary=summary
        )
        for summary in SUMMARIES
    },
    "seq2seq": partial(Seq2Seq, INPUT, HIDDEN, OUTPUT, LAYERS),
}


def make_inputs(name: str, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The positional inputs of a model of MODELS, the same ones at every call."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, SEQ, INPUT, generator=generator, dtype=torch.float64)
    tgt = torch.randn(BATCH, SEQ - 2, OUTPUT, generator=generator, dtype=torch.float64)
    inputs = (x, tgt) if name == "seq2seq" else (x,)
    return tuple(tensor.to(device, dtype) for tensor in inputs)


def make_model(
    name: str,
    lstm: Callable[..., nn.Module] = FusedLSTM,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](lstm=lstm).to(device, dtype)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


# The contracts that code written against the usual nn.LSTM models relies on


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_shapes_with_positional_arguments(lstm, num_layers):
    x, tgt = torch.randn(32, 20, 10), torch.randn(32, 25, 5)
    h_n, c_n = Encoder(10, 64, num_layers, lstm=lstm)(x)
    assert h_n.shape == c_n.shape == (num_layers, 32, 64)
    assert Decoder(5, 64, num_layers, lstm=lstm)(tgt, h_n, c_n).shape == (32, 25, 5)
    assert LSTMClassifier(10, 64, 3, num_layers, lstm=lstm)(x).shape == (32, 3)
    assert LSTMSequencePredictor(10, 64, 5, num_layers, lstm=lstm)(x).shape == (32, 5)
    assert Seq2Seq(10, 64, 5, num_layers, lstm=lstm)(x, tgt).shape == (32, 25, 5)


@pytest.mark.parametrize(("keywords", "expected"), [({}, FusedLSTM), ({"lstm": nn.LSTM}, nn.LSTM)])
def test_the_class_they_are_built_on(keywords, expected):
    seq2seq = Seq2Seq(3, 4, 5, **keywords)
    encoder, decoder = Encoder(3, 4, **keywords), Decoder(3, 4, **keywords)
    classifier, predictor = (
        model(3, 4, 5, **keywords) for model in (LSTMClassifier, LSTMSequencePredictor)
    )
    for model in (seq2seq.encoder, seq2seq.decoder, encoder, decoder, classifier, predictor):
        assert type(model.lstm) is expected


@pytest.mark.parametrize("model", [LSTMClassifier, LSTMSequencePredictor, Seq2Seq])
def test_additions_are_keyword_only(model):
    with pytest.raises(TypeError, match="positional"):
        model(3, 4, 5, 1, nn.LSTM)


def test_parameter_names():
    lstm_names = [f"lstm.{name}" for name, _ in nn.LSTM(3, 4).named_parameters()]
    fc_names = ["fc.weight", "fc.bias"]
    assert list(LSTMClassifier(3, 4, 5).state_dict()) == lstm_names + fc_names
    assert list(Seq2Seq(3, 4, 5).state_dict()) == [
        *(f"encoder.{name}" for name in lstm_names),
        *(f"decoder.{name}" for name in lstm_names + fc_names),
    ]
    predictor = LSTMSequencePredictor(3, 4, 5)
    bidirectional = nn.LSTM(3, 4, bidirectional=True)
    assert list(predictor.state_dict()) == [
        *(f"lstm.{name}" for name, _ in bidirectional.named_parameters()),
        *fc_names,
    ]
    assert predictor.fc.in_features == 8


def plain_forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """What each model of MODELS stands for, in plain nn.LSTM calls without lengths."""
    if isinstance(model, Seq2Seq):
        src, tgt = inputs
        output, _ = model.decoder.lstm(tgt, model.encoder.lstm(src)[1])
        return model.decoder.fc(output)
    output, (h_n, _) = model.lstm(*inputs)
    if isinstance(model, LSTMClassifier):
        pooled = {"last": h_n[-1], "mean": output.mean(1), "max": output.max(1).values}
        return model.fc(pooled[model.pooling])
    both_final = torch.cat([output[:, -1, :HIDDEN], output[:, 0, HIDDEN:]], 1)
    return model.fc({"last_step": output[:, -1, :], "final_states": both_final}[model.summary])


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_forward_is_the_plain_expression(name, lstm):
    model = make_model(name, lstm)
    inputs = make_inputs(name, "cpu", torch.float64)
    expected = plain_forward(make_model(name, nn.LSTM), inputs)
    torch.testing.assert_close(model(*inputs), expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "seq2seq"])
def test_unbatched_input(name):
    model = make_model(name)
    (x,) = make_inputs(name, "cpu", torch.float64)
    torch.testing.assert_close(model(x[0]), model(x)[0])


def test_the_two_summaries_differ_in_the_reverse_half_only():
    last_step = make_model("predictor-last_step")
    final_states = make_model("predictor-final_states")
    (x,) = make_inputs("predictor", "cpu", torch.float64)
    assert not torch.allclose(last_step(x), final_states(x))
    with torch.no_grad():
        for model in (last_step, final_states):
            model.fc.weight[:, HIDDEN:] = 0
    torch.testing.assert_close(last_step(x), final_states(x))


def test_last_step_holds_one_step_of_the_reverse_direction():
    model = make_model("predictor-last_step")
    (x,) = make_inputs("predictor", "cpu", torch.float64)
    with torch.no_grad():
        model.fc.weight[:, :HIDDEN] = 0  # only the reverse half is left
        model.lstm.weight_ih_l1_reverse[:, :HIDDEN] = 0  # and only the reverse layer below it
    torch.testing.assert_close(model(x), model(x[:, -1:]))


def test_a_partial_passes_further_arguments():
    model = LSTMClassifier(3, 4, 5, 2, lstm=partial(FusedLSTM, dropout=0.25))
    assert model.lstm.dropout == 0.25


# What `lstm=` may build

VARIANTS = {
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 2},
    "both": {"bidirectional": True, "proj_size": 2},
    "no biases": {"bias": False},
}


class Own(nn.Module):
    """An LSTM class of a user's own, which says nothing of itself."""

    def __init__(self, input_size, hidden_size, num_layers, batch_first):
        super().__init__()
        self.inner = nn.LSTM(input_size, hidden_size, num_layers, batch_first=batch_first)

    def forward(self, x, hx=None):
        return self.inner(x, hx)


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_classifier_reads_all_that_lstm_gives(pooling, variant, lstm):
    options = VARIANTS[variant]
    torch.manual_seed(0)
    model = LSTMClassifier(
        INPUT, HIDDEN, OUTPUT, LAYERS, pooling=pooling, lstm=partial(lstm, **options)
    ).double()
    (x,) = make_inputs("classifier", "cpu", torch.float64)
    lengths = torch.tensor(LENGTHS)
    logits = model(x, lengths=lengths)
    assert logits.shape == (BATCH, OUTPUT)
    for row, length in enumerate(LENGTHS):
        expected = torch.zeros(model.fc.in_features, dtype=torch.float64)
        if length:
            output, _ = model.lstm(x[row, :length])  # [T, directions P]
            width = options.get("proj_size", HIDDEN)
            both = torch.cat([output[-1, :width], output[0, width:]])
            expected = {"last": both, "mean": output.mean(0), "max": output.amax(0)}[pooling]
        torch.testing.assert_close(logits[row], model.fc(expected))
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        if "weight_ih" in name:  # of each layer and direction
            assert weight.grad.any(), f"{name} is never used"


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("summary", SUMMARIES)
def test_predictor_with_a_projection(summary, lstm):
    torch.manual_seed(0)
    model = LSTMSequencePredictor(
        INPUT, HIDDEN, OUTPUT, LAYERS, summary=summary, lstm=partial(lstm, proj_size=2)
    ).double()
    (x,) = make_inputs("predictor", "cpu", torch.float64)
    output, _ = model.lstm(x)
    reverse = output[:, -1 if summary == "last_step" else 0, 2:]
    torch.testing.assert_close(model(x), model.fc(torch.cat([output[:, -1, :2], reverse], 1)))


@pytest.mark.parametrize("lstm", LSTMS)
def test_encoder_and_decoder_with_a_projection(lstm):
    torch.manual_seed(0)
    model = Seq2Seq(INPUT, HIDDEN, OUTPUT, LAYERS, lstm=partial(lstm, proj_size=2)).double()
    src, tgt = make_inputs("seq2seq", "cpu", torch.float64)
    h_n, c_n = model.encoder(src)
    assert (h_n.shape, c_n.shape) == ((LAYERS, BATCH, 2), (LAYERS, BATCH, HIDDEN))
    output, _ = model.decoder.lstm(tgt, (h_n, c_n))
    torch.testing.assert_close(model(src, tgt), model.decoder.fc(output))
    generated = model.generate(src, 4, tgt[:, 0])
    fed = torch.cat([tgt[:, :1], generated[:, :-1]], 1)
    torch.testing.assert_close(model(src, fed), generated)


@pytest.mark.parametrize("lstm", LSTMS)
def test_encoder_of_both_directions(lstm):
    encoder = Encoder(INPUT, HIDDEN, LAYERS, lstm=partial(lstm, bidirectional=True)).double()
    (x,) = make_inputs("encoder", "cpu", torch.float64)
    h_n, c_n = encoder(x)
    assert h_n.shape == c_n.shape == (2 * LAYERS, BATCH, HIDDEN)
    torch.testing.assert_close((h_n, c_n), encoder.lstm(x)[1])


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("model", [Decoder, Seq2Seq])
def test_a_decoder_of_both_directions_is_refused(model, lstm):
    with pytest.raises(ValueError, match="lstm is bidirectional, must have one direction"):
        model(*[4] * (2 + (model is Seq2Seq)), lstm=partial(lstm, bidirectional=True))


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_dtype_and_device_of_lstm_are_those_of_the_model(name, lstm):
    model = MODELS[name](lstm=partial(lstm, dtype=torch.float64), initial_state="learned")
    assert model(*make_inputs(name, "cpu", torch.float64)).dtype == torch.float64
    elsewhere = MODELS[name](lstm=partial(lstm, device="meta"), initial_state="learned")
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}


@pytest.mark.parametrize("name", [name for name in MODELS if "predictor" not in name])
def test_a_class_of_ones_own(name):
    model, expected = make_model(name, Own), make_model(name, nn.LSTM)
    inputs = make_inputs(name, "cpu", torch.float64)
    torch.testing.assert_close(model(*inputs), expected(*inputs))
    lengths = torch.tensor(LENGTHS)
    torch.testing.assert_close(model(*inputs, lengths=lengths), expected(*inputs, lengths=lengths))


@pytest.mark.parametrize(
    ("lstm", "message"),
    [
        (nn.GRU, "lstm builds an nn.GRU, must build an LSTM"),
        (nn.RNN, "lstm builds an nn.RNN_TANH, must build an LSTM"),
        (lambda *sizes, **_: nn.LSTM(*sizes), "batch_first=False, must have batch_first=True"),
        (lambda D, H, L, **options: FusedLSTM(D, 2 * H, L, **options), "hidden_size=12.*=6"),
        (lambda D, H, L, **options: FusedLSTM(D, H, **options), "num_layers=1.*num_layers=2"),
    ],
    ids=["GRU", "RNN", "time first", "wider", "flatter"],
)
@pytest.mark.parametrize("model", [LSTMClassifier, Seq2Seq])
def test_lstm_that_builds_something_else_is_refused(model, lstm, message):
    with pytest.raises(ValueError, match=message):
        model(INPUT, HIDDEN, OUTPUT, LAYERS, lstm=lstm)


def test_a_predictor_needs_both_directions():
    def one_way(*sizes, bidirectional, **options):
        return FusedLSTM(*sizes, **options)

    with pytest.raises(ValueError, match="bidirectional=False, must have bidirectional=True"):
        LSTMSequencePredictor(3, 4, 5, lstm=one_way)


# A learned initial state


def test_by_default_no_state_is_learned():
    for name in MODELS:
        assert not [key for key in make_model(name).state_dict() if "h_0" in key or "c_0" in key]
    with pytest.raises(ValueError, match="initial_state is 'ones', must be one of 'zero', "):
        Encoder(3, 4, initial_state="ones")


def learned(name: str, lstm: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name](lstm=lstm, initial_state="learned").double()
    for key, parameter in model.named_parameters():
        if key.endswith(("h_0", "c_0")):
            assert not parameter.any()  # a new model starts as one without
            nn.init.uniform_(parameter, -1, 1)
    return model


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=["plain", "projected"])
@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_learned_state_starts_each_sequence(name, lstm, options):
    model = learned(name, partial(lstm, **options))
    reader = model.encoder if name == "seq2seq" else model
    x, *rest = make_inputs(name, "cpu", torch.float64)
    result = model(x, *rest, lengths=torch.tensor(LENGTHS))
    start = (reader.h_0[:, None], reader.c_0[:, None])
    plain = MODELS[name](lstm=partial(lstm, **options)).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "_0" not in k[-4:]})
    original = plain.encoder if name == "seq2seq" else plain
    for row, length in enumerate(LENGTHS):
        one = [tensor[row : row + 1] for tensor in (x[:, :length], *rest)]
        if length:  # as nn.LSTM does it, called with that hx
            torch.testing.assert_close(model(*one), result[row : row + 1])
            torch.testing.assert_close(model(*(t[0] for t in one)), result[row])
            hidden = original.lstm(one[0], start)
        else:  # final states are the initial ones
            hidden = torch.zeros(1, 1, model.fc.in_features).double() if not rest else None, start
        original._read = lambda *_, hidden=hidden: hidden
        torch.testing.assert_close(plain(*one), result[row : row + 1])
    result.square().sum().backward()
    assert reader.h_0.grad.any()
    assert reader.c_0.grad.any()


@pytest.mark.parametrize("name", MODELS)
def test_a_learned_state_is_the_same_for_both_classes(name):
    fused, plain = learned(name, FusedLSTM), learned(name, nn.LSTM)
    inputs, lengths = make_inputs(name, "cpu", torch.float64), torch.tensor(LENGTHS)
    assert list(fused.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(fused(*inputs, lengths=lengths), plain(*inputs, lengths=lengths))


def test_generate_from_a_learned_state():
    model = learned("seq2seq", FusedLSTM)
    src, start, lengths = generation_inputs("cpu")
    generated = model.generate(src, 3, start, lengths=lengths)
    fed = torch.cat([start[:, None], generated[:, :-1]], 1)
    torch.testing.assert_close(model(src, fed, lengths=lengths), generated)
    empty = LENGTHS.index(0)
    state = model.encoder.h_0[:, None], model.encoder.c_0[:, None]
    torch.testing.assert_close(model.decoder(fed[empty : empty + 1], *state)[0], generated[empty])


# lengths


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_lengths_give_what_each_sequence_gives_alone(name, lstm, device):
    model = make_model(name, lstm, device)
    x, *rest = make_inputs(name, device, torch.float64)
    result = model(x, *rest, lengths=torch.tensor(LENGTHS, device=device))
    for row, length in enumerate(LENGTHS):
        if length == 0:
            continue
        alone = model(x[row : row + 1, :length], *(tensor[row : row + 1] for tensor in rest))
        torch.testing.assert_close(result[row : row + 1], alone)


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_an_empty_sequence_is_zeros(name, lstm):
    model = make_model(name, lstm)
    inputs = make_inputs(name, "cpu", torch.float64)
    row = LENGTHS.index(0)
    result = model(*inputs, lengths=torch.tensor(LENGTHS))[row]
    if name == "seq2seq":
        zeros = torch.zeros(LAYERS, 1, HIDDEN, dtype=torch.float64)
        expected = model.decoder(inputs[1][row : row + 1], zeros, zeros)[0]
    else:
        expected = model.fc.bias
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("garbage", [1e30, -torch.inf, torch.nan])
@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_reaches_the_result(name, lstm, garbage, device):
    model = make_model(name, lstm, device, torch.float32)
    x, *rest = make_inputs(name, device, torch.float32)
    lengths = torch.tensor(LENGTHS, device=device)
    padding = torch.arange(SEQ, device=device) >= lengths[:, None]
    clean, poisoned = (x.masked_fill(padding[:, :, None], value) for value in (0, garbage))
    assert torch.equal(
        model(clean, *rest, lengths=lengths), model(poisoned, *rest, lengths=lengths)
    )


# nn.LSTM reads a step of the empty sequence, whose zero gradient times NaN would be NaN.
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("lstm", "garbage"), [(FusedLSTM, 1e30), (FusedLSTM, torch.nan), (nn.LSTM, 1e30)]
)
@pytest.mark.parametrize("name", MODELS)
def test_padding_never_reaches_the_gradients(name, lstm, garbage, device):
    lengths = torch.tensor(LENGTHS, device=device)
    padding = torch.arange(SEQ, device=device) >= lengths[:, None]
    seen = []
    for value in (0.0, garbage):
        model = make_model(name, lstm, device)
        x, *rest = make_inputs(name, device, torch.float64)
        x = x.masked_fill(padding[:, :, None], value).requires_grad_()
        model(x, *rest, lengths=lengths).square().sum().backward()
        assert torch.all(x.grad[padding] == 0)
        seen.append([x.grad, *gradients(model)])
    for clean, poisoned in zip(*seen, strict=True):
        torch.testing.assert_close(poisoned, clean)


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_full_lengths_change_nothing(name, lstm):
    model = make_model(name, lstm)
    inputs = make_inputs(name, "cpu", torch.float64)
    result = model(*inputs, lengths=torch.full((BATCH,), SEQ))
    torch.testing.assert_close(result, model(*inputs))


@pytest.mark.parametrize("lstm", LSTMS)
def test_max_over_outputs_that_are_all_negative(lstm):
    model = make_model("classifier-max", lstm)
    x = torch.zeros(2, SEQ, INPUT, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.lstm.named_parameters():
            if name.startswith("bias"):
                parameter[2 * HIDDEN : 3 * HIDDEN] = -3  # g, and with it c and h, below zero
        model.fc.weight.copy_(torch.eye(OUTPUT, HIDDEN))
        model.fc.bias.zero_()
    assert torch.all(model(x, lengths=torch.tensor([SEQ, 3])) < 0)


# Parity between the two LSTM classes


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_weights(name):
    fused, plain = make_model(name, FusedLSTM), make_model(name, nn.LSTM)
    assert list(fused.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(fused.state_dict()[key], value), key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_agree_with_nn_lstm(name, with_lengths, device):
    lengths = torch.tensor(LENGTHS, device=device) if with_lengths else None

    def run(lstm, dtype):
        model = make_model(name, lstm, device, dtype)
        inputs = make_inputs(name, device, dtype)
        for tensor in inputs:
            tensor.requires_grad_()
        result = model(*inputs, lengths=lengths)
        result.square().sum().backward()
        return [result.detach(), *(tensor.grad for tensor in inputs), *gradients(model)]

    exact = run(nn.LSTM, torch.float64)
    for ours, truth in zip(run(FusedLSTM, torch.float64), exact, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    float32 = zip(run(FusedLSTM, torch.float32), run(nn.LSTM, torch.float32), exact, strict=True)
    for ours, theirs, truth in float32:
        floor = 4 * torch.finfo(torch.float32).eps * truth.abs().max().clamp(min=1)
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + floor


def train(name: str, lstm: type[nn.Module], device: str, dtype: torch.dtype) -> Tensor:
    """The losses of 20 steps of SGD, and after them the weights, as one float64 vector."""
    model = make_model(name, lstm, device, dtype)
    inputs = make_inputs(name, device, dtype)
    lengths = torch.tensor(LENGTHS, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(*inputs, lengths=lengths) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.cat([torch.stack(losses), weights]).double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_training_follows_nn_lstm(name, device):
    exact = train(name, nn.LSTM, device, torch.float64)
    assert exact[19] < 0.8 * exact[0]  # it does train
    ours = train(name, FusedLSTM, device, torch.float64)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-9)

    error = (train(name, FusedLSTM, device, torch.float32) - exact).abs().max()
    allowed = (train(name, nn.LSTM, device, torch.float32) - exact).abs().max()
    assert error <= 2 * allowed + 32 * torch.finfo(torch.float32).eps


def test_replace_lstm_keeps_lengths_and_results():
    model = make_model("predictor-final_states", nn.LSTM)
    inputs = make_inputs("predictor", "cpu", torch.float64)
    lengths = torch.tensor(LENGTHS)
    before = model(*inputs, lengths=lengths)
    assert replace_lstm(model, verbose=False) == ["lstm"]
    assert type(model.lstm) is FusedLSTM
    torch.testing.assert_close(model(*inputs, lengths=lengths), before)


# Generation


def generation_inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    src, tgt = make_inputs("seq2seq", device, torch.float64)
    return src, tgt[:, 0], torch.tensor(LENGTHS, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lstm", LSTMS)
def test_generate_feeds_its_own_outputs_back(lstm, device):
    model = make_model("seq2seq", lstm, device)
    src, start, lengths = generation_inputs(device)
    hidden = model.encoder(src, lengths=lengths)
    step, expected = start[:, None], []
    for _ in range(6):
        output, hidden = model.decoder.lstm(step, hidden)
        step = model.decoder.fc(output)
        expected.append(step)
    generated = model.generate(src, 6, start, lengths=lengths)
    torch.testing.assert_close(generated, torch.cat(expected, 1))


def test_generate_is_teacher_forcing_on_its_own_outputs():
    model = make_model("seq2seq")
    src, start, _ = generation_inputs("cpu")
    generated = model.generate(src, 6, start)
    assert generated.shape == (BATCH, 6, OUTPUT)
    fed = torch.cat([start[:, None], generated[:, :-1]], dim=1)
    torch.testing.assert_close(model(src, fed), generated)


@pytest.mark.parametrize("lstm", LSTMS)
def test_generate_respects_lengths(lstm):
    model = make_model("seq2seq", lstm)
    src, start, lengths = generation_inputs("cpu")
    poisoned = src.masked_fill((torch.arange(SEQ) >= lengths[:, None])[:, :, None], torch.nan)
    generated = model.generate(poisoned, 4, start, lengths=lengths)
    alone = model.generate(src[2:3, : LENGTHS[2]], 4, start[2:3])
    torch.testing.assert_close(generated[2:3], alone)
    assert generated.isfinite().all()


def test_generate_with_and_without_gradients():
    model = make_model("seq2seq")
    src, start, _ = generation_inputs("cpu")
    start = start.requires_grad_()
    generated = model.generate(src, 5, start)
    generated[:, -1].sum().backward()
    assert torch.all(start.grad.abs().sum(1) > 0)  # through all five steps
    assert all(torch.any(gradient != 0) for gradient in gradients(model.encoder))
    with torch.no_grad():
        without = model.generate(src, 5, start)
    assert not without.requires_grad
    torch.testing.assert_close(without, generated)


# Errors


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"pooling is 'avg', must be one of 'last', 'mean'"):
        LSTMClassifier(3, 4, 5, pooling="avg")
    with pytest.raises(ValueError, match=r"summary is 'last', must be one of 'last_step', "):
        LSTMSequencePredictor(3, 4, 5, summary="last")
    model = make_model("seq2seq")
    src, start, _ = generation_inputs("cpu")
    with pytest.raises(ValueError, match="steps is 0, must be at least 1"):
        model.generate(src, 0, start)
    message = r"start has shape \(5, 1, 4\), must be \(batch, output_size\) = \(5, 4\)"
    with pytest.raises(ValueError, match=message):
        model.generate(src, 2, start[:, None])


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("length", [SEQ + 1, -1])
def test_lengths_out_of_range_raise(lstm, length):
    model = make_model("classifier-mean", lstm)
    (x,) = make_inputs("classifier", "cpu", torch.float64)
    with pytest.raises((ValueError, RuntimeError)):
        model(x, lengths=torch.tensor([*LENGTHS[:-1], length]))


@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_lengths_of_unbatched_input_raise(name, lstm):
    model = make_model(name, lstm)
    inputs = (tensor[0] for tensor in make_inputs(name, "cpu", torch.float64))
    with pytest.raises(ValueError, match="x has 2 dimensions, must have 3"):
        model(*inputs, lengths=torch.tensor([3]))


# What else a module should be able to do

tracing = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


@tracing
@pytest.mark.parametrize("lstm", LSTMS)
@pytest.mark.parametrize("name", MODELS)
def test_jit_trace(name, lstm):
    model = make_model(name, lstm)
    inputs = make_inputs(name, "cpu", torch.float64)
    traced = torch.jit.trace(model, inputs)
    others = tuple(torch.randn_like(tensor) for tensor in inputs)
    torch.testing.assert_close(traced(*others), model(*others))


class WithLengths(nn.Module):
    """torch.jit.trace knows no keyword-only arguments: this takes the lengths by position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, lengths: Tensor, *inputs: Tensor) -> Tensor:
        return self.model(*inputs, lengths=lengths)


@tracing
@pytest.mark.parametrize("name", MODELS)
def test_jit_trace_with_lengths(name):
    model = make_model(name)
    inputs = make_inputs(name, "cpu", torch.float64)
    traced = torch.jit.trace(WithLengths(model), (torch.tensor(LENGTHS), *inputs))
    other = torch.tensor([3, 7, 0, 5, 2])
    torch.testing.assert_close(traced(other, *inputs), model(*inputs, lengths=other))


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_names(name):
    model = make_model(name)
    inputs = make_inputs(name, "cpu", torch.float64)
    torch.testing.assert_close(copy.deepcopy(model)(*inputs), model(*inputs))
    choice = name.partition("-")[2]
    assert repr(choice) in repr(model) or not choice
