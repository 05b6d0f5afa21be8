"""Three task models on an LSTM: a classifier, a sequence predictor, an encoder and decoder.

Their positional arguments and results are those of the usual `nn.LSTM` examples, so code written
against such models runs unchanged; everything beyond them is keyword-only. All take batch-first
input. `lstm=` is the class to build on: `FusedLSTM`, `nn.LSTM` (the same seed then gives the
same weights), a class of your own with their arguments and results, or a `functools.partial` of
any, for `dropout`, `bidirectional`, `proj_size`, `dtype` and the like. The linear layers take their
sizes, dtype and device from what it builds. P features of the hidden state are `proj_size`, or H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fused_lstm.frozen import FrozenLSTM
from fused_lstm.lstm import FusedLSTM

Pooling = Literal["last", "mean", "max"]
Summary = Literal["last_step", "final_states"]
InitialState = Literal["zero", "learned"]
Hidden = tuple[Tensor, Tensor]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}, must be one of {listed}")


def _build(
    lstm: Callable[..., nn.Module],
    input_size: int,
    hidden_size: int,
    num_layers: int,
    **options: bool,
) -> nn.Module:
    """What `lstm` builds, batch first, if it is what the model asked for."""
    options["batch_first"] = True
    built = lstm(input_size, hidden_size, num_layers, **options)
    if isinstance(built, nn.RNNBase) and built.mode != "LSTM":
        raise ValueError(f"lstm builds an nn.{built.mode}, must build an LSTM")
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, must_be in (sizes | options).items():
        is_ = getattr(built, name, must_be)
        if is_ != must_be:
            raise ValueError(f"lstm builds a module with {name}={is_}, must have {name}={must_be}")
    return built


def _directions(lstm: nn.Module) -> int:
    return 2 if getattr(lstm, "bidirectional", False) else 1


def _linear(lstm: nn.Module, hidden_size: int, out_features: int) -> nn.Linear:
    """A linear layer on the hidden states of all directions, where and in what `lstm` is."""
    width = getattr(lstm, "proj_size", 0) or hidden_size  # P
    weight = next(lstm.parameters(), torch.empty(0))
    return nn.Linear(
        _directions(lstm) * width, out_features, device=weight.device, dtype=weight.dtype
    )


def _final(lstm: nn.Module, h_n: Tensor) -> Tensor:
    """The last layer's final hidden states [B, directions P], forward then reverse."""
    return torch.cat([h_n[-2], h_n[-1]], dim=-1) if _directions(lstm) == 2 else h_n[-1]


class _Reader(nn.Module):
    """A model whose LSTM reads whole sequences, from zero or from a state that is learned."""

    def __init__(
        self,
        lstm: Callable[..., nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        initial_state: InitialState,
        **options: bool,
    ) -> None:
        super().__init__()
        _check_choice("initial_state", initial_state, get_args(InitialState))
        self.lstm = _build(lstm, input_size, hidden_size, num_layers, **options)
        self.h_0: nn.Parameter | None = None  # [L directions, P]
        self.c_0: nn.Parameter | None = None  # [L directions, H]
        if initial_state == "learned":
            layers = num_layers * _directions(self.lstm)
            weight = next(self.lstm.parameters(), torch.empty(0))
            width = getattr(self.lstm, "proj_size", 0) or hidden_size
            self.h_0 = nn.Parameter(weight.new_zeros(layers, width))
            self.c_0 = nn.Parameter(weight.new_zeros(layers, hidden_size))

    def _start(self, x: Tensor) -> Hidden | None:
        """The learned state for each sequence of x, [L directions, B, ...]; None for zeros."""
        if self.h_0 is None or self.c_0 is None:
            return None
        if x.dim() == 2:
            return self.h_0, self.c_0
        return self.h_0[:, None].repeat(1, x.size(0), 1), self.c_0[:, None].repeat(1, x.size(0), 1)

    def _read(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Hidden]:
        """The LSTM over x [B, T, D], each sequence to its own end, as `lengths=` of FusedLSTM.

        Any other class gets the sequences packed, as nn.LSTM needs them, which copies the lengths
        to the host.
        """
        if lengths is not None and x.dim() != 3:
            raise ValueError(f"x has {x.dim()} dimensions, must have 3 (batch, seq, input_size)")
        start = self._start(x)
        result: tuple[Tensor, Hidden]
        if isinstance(self.lstm, (FusedLSTM, FrozenLSTM)):
            result = self.lstm(x, start, lengths=lengths)
        elif lengths is None:
            result = self.lstm(x) if start is None else self.lstm(x, start)
        else:
            # Packing refuses an empty sequence: it runs for one step, whose results give way to
            # zeros and to the initial state.
            empty = (lengths == 0)[:, None]  # [B, 1]
            packed = pack_padded_sequence(
                x, (lengths + empty[:, 0]).cpu(), batch_first=True, enforce_sorted=False
            )
            packed, (h_n, c_n) = self.lstm(packed) if start is None else self.lstm(packed, start)
            output, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))
            h_0, c_0 = (0.0, 0.0) if start is None else start
            hidden = torch.where(empty, h_0, h_n), torch.where(empty, c_0, c_n)
            result = output.masked_fill(empty[:, :, None], 0), hidden
        return result


