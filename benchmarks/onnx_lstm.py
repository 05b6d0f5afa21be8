"""nn.LSTM's weights as an ONNX model, run by onnxruntime. Both packages may be absent."""

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


def runner(lstm: nn.LSTM, x: Tensor, threads: int) -> Callable[[], tuple[np.ndarray]]:
    """A call of onnxruntime that does what ``lstm(x)`` does, x [T, B, D]: gives its output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads otherwise spin on for tens of milliseconds after a call, on the others' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    binary = model(lstm, x).SerializeToString()
    session = onnxruntime.InferenceSession(binary, options, providers=["CPUExecutionProvider"])
    feed = {"x_0": x.detach().numpy()}
    return lambda: (session.run(None, feed)[0],)


def model(lstm: nn.LSTM, x: Tensor) -> Any:
    """The ONNX model: an LSTM operator a layer, its output laid out as nn.LSTM's."""
    (t, b, d), h, directions = x.shape, lstm.hidden_size, 1 + lstm.bidirectional
    state = f"float[{directions}, {b}, {h}]"
    direction = "bidirectional" if lstm.bidirectional else "forward"
    nodes, outputs = "", f"float[{t}, {b}, {directions * h}] x_{lstm.num_layers}"
    constants = {"shape": np.array([t, b, directions * h])}
    for k in range(lstm.num_layers):
        nodes += f"""
            y_{k}, h_{k}, c_{k} = LSTM <hidden_size = {h}, direction = "{direction}">
                (x_{k}, W_{k}, R_{k}, B_{k})
            transposed_{k} = Transpose <perm = [0, 2, 1, 3]> (y_{k})
            x_{k + 1} = Reshape (transposed_{k}, shape)"""
        outputs += f", {state} h_{k}, {state} c_{k}"
        constants[f"W_{k}"] = _constant(lstm, k, "weight_ih")  # [directions, 4H, D]
        constants[f"R_{k}"] = _constant(lstm, k, "weight_hh")  # [directions, 4H, H]
        constants[f"B_{k}"] = _constant(lstm, k, "bias_ih", "bias_hh")  # [directions, 8H]
    versions = '<ir_version: 8, opset_import: ["": 17]>'  # what onnxruntime reads since 1.12
    graph = f"lstm (float[{t}, {b}, {d}] x_0) => ({outputs}) {{ {nodes} }}"
    found = onnx.parser.parse_model(versions + graph)
    tensors = (onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    found.graph.initializer.extend(tensors)
    return found


def _constant(lstm: nn.LSTM, layer: int, *names: str) -> np.ndarray:
    """Parameters of a layer: each one's gates i, f, g, o in ONNX's order i, o, f, g."""
    found = []
    for direction in ("", "_reverse")[: 1 + lstm.bidirectional]:
        tensors = [getattr(lstm, f"{name}_l{layer}{direction}").detach() for name in names]
        gates = [gate for i, f, g, o in (p.chunk(4) for p in tensors) for gate in (i, o, f, g)]
        found.append(torch.cat(gates))
    return torch.stack(found).numpy()
