"""Every claim of fused_lstm/README.md under "What the outputs mean", a test each, named after it.

L layers, D directions, N sequences of T steps, hidden size H, P = proj_size or H; entry
k = layer * D + direction of h_n, c_n and of the states.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from fused_lstm import FusedLSTM

README = Path(__file__).parents[1] / "fused_lstm" / "README.md"
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
N, T, INPUT, H = 4, 6, 3, 5
LENGTHS = [4, 0, 6, 1]

each_device = pytest.mark.parametrize("device", DEVICES)
each_class = pytest.mark.parametrize("lstm_class", [FusedLSTM, nn.LSTM])
each_layout = pytest.mark.parametrize("batch_first", [False, True])
each_depth = pytest.mark.parametrize("layers", [1, 2, 3])
each_direction = pytest.mark.parametrize("directions", [1, 2])
each_projection = pytest.mark.parametrize("proj_size", [0, 2])


def make(
    device: str = "cpu",
    *,
    lstm_class: type[nn.Module] = FusedLSTM,
    layers: int = 1,
    directions: int = 1,
    batch_first: bool = True,
    proj_size: int = 0,
    **more: object,
) -> nn.Module:
    torch.manual_seed(0)
    return lstm_class(
        INPUT,
        H,
        layers,
        batch_first=batch_first,
        bidirectional=directions == 2,
        proj_size=proj_size,
        device=device,
        **{"dtype": torch.float64, **more},
    )


def random(*shape: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# The document's own code


def readme_blocks(title: str) -> list[tuple[int, str]]:
    """The python blocks of a section, each with the number of its first line."""
    text = README.read_text(encoding="utf-8")
    section = re.search(rf"^## {title}\n.*?(?=^## |\Z)", text, re.M | re.S)
    assert section, f"{README} has no section '## {title}'"
    return [
        (text.count("\n", 0, section.start() + block.start(1)) + 1, block[1])
        for block in re.finditer(r"^```python\n(.*?)^```$", section[0], re.M | re.S)
    ]


@pytest.mark.skipif(not README.exists(), reason="no fused_lstm/README.md here")
@pytest.mark.parametrize("title", ["What the outputs mean", "Serving: frozen layers and streams"])
def test_the_blocks_in_the_readme_run(title):
    blocks = readme_blocks(title)
    assert blocks
    namespace: dict[str, object] = {}
    for line, block in blocks:  # numbered as in the file, which a traceback then quotes
        exec(compile("\n" * (line - 1) + block, str(README), "exec"), namespace)


# Shapes


@each_device
@each_class
@each_layout
@each_depth
@each_direction
@each_projection
def test_shapes_of_batched_input(lstm_class, batch_first, layers, directions, proj_size, device):
    lstm = make(
        device,
        lstm_class=lstm_class,
        layers=layers,
        directions=directions,
        batch_first=batch_first,
        proj_size=proj_size,
    )
    x = random(*((N, T) if batch_first else (T, N)), INPUT, device=device)
    output, (h_n, c_n) = lstm(x)
    features = proj_size or H
    assert output.shape == (*x.shape[:2], directions * features)
    assert h_n.shape == (directions * layers, N, features)
    assert c_n.shape == (directions * layers, N, H)


@each_device
@each_class
@each_layout
@each_direction
@each_projection
def test_shapes_of_unbatched_input(lstm_class, batch_first, directions, proj_size, device):
    lstm = make(
        device,
        lstm_class=lstm_class,
        layers=2,
        directions=directions,
        batch_first=batch_first,
        proj_size=proj_size,
    )
    output, (h_n, c_n) = lstm(random(T, INPUT, device=device))
    features = proj_size or H
    assert output.shape == (T, directions * features)
    assert h_n.shape == (directions * 2, features)
    assert c_n.shape == (directions * 2, H)


@each_device
@each_class
@each_layout
@each_direction
@each_projection
def test_packed_input_gives_packed_output_and_states_in_the_order_before_sorting(
    lstm_class, batch_first, directions, proj_size, device
):
    lstm = make(
        device,
        lstm_class=lstm_class,
        layers=2,
        directions=directions,
        batch_first=batch_first,
        proj_size=proj_size,
    )
    lengths = [2, 6, 3, 1]
    sequences = [row[:length] for row, length in zip(random(N, T, INPUT), lengths, strict=True)]
    packed = pack_sequence(sequences, enforce_sorted=False).to(device)
    output, (h_n, c_n) = lstm(packed)
    features = proj_size or H
    assert isinstance(output, PackedSequence)
    assert output.data.shape == (sum(lengths), directions * features)
    assert h_n.shape == (directions * 2, N, features)
    assert c_n.shape == (directions * 2, N, H)
    padded, _ = pad_packed_sequence(output, batch_first=True)
    for row, sequence in enumerate(sequences):
        alone, (h_alone, c_alone) = lstm(sequence.to(device))
        close(padded[row, : lengths[row]], alone)
        close(h_n[:, row], h_alone)
        close(c_n[:, row], c_alone)


# Which slice of output is which entry of h_n


@each_device
@each_projection
def test_output_is_the_hidden_state_at_every_step(proj_size, device):
    lstm = make(device, layers=2, proj_size=proj_size)
    x = random(N, T, INPUT, device=device)
    output, _ = lstm(x)
    for t in range(T):
        _, (h_t, _) = lstm(x[:, : t + 1])
        close(output[:, t], h_t[-1])


@each_device
@each_direction
@each_projection
def test_h_n_has_every_layer_and_direction(directions, proj_size, device):
    """Each layer alone, on the output of the one below, ends in its entries of h_n and c_n."""
    lstm = make(device, layers=3, directions=directions, proj_size=proj_size)
    x = random(N, T, INPUT, device=device)
    output, (h_n, c_n) = lstm(x)
    for layer in range(3):
        alone = FusedLSTM(
            x.size(-1),
            H,
            batch_first=True,
            bidirectional=directions == 2,
            proj_size=proj_size,
            device=device,
            dtype=torch.float64,
        )
        mine = {
            name.replace(f"_l{layer}", "_l0"): value
            for name, value in lstm.state_dict().items()
            if f"_l{layer}" in name
        }
        alone.load_state_dict(mine)
        x, (h_layer, c_layer) = alone(x)
        entries = slice(layer * directions, (layer + 1) * directions)
        close(h_n[entries], h_layer)
        close(c_n[entries], c_layer)
    close(output, x)


@each_device
@each_depth
@each_projection
def test_one_direction_ends_at_the_last_step(layers, proj_size, device):
    lstm = make(device, layers=layers, proj_size=proj_size)
    output, (h_n, _) = lstm(random(N, T, INPUT, device=device))
    same(output[:, -1], h_n[-1])


@each_device
@each_depth
@each_projection
def test_forward_ends_at_the_last_step_and_reverse_at_the_first(layers, proj_size, device):
    lstm = make(device, layers=layers, directions=2, proj_size=proj_size)
    output, (h_n, _) = lstm(random(N, T, INPUT, device=device))
    features = proj_size or H
    same(output[:, -1, :features], h_n[-2])
    same(output[:, 0, features:], h_n[-1])
    assert not torch.allclose(output[:, -1, features:], h_n[-1])


@each_device
def test_at_the_last_step_the_reverse_direction_has_read_one_step(device):
    lstm = make(device, directions=2)
    x = random(N, T, INPUT, device=device).requires_grad_()
    output, _ = lstm(x)
    one_step, _ = lstm(x[:, -1:])
    close(output[:, -1, H:], one_step[:, 0, H:])
    (gradient,) = torch.autograd.grad(output[:, -1, H:].sum(), x)
    assert not gradient[:, :-1].any()
    assert gradient[:, -1].all()


def test_with_a_single_step_first_and_last_are_the_same():
    output, (h_n, _) = make(directions=2)(random(N, 1, INPUT))
    same(output[:, -1], torch.cat([h_n[-2], h_n[-1]], 1))


@each_device
def test_lower_layers_are_in_h_n_before_dropout_and_not_in_output(device):
    x = random(N, T, INPUT, device=device)
    lstm = make(device, layers=2, dropout=0.5)
    kept, (h_kept, _) = lstm.eval()(x)
    dropped, (h_n, _) = lstm.train()(x)
    close(h_n[0], h_kept[0])
    assert not torch.allclose(dropped, kept)
    assert not any(torch.allclose(dropped[:, t], h_n[0]) for t in range(T))


@each_device
@each_direction
def test_c_n_is_not_in_output(directions, device):
    lstm = make(device, directions=directions)
    output, (_, c_n) = lstm(random(N, T, INPUT, device=device))
    steps = output.unflatten(-1, (directions, H)).movedim(-2, 0)  # [D, N, T, H]
    for cell in c_n:
        assert not any(
            torch.allclose(steps[d, :, t], cell) for d in range(directions) for t in range(T)
        )


# Lengths


@each_device
@each_depth
@each_direction
@each_projection
def test_with_lengths_each_sequence_is_as_if_alone(layers, directions, proj_size, device):
    lstm = make(device, layers=layers, directions=directions, proj_size=proj_size)
    x = random(N, T, INPUT, device=device)
    output, (h_n, c_n) = lstm(x, lengths=torch.tensor(LENGTHS, device=device))
    for row, length in enumerate(LENGTHS):
        assert not output[row, length:].any()
        if length:
            alone, (h_alone, c_alone) = lstm(x[row, :length])
            close(output[row, :length], alone)
            close(h_n[:, row], h_alone)
            close(c_n[:, row], c_alone)


@each_device
@each_depth
def test_with_lengths_each_sequence_ends_at_its_own_last_step(layers, device):
    lstm = make(device, layers=layers, directions=2)
    lengths = torch.tensor(LENGTHS, device=device)
    output, (h_n, _) = lstm(random(N, T, INPUT, device=device), lengths=lengths)
    last = output[torch.arange(N, device=device), (lengths - 1).clamp(min=0)]
    same(last[:, :H], h_n[-2])
    same(output[:, 0, H:], h_n[-1])


@each_device
def test_an_empty_sequence_returns_its_initial_state(device):
    lstm = make(device, layers=2, directions=2)
    x, lengths = random(N, T, INPUT, device=device), torch.tensor(LENGTHS, device=device)
    hx = random(4, N, H, device=device), random(4, N, H, device=device) + 1
    row = LENGTHS.index(0)
    for given, expected in ((None, [torch.zeros_like(state) for state in hx]), (hx, hx)):
        _, final = lstm(x, given, lengths=lengths)
        for state, initial in zip(final, expected, strict=True):
            same(state[:, row], initial[:, row])


@each_device
def test_without_lengths_padding_is_read(device):
    lstm = make(device)
    x = random(N, T, INPUT, device=device)
    x[:, 4:] = 0
    lengths = torch.full((N,), 4, device=device)
    _, (h_n, _) = lstm(x)
    _, (h_own, _) = lstm(x, lengths=lengths)
    assert not torch.allclose(h_n, h_own)


@each_device
@each_layout
def test_lengths_give_what_packing_gives(batch_first, device):
    lstm = make(device, layers=2, directions=2, batch_first=batch_first)
    lengths = [2, 6, 3, 1]
    x = random(N, T, INPUT, device=device)
    packed = pack_sequence(
        [row[:length] for row, length in zip(x, lengths, strict=True)], enforce_sorted=False
    )
    expected, hidden = lstm(packed)
    padded, _ = pad_packed_sequence(expected, batch_first=batch_first)
    output, final = lstm(
        x if batch_first else x.transpose(0, 1), lengths=torch.tensor(lengths, device=device)
    )
    close(output, padded)
    close(final[0], hidden[0])
    close(final[1], hidden[1])


# Resets


@each_device
@each_layout
@each_depth
@each_direction
def test_no_direction_sees_across_a_reset(batch_first, layers, directions, device):
    lstm = make(device, layers=layers, directions=directions, batch_first=batch_first)
    x = random(N, T, INPUT, device=device)
    starts = [[], [2], [1, 4], [0, 5]]
    reset = torch.zeros(N, T, dtype=torch.bool, device=device)
    for row, steps in enumerate(starts):
        reset[row, steps] = True
    if batch_first:
        output, (h_n, c_n) = lstm(x, reset=reset)
    else:
        output, (h_n, c_n) = lstm(x.transpose(0, 1), reset=reset.t())
        output = output.transpose(0, 1)
    for row, steps in enumerate(starts):
        bounds = sorted({0, *steps, T})
        runs = [lstm(x[row, start:end]) for start, end in pairwise(bounds)]
        close(output[row], torch.cat([run[0] for run in runs]))
        for final, state in ((h_n, 0), (c_n, 1)):  # of the last episode, of the first in reverse
            close(final[0::directions, row], runs[-1][1][state][0::directions])
            if directions == 2:
                close(final[1::2, row], runs[0][1][state][1::2])


@each_device
@each_direction
def test_a_reset_to_initial_starts_each_episode_from_hx(directions, device):
    lstm = make(device, directions=directions)
    x = random(N, T, INPUT, device=device)
    hx = random(directions, N, H, device=device), random(directions, N, H, device=device) + 1
    reset = torch.zeros(N, T, dtype=torch.bool, device=device)
    reset[:, 2] = True
    output, _ = lstm(x, hx, reset=reset, reset_to="initial")
    close(output, torch.cat([lstm(x[:, :2], hx)[0], lstm(x[:, 2:], hx)[0]], 1))


# States


@each_device
@each_layout
@each_direction
@each_projection
def test_states_are_laid_out_like_output(batch_first, directions, proj_size, device):
    lstm = make(
        device, layers=2, directions=directions, batch_first=batch_first, proj_size=proj_size
    )
    batched = random(*((N, T) if batch_first else (T, N)), INPUT, device=device)
    for x in (batched, random(T, INPUT, device=device)):
        output, _, (cells, gates, hidden) = lstm(x, return_states=True)
        assert len(cells) == len(gates) == len(hidden) == 2 * directions
        assert all(cell.shape == (*output.shape[:-1], H) for cell in cells)
        assert all(h.shape == (*output.shape[:-1], proj_size or H) for h in hidden)
        assert all(gate.shape == (*output.shape[:-1], 4, H) for gate in gates)
    packed = pack_sequence([random(3, INPUT), random(2, INPUT)]).to(device)
    output, _, (cells, gates, hidden) = lstm(packed, return_states=True)
    for state, shape in ((cells, (5, H)), (gates, (5, 4, H)), (hidden, (5, proj_size or H))):
        for entry in state:
            assert isinstance(entry, PackedSequence)
            assert entry.data.shape == shape
            assert torch.equal(entry.batch_sizes, output.batch_sizes)


@each_device
@each_projection
def test_states_are_the_cell_at_every_step(proj_size, device):
    lstm = make(device, layers=2, directions=2, proj_size=proj_size)
    x = random(N, T, INPUT, device=device)
    output, (h_n, c_n), states = lstm(x, return_states=True)
    for k, (cell, gate, hidden) in enumerate(zip(*states, strict=True)):
        i, f, g, o = gate.unbind(-2)
        start = torch.zeros_like(cell[:, :1])
        if k % 2 == 0:
            same(cell[:, -1], c_n[k])
            same(hidden[:, -1], h_n[k])
            before = torch.cat([start, cell[:, :-1]], 1)
        else:
            same(cell[:, 0], c_n[k])
            same(hidden[:, 0], h_n[k])
            before = torch.cat([cell[:, 1:], start], 1)
        close(cell, f * before + i * g)
        expected = o * cell.tanh()
        if proj_size:
            expected = expected @ getattr(lstm, f"weight_hr_l{k // 2}{'_reverse' * (k % 2)}").t()
        close(hidden, expected)
        if k >= 2:  # the last layer, which output shows
            same(output.chunk(2, -1)[k % 2], hidden)


@each_device
def test_past_the_end_cells_stay_and_gates_and_hidden_states_are_zero(device):
    lstm = make(device)
    lengths = torch.tensor(LENGTHS, device=device)
    x = random(N, T, INPUT, device=device)
    _, (_, c_n), (cells, gates, hidden) = lstm(x, lengths=lengths, return_states=True)
    for row, length in enumerate(LENGTHS):
        same(cells[0][row, length:], c_n[0, row].expand(T - length, H))
        assert not gates[0][row, length:].any()
        assert not hidden[0][row, length:].any()


@each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_cells_are_float32_or_wider(dtype, device):
    lstm = make(device, dtype=dtype)
    x = random(N, T, INPUT, device=device).to(dtype)
    output, (h_n, c_n), (cells, _, _) = lstm(x, return_states=True)
    assert output.dtype == h_n.dtype == c_n.dtype == dtype
    assert cells[0].dtype == torch.promote_types(dtype, torch.float32)
    same(cells[0][:, -1].to(dtype), c_n[0])


@each_device
def test_states_are_differentiable(device):
    lstm = make(device, layers=2)
    x = random(N, T, INPUT, device=device).requires_grad_()
    _, _, (cells, gates, hidden) = lstm(x, return_states=True)
    (of_cells,) = torch.autograd.grad(cells[0][:, 2].sum(), x, retain_graph=True)
    (of_gates,) = torch.autograd.grad(gates[1][:, 2].sum(), x, retain_graph=True)
    (of_hidden,) = torch.autograd.grad(hidden[0][:, 2].sum(), x)
    for gradient in (of_cells, of_gates, of_hidden):
        assert gradient[:, :3].all()
        assert not gradient[:, 3:].any()


# Which to use


@each_device
def test_mean_and_max_over_the_steps_of_each_sequence(device):
    lstm = make(device, directions=2)
    lengths = torch.tensor([4, 2, 6, 1], device=device)
    x = random(N, T, INPUT, device=device)
    output, _ = lstm(x, lengths=lengths)
    mean = output.sum(1) / lengths.clamp(min=1)[:, None]
    padding = torch.arange(T, device=device) >= lengths[:, None]
    highest = output.masked_fill(padding[..., None], -torch.inf).amax(1)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = lstm(x[row, :length])
        close(mean[row], alone.mean(0))
        close(highest[row], alone.amax(0))
    assert (highest < 0).any()  # where zeros would have won
    assert not torch.allclose(highest, output.amax(1))


@each_device
def test_final_states_have_read_everything_from_both_sides(device):
    lstm = make(device, layers=2, directions=2)
    x = random(N, T, INPUT, device=device).requires_grad_()
    _, (h_n, _) = lstm(x)
    for final in (h_n[-2], h_n[-1]):
        (gradient,) = torch.autograd.grad(final.sum(), x, retain_graph=True)
        assert gradient.all()


@each_device
def test_a_decoder_needs_h_n_and_c_n_to_go_on(device):
    """Given both, a decoder with the encoder's weights continues as if nothing had been cut."""
    lstm = make(device, layers=2)
    x = random(N, T, INPUT, device=device)
    whole, _ = lstm(x)
    _, (h_n, c_n) = lstm(x[:, :4])
    close(lstm(x[:, 4:], (h_n, c_n))[0], whole[:, 4:])
    without_cell, _ = lstm(x[:, 4:], (h_n, torch.zeros_like(c_n)))
    assert not torch.allclose(without_cell, whole[:, 4:])


