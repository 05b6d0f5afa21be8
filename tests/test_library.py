"""The C library of csrc/library: its numbers, what it makes of wrong files, and its programs."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import wave
from pathlib import Path

import emulated
import numpy as np
import pytest
import rounding
import torch
from library import seeds
from library.seeds import Tensor, assemble, lstm, pack, tensor
from oracle import assert_accurate, reference_lstm, twin
from torch import nn

import fused_lstm
from fused_lstm import FusedLSTM
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

ROOT = Path(__file__).resolve().parents[1]
SOURCES, PROGRAMS = ROOT / "csrc" / "library", ROOT / "tests" / "library"
CMAKE = shutil.which("cmake") or shutil.which("cmake", path=str(ROOT / "build/tools/bin"))
C, CXX = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
C_FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCES}"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the tests are for Linux"),
    pytest.mark.skipif(not SOURCES.exists(), reason="no sources here"),
    pytest.mark.skipif(CMAKE is None, reason="needs cmake"),
]

STATUS = {
    "OK": 0,
    "INVALID_ARGUMENT": 1,
    "BAD_FILE": 4,
    "BAD_MODEL": 5,
    "NOT_FINITE": 6,
    "UNSUPPORTED_CPU": 9,
}
FORMATS = {"as stored": 0, "float32": 1, "bfloat16": 2, "int8": 3}
ISAS = ["portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx", "dotprod"]


def run(*command, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=900, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: str, *options: str, target: str = "all") -> Path:
    """The library in build/`folder`, made by one process at a time."""
    path = ROOT / "build" / folder
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(CMAKE, "-S", SOURCES, "-B", path, *options)
        jobs = os.environ.get("MAX_JOBS", "2")
        run(CMAKE, "--build", path, "--parallel", jobs, "--target", target)
    return path


@pytest.fixture(scope="session")
def built() -> Path:
    return build("library")


@pytest.fixture(scope="session")
def library(built) -> Library:
    return Library(built / "libfused_lstm.so")


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("prefix", ctypes.c_char_p),
        ("max_bytes", ctypes.c_uint64),
    )


class Failed(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """What the tests call, by ctypes."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.fl_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        if status:
            raise Failed(status, self.functions.fl_last_error().decode())

    def load(self, content: bytes, format: str = "as stored", prefix: str | None = None) -> Model:
        options = Options(
            ctypes.sizeof(Options), FORMATS[format], None if prefix is None else prefix.encode(), 0
        )
        model = ctypes.c_void_p()
        self.check(
            self.functions.fl_model_load_memory(
                content, ctypes.c_size_t(len(content)), ctypes.byref(options), ctypes.byref(model)
            )
        )
        return Model(self, model)


class Model:
    def __init__(self, library: Library, pointer: ctypes.c_void_p) -> None:
        self.library, self.functions, self.pointer = library, library.functions, pointer
        self.format = self.functions.fl_model_format(pointer)

    def __del__(self) -> None:
        self.functions.fl_model_free(self.pointer)

    def size(self, name: str) -> int:
        function = getattr(self.functions, f"fl_model_{name}")
        function.restype = ctypes.c_int64
        return function(self.pointer)

    def run(self, x: torch.Tensor, steps: bool = False) -> dict[str, torch.Tensor]:
        """Output and final states for x [T, B, D] from zeros, at once or step by step."""
        T, B, _ = x.shape
        rows = self.size("layers") * self.size("directions")
        x = x.float().contiguous()
        output = torch.empty(T, B, self.size("output_size"))
        h_n = torch.empty(rows, B, self.size("projection_size"))
        c_n = torch.empty(rows, B, self.size("hidden_size"))
        f, check, address = self.functions, self.library.check, _address
        stream = ctypes.c_void_p()
        check(f.fl_stream_create(self.pointer, ctypes.c_int64(B), ctypes.byref(stream)))
        if steps:
            for t in range(T):
                check(f.fl_step(stream, address(x[t]), address(output[t])))
        else:
            check(f.fl_sequence(stream, address(x), ctypes.c_int64(T), address(output)))
        check(f.fl_state_get(stream, address(h_n), address(c_n)))
        f.fl_stream_free(stream)
        return {"output": output, "h_n": h_n, "c_n": c_n}


def _address(values: torch.Tensor) -> ctypes.c_void_p:
    assert values.is_contiguous()
    return ctypes.c_void_p(values.data_ptr())


DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int64: "I64",
}


