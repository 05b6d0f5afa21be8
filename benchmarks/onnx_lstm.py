"""nn.LSTM's weights as an ONNX model, run by onnxruntime. Both packages may be absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None

OPSET, IR_VERSION = 17, 8  # what onnxruntime reads since 1.12


def version() -> str | None:
    """onnxruntime's version; None where it, or onnx, is absent."""
    return None if onnxruntime is None else str(onnxruntime.__version__)


def runner(lstm: nn.LSTM, x: Tensor, threads: int) -> Callable[[], tuple[np.ndarray, ...]]:
    """A call of onnxruntime that does what ``lstm(x)`` does, x [T, B, D]: gives its output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads otherwise spin on for tens of milliseconds after a call, on the others' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model(lstm, x).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"input": x.detach().numpy()}

    def run() -> tuple[np.ndarray, ...]:
        output, *_states = session.run(None, feed)
        return (output,)

    return run


def model(lstm: nn.LSTM, x: Tensor) -> Any:
    """The ONNX model: an LSTM operator a layer, its output laid out as nn.LSTM's.

    Outputs: output [T, B, directions H], then h_n and c_n [directions, B, H] of each layer.
    """
    directions = 1 + lstm.bidirectional
    laid_out = np.array([*x.shape[:2], directions * lstm.hidden_size])  # the output's shape
    nodes, constants, outputs = [], [_constant("shape", laid_out)], []
    read = "input"
    for layer in range(lstm.num_layers):
        last = layer == lstm.num_layers - 1
        written = "output" if last else f"output_{layer}"
        states = [f"h_n_{layer}", f"c_n_{layer}"]
        weights = {f"{name}_{layer}": value for name, value in _weights(lstm, layer).items()}
        constants += [_constant(name, value) for name, value in weights.items()]
        nodes += [
            onnx.helper.make_node(
                "LSTM",
                [read, *weights],
                [f"Y_{layer}", *states],  # Y: [T, directions, B, H]
                hidden_size=lstm.hidden_size,
                direction="bidirectional" if lstm.bidirectional else "forward",
            ),
            onnx.helper.make_node("Transpose", [f"Y_{layer}"], [f"Y_t_{layer}"], perm=[0, 2, 1, 3]),
            onnx.helper.make_node("Reshape", [f"Y_t_{layer}", "shape"], [written]),
        ]
        outputs += states
        read = written
    graph = onnx.helper.make_graph(
        nodes,
        "lstm",
        [_value("input", list(x.shape))],
        [_value(name, None) for name in ("output", *outputs)],
        constants,
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _weights(lstm: nn.LSTM, layer: int) -> dict[str, np.ndarray]:
    """W [directions, 4H, D], R [directions, 4H, H] and B [directions, 8H] of a layer."""
    found: dict[str, list[Tensor]] = {"W": [], "R": [], "B": []}
    for direction in ("", "_reverse")[: 1 + lstm.bidirectional]:
        ih, hh, bias_ih, bias_hh = (
            _reordered(getattr(lstm, f"{name}_l{layer}{direction}").detach())
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        found["W"].append(ih)
        found["R"].append(hh)
        found["B"].append(torch.cat([bias_ih, bias_hh]))
    return {name: torch.stack(values).numpy() for name, values in found.items()}


def _reordered(rows: Tensor) -> Tensor:
    """The gates i, f, g, o of nn.LSTM in ONNX's order i, o, f, g (there called c)."""
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, o, f, g])


def _constant(name: str, value: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(value, name)


def _value(name: str, shape: list[int] | None) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