class LSTMClassifier(_Reader):
    """One label a sequence.

    Args:
        input_size: features of a time step.
        hidden_size: features of the hidden state, H.
        num_classes: logits per sequence.
        num_layers: stacked LSTM layers.
        pooling: what of the last layer goes into the linear layer: `"last"`, the final hidden
            state `h_n[-1]` (of both directions, if `lstm` builds two); `"mean"` or `"max"`, its
            hidden states over all time steps.
        initial_state: `"zero"`, or `"learned"`: parameters h_0 and c_0, zeros at first.
        lstm: the LSTM class to build on.

    Raises:
        ValueError: `pooling` or `initial_state` is none of these, or `lstm` builds something else
            than it was asked for.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        num_layers: int = 1,
        *,
        pooling: Pooling = "last",
        initial_state: InitialState = "zero",
        lstm: Callable[..., nn.Module] = FusedLSTM,
    ) -> None:
        _check_choice("pooling", pooling, get_args(Pooling))
        super().__init__(lstm, input_size, hidden_size, num_layers, initial_state)
        self.pooling = pooling
        self.fc = _linear(self.lstm, hidden_size, num_classes)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes) of x (batch, seq, input_size).

        `lengths` (batch,), int64 on x's device, are the steps of x that count in each sequence,
        0 to seq; what lies beyond them never reaches the logits. An empty sequence is pooled to
        zeros, by "last" to the initial state.
        """
        output, (h_n, _) = self._read(x, lengths)  # [B, T, directions P], [L directions, B, P]
        logits: Tensor = self.fc(self._pool(output, h_n, lengths))
        return logits

    def _pool(self, output: Tensor, h_n: Tensor, lengths: Tensor | None) -> Tensor:
        if self.pooling == "last":
            return _final(self.lstm, h_n)  # [B, directions P]
        if lengths is None:
            return output.mean(-2) if self.pooling == "mean" else output.amax(-2)
        if self.pooling == "mean":  # past its end a sequence's output is zero
            return output.sum(1) / lengths.clamp(min=1)[:, None]
        padding = torch.arange(output.size(1), device=output.device) >= lengths[:, None]  # [B, T]
        highest = output.masked_fill(padding[:, :, None], -torch.inf).amax(1)
        return highest.masked_fill((lengths == 0)[:, None], 0)

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}"


class LSTMSequencePredictor(_Reader):
    """One vector of values a sequence, from a bidirectional LSTM.

    With `summary="last_step"` the linear layer sees `output[:, -1, :]`, the last layer's hidden
    states at the last time step. Its two halves are not alike: the forward half has read the whole
    sequence, but the reverse direction starts at the end, so its half has read **one step only**,
    the last one. `summary="final_states"` takes the reverse direction's final state in its place,
    which stands at the first time step (`output[:, 0, hidden_size:]`, also `h_n[-1]`) and has
    read the whole sequence too.

    Args:
        input_size: features of a time step.
        hidden_size: features of the hidden state of each direction, H.
        output_size: values per sequence.
        num_layers: stacked LSTM layers, each of both directions.
        summary: `"last_step"` or `"final_states"`, as above.
        initial_state: `"zero"`, or `"learned"`: parameters h_0 and c_0, zeros at first.
        lstm: the LSTM class to build on.

    Raises:
        ValueError: `summary` or `initial_state` is neither, or `lstm` builds something else than it
            was asked for.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        *,
        summary: Summary = "last_step",
        initial_state: InitialState = "zero",
        lstm: Callable[..., nn.Module] = FusedLSTM,
    ) -> None:
        _check_choice("summary", summary, get_args(Summary))
        super().__init__(
            lstm, input_size, hidden_size, num_layers, initial_state, bidirectional=True
        )
        self.summary = summary
        self.fc = _linear(self.lstm, hidden_size, output_size)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Predictions (batch, output_size) of x (batch, seq, input_size).

        `lengths` (batch,), int64 on x's device, are the steps of x that count in each sequence,
        0 to seq: the last step is then each sequence's own, and the reverse direction starts there.
        An empty sequence is summarised as zeros, by "final_states" as the initial state.
        """
        output, (h_n, _) = self._read(x, lengths)  # [B, T, 2P], [2L, B, P]
        if self.summary == "final_states":
            summary = _final(self.lstm, h_n)  # [B, 2P]
        elif lengths is None:
            summary = output[..., -1, :]
        else:
            last = (lengths - 1).clamp(min=0)  # [B]
            summary = output[torch.arange(output.size(0), device=output.device), last]
        prediction: Tensor = self.fc(summary)
        return prediction

    def extra_repr(self) -> str:
        return f"summary={self.summary!r}"


