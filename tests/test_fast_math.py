"""sigmoid and tanh of csrc/cuda/fast_math.h, run on the host, against float64.

The program includes the header itself and stands in for the GPU's two approximate instructions:
each returns the float furthest below or above the true result that its bound allows, or the nearest
one. Either function is monotonic in what an instruction returns, so nothing in between is worse.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "csrc" / "cuda" / "fast_math.h"
COMPILER = os.environ.get("CXX", "c++")

pytestmark = [
    pytest.mark.skipif(not HEADER.exists(), reason="no sources here"),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no compiler here"),
]

# In the place of the emulator's, which compute what is nearest.
INSTRUCTIONS = """
#pragma once
#include <cfloat>
#include <cmath>

namespace fused_lstm {
namespace cuda {
namespace {

int exp2_error = 0, reciprocal_error = 0;  // ulp that the result is to be off by, at most

double ulp_of(double x) { return std::ldexp(1.0, std::ilogb(x) - 23); }

// The last float from `exact` towards exact + error ulp. Subnormal operands and results are zero.
float off_by(double exact, int error) {
  if (exact == 0 || exact - exact != 0 || exact > FLT_MAX) return static_cast<float>(exact);
  const double limit = exact + error * ulp_of(exact);
  float result = static_cast<float>(limit);
  if (error > 0 && result > limit) result = std::nextafter(result, -INFINITY);
  if (error < 0 && result < limit) result = std::nextafter(result, INFINITY);
  return std::fabs(result) < FLT_MIN ? std::copysign(0.0f, result) : result;
}
float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }
float exp2_approx(float x) {
  return off_by(std::exp2(static_cast<double>(flushed(x))), exp2_error);
}
float reciprocal_approx(float x) {
  return off_by(1 / static_cast<double>(flushed(x)), reciprocal_error);
}

}  // namespace
}  // namespace cuda
}  // namespace fused_lstm
"""

# Prints "worst NAME ULP X" for what is measured, "at NAME X RESULT" for single values.
PROGRAM = """
#include "cuda/fast_math.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>

using namespace fused_lstm::cuda;

float sigmoid_of(float x) { return sigmoid(FastFloat(x)).value; }
float tanh_of(float x) { return tanh(FastFloat(x)).value; }

struct Worst {
  const char* name;
  double ulp;
  float at;

  void see(float x, float result, double exact) {
    // What is subnormal may be zero.
    const double unit = std::fabs(exact) < 2 * FLT_MIN && result == 0 ? FLT_MIN : ulp_of(exact);
    const double error = std::fabs(result - exact) / unit;
    if (ulp == ulp && !(error <= ulp)) ulp = error, at = x;  // NaN is the worst
  }
};
Worst of_sigmoid = {"sigmoid", 0, 0}, of_large = {"tanh", 0, 0}, of_small = {"tanh_small", 0, 0};

void measure(float x) {
  const double exact_sigmoid = 1 / (1 + std::exp(-static_cast<double>(x)));
  const double exact_tanh = std::tanh(static_cast<double>(x));
  Worst& of_tanh = std::fabs(x) < 0.55f ? of_small : of_large;
  for (int error : {-2, 0, 2}) {
    for (int rest : {-1, 0, 1}) {
      exp2_error = error;
      reciprocal_error = rest;
      of_sigmoid.see(x, sigmoid_of(x), exact_sigmoid);
      if (x != 0) of_tanh.see(x, tanh_of(x), exact_tanh);
    }
  }
  exp2_error = reciprocal_error = 0;
}

