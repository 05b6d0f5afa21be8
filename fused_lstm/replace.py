"""replace_lstm: swaps the LSTMs of a model that exists already."""

from __future__ import annotations

from torch import nn

from fused_lstm.cell import FusedLSTMCell
from fused_lstm.lstm import FusedLSTM


def replace_lstm(model: nn.Module, verbose: bool = True) -> list[str]:
    """Swaps every nn.LSTM and nn.LSTMCell inside `model` for its fused twin, in place.

    The parameters are the same objects, so optimizers, ties and state_dicts keep working; hooks
    and the training mode stay. Subclasses of nn.LSTM, whose forward may differ, are left alone.

    Args:
        model: any module that contains LSTMs.
        verbose: print one line for each module swapped.

    Returns:
        The names of the modules swapped, as `model.named_modules()` gives them.

    Raises:
        TypeError: `model` is itself an LSTM, so that there is no place to swap it in.
    """
    if type(model) in _TWINS:
        raise TypeError(
            f"model is itself an {type(model).__name__}, must be a module that contains one; "
            f"build a {_TWINS[type(model)].__name__} and load_state_dict its state_dict"
        )
    twins: dict[nn.Module, nn.Module] = {}  # a module that stands in two places stays one
    swapped = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) not in _TWINS:
            continue
        if module not in twins:
            twins[module] = _twin(module)
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = twins[module]
        swapped.append(name)
        if verbose:
            print(f"{name}: {module} -> {type(twins[module]).__name__}")
    return swapped


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: FusedLSTM,
    nn.LSTMCell: FusedLSTMCell,
}


def _twin(module: nn.Module) -> nn.Module:
    """A fused module with the state of `module`: parameters, hooks, training mode and all."""
    kind = _TWINS[type(module)]
    twin = kind.__new__(kind)
    twin.__dict__ = module.__dict__
    return twin