def saved(state: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file of a state_dict."""

    def entry(values: torch.Tensor) -> Tensor:
        data = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return Tensor(DTYPES[values.dtype], tuple(values.shape), data)

    return pack({name: entry(values) for name, values in state.items()})


def quantized(module: nn.Module) -> dict[str, torch.Tensor]:
    """int8 weights with a scale for each row, and the biases."""
    state = {}
    for name, values in module.state_dict().items():
        if name.startswith("weight"):
            scale = values.abs().amax(1) / 127
            state[name] = (values / scale[:, None]).round().to(torch.int8)
            state[f"{name}_scale"] = scale
        else:
            state[name] = values
    return state


def double(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    output, (h_n, c_n) = twin(module, nn.LSTM, torch.float64)(x.double())
    return {"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}


LAYERS = {
    "small": {"input_size": 3, "hidden_size": 4},
    "odd sizes": {"input_size": 13, "hidden_size": 37, "num_layers": 2},
    "no bias": {"input_size": 8, "hidden_size": 16, "bias": False},
    "projection": {"input_size": 7, "hidden_size": 33, "num_layers": 2, "proj_size": 18},
    "two directions": {"input_size": 5, "hidden_size": 20, "num_layers": 3, "bidirectional": True},
    "both": {"input_size": 6, "hidden_size": 12, "proj_size": 5, "bidirectional": True},
    "wide": {"input_size": 70, "hidden_size": 130},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("T", [1, 20])
def test_float32_is_accurate(library, layer, T):
    module = FusedLSTM(**LAYERS[layer])
    x = torch.randn(T, 2, module.input_size)
    wide = twin(module, FusedLSTM, torch.float64)

    def reference() -> dict[str, torch.Tensor]:
        output, (h_n, c_n) = reference_lstm(wide, x.double())
        return {"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}

    shapes = {parameter.shape for parameter in module.parameters()}
    truth = rounding.model(reference, torch.float32, 2, shapes)
    model = library.load(saved(module.state_dict()))
    assert model.format == FORMATS["float32"]
    assert_accurate(model.run(x), truth)
    if not module.bidirectional:
        assert_accurate(model.run(x, steps=True), truth)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("format", "bound"), [("bfloat16", 0.02), ("int8", 0.03)])
def test_16_and_8_bits_are_near(library, layer, format, bound):
    module = nn.LSTM(**LAYERS[layer])
    x = torch.randn(29, 3, module.input_size)
    model = library.load(saved(module.state_dict()), format)
    assert model.format == FORMATS[format]
    found, truth = model.run(x), double(module, x)
    for name, values in truth.items():
        assert (found[name] - values).abs().max() < bound * values.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_file_in_another_dtype(library, dtype):
    """The weights of the file as float32, and bfloat16 as such."""
    module = nn.LSTM(5, 9, 2).to(dtype)
    x = torch.randn(7, 2, 5)
    model = library.load(saved(module.state_dict()), "float32")
    same = library.load(saved(module.float().state_dict()))
    assert model.format == same.format == FORMATS["float32"]
    for name, values in same.run(x).items():
        assert torch.equal(model.run(x)[name], values)
    stored = library.load(saved(module.to(dtype).state_dict()))
    expected = "bfloat16" if dtype == torch.bfloat16 else "float32"
    assert stored.format == FORMATS[expected]


@pytest.mark.parametrize("layer", ["odd sizes", "both", "no bias"])
def test_stored_int8_is_what_loading_quantizes_to(library, layer):
    module = nn.LSTM(**LAYERS[layer])
    x = torch.randn(9, 2, module.input_size)
    model = library.load(saved(quantized(module)))
    assert model.format == FORMATS["int8"]
    again = library.load(saved(module.state_dict()), "int8")
    for name, values in model.run(x).items():
        assert torch.equal(again.run(x)[name], values)
    with pytest.raises(Failed, match=r"options.format is not FL_INT8") as failed:
        library.load(saved(quantized(module)), "float32")
    assert failed.value.status == STATUS["INVALID_ARGUMENT"]


@pytest.mark.skipif(not hasattr(fused_lstm, "freeze"), reason="needs fused_lstm.freeze")
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_the_same_as_a_frozen_module(library, format):
    module = nn.LSTM(12, 40, 2)
    frozen = fused_lstm.freeze(module, format)
    x = torch.randn(30, 2, 12)
    model = library.load(saved(frozen.state_dict()))
    assert model.format == FORMATS[format]
    output, (h_n, c_n) = frozen(x)
    found = model.run(x)
    for name, values in {"output": output, "h_n": h_n, "c_n": c_n}.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6)


@pytest.mark.skipif(not hasattr(fused_lstm, "freeze"), reason="needs fused_lstm.freeze")
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell(library, format, bias):
    cell = nn.LSTMCell(12, 40, bias=bias)
    frozen = fused_lstm.freeze(cell, format)
    state = {f"actor.{name}": values for name, values in frozen.state_dict().items()}
    model = library.load(saved(state | {"actor.head.weight": torch.ones(2, 40)}))
    assert model.size("layers") == model.size("directions") == 1
    x, hx = torch.randn(5, 2, 12), None
    found = model.run(x)["output"]
    for t in range(5):
        hx = frozen(x[t], hx)
        torch.testing.assert_close(found[t], hx[0], rtol=0, atol=1e-6)


def test_what_a_cell_lacks(library):
    state = nn.LSTMCell(2, 3).state_dict()
    del state["bias_ih"]
    with pytest.raises(Failed, match="'bias_hh' belongs to none of the LSTM's layers"):
        library.load(saved(state))
    del state["bias_hh"], state["weight_hh"]
    with pytest.raises(Failed, match="the file has no 'weight_hh'"):
        library.load(saved(state))


def test_a_cell_beside_an_lstm(library):
    state = {"a." + k: v for k, v in nn.LSTM(2, 3).state_dict().items()}
    state |= {"b." + k: v for k, v in nn.LSTMCell(4, 5).state_dict().items()}
    assert library.load(saved(state), prefix="b.").size("input_size") == 4
    with pytest.raises(Failed, match=r"has 2 LSTMs; prefix must be one of 'a\.', 'b\.'"):
        library.load(saved(state))


def test_one_of_several_lstms(library):
    state = {"a.lstm." + k: v for k, v in nn.LSTM(2, 3).state_dict().items()}
    state |= {"b." + k: v for k, v in nn.LSTM(4, 5).state_dict().items()}
    assert library.load(saved(state), prefix="b.").size("input_size") == 4
    assert library.load(saved(state), prefix="a.lstm.").size("input_size") == 2
    with pytest.raises(Failed, match=r"has 2 LSTMs; prefix must be one of 'a\.lstm\.', 'b\.'"):
        library.load(saved(state))
    with pytest.raises(Failed, match=r"no LSTM of the prefix 'c'; it has 'a\.lstm\.', 'b\.'"):
        library.load(saved(state), prefix="c")


def entry(dtype: str = "F32", shape: object = "[1]", offsets: str = "[0,4]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def one(**parts: object) -> str:
    """A header of one tensor."""
    return '{"a":' + entry(**parts) + "}"


def two(offsets: str, name: str = "b") -> str:
    return one()[:-1] + f',"{name}":' + entry(offsets=offsets) + "}"


# Headers of a file with four bytes of data, and what the error says
HEADERS = {
    "a space first": (" " + one(), "must be '{'"),
    "a list": ("[]", "must be '{'"),
    "text after it": (one() + "x", "more than one"),
    "a trailing comma": (one()[:-1] + ",}", "must be '\"'"),
    "a hole": (one(offsets="[1,5]"), "must begin at 0"),
    "an overlap": (two("[2,6]"), "must begin at 4"),
    "the same bytes twice": (two("[0,4]"), "must begin at 4"),
    "offsets past the end": (one(shape="[2]", offsets="[0,8]"), "but the file has 4"),
    "offsets that descend": (one(offsets="[4,0]"), "4 bytes apart"),
    "a shape of other bytes": (one(shape="[2]"), "must be 8 bytes apart"),
    "a shape that overflows": (one(shape=[2**32] * 3), "more than 2^56 elements"),
    "huge, but the file is not": (
        one(shape=[2**50], offsets=f"[0,{2**52}]"),
        "but the file has 4",
    ),
    "a number too large": (one(shape="[99999999999999999999]"), "above 2^56"),
    "a negative size": (one(shape="[-1]"), "must be an integer"),
    "a fraction": (one(shape="[1.0]"), "must be ']'"),
    "a leading zero": (one(shape="[01]"), "begins with 0"),
    "three offsets": (one(offsets="[0,4,4]"), "more than two"),
    "one offset": (one(offsets="[0]"), "two data_offsets"),
    "nine dimensions": (one(shape=[1] * 9), "8 dimensions"),
    "an unknown dtype": (one(dtype="F128"), "'F128', unknown"),
    "half a byte": (one(dtype="F4", offsets="[0,0]"), "within a byte"),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', "must have dtype"),
    "an unknown key": ('{"a":{"color":[]}}', "'color' is unknown"),
    "a key twice": ('{"a":{"shape":[1],"shape":[1]}}', "comes twice"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', "__metadata__ comes twice"),
    "a key of metadata twice": ('{"__metadata__":{"a":"","a":""}}', "a key of __metadata__"),
    "metadata that nests": ('{"__metadata__":{"a":{}}}', "must be '\"'"),
    "deep nesting": ('{"a":' + "[" * 100000, "must be '{'"),
    "deep nesting of a shape": ('{"a":{"shape":' + "[" * 100000, "must be an integer"),
    "a string that does not end": ('{"a', "does not end"),
    "a control character": ('{"a\n":{}}', "neither UTF-8"),
    "bad UTF-8": (b'{"\xff":{}}', "neither UTF-8"),
    "an overlong character": (b'{"\xc0\x80":{}}', "neither UTF-8"),
    "an overlong one of three bytes": (b'{"\xe0\x80\x80":{}}', "neither UTF-8"),
    "an overlong one of four bytes": (b'{"\xf0\x80\x80\x80":{}}', "neither UTF-8"),
    "a character above U+10FFFF": (b'{"\xf4\x90\x80\x80":{}}', "neither UTF-8"),
    "a surrogate in UTF-8": (b'{"\xed\xa0\x80":{}}', "neither UTF-8"),
    "a character cut short": (b'{"\xe2\x82', "neither UTF-8"),
    "half a surrogate pair": ('{"\\ud800x":{}}', "surrogate"),
    "the other half": ('{"\\udc00":{}}', "surrogate"),
    "an unknown escape": ('{"\\x":{}}', "after a backslash"),
    "three hexadecimal digits": ('{"\\u12":{}}', "four digits"),
}
PLAIN = seeds.files()["plain"]
SMALL, INT8 = lstm(3, 4), lstm(3, 4, dtype="I8")
SCALE = "weight_hh_l0_scale"


def floats(dtype: str, *shape: int, value: float) -> Tensor:
    numbers = np.full(shape, value, {"F32": "<f4", "F64": "<f8"}[dtype])
    return Tensor(dtype, shape, numbers.tobytes())


def without(tensors: dict[str, Tensor], name: str) -> bytes:
    return pack({key: value for key, value in tensors.items() if key != name})


# Whole files
BAD_FILES = {
    "empty": (b"", "0 bytes, too short"),
    "no header": (bytes(8), "must be '{'"),
    "a header past the end": ((2**63).to_bytes(8, "little"), "at most 100000000"),
    "a header longer than the file": (PLAIN[:100], "in a file of 100"),
    "truncated data": (PLAIN[:-1], "but the file has"),
    "more data": (PLAIN + b"x", "but the file has"),
    "a name twice": (assemble(two("[4,8]", "a").encode(), bytes(8)), "has 'a' twice"),
}
NO_SCALE = {k: v for k, v in INT8.items() if k != "weight_ih_l0_scale"}
BAD_MODELS = {
    "no tensors": (pack({}), "no tensor is named weight_ih_l0"),
    "no recurrent weight": (without(SMALL, "weight_hh_l0"), "no 'weight_hh_l0'"),
    "one bias": (without(SMALL, "bias_hh_l0"), "no 'bias_hh_l0'"),
    "the other bias": (without(SMALL, "bias_ih_l0"), "'bias_hh_l0' belongs to none"),
    "int8 without scales": (without(INT8, SCALE), f"no '{SCALE}'"),
} | {
    name: (pack(tensors | {changed: value}), says)
    for name, tensors, changed, value, says in [
        ("a gap", SMALL, "weight_ih_l2", tensor("F32", 16, 4), "'weight_ih_l2' belongs to none"),
        ("half a direction", SMALL, "weight_ih_l0_reverse", tensor("F32", 16, 3), "_reverse'"),
        ("half a layer", SMALL, "weight_ih_l1", tensor("F32", 16, 4), "no 'weight_hh_l1'"),
        ("15 rows", SMALL, "weight_ih_l0", tensor("F32", 15, 3), "four rows for each"),
        ("no columns", SMALL, "weight_ih_l0", tensor("F32", 16, 0), "1 or more"),
        ("one dimension", SMALL, "weight_ih_l0", tensor("F32", 48), "two dimensions"),
        ("another H", SMALL, "weight_hh_l0", tensor("F32", 20, 4), "[20, 4], must be [16, 4]"),
        ("another P", SMALL, "weight_hh_l0", tensor("F32", 16, 3), "[16, 3], must be [16, 4]"),
        ("a long bias", SMALL, "bias_ih_l0", tensor("F32", 17), "[17], must be [16]"),
        ("integers", SMALL, "bias_ih_l0", Tensor("I64", (16,), bytes(128)), "is of I64"),
        ("an int8 bias", SMALL, "bias_ih_l0", tensor("I8", 16), "is of I8, must be"),
        ("a projection of other H", SMALL, "weight_hr_l0", tensor("F32", 4, 3), "must be [4, 4]"),
        ("too few scales", INT8, SCALE, tensor("F32", 15), "must be [16]"),
        ("scales in another dtype", INT8, SCALE, tensor("F16", 16), "must be of F32"),
        ("a scale too many", SMALL, SCALE, tensor("F32", 16), f"'{SCALE}' belongs to none"),
        ("int8 of some", NO_SCALE, "weight_ih_l0", tensor("F32", 16, 3), "all or none"),
    ]
}
NOT_FINITE = {
    name: (pack(tensors | {value_name: value}), says)
    for name, tensors, value_name, value, says in [
        ("NaN", SMALL, "bias_ih_l0", floats("F32", 16, value=np.nan), "'bias_ih_l0' has a NaN"),
        ("infinite", SMALL, "weight_hh_l0", floats("F32", 16, 4, value=-np.inf), "an infinity"),
        ("too large", SMALL, "bias_ih_l0", floats("F64", 16, value=1e300), "an infinity"),
        ("a negative scale", INT8, SCALE, floats("F32", 16, value=-1), "below 0"),
        ("an infinite scale", INT8, SCALE, floats("F32", 16, value=np.inf), "not finite"),
    ]
}
WRONG = {
    **{("BAD_FILE", k): v for k, v in BAD_FILES.items()},
    **{("BAD_MODEL", k): v for k, v in BAD_MODELS.items()},
    **{("NOT_FINITE", k): v for k, v in NOT_FINITE.items()},
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_wrong_header_is_an_error(library, case):
    text, says = HEADERS[case]
    content = assemble(text if isinstance(text, bytes) else text.encode(), bytes(4))
    with pytest.raises(Failed, match=re.escape(says)) as failed:
        library.load(content)
    assert failed.value.status == STATUS["BAD_FILE"]


@pytest.mark.parametrize(("status", "case"), WRONG)
def test_a_wrong_file_is_an_error(library, status, case):
    content, says = WRONG[status, case]
    with pytest.raises(Failed, match=re.escape(says)) as failed:
        library.load(content)
    assert failed.value.status == STATUS[status]


def test_a_weight_that_bfloat16_lacks(library):
    largest = Tensor("F32", (16, 4), np.full(64, 3.4e38, "<f4").tobytes())
    content = pack(lstm(3, 4) | {"weight_hh_l0": largest})
    assert library.load(content).format == FORMATS["float32"]
    with pytest.raises(Failed, match="bfloat16 cannot hold"):
        library.load(content, "bfloat16")


def test_int8_rows_whose_sums_int32_lacks(library):
    content = pack(lstm(70000, 1, dtype="I8"))
    with pytest.raises(Failed, match="70000 elements, must have at most 65536") as failed:
        library.load(content)
    assert failed.value.status == STATUS["BAD_MODEL"]


@pytest.mark.parametrize("name", seeds.files())
def test_valid_files(library, name):
    content = seeds.files()[name]
    header = int.from_bytes(content[:8], "little")
    padded = assemble(content[8 : 8 + header] + b"  \n", content[8 + header :])
    x = torch.zeros(2, 1, library.load(content).size("input_size"))
    assert library.load(content).run(x)["output"].isfinite().all()
    library.load(padded)


def test_names_with_escapes(library):
    """As JSON may write them; the longest characters of UTF-8 too."""
    content = pack({'\x00\\"\n\u20ac\U0010ffff': tensor("F32", 1)} | lstm(3, 4))
    library.load(content)
    library.load(
        content.replace(b"weight_hh_l0", b"weight_hh_l\\u0030", 1).replace(
            content[:8], (int.from_bytes(content[:8], "little") + 5).to_bytes(8, "little"), 1
        )
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Files for the programs in C: of one and of two directions."""
    folder = tmp_path_factory.mktemp("models")
    paths = folder / "one", folder / "two"
    for path, bidirectional in zip(paths, [False, True], strict=True):
        module = nn.LSTM(5, 8, 2, proj_size=6, bidirectional=bidirectional)
        state = {"lstm." + k: v for k, v in module.state_dict().items()}
        state |= {"fc.weight": torch.randn(4, 6), "integers": torch.arange(3)}
        path.write_bytes(saved(state | {"infinite": torch.tensor([1, -torch.inf])}))
    return paths


def compiled(target: Path, *arguments: str | Path) -> Path:
    run(C, *C_FLAGS, "-O1", *arguments, "-o", target)
    return target


def linked(folder: Path) -> list[str]:
    return [f"-L{folder}", "-lfused_lstm", f"-Wl,-rpath,{folder}", "-lm"]


def isas(library: Library) -> list[str]:
    """The instruction sets of this processor."""
    code = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]); "
        "f.fl_instruction_set.restype = ctypes.c_char_p; print(f.fl_instruction_set())"
    )
    found = []
    for name in ISAS:
        environment = os.environ | {"FUSED_LSTM_CPU_ISA": name}
        told = run(sys.executable, "-c", code, library.functions._name, env=environment)
        assert told.strip() in ("None", str(name.encode()))
        found += [name] * (told.strip() != "None")
    return found


