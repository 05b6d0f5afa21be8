"""FusedLSTM beside other LSTMs on a GPU, each where it can run: python -m benchmarks.peers

nn.LSTM (cuDNN); a loop in Python around a step compiled by torch.compile; TorchRL's LSTM in Python;
FlashRNN. Forward and backward, gradients of the weights; FlashRNN's input GEMM, which it leaves to
its caller, is included. A line as soon as it is measured, or why a peer does not run.
"""

import argparse
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Call, alternate
from fused_lstm import FusedLSTM


class Loop(nn.LSTM):
    """nn.LSTM's parameters in a loop over a compiled step."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.step = torch.compile(self.one_step)

    @staticmethod
    def one_step(a: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor]:
        """Preactivations of the input [B, 4H], h and c [B, H] to the next two."""
        i, f, g, o = (a + F.linear(h, w_hh)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        steps = F.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)  # [T, B, 4H]
        h = c = x.new_zeros(x.size(1), self.hidden_size)
        outputs = []
        for a in steps.unbind():
            h, c = self.step(a, h, c, self.weight_hh_l0)
            outputs.append(h)
        return (torch.stack(outputs),)


class FlashRNN(nn.LSTM):
    """nn.LSTM's parameters on FlashRNN, one head."""

    def __init__(self, *sizes: int) -> None:
        from flashrnn import flashrnn

        super().__init__(*sizes)
        self.run = flashrnn

    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        H = self.hidden_size
        a = F.linear(x.transpose(0, 1), self.weight_ih_l0)  # [B, T, 4H]
        recurrent = self.weight_hh_l0.view(4, 1, H, H)
        bias = (self.bias_ih_l0 + self.bias_hh_l0).view(4, 1, H)
        call = {"function": "lstm", "backend": "cuda_fused"}
        states, _ = self.run(a.unflatten(2, (4, 1, H)), recurrent, bias, **call)
        return (states[0],)


def torchrl_lstm(*sizes: int) -> nn.Module:
    from torchrl.modules import LSTM

    return LSTM(*sizes)


PEERS: dict[str, Callable[..., nn.Module]] = {
    "nn.LSTM": nn.LSTM,
    "compiled loop": Loop,
    "TorchRL": torchrl_lstm,
    "FlashRNN": FlashRNN,
}


def training_call(module: nn.Module, x: Tensor) -> Call:
    parameters = list(module.parameters())

    def call() -> object:
        output = module(x)[0]
        return torch.autograd.grad(output, parameters, output.detach())

    return call


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--hidden", type=int, nargs="+", default=[768, 64])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on an emulated GPU")
    options = parser.parse_args()
    device = "cuda"
    if options.rehearse:
        device, options.batch, options.steps, options.hidden = "cpu", 3, 4, [20]
    for hidden, dtype in product(options.hidden, options.dtype):
        place = {"device": device, "dtype": getattr(torch, dtype)}
        x = torch.randn(options.steps, options.batch, hidden, **place)  # [T, B, D]
        ours = training_call(FusedLSTM(hidden, hidden, **place), x)
        for name, make in PEERS.items():
            line = f"{dtype:9} B {options.batch} T {options.steps} H {hidden:<5}{name:14}"
            try:
                calls = {name: training_call(make(hidden, hidden).to(**place), x), "ours": ours}
                calls[name]()  # compiles
                them, us = (1e6 * m.median for m in alternate(calls, device, budget=1.0).values())
                print(f"{line}{them:11.1f} us, FusedLSTM {us:9.1f}: {them / us:.2f}x", flush=True)
            except Exception as error:  # of any kind: each peer has errors of its own
                print(f"{line}does not run: {str(error).splitlines()[0][:120]}", flush=True)


if __name__ == "__main__":
    main()