@each_device
def test_states_of_both_directions_side_by_side_fit_a_wider_decoder(device):
    _, (h_n, c_n) = make(device, layers=2, directions=2)(random(N, T, INPUT, device=device))
    decoder = FusedLSTM(INPUT, 2 * H, 2, batch_first=True, device=device, dtype=torch.float64)
    hx = tuple(torch.cat([state[0::2], state[1::2]], -1) for state in (h_n, c_n))
    same(hx[0][-1], torch.cat([h_n[-2], h_n[-1]], -1))
    output, _ = decoder(random(N, T, INPUT, device=device), hx)
    assert output.shape == (N, T, 2 * H)


@each_device
def test_a_stream_in_chunks_is_the_stream_and_needs_one_direction(device):
    x = random(N, T, INPUT, device=device)
    for directions in (1, 2):
        lstm = make(device, layers=2, directions=directions)
        early, hidden = lstm(x[:, :4])
        late, _ = lstm(x[:, 4:], hidden)
        agrees = torch.allclose(torch.cat([early, late], 1), lstm(x)[0])
        assert agrees == (directions == 1)


@each_device
def test_detached_states_end_the_gradient_at_the_chunk(device):
    lstm = make(device)
    early = random(N, 4, INPUT, device=device).requires_grad_()
    late = random(N, 2, INPUT, device=device)
    _, hidden = lstm(early)
    attached, _ = lstm(late, hidden)
    (gradient,) = torch.autograd.grad(attached.sum(), early)
    assert gradient.all()
    detached, _ = lstm(late, tuple(state.detach() for state in hidden))
    (gradient,) = torch.autograd.grad(detached.sum(), early, allow_unused=True)
    assert gradient is None
