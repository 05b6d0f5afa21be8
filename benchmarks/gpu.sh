#!/usr/bin/env bash
# The first half hour on a GPU machine that has python3 with torch, and nvcc.
#
#   bash benchmarks/gpu.sh RESULTS [STAGE ...] [-- PYTEST ARGUMENTS]
#
# The stages, in this order where none is named:
#   build       the extension, for this GPU alone, by all cores
#   latency     benchmarks/latency.cu: exchanges, memory, mma, beside what the design assumes
#   persistent  the tests of the persistent kernels, then other tests on the GPU, 8 processes at once
#   check       python -m fused_lstm check: every kernel against the reference
#   steps       the time of a step of each kernel, beside the plan's estimate
#   headline    benchmarks: the few cases that matter most
#   peers       nn.LSTM, a compiled loop, TorchRL, FlashRNN, each if it is there
#   streams     a step of a stream of a frozen layer, and short calls, beside nn.LSTM's
#   sanitize    compute-sanitizer on the kernels of this project alone
#   bench       the other benchmarks by worth, until the time is up
# RESULTS gets a log a stage, written as it comes, a log a test process, the machine's results file,
# summary.txt after each stage, and with matplotlib the plot. What stands after -- goes to the
# benchmarks (--quick, -k packed, ...).
#
# BUDGET is the seconds of the whole run; each stage has a limit of its own as well, LIMIT_BUILD and
# so on. A stage that is cut short keeps what it has printed, a benchmark every finished case.
# REHEARSE=1: the same commands on a machine without a GPU, at tiny sizes, with the emulator of
# tests/emulator in the GPU's place. SANITIZE_TESTS is pytest's -k for compute-sanitizer.
# Wheels in .whl/ (pytest, where the machine has none) are put on PYTHONPATH. Where the tree came
# without its history, BENCHMARK_COMMIT names the commit.
# The exit status is the number of stages that failed.

set -uo pipefail

STAGES=(build latency persistent check steps headline peers streams sanitize bench)

if [ $# -lt 1 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
mkdir -p "$1" && results=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
root=$PWD

stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case " ${STAGES[*]} " in
        *" $1 "*) stages+=("$1") ;;
        *) echo "gpu.sh: no stage is called $1; there are ${STAGES[*]}" >&2; exit 2 ;;
    esac
    shift