def test_the_contract_in_c_on_each_instruction_set(library, built, models, tmp_path):
    program = compiled(tmp_path / "contract", PROGRAMS / "contract.c", *linked(built))
    names = isas(library)
    assert "portable" in names
    for name in names:
        told = run(program, *models, env=os.environ | {"FUSED_LSTM_CPU_ISA": name})
        assert "as the header says" in told
    done = subprocess.run(
        [program, *models], env=os.environ | {"FUSED_LSTM_CPU_ISA": "abacus"}, capture_output=True
    )
    assert b"FUSED_LSTM_CPU_ISA is 'abacus'" in done.stderr


def test_threads_share_a_model(built, models, tmp_path):
    program = compiled(tmp_path / "threads", PROGRAMS / "threads.c", *linked(built), "-pthread")
    assert "the same on every thread" in run(program, models[0])


def test_a_step_allocates_nothing_and_takes_no_lock(built, models, tmp_path):
    program = compiled(tmp_path / "allocations", PROGRAMS / "allocations.c", *linked(built), "-ldl")
    counts = [line.split() for line in run(program, models[0]).splitlines()[1:]]
    assert len(counts) == 3 * 7
    for kind, allocations, locks in counts:
        if kind in ("load", "create", "sequence"):
            assert int(allocations) > 0, kind  # so they are counted
        else:
            assert (kind, int(allocations), int(locks)) == (kind, 0, 0)


