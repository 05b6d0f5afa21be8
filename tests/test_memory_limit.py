"""Out of memory in the middle of a call: an error, and a process that goes on."""

from __future__ import annotations

import sys

import pytest
from oracle import in_fresh_process


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.parametrize("lstm", ["fused_lstm.FusedLSTM", "torch.nn.LSTM"])
def test_out_of_memory(tmp_path, lstm):
    """Under every limit the call raises or succeeds, and the next one is right."""
    words = ["allocate memory"]
    if lstm == "torch.nn.LSTM":
        words.append("could not create a primitive")  # oneDNN's, out of memory
    printed = in_fresh_process(
        f"""
        import fused_lstm, resource, torch

        torch.set_num_threads(1)
        T, B, D, H = 100, 200, 64, 128
        module = {lstm}(D, H, 2, bidirectional=True)
        small, large = torch.randn(5, 4, D), torch.randn(T, B, D)

        def train(x):
            module.zero_grad()
            output = module(x)[0]
            output.sum().backward()
            return [output.detach(), *(p.grad.clone() for p in module.parameters())]

        expected = train(small)
        # Of two layers, each direction's gates are 41 MB
        for megabytes in [10, 60, 150, 250, 350, 2000]:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, -1))
            try:
                train(large)
                print(megabytes, "enough")
            except RuntimeError as error:
                assert any(words in str(error) for words in {words}), error
                print(megabytes, "refused")
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
            torch.testing.assert_close(train(small), expected, rtol=0, atol=0)
        """,
        tmp_path,
    )
    lines = printed.splitlines()
    assert lines[0] == "10 refused"
    assert lines[-1] == "2000 enough"
    assert sum("refused" in line for line in lines) >= 3
