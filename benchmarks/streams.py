"""One step of a sequence on a GPU, and a short call: python -m benchmarks.streams

A stream of a frozen layer (a copy of its input, a captured graph), a call of the frozen layer,
which loads fragments, FusedLSTM, whose kernel gathers the weights, nn.LSTM, and a captured graph of
that. Microseconds a call, medians, implementations alternating.
"""

import argparse
from itertools import product
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.timing import Call, alternate
from fused_lstm import FusedLSTM, freeze, graph_stream

SIZES = ((10, 64, 1), (128, 128, 1), (512, 512, 1), (640, 640, 2), (1024, 1024, 1))  # D, H, L


def again(step: Call, device: torch.device) -> tuple[Call, Tensor]:
    """In place of graph_stream.captured where there is no GPU: runs the step, without a graph."""
    return step, step()


def calls(module: FusedLSTM, x: Tensor, graphs: bool) -> dict[str, Call]:
    """Of each implementation, on x [T, B, D]; streams of one step where T is 1."""
    theirs = nn.LSTM(module.input_size, module.hidden_size, module.num_layers).to(x)
    theirs.load_state_dict(module.state_dict())
    frozen = freeze(module, str(x.dtype).removeprefix("torch."))
    found: dict[str, Call] = {
        "frozen": lambda: frozen(x),
        "fused": lambda: module(x),
        "nn.LSTM": lambda: theirs(x),
    }
    if x.size(0) == 1:
        stream = frozen.stream(x.size(1))
        found["stream"] = lambda: stream(x[0])
    if graphs:
        with torch.no_grad():
            replay, _ = graph_stream.captured(lambda: theirs(x)[0], x.device)
        found["nn.LSTM graph"] = replay
    return {name: torch.no_grad()(call) for name, call in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on an emulated GPU")
    options = parser.parse_args()
    sizes, budget, device = SIZES, 0.2, "cuda"
    if options.rehearse:
        sizes, budget, device = ((3, 20, 2),), 0.01, "cpu"
        graph_stream.captured = mock.Mock(side_effect=again)
    else:
        print(torch.cuda.get_device_name())
    for (D, H, L), dtype, T in product(sizes, ("float32", "bfloat16", "float16"), (1, 20)):
        module = FusedLSTM(D, H, L, device=device, dtype=getattr(torch, dtype)).eval()
        x = torch.randn(T, 1, D).to(module.weight_ih_l0)
        timings = alternate(calls(module, x, device == "cuda"), device, budget=budget)
        row = ", ".join(f"{name} {1e6 * found.median:.1f}" for name, found in timings.items())
        print(f"{dtype:9} T {T:<3} D {D:<5} H {H:<5} L {L}: {row} us", flush=True)


if __name__ == "__main__":
    main()