def test_the_header_is_c_and_cpp(tmp_path):
    (tmp_path / "a.c").write_text('#include "fused_lstm.h"\nint main(void) { return FL_OK; }\n')
    shutil.copy(tmp_path / "a.c", tmp_path / "a.cpp")
    compiled(tmp_path / "c", tmp_path / "a.c")
    flags = [flag for flag in C_FLAGS if flag != "-std=c11"]
    run(CXX, "-std=c++11", *flags, tmp_path / "a.cpp", "-o", tmp_path / "cpp")


def test_exported_symbols_and_size(built, tmp_path):
    shared = built / "libfused_lstm.so"
    exported = run("nm", "-D", "--defined-only", "--format=posix", shared).splitlines()
    names = {line.split()[0] for line in exported}
    declared = {
        word.split("(")[0].lstrip("*")
        for line in (SOURCES / "fused_lstm.h").read_text().splitlines()
        if line.startswith("FL_API")
        for word in line.split()
        if "(" in word
    }
    assert names == declared
    run("strip", "-o", tmp_path / "stripped", shared)
    assert (tmp_path / "stripped").stat().st_size < 1_000_000
    needed = run("readelf", "-d", shared)
    assert "libc.so" in needed
    assert "stdc++" not in needed


def test_one_version(library):
    header = (SOURCES / "fused_lstm.h").read_text()
    parts = re.findall(r"#define FL_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    library.functions.fl_version.restype = ctypes.c_char_p
    assert fused_lstm.__version__ == ".".join(parts) == library.functions.fl_version().decode()


CONSUMER = """
cmake_minimum_required(VERSION 3.16)
project(consumer LANGUAGES C)
find_package(fused_lstm 0.1 REQUIRED)
foreach(library fused_lstm static)
  add_executable(with_${library} main.c)
  target_link_libraries(with_${library} PRIVATE fused_lstm::${library})
endforeach()
"""
PROGRAM = """
#include <fused_lstm.h>
#include <stdio.h>
int main(int count, char** arguments) {
  fl_model* model;
  if (count != 2 || fl_model_load(arguments[1], NULL, &model)) return 1;
  printf("%s: %d units", fl_version(), (int)fl_model_hidden_size(model));
  fl_model_free(model);
  return 0;
}
"""


def test_installed_for_cmake_and_pkg_config(built, models, tmp_path):
    installed, source = tmp_path / "installed", tmp_path / "source"
    run(CMAKE, "--install", built, "--prefix", installed)
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER)
    (source / "main.c").write_text(PROGRAM)
    prefix = f"-DCMAKE_PREFIX_PATH={installed}"
    run(CMAKE, "-S", source, "-B", tmp_path / "made", prefix)
    run(CMAKE, "--build", tmp_path / "made")
    for name in ("with_fused_lstm", "with_static"):
        assert run(tmp_path / "made" / name, models[0]) == "0.1.0: 8 units"
    if shutil.which("pkg-config") is None:
        return
    (folder,) = installed.glob("lib*/pkgconfig")
    environment = os.environ | {"PKG_CONFIG_PATH": str(folder)}
    flags = run("pkg-config", "--cflags", "--libs", "fused_lstm", env=environment).split()
    program = tmp_path / "by_pkg_config"
    run(C, source / "main.c", *flags, f"-Wl,-rpath,{folder.parent}", "-o", program)
    assert run(program, models[0]) == "0.1.0: 8 units"
    flags = run("pkg-config", "--cflags", "--libs", "--static", "fused_lstm", env=environment)
    run(C, "-static", source / "main.c", *flags.split(), "-o", tmp_path / "static")
    assert run(tmp_path / "static", models[0]) == "0.1.0: 8 units"


