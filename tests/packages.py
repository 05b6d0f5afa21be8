"""Models of other packages on nn.LSTM and on fused_lstm: same seed, same results and gradients.

    python tests/packages.py [package ...]    # those that are installed, or those named

Each package builds and runs its own model in processes of its own: as it is, with `patch()` before
the package is imported, and with `replace_lstm` on the finished model.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import fused_lstm

# A model, and a call of it, whose gradients are compared as well
Built = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def darts() -> Built:
    from darts.models.forecasting.rnn_model import _RNNModule
    from darts.utils.data.torch_datasets.utils import PLModuleInput

    model = _RNNModule(
        name="LSTM",
        input_size=2,
        hidden_dim=8,
        num_layers=2,
        target_size=2,
        nr_params=1,
        dropout=0.0,
        input_chunk_length=6,
        output_chunk_length=1,
    )
    x = PLModuleInput(past_target=torch.randn(4, 6, 2))
    return model, lambda model: model(x).prediction


def gluonts() -> Built:
    from gluonts.torch.model.deepar.module import DeepARModel

    model = DeepARModel(
        freq="D",
        context_length=8,
        prediction_length=4,
        num_feat_dynamic_real=1,
        num_feat_static_real=1,
        num_feat_static_cat=1,
        cardinality=[2],
        dropout_rate=0.0,
    )
    inputs = {name: torch.rand_like(v.float()).to(v) for name, v in example(model).items()}
    inputs |= {"future_target": torch.rand(2, 4), "future_observed_values": torch.ones(2, 4)}
    return model, lambda model: model.loss(**inputs)


def example(model) -> dict[str, Tensor]:
    return dict(model.describe_inputs(batch_size=2).zeros())


def neuralforecast() -> Built:
    from neuralforecast.models import LSTM

    model = LSTM(h=4, input_size=8, encoder_hidden_size=8, decoder_hidden_size=8, max_steps=1)
    windows = {
        "insample_y": torch.randn(3, 8, 1),
        "futr_exog": None,
        "hist_exog": None,
        "stat_exog": None,
    }
    return model, lambda model: model(windows)


def pytorch_forecasting() -> Built:
    import pandas
    from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet

    values = pandas.DataFrame({"time": range(40), "series": "a", "value": torch.rand(40).numpy()})
    data = TimeSeriesDataSet(
        values,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=6,
        max_prediction_length=3,
        time_varying_unknown_reals=["value"],
    )
    model = RecurrentNetwork.from_dataset(data, cell_type="LSTM", hidden_size=8, rnn_layers=2)
    x, _ = next(iter(data.to_dataloader(train=False, batch_size=4)))
    return model.eval(), lambda model: model(x).prediction


def sb3_contrib() -> Built:
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    policy = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, seed=0).policy
    state = torch.zeros(policy.lstm_hidden_state_shape)[:, :2]
    states = RNNStates((state, state), (state, state))
    starts = torch.tensor(
        [1.0, 0, 0, 0, 0, 1, 0, 0]
    )  # two sequences of four steps, an episode's end
    observations, actions = torch.randn(8, 4), torch.randint(0, 2, (8,))
    return policy, lambda policy: torch.cat(
        [t.flatten() for t in policy.evaluate_actions(observations, actions, states, starts)]
    )


def stanza() -> Built:
    from stanza.models.common.packed_lstm import PackedLSTM

    model = PackedLSTM(4, 8, 2, batch_first=True, bidirectional=True)
    x = torch.randn(3, 6, 4)
    return model, lambda model: model(x, [6, 4, 1])[0].data


def torchrl() -> Built:
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    model = LSTMModule(input_size=4, hidden_size=8, in_key="x", out_key="y")
    data = TensorDict({"x": torch.randn(3, 6, 4), "is_init": torch.zeros(3, 6, 1).bool()}, [3, 6])
    data["is_init"][1, 2] = True

    def call(model):
        with set_recurrent_mode(True):
            return model(data.clone())["y"]

    return model, call


PACKAGES = {
    build.__name__: build
    for build in (
        darts,
        gluonts,
        neuralforecast,
        pytorch_forecasting,
        sb3_contrib,
        stanza,
        torchrl,
    )
}
# By the distribution that has the version, where its name is another
DISTRIBUTIONS = {"pytorch_forecasting": "pytorch-forecasting", "sb3_contrib": "sb3-contrib"}
WAYS = ("patch", "replace_lstm")
# Where replace_lstm is no way in: pytorch-forecasting's LSTM has a forward of its own, and is left;
# TorchRL asks isinstance(lstm, nn.LSTM) at each call, which only holds while patched.
PATCH_ONLY = ("pytorch_forecasting", "torchrl")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def results(package: str, way: str) -> dict[str, Tensor]:
    """What `package`'s model computes, and its gradients; `way` is "nn.LSTM" or one of WAYS."""
    torch.manual_seed(0)
    if way == "patch":
        fused_lstm.patch()  # to the end of this process
    model, call = PACKAGES[package]()
    if way == "replace_lstm":
        fused_lstm.replace_lstm(model, verbose=False)
    fused = sum(
        isinstance(m, fused_lstm.FusedLSTM | fused_lstm.FusedLSTMCell) for m in model.modules()
    )
    torch.manual_seed(1)
    output = call(model)
    output.square().sum().backward()
    gradients = {f"grad of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    found = {"output": output} | gradients
    return {"fused": torch.tensor(fused)} | {name: t.detach() for name, t in found.items()}


def ways(package: str) -> tuple[str, ...]:
    return WAYS[:1] if package in PATCH_ONLY else WAYS


def in_fresh_process(package: str, way: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.pt"
        source = str(Path(fused_lstm.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(
            [sys.executable, __file__, "--save", str(file), package, way],
            env=os.environ | {"PYTHONPATH": path},
            check=True,
            timeout=300,
        )
        return torch.load(file)


def compare(package: str, way: str, theirs: dict[str, Tensor]) -> tuple[int, float]:
    """How many modules are fused, and the largest difference relative to the tensor's largest."""
    ours = in_fresh_process(package, way)
    assert ours.keys() == theirs.keys()
    fused = int(ours.pop("fused"))
    differences = [
        ((ours[name] - t).abs().max() / t.abs().max().clamp(min=1e-30)).item()
        for name, t in theirs.items()
        if name != "fused"
    ]
    return fused, max(differences)


def main(packages: list[str]) -> None:
    print("| package | version | way in | modules fused | largest relative difference |")
    print("|---|---|---|---|---|")
    for package in packages or filter(installed, PACKAGES):
        version = importlib.metadata.version(DISTRIBUTIONS.get(package, package))
        theirs = in_fresh_process(package, "nn.LSTM")
        for way in ways(package):
            fused, difference = compare(package, way, theirs)
            print(f"| {package} | {version} | {way} | {fused} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--save"]:
        warnings.simplefilter("ignore")
        torch.save(results(*sys.argv[3:]), sys.argv[2])
    else:
        main(sys.argv[1:])
