#!/usr/bin/env bash
# Builds, tests and benchmarks on a bare GPU machine: python3 with torch, and nvcc.
#
#   bash benchmarks/gpu.sh RESULTS [build] [test] [sanitize] [steps] [bench] [-- PYTEST ARGUMENTS]
#
# RESULTS gets a log a stage, the machine's results file, summary.txt, and with matplotlib the plot.
# No stage named: all five. What stands after -- goes to the benchmarks (--quick, -k packed, ...).
# Each stage has a time limit in seconds, LIMIT_BUILD and so on; a benchmark that is cut short
# keeps every case it finished. TESTS is pytest's -m for the test stage, SANITIZE_TESTS its -k for
# compute-sanitizer. Wheels in .whl/ (pytest, where the machine has none) are put on PYTHONPATH.
# Where the tree came without its history, BENCHMARK_COMMIT names the commit.
# The exit status is the number of stages that failed.

set -uo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
mkdir -p "$1" && results=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2

stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        build | test | sanitize | steps | bench) stages+=("$1") ;;
        *) echo "gpu.sh: no stage is called $1; there are build, test, sanitize, steps, bench" >&2; exit 2 ;;
    esac
    shift
done
[ $# -gt 0 ] && shift
bench_arguments=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(build test sanitize steps bench)

export PYTHONUNBUFFERED=1
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 2
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

SKIPPED=77 # the exit status of a stage that this machine cannot run

limited() { # seconds, command
    timeout --signal=INT --kill-after=30 "$@"
}

build() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    nvcc --version | tail -n 2
    python3 -c 'import sys, torch; print("python", sys.version, "torch", torch.__version__)'
    limited "${LIMIT_BUILD:-240}" python3 setup.py build_ext --inplace || return
    python3 -m fused_lstm info
}

run_tests() {
    limited "${LIMIT_TEST:-240}" \
        python3 -m pytest tests -m "${TESTS:-cuda}" -q -ra -p no:cacheprovider
}

sanitize() {
    local sanitizer tool status worst=0
    local few_tests='test_layers or test_gradients_as_of_a_packed_sequence or test_layouts'
    sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer) || {
        echo 'compute-sanitizer is not on this machine'
        return "$SKIPPED"
    }
    for tool in memcheck racecheck synccheck; do
        echo "== $tool"
        # With the caching allocator a write past a tensor's end stays inside its block.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$((${LIMIT_SANITIZE:-240} / 3))" \
            "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 99 \
            python3 -m pytest tests -m cuda -k "${SANITIZE_TESTS:-$few_tests}" -q -p no:cacheprovider
        status=$?
        echo "== $tool: exit status $status"
        [ "$status" = 0 ] || worst=$status
    done
    return "$worst"
}

steps() { # what a step costs with each kernel, beside the plan's estimates
    limited "${LIMIT_STEPS:-120}" python3 -m benchmarks.steps
}

bench() {
    local machine status
    machine=$(python3 -c '
import torch
from benchmarks import results
device = "cuda" if torch.cuda.is_available() else "cpu"
print(results.machine_name(results.facts(device)))') || return
    # The run is added to what the machine's file holds already.
    [ ! -f "benchmarks/results/$machine.json" ] || cp "benchmarks/results/$machine.json" "$results/"
    limited "${LIMIT_BENCH:-540}" python3 -m pytest benchmarks \
        --results "$results" -q -p no:cacheprovider ${bench_arguments[@]+"${bench_arguments[@]}"}
    status=$?
    ! python3 -c 'import matplotlib' 2>/dev/null ||
        python3 -m benchmarks.report "$results/$machine.json" --plot "$results/ratios.svg" >/dev/null
    return "$status"
}

failed=0
: >"$results/summary.txt"
for stage in "${stages[@]}"; do
    log=$results/$stage.log
    shown=8 # last lines of the log
    start=$SECONDS
    case $stage in
        build) build ;;
        test) run_tests ;;
        sanitize) sanitize ;;
        steps) shown=60 && steps ;;
        bench) shown=45 && bench ;;
    esac >"$log" 2>&1
    case $? in
        0) verdict=passed ;;
        "$SKIPPED") verdict=skipped ;;
        124 | 137) verdict='CUT SHORT at its limit' ;;
        *) verdict=FAILED ;;
    esac
    case $verdict in FAILED | CUT*) failed=$((failed + 1)) ;; esac
    {
        echo "$stage: $verdict after $((SECONDS - start)) s"
        tail -n "$shown" "$log" | cut -c1-240 | sed 's/^/    /'
    } >>"$results/summary.txt"
    if [ "$stage" = build ] && [ "$verdict" != passed ]; then
        echo 'Not built, so nothing more was run.' >>"$results/summary.txt"
        break
    fi
done
cat "$results/summary.txt"
exit "$failed"