def mutated(target: Path, archive: list[str | Path], *flags: str) -> None:
    """20,000 files that are nearly right."""
    run(sys.executable, PROGRAMS / "seeds.py", target.parent / "seeds")
    sources = [PROGRAMS / "fuzz_load.cpp", PROGRAMS / "mutations.cpp"]
    run(CXX, "-std=c++17", "-O1", f"-I{SOURCES}", *flags, *sources, *archive, "-o", target)
    told = run(target, 20000, 1, *sorted((target.parent / "seeds").iterdir())).split()
    assert told[0] == "20000"
    assert int(told[2]) > 100  # that could be loaded


def test_files_that_are_nearly_right(built, tmp_path):
    mutated(tmp_path / "mutations", [built / "libfused_lstm.a"])


@pytest.mark.skipif(
    "FUSED_LSTM_SANITIZE" not in os.environ, reason="by make sanitize: takes minutes"
)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers(sanitizers, models, tmp_path):
    """The programs in C, and wrong files, on a build of its own."""
    folder = build(
        f"library-{sanitizers.split(',')[0]}",
        "-DFUSED_LSTM_EXAMPLES=OFF",
        f"-DFUSED_LSTM_SANITIZE={sanitizers}",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        target="fused_lstm_static",
    )
    flags = ["-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    archive = [folder / "libfused_lstm.a", "-lstdc++", "-lm", "-pthread"]
    threads = compiled(tmp_path / "threads", *flags, PROGRAMS / "threads.c", *archive)
    run(threads, models[0])
    if sanitizers == "thread":
        return
    run(compiled(tmp_path / "contract", *flags, PROGRAMS / "contract.c", *archive), *models)
    mutated(tmp_path / "mutations", archive, *flags)


def rows_of(text: str) -> torch.Tensor:
    return torch.tensor([[float(x) for x in line.split(",")] for line in text.splitlines()])


def stream(built: Path, model: nn.Module, input: Path, *options: str) -> torch.Tensor:
    path = input.with_suffix(".safetensors")
    path.write_bytes(saved(model.state_dict()))
    return rows_of(run(built / "stream", path, input, *options))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=2e-6)