int main() {
  std::mt19937 random(0);
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    // From 2^-5 to 2^7, where the result is neither x nor its limit, more of them.
    const int samples = exponent >= 122 && exponent < 134 ? 1 << SAMPLES : 1 << 8;
    for (int i = 0; i < samples; ++i) {
      const uint32_t mantissa = i == 0 ? 0 : i == 1 ? 0x7fffff : random() >> 9;
      const uint32_t bits = exponent << 23 | mantissa;
      float x;
      std::memcpy(&x, &bits, sizeof(x));
      measure(x);
      measure(-x);
    }
  }
  for (const Worst& worst : {of_sigmoid, of_large, of_small}) {
    std::printf("worst %s %.4f %.9g\\n", worst.name, worst.ulp, worst.at);
  }
  for (float x : {0.0f, -0.0f, INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX, 1e-45f, -1e-45f}) {
    std::printf("at sigmoid %.9g %.9g\\n", x, sigmoid_of(x));
    std::printf("at tanh %.9g %.9g\\n", x, tanh_of(x));
  }
}
"""

# At most, in ulp: as the header says.
BOUNDS = {"sigmoid": 7.0, "tanh": 3.9, "tanh_small": 2.8}


def measure(folder: Path, header: str, samples: int) -> tuple[dict[str, float], dict[str, str]]:
    """The largest errors in ulp of `header`, and single values by "function x"."""
    (folder / "cuda").mkdir()
    (folder / "cuda" / "fast_math.h").write_text(header)
    (folder / "emulated_instructions.h").write_text(INSTRUCTIONS)
    source, program = folder / "measure.cpp", folder / "measure"
    source.write_text(PROGRAM)
    includes = [folder, ROOT / "csrc", ROOT / "tests" / "emulator" / "include"]
    options = ["-std=c++17", "-O2", "-ffp-contract=off", f"-DSAMPLES={samples}"]
    subprocess.check_call(
        [COMPILER, *options, *(f"-I{path}" for path in includes), str(source), "-o", str(program)]
    )
    lines = subprocess.check_output([str(program)], text=True).splitlines()
    worst, values = {}, {}
    for kind, function, x, result in map(str.split, lines):
        if kind == "worst":
            worst[function] = float(x)
        else:
            values[f"{function} {x}"] = f"{float(result) + 0:.9g}"  # zero of either sign: 0
    return worst, values


def test_errors_are_as_small_as_the_header_says(tmp_path):
    worst, values = measure(tmp_path, HEADER.read_text(), samples=15)
    assert {name: bound for name, bound in BOUNDS.items() if not worst[name] <= bound} == {}, worst
    expected = {
        "sigmoid 0": "0.5",
        "sigmoid -0": "0.5",
        "sigmoid inf": "1",
        "sigmoid -inf": "0",
        "sigmoid nan": "nan",
        "sigmoid 3.40282347e+38": "1",
        "sigmoid -3.40282347e+38": "0",
        "sigmoid 1.40129846e-45": "0.5",
        "sigmoid -1.40129846e-45": "0.5",
        "tanh 0": "0",
        "tanh -0": "0",
        "tanh inf": "1",
        "tanh -inf": "-1",
        "tanh nan": "nan",
        "tanh 3.40282347e+38": "1",
        "tanh -3.40282347e+38": "-1",
        "tanh 1.40129846e-45": "1.40129846e-45",
        "tanh -1.40129846e-45": "-1.40129846e-45",
    }
    assert values == expected


@pytest.mark.parametrize(
    ("function", "text", "fault"),
    [
        ("sigmoid", "log2e = 1.44269502f", "log2e = 1.4426951f"),
        ("sigmoid", "fmaf(fmaxf(rest, -1.0f), -ln2, 1.0f)", "1.0f"),
        ("tanh", "-2.88539008f", "-2.885391f"),
        ("tanh", "0.55f", "0.7f"),
        ("tanh_small", "0.55f", "0.4f"),
        ("tanh_small", "0.13328539f", "0.13329f"),
        ("tanh_small", "0.017310211f", "0.0173f"),
    ],
)
def test_a_coarser_constant_is_seen(tmp_path, function, text, fault):
    header = HEADER.read_text()
    assert header.count(text) == 1
    worst, _ = measure(tmp_path, header.replace(text, fault), samples=12)
    assert worst[function] > BOUNDS[function], worst


def test_an_infinite_operand_without_its_correction_is_seen(tmp_path):
    header = HEADER.read_text()
    assert header.count("fmaxf(rest, -1.0f)") == 1
    _, values = measure(tmp_path, header.replace("fmaxf(rest, -1.0f)", "rest"), samples=8)
    assert values["sigmoid inf"] == values["sigmoid -inf"] == "nan"