class Encoder(_Reader):
    """A sequence to the final states of an LSTM, (h_n, c_n), from which a Decoder can start.

    Args:
        input_size: features of a time step.
        hidden_size: features of the hidden state, H.
        num_layers: stacked LSTM layers, L.
        initial_state: `"zero"`, or `"learned"`: parameters h_0 and c_0, zeros at first.
        lstm: the LSTM class to build on.

    Raises:
        ValueError: `initial_state` is neither, or `lstm` builds something else than it was asked
            for.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        initial_state: InitialState = "zero",
        lstm: Callable[..., nn.Module] = FusedLSTM,
    ) -> None:
        super().__init__(lstm, input_size, hidden_size, num_layers, initial_state)

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Hidden:
        """(h_n, c_n), each (num_layers, batch, hidden_size), of x (batch, seq, input_size).

        With a `bidirectional` or `proj_size` in `lstm`, (directions * num_layers, batch, P) and
        (directions * num_layers, batch, hidden_size), as nn.LSTM has them.

        `lengths` (batch,), int64 on x's device, are the steps of x that count in each sequence,
        0 to seq: the states are those of each sequence's own last step, of an empty one the initial
        ones.
        """
        _, hidden = self._read(x, lengths)
        return hidden


class Decoder(nn.Module):
    """A prediction at every step, from the states of an Encoder on.

    Args:
        output_size: features of a step, in and out.
        hidden_size: features of the hidden state, as the Encoder's.
        num_layers: stacked LSTM layers, as the Encoder's.
        lstm: the LSTM class to build on, of one direction.

    Raises:
        ValueError: `lstm` builds something else than it was asked for, or two directions: a
            prediction must not read the steps after it.
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        lstm: Callable[..., nn.Module] = FusedLSTM,
    ) -> None:
        super().__init__()
        self.lstm = _build(lstm, output_size, hidden_size, num_layers)
        if _directions(self.lstm) == 2:
            raise ValueError(
                "lstm is bidirectional, must have one direction in a Decoder: its steps must not "
                "read those after them"
            )
        self.fc = _linear(self.lstm, hidden_size, output_size)

    def forward(self, x: Tensor, h_0: Tensor, c_0: Tensor) -> Tensor:
        """Predictions (batch, seq, output_size) of x (batch, seq, output_size).

        `h_0` and `c_0` are each (num_layers, batch, hidden_size), h_0 (..., P) with a `proj_size`.
        """
        prediction, _ = self.advance(x, (h_0, c_0))
        return prediction

    def advance(self, x: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """As forward, and the states after the last step of x, to go on from.

        `x` is (batch, seq, output_size), `hidden` the pair (h_0, c_0) of forward.
        """
        output, hidden = self.lstm(x, hidden)  # [B, T, P]
        return self.fc(output), hidden


class Seq2Seq(nn.Module):
    """A sequence to another one: an Encoder reads the first, a Decoder goes on from its states.

    Args:
        input_size: features of a step of the source.
        hidden_size: features of the hidden state of both.
        output_size: features of a step of the target.
        num_layers: stacked LSTM layers of both.
        initial_state: of the encoder: `"zero"`, or `"learned"`.
        lstm: the LSTM class to build both on, of one direction.

    Raises:
        ValueError: as Encoder and Decoder do.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        *,
        initial_state: InitialState = "zero",
        lstm: Callable[..., nn.Module] = FusedLSTM,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            input_size, hidden_size, num_layers, initial_state=initial_state, lstm=lstm
        )
        self.decoder = Decoder(output_size, hidden_size, num_layers, lstm=lstm)

    def forward(self, src: Tensor, tgt: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Predictions (batch, tgt_len, output_size) under teacher forcing.

        Step t of the result has read all of `src` (batch, src_len, input_size) and steps 0 to t
        of `tgt` (batch, tgt_len, output_size), which is fed as it is: to train it to predict, the
        target of the loss is `tgt` one step ahead. `lengths` (batch,), int64 on src's device,
        are the steps of `src` that count in each sequence; `tgt` needs none, since padding
        behind a sequence's end cannot reach back.
        """
        h_n, c_n = self.encoder(src, lengths=lengths)
        output: Tensor = self.decoder(tgt, h_n, c_n)
        return output

    def generate(
        self, src: Tensor, steps: int, start: Tensor, *, lengths: Tensor | None = None
    ) -> Tensor:
        """The decoder's own continuation of `src`, (batch, steps, output_size).

        `start` (batch, output_size) is the decoder's first input; each prediction is the next.
        Gradients flow through all of them, unless under `torch.no_grad`. `src` and `lengths` as
        in forward.

        Raises:
            ValueError: `steps` is less than 1, or `start` is not of that shape.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}, must be at least 1")
        expected = (src.size(0), self.decoder.fc.out_features)
        if start.shape != expected:
            raise ValueError(
                f"start has shape {tuple(start.shape)}, must be (batch, output_size) = {expected}"
            )
        hidden = self.encoder(src, lengths=lengths)
        step = start[:, None]  # [B, 1, O]
        predictions = []
        for _ in range(steps):
            step, hidden = self.decoder.advance(step, hidden)
            predictions.append(step)
        return torch.cat(predictions, dim=1)
