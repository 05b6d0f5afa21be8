"""What the tests judge by: other modules with the same weights, all results and gradients of a
call by name, and how far they may be from the truth."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import rounding
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_lstm
from fused_lstm import _C, FusedLSTM, reference
from fused_lstm.lstm import run

NO_CUDA = (
    "needs a CUDA GPU"
    if not torch.cuda.is_available()
    else None
    if _C.build_info()["cuda"]
    else "fused_lstm was built without CUDA"
)

Results = dict[str, Tensor]


def twin(
    module: nn.Module, kind: type[nn.Module] = nn.LSTM, dtype: torch.dtype | None = None
) -> nn.Module:
    """The same layers with the same weights as another class, or in a wider dtype."""
    other = kind(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.bias,
        module.batch_first,
        module.dropout,
        module.bidirectional,
        module.proj_size,
        module.weight_ih_l0.device,
        dtype or module.weight_ih_l0.dtype,
    )
    other.load_state_dict(module.state_dict())
    return other.train(module.training)


def reference_lstm(module: nn.Module, input: Any, hx: Any = None, **options: Any) -> Any:
    """A whole FusedLSTM or nn.LSTM, forward's options included, through the reference."""
    return run(module, reference.layer, input, hx, **options)


def rand(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """Multiples of 1/8 between -2 and 2, which every dtype holds exactly."""
    return (torch.randint(-16, 17, shape) / 8).to(device, dtype)


def rand_state(module: nn.Module, batch: int | None) -> tuple[Tensor, Tensor]:
    """An hx for `batch` sequences, or for one without a batch."""
    weight = module.weight_ih_l0
    layers = module.num_layers * (2 if module.bidirectional else 1)
    middle = () if batch is None else (batch,)
    hidden = rand(layers, *middle, module.proj_size or module.hidden_size)
    cell = rand(layers, *middle, module.hidden_size)
    return hidden.to(weight), cell.to(weight)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors, packed sequences and tuples of them in another floating dtype."""
    if isinstance(value, tuple) and not isinstance(value, PackedSequence):
        return tuple(cast(item, dtype) for item in value)
    return None if value is None else value.to(dtype)


def on_device(options: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Options of a layer with their tensors on a device; batch_sizes stays on the CPU."""
    moved = ("lengths", "reset")
    return {name: v.to(device) if name in moved else v for name, v in options.items()}


def with_data(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def flatten(result: Any) -> Results:
    """What forward returned, by name."""
    output, (h_n, c_n), *states = result
    named = {"output": output, "h_n": h_n, "c_n": c_n}
    for kept in states:
        named |= {f"cells[{k}]": cells for k, cells in enumerate(kept.cells)}
        named |= {f"gates[{k}]": gates for k, gates in enumerate(kept.gates)}
        named |= {f"hidden[{k}]": hidden for k, hidden in enumerate(kept.hidden)}
    return {k: v.data if isinstance(v, PackedSequence) else v for k, v in named.items()}


def evaluate(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    call: Callable[..., Any] | None = None,
    frozen: Collection[str] = (),
    **options: Any,
) -> Results:
    """All results and all gradients of a call of module, or of `call`, by name.

    The incoming gradients are the same at each call with the same shapes. Leaves named in `frozen`
    require no gradient.
    """
    leaves = dict(module.named_parameters())
    if isinstance(input, PackedSequence):
        leaves["input"] = input.data.detach().requires_grad_()
        input = with_data(input, leaves["input"])
    else:
        leaves["input"] = input = input.detach().requires_grad_()
    if hx is not None:
        hx = tuple(state.detach().requires_grad_() for state in hx)
        leaves |= {"h_0": hx[0], "c_0": hx[1]}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen)
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    named = flatten((module if call is None else call)(input, hx, **options))
    generator = torch.Generator().manual_seed(1)
    incoming = [
        (torch.randint(-8, 9, t.shape, generator=generator) / 8).to(t) for t in named.values()
    ]
    pairs = [p for p in zip(named.values(), incoming, strict=True) if p[0].requires_grad]
    outputs, incoming = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), incoming)
    named |= {f"grad of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach() for name, tensor in named.items()}


def in_fresh_process(code: str, folder: Path, *options: str, seconds: int = 300) -> str:
    """What `code` prints in a new Python that imports the same fused_lstm; it must exit with 0.

    `options` go before the file that holds the code, such as ("-m", "torch.distributed.run").
    """
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    source = str(Path(fused_lstm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *options, script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def error(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth).abs().max().item() if value.numel() else 0.0


def truth_of(
    module: nn.Module,
    input: Any,
    hx: Any = None,
    *,
    factors: rounding.Format | None = None,
    **options: Any,
) -> rounding.Truth:
    """All results and gradients of a call by the reference in float64, and how far rounding may
    take a kernel for the module's dtype from them. Options are those of `evaluate`."""
    wide = twin(module, FusedLSTM, torch.float64)
    call = (input.to(torch.float64), cast(hx, torch.float64))
    padded = not isinstance(input, PackedSequence)
    batch = input.size(0 if module.batch_first else 1) if padded else int(input.batch_sizes[0])
    return rounding.model(
        lambda: evaluate(wide, *call, call=partial(reference_lstm, wide), **options),
        module.weight_ih_l0.dtype,
        1 if padded and input.dim() == 2 else batch,
        {parameter.shape for parameter in module.parameters()},
        factors,
    )


def assert_accurate(ours: Mapping[str, Tensor], truth: rounding.Truth) -> None:
    """No further from the truth than rounding may take a result: rounding.py says how far."""
    assert ours.keys() == truth.values.keys()
    for name, true in truth.values.items():
        assert ours[name].shape == true.shape, f"{name}: {ours[name].shape}, not {true.shape}"
        of_all, of_one = rounding.ratios(ours[name], true, truth.errors[name])
        assert max(of_all, of_one) <= 1, (
            f"{name} is off by {error(ours[name], true):.3g} at most: root mean square "
            f"{of_all:.3g} times, largest element {of_one:.3g} times what rounding may do"
        )


def assert_close(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """Equal up to 64 roundings of the largest number: the same by another way, not the same error.

    Sums of n terms by two ways differ by some sqrt(n) roundings, and n < 1000 where this is used.
    """
    assert ours.keys() == truth.keys()
    for name, true in truth.items():
        eps = torch.finfo(ours[name].dtype).eps
        torch.testing.assert_close(
            ours[name].double(),
            true.double(),
            rtol=64 * eps,
            atol=64 * eps * max(1.0, true.abs().max().item() if true.numel() else 1.0),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_same_bits(ours: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name, other in others.items():
        assert torch.equal(ours[name], other), f"{name} differs by {error(ours[name], other):.3g}"


def assert_same_without_boundaries(
    device: str, ours: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> None:
    """The same bits with boundaries that change nothing as without; on a GPU but for weight_hh.

    Its gradient is two GEMMs there without boundaries, one of h_0 and one of the output's rows.
    """
    on_gpu = device != "cpu" or os.environ.get("FUSED_LSTM_EMULATED") == "1"
    split = {name for name in ours if on_gpu and name.startswith("grad of weight_hh")}
    assert_close({n: ours[n] for n in split}, {n: others[n] for n in split})
    assert_same_bits(
        {n: t for n, t in ours.items() if n not in split},
        {n: t for n, t in others.items() if n not in split},
    )