def csv(path: Path, x: torch.Tensor) -> Path:
    lines = [",".join(f"{value:.9g}" for value in row) for row in x.tolist()]
    path.write_text("\n".join([", ".join(["word"] * x.size(1)), *lines, ""]))
    return path


def test_the_example_streams_text(built, tmp_path):
    """A classifier's logits after each row, as if the sequence ended there."""
    model = LSTMClassifier(12, 64, 9)
    x = torch.randn(20, 12)
    found = stream(built, model, csv(tmp_path / "x.csv", x))
    expected = torch.stack([model(x[None, : t + 1])[0] for t in range(20)])
    assert_same(found, expected)


def test_the_example_streams_a_wave_file(built, tmp_path):
    model = LSTMClassifier(2, 16, 1)
    with torch.no_grad():  # so that samples of another scale have another result
        model.lstm.weight_ih_l0.mul_(10)
    samples = torch.randint(-32768, 32768, (2 * 300,), dtype=torch.int16)
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    found = stream(built, model, tmp_path / "x.wav")
    output, _ = model.lstm((samples / 32768).view(1, 300, 2))
    assert_same(found, model.fc(output[0]))


def test_the_example_takes_a_whole_sequence(built, tmp_path):
    model = LSTMSequencePredictor(1, 64, 1, summary="final_states")
    x = torch.randn(300, 1)  # more than it first has memory for
    found = stream(built, model, csv(tmp_path / "x.csv", x))
    assert_same(found, model(x[None]))