done
[ $# -gt 0 ] && shift
bench_arguments=("$@")
[ ${#stages[@]} -gt 0 ] || stages=("${STAGES[@]}")

export PYTHONUNBUFFERED=1
rehearse=()
if [ "${REHEARSE:-0}" = 1 ]; then
    rehearse=(--rehearse)
    export FUSED_LSTM_EMULATED=1
fi
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 2
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

SKIPPED=77 # the exit status of a stage that this machine cannot run

left() { echo $((${BUDGET:-1740} - SECONDS)); }

# A command, ended at the limit of its stage or of the run, whichever comes first
limited() { # seconds, command
    local limit=$1
    shift
    [ "$limit" -le "$(left)" ] || limit=$(left)
    [ "$limit" -gt 0 ] || return 124
    timeout --signal=INT --kill-after=15 "$limit" "$@"
}

rehearsing() { [ ${#rehearse[@]} -gt 0 ]; }

# In a rehearsal the package and the benchmarks lie in the emulator's folder.
enter_package() { ! rehearsing || cd "$root/build/emulated" || exit 2; }

architecture() { # 9.0 for compute capability 9.0
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | grep . || echo 9.0
}

build() {
    local jobs
    jobs=$(nproc)
    python3 -c 'import sys, torch; print("python", sys.version, "torch", torch.__version__)'
    if rehearsing; then
        limited "${LIMIT_BUILD:-900}" python3 tests/emulator/build.py build/emulated || return
        cp -r benchmarks build/emulated/
    else
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
        nvcc --version | tail -n 2
        TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(architecture)} MAX_JOBS=${MAX_JOBS:-$jobs} \
            limited "${LIMIT_BUILD:-240}" python3 setup.py build_ext --inplace || return
    fi
    enter_package
    python3 -m fused_lstm info
}

latency() {
    local number
    number=$(architecture | tr -d .)
    command -v nvcc >/dev/null || { echo 'nvcc is not on this machine'; return "$SKIPPED"; }
    limited 120 nvcc -O3 -std=c++17 -gencode="arch=compute_$number,code=sm_$number" \
        benchmarks/latency.cu -o "$results/latency" || return
    if rehearsing; then
        echo 'compiled; no GPU to run it on'
    else
        limited "${LIMIT_LATENCY:-30}" "$results/latency"
    fi
}

# Pytest on its arguments, with a log of its own; the name of a test stands there before it runs.
test_process() { # seconds, log, arguments
    local seconds=$1 log=$results/tests/$2.log status
    shift 2
    limited "$seconds" python3 -m pytest "$@" -v -ra -p no:cacheprovider \
        -o faulthandler_timeout=60 >"$log" 2>&1
    status=$?
    [ "$status" != 5 ] || status=0 # no test was collected
    echo "exit status $status: $(tail -n 1 "$log")"
    return "$status"
}

run_tests() {
    local which=cuda parts=() waiting=() failed=0 file kernel pid
    mkdir -p "$results/tests"
    for kernel in block cluster grid; do
        parts+=("$kernel $root/tests/test_persistent.py -k $kernel")
    done
    if rehearsing; then # a few of the tests
        parts=("grid $root/tests/test_persistent.py -k grid-and-same_bits")
        which='not cuda'
    else
        for file in $(grep -lE 'cuda|device' tests/test_*.py); do
            [ "$file" = tests/test_persistent.py ] ||
                parts+=("$(basename "$file" .py) $root/$file")
        done
    fi
    enter_package
    for file in "${parts[@]}"; do
        read -r -a words <<<"$file"
        words=("${words[@]//-and-/ and }")
        while [ "$(jobs -rp | wc -l)" -ge 8 ]; do wait -n; done
        test_process "${LIMIT_PERSISTENT:-240}" "${words[@]}" -m "$which" &
        waiting+=($!)
    done
    for pid in "${waiting[@]}"; do wait "$pid" || failed=$((failed + 1)); done
    grep -hE '^(FAILED|ERROR)|^E  ' "$results"/tests/*.log | sort | uniq -c | sort -rn | head -n 40
    [ "$failed" = 0 ]
}

check() {
    enter_package
    if rehearsing; then
        limited 120 python3 -c '
from benchmarks.steps import EMULATED
from fused_lstm.check import Shape, rows
shapes = [Shape(3, 4, 20, 4, 5)]
found = list(rows("cpu", EMULATED, shapes, timed=False))
print(*found, sep="\n")
raise SystemExit(any(row.fault for row in found))'
    else
        limited "${LIMIT_CHECK:-120}" python3 -m fused_lstm check
    fi
}

steps() {
    enter_package
    limited "${LIMIT_STEPS:-120}" python3 -m benchmarks.steps ${rehearse[@]+"${rehearse[@]}"}
}

sanitize() {
    local sanitizer tool status worst=0 option filter=()
    local few_tests='test_layers or test_packed'
    sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer) || {
        echo 'compute-sanitizer is not on this machine'
        return "$SKIPPED"
    }
    if rehearsing; then
        "$sanitizer" --version
        return
    fi
    # Releases differ in the option's name; with none of them all kernels are checked.
    for option in --kernel-regex --kernel-name; do
        "$sanitizer" "$option" kns=fused_lstm true && filter=("$option" kns=fused_lstm) && break
    done
    for tool in memcheck racecheck synccheck; do
        echo "== $tool"
        # With the caching allocator a write past a tensor's end stays inside its block.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$((${LIMIT_SANITIZE:-240} / 3))" \
            "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 99 \
            ${filter[@]+"${filter[@]}"} \
            python3 -m pytest tests/test_persistent.py -m cuda -k "${SANITIZE_TESTS:-$few_tests}" \
            -v -p no:cacheprovider
        status=$?
        echo "== $tool: exit status $status"
        [ "$status" = 0 ] || worst=$status
    done
    return "$worst"
}

bench() { # seconds, pytest's arguments
    local limit=$1 machine status
    shift
    enter_package
    machine=$(python3 -c '
import torch
from benchmarks import results
device = "cuda" if torch.cuda.is_available() else "cpu"
print(results.machine_name(results.facts(device)))') || return
    # The run is added to what the machine's file holds already.
    rehearsing || [ -f "$results/$machine.json" ] ||
        [ ! -f "$root/benchmarks/results/$machine.json" ] ||
        cp "$root/benchmarks/results/$machine.json" "$results/"
    limited "$limit" python3 -m pytest benchmarks --results "$results" -v -p no:cacheprovider \
        ${rehearse[@]+"${rehearse[@]}"} "$@" ${bench_arguments[@]+"${bench_arguments[@]}"}
    status=$?
    ! python3 -c 'import matplotlib' 2>/dev/null || [ ! -f "$results/$machine.json" ] ||
        python3 -m benchmarks.report "$results/$machine.json" --plot "$results/ratios.svg" >/dev/null
    return "$status"
}

headline() {
    local budget=1
    ! rehearsing || budget=0.01
    bench "${LIMIT_HEADLINE:-180}" --headline only --budget "$budget"
}

peers() {
    enter_package
    limited "${LIMIT_PEERS:-180}" python3 -m benchmarks.peers ${rehearse[@]+"${rehearse[@]}"}
}

streams() {
    enter_package
    limited "${LIMIT_STREAMS:-60}" python3 -m benchmarks.streams ${rehearse[@]+"${rehearse[@]}"}
}

rest() {
    local few=()
    ! rehearsing || few=(-k 'B16-T256-D768' --budget 0.01)
    bench "${LIMIT_BENCH:-1200}" --headline without ${few[@]+"${few[@]}"}
}

failed=0
: >"$results/summary.txt"
for stage in "${stages[@]}"; do
    log=$results/$stage.log
    shown=8 # last lines of the log
    start=$SECONDS
    if [ "$(left)" -le 0 ]; then
        echo "$stage: not run, the time is up" >>"$results/summary.txt"
        continue
    fi
    ( # a stage may change the folder
        case $stage in
            build) build ;;
            latency) latency ;;
            persistent) run_tests ;;
            check) check ;;
            steps) steps ;;
            headline) headline ;;
            peers) peers ;;
            streams) streams ;;
            sanitize) sanitize ;;
            bench) rest ;;
        esac
    ) >"$log" 2>&1
    status=$?
    case $stage in
        latency) shown=120 ;;
        persistent | check | steps | headline | bench | peers | streams) shown=60 ;;
    esac
    case $status in
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
