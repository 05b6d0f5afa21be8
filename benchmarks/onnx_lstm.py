"""nn.LSTM's weights as an ONNX model, run by onnxruntime. Both packages may be absent."""

import tempfile
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None


def runner(
    lstm: nn.LSTM, x: Tensor, threads: int, quantized: bool = False
) -> Callable[[], tuple[np.ndarray]]:
    """A call of onnxruntime that does what ``lstm(x)`` does, x [T, B, D]: gives its output."""
    running = session(model(lstm, x, quantized=quantized), threads)
    feed = {"x_0": x.detach().numpy()}
    return lambda: (running.run(None, feed)[0],)


def stepper(lstm: nn.LSTM, x: Tensor, threads: int, quantized: bool = False) -> Callable[[], Any]:
    """A call that advances a state of its own by x [1, B, D], whose data it reads each time.

    ``session.run`` on arrays: the states that it returns are fed to the next call.
    """
    running = session(model(lstm, x, has_state=True, quantized=quantized), threads)
    feed = {"x_0": x.numpy(), **_zeros(lstm, x.size(1))}
    states = list(feed)[1:]

    def step() -> np.ndarray:
        output, *new = running.run(None, feed)
        feed.update(zip(states, new, strict=True))
        return output

    return step


def bound_stepper(lstm: nn.LSTM, x: Tensor, threads: int) -> Callable[[], np.ndarray]:
    """As ``stepper``, by IO binding: all inputs and outputs stay where they are.

    Of two sets of states, each is read and the other written in turn.
    """
    running = session(model(lstm, x, has_state=True), threads)
    output = np.empty((1, x.size(1), lstm.hidden_size), np.float32)
    states = [_zeros(lstm, x.size(1)) for _ in range(2)]
    bindings = []
    inputs = [found.name for found in running.get_inputs()]
    outputs = [found.name for found in running.get_outputs()]
    for read, written in (states, states[::-1]):
        bindings.append(binding := running.io_binding())
        for name, array in zip(inputs, (x.numpy(), *read.values()), strict=True):
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name, array in zip(outputs, (output, *written.values()), strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    run, in_turn = running.run_with_iobinding, cycle(bindings)

    def step() -> np.ndarray:
        run(next(in_turn))
        return output

    step.memory = x, states  # type: ignore[attr-defined]  # that a binding has only addresses of
    return step


def session(found: Any, threads: int) -> Any:
    """onnxruntime's session of a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads otherwise spin on for tens of milliseconds after a call, on the others' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    binary = found.SerializeToString()
    return onnxruntime.InferenceSession(binary, options, providers=["CPUExecutionProvider"])


def model(lstm: nn.LSTM, x: Tensor, has_state: bool = False, quantized: bool = False) -> Any:
    """The ONNX model: an LSTM operator a layer, its output laid out as nn.LSTM's.

    ``has_state``: the initial states h0_k, c0_k of layer k are inputs. ``quantized``: by
    onnxruntime, dynamically, to int8 weights with a scale a tensor, which is its default.
    """
    (t, b, d), h, directions = x.shape, lstm.hidden_size, 1 + lstm.bidirectional
    state = f"float[{directions}, {b}, {h}]"
    direction = "bidirectional" if lstm.bidirectional else "forward"
    inputs = f"float[{t}, {b}, {d}] x_0"
    nodes, outputs = "", f"float[{t}, {b}, {directions * h}] x_{lstm.num_layers}"
    constants = {"shape": np.array([t, b, directions * h])}
    for k in range(lstm.num_layers):
        states = f", , h0_{k}, c0_{k}" * has_state  # no lengths
        inputs += f", {state} h0_{k}, {state} c0_{k}" * has_state
        nodes += f"""
            y_{k}, h_{k}, c_{k} = LSTM <hidden_size = {h}, direction = "{direction}">
                (x_{k}, W_{k}, R_{k}, B_{k}{states})
            transposed_{k} = Transpose <perm = [0, 2, 1, 3]> (y_{k})
            x_{k + 1} = Reshape (transposed_{k}, shape)"""
        outputs += f", {state} h_{k}, {state} c_{k}"
        constants[f"W_{k}"] = _constant(lstm, k, "weight_ih")  # [directions, 4H, D]
        constants[f"R_{k}"] = _constant(lstm, k, "weight_hh")  # [directions, 4H, H]
        constants[f"B_{k}"] = _constant(lstm, k, "bias_ih", "bias_hh")  # [directions, 8H]
    versions = '<ir_version: 8, opset_import: ["": 17]>'  # what onnxruntime reads since 1.12
    found = onnx.parser.parse_model(f"{versions}lstm ({inputs}) => ({outputs}) {{ {nodes} }}")
    tensors = (onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    found.graph.initializer.extend(tensors)
    return _quantized(found) if quantized else found


def _quantized(found: Any) -> Any:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/quantized.onnx"
        quantize_dynamic(found, path)
        return onnx.load(path)


def _zeros(lstm: nn.LSTM, batch: int) -> dict[str, np.ndarray]:
    """A state of zeros by the names of a model's inputs, in the order of its outputs."""
    shape = (1 + lstm.bidirectional, batch, lstm.hidden_size)
    names = [f"{letter}0_{k}" for k in range(lstm.num_layers) for letter in "hc"]
    return {name: np.zeros(shape, np.float32) for name in names}


def _constant(lstm: nn.LSTM, layer: int, *names: str) -> np.ndarray:
    """Parameters of a layer: each one's gates i, f, g, o in ONNX's order i, o, f, g."""
    found = []
    for direction in ("", "_reverse")[: 1 + lstm.bidirectional]:
        tensors = [getattr(lstm, f"{name}_l{layer}{direction}").detach() for name in names]
        gates = [gate for i, f, g, o in (p.chunk(4) for p in tensors) for gate in (i, o, f, g)]
        found.append(torch.cat(gates))
    return torch.stack(found).numpy()