def test_the_example_decodes(built, tmp_path):
    model = Seq2Seq(5, 64, 1)
    x = torch.randn(72, 5)
    options = ["--prefix", "encoder.lstm.", "--decoder", "decoder.lstm."]
    options += ["--head", "decoder.fc", "--steps", "24"]
    found = stream(built, model, csv(tmp_path / "x.csv", x), *options)
    assert_same(found, model.generate(x[None], 24, x[None, -1, :1])[0])


@pytest.mark.skipif(not hasattr(fused_lstm, "freeze"), reason="needs fused_lstm.freeze")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_the_example_runs_the_models_of_the_demo(built, tmp_path, weights):
    """The outputs that Python wrote beside them."""
    pytest.importorskip("safetensors")
    source = str(Path(fused_lstm.__file__).parents[1])
    command = [sys.executable, "-m", "fused_lstm", "demo", "--device", "cpu", "--steps", "2"]
    options = ["--out", "report.html", "--save", tmp_path, "--weights", weights]
    run(*command, *options, cwd=tmp_path, env=os.environ | {"PYTHONPATH": source})
    seq2seq = ["--prefix", "encoder.lstm.", "--decoder", "decoder.lstm."]
    seq2seq += ["--head", "decoder.fc", "--steps", "24"]
    for task, arguments in {"classifier": [], "predictor": [], "forecaster": seq2seq}.items():
        table = tmp_path / f"{task}.csv"
        titles, *lines = table.read_text().splitlines()
        outputs = [line.split(",")[titles.count("x") :] for line in lines]
        expected = torch.tensor([[float(y) for y in row] for row in outputs if row])
        model = tmp_path / f"{task}.safetensors"
        found = rows_of(run(built / "stream", model, table, *arguments))
        torch.testing.assert_close(found.view(expected.shape), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [("1,2\n", "fewer numbers"), ("1" * 70000, "too long"), ("RIFF    WAVEjunk", "no samples")],
)
def test_the_example_refuses(built, tmp_path, text, says):
    (tmp_path / "x.csv").write_text(text)
    (tmp_path / "m").write_bytes(saved(LSTMClassifier(3, 4, 2).state_dict()))
    done = subprocess.run(
        [built / "stream", tmp_path / "m", tmp_path / "x.csv"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert says.replace("no samples", "without samples") in done.stderr


@pytest.mark.skipif(emulated.EMULATED, reason="the operators' library is not torch's")
def test_the_example_runs_an_aotinductor_package(tmp_path):
    """Compiled from Python, run without it."""
    library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")
    if library.suffix == ".a":
        pytest.skip("this Python has no libpython.so, which fused_lstm._C needs")
    model = LSTMClassifier(6, 32, 4, 2).eval()
    x = torch.randn(3, 20, 6)
    program = torch.export.export(model, (x,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    torch.save(x, tmp_path / "x.pt")
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    flags = ["-std=c++20", "-O0", *[f"-I{folder}" for folder in includes]]
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib"]
    libraries += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    run(CXX, *flags, SOURCES / "examples/aoti.cpp", *libraries, "-o", tmp_path / "aoti")
    operators = [library, torch_folder / "lib/libtorch_python.so", fused_lstm._C.__file__]
    found = rows_of(run(tmp_path / "aoti", tmp_path / "package.pt2", tmp_path / "x.pt", *operators))
    assert_same(found.view(3, 4), model(x))
