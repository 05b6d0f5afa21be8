"""Several processes and threads: distributed training, DataLoader workers, fork, Python threads."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import in_fresh_process, rand
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fused_lstm import FusedLSTM
from fused_lstm.demo import main

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize("lstm", ["fused_lstm.FusedLSTM", "torch.nn.LSTM"])
def test_ddp_and_fsdp(tmp_path, lstm):
    """Each of two processes has half of the batch; the gradients are those of all of it."""
    in_fresh_process(
        f"""
        import copy, fused_lstm, torch
        from torch import distributed
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor
        from torch.nn.parallel import DistributedDataParallel
        from fused_lstm.models import LSTMSequencePredictor

        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
        torch.manual_seed(0)
        single = LSTMSequencePredictor(3, 4, 2, num_layers=2, lstm={lstm}).double()
        x, lengths = torch.randn(8, 5, 3).double(), torch.tensor([5, 1, 0, 3, 4, 5, 2, 1])
        half = slice(4 * rank, 4 * rank + 4)

        replicated = DistributedDataParallel(copy.deepcopy(single))
        sharded = copy.deepcopy(single)
        fully_shard(sharded.lstm, mesh=mesh)
        fully_shard(sharded, mesh=mesh)

        def step(model, rows):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            model(x[rows], lengths=lengths[rows]).square().mean().backward()
            optimizer.step()
            gradients = [p.grad for p in model.parameters()]
            whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
            return whole, model(x, lengths=lengths)

        expected = step(single, slice(None))
        torch.testing.assert_close(step(replicated, half), expected)
        torch.testing.assert_close(step(sharded, half), expected)
        distributed.barrier()  # torch aborts some processes that end before the others
        distributed.destroy_process_group()
        """,
        tmp_path,
        *TORCHRUN,
    )


def test_the_demo_under_torchrun(tmp_path, capsys):
    """Two processes train what one trains: one report, the same losses."""
    arguments = ["--steps", "4", "--task", "forecaster", "--task", "classifier", "--device", "cpu"]
    printed = in_fresh_process(
        f"""
        import sys
        from fused_lstm.demo import main

        sys.exit(main({[*arguments, "--out", "two.html"]}))
        """,
        tmp_path,
        *TORCHRUN,
    )
    assert main([*arguments, "--out", str(tmp_path / "one.html")]) == 0
    alone = capsys.readouterr().out

    def losses(text):
        found = re.findall(r"loss: FusedLSTM ([\d.]+) nn.LSTM ([\d.]+)", text)
        return torch.tensor([[float(loss) for loss in line] for line in found])

    assert "2 processes" in printed
    assert "2 processes" not in alone
    assert losses(printed).shape == (2, 2)  # of the last step of each task
    torch.testing.assert_close(losses(printed), losses(alone), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "two.html").read_text().count("</html>") == 1


class Outputs(Dataset):
    """The module runs in the worker."""

    def __init__(self, module, x):
        self.module, self.x = module, x

    def __len__(self):
        return self.x.size(1)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.module(self.x[:, index])[0]


@pytest.fixture(params=[FusedLSTM, nn.LSTM])
def used(request):
    """A module, x and its output after forward and backward on more than one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    module, x = request.param(64, 128), rand(20, 64, 64, dtype=torch.float32)
    output = module(x)[0]
    output.sum().backward()
    yield module, x, output.detach()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers_after_use(used, start):
    module, x, output = used
    data = Outputs(module, x[:, :6])
    loader = DataLoader(data, num_workers=2, multiprocessing_context=start, timeout=120)
    found = torch.cat(list(loader)).transpose(0, 1)
    torch.testing.assert_close(found, output[:, :6])


def test_a_fork_after_use(used):
    """With one thread; libgomp's threads do not survive a fork, nor does nn.LSTM with more."""
    module, x, output = used
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        module.zero_grad()
        again = module(x)[0]
        again.sum().backward()
        os._exit(0 if torch.allclose(again, output, atol=1e-6) else 1)
    assert wait_for(child, seconds=60) == 0


def wait_for(process, seconds):
    """The exit status of a child, which is killed if it takes longer."""
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(os.waitpid, process, 0)
        try:
            return status.result(seconds)[1]
        except TimeoutError:
            os.kill(process, 9)
            return "a hang"


def test_two_threads_at_once(device):
    modules = [
        FusedLSTM(16, 32, 2, bidirectional=True, device=device),
        FusedLSTM(16, 65, proj_size=8, device=device),
    ]
    inputs = [rand(25, 33, 16, device=device, dtype=torch.float32) for _ in modules]

    def run(k):
        with torch.no_grad():
            return [modules[k](inputs[k])[0] for _ in range(50)]

    with torch.no_grad():
        expected = [module(x)[0] for module, x in zip(modules, inputs, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(k, pool.submit(run, k)) for k in (0, 1, 0, 1)]
        for k, job in jobs:
            assert all(torch.equal(output, expected[k]) for output in job.result())
