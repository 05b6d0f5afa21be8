"""The persistent kernels with faults planted: python faults.py EMULATED FOLDER.

EMULATED is what build.py made. FOLDER then holds the same package, whose persistent kernels have
the fault that EMULATOR_FAULT numbers, and none without it. test_faults.py sees each.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import instrument
from instrument import CSRC

# What is wrong; the file of csrc/cuda/persistent, its text, and the text with the fault, in which
# faulty() stands for "this one is asked for"; what the emulator or the test says of it.
FAULTS = [
    (
        "a warp of the cluster does not wait for the operand",
        "forward.h",
        "      barrier_wait(barrier, version / 2 % 2);",
        "      if (!faulty()) barrier_wait(barrier, version / 2 % 2);",
        ("an asynchronous write by", "more threads arrive at an mbarrier than it has arrivals"),
    ),
    (
        "a wait that orders memory within the block alone",
        "backward.h",
        "      barrier_wait(barrier, (version - 1) / 2 % 2);",
        "      emulator::barrier_wait(barrier, (version - 1) / 2 % 2,\n"
        "          faulty() ? emulator::Scope::cta : emulator::Scope::cluster);",
        "an asynchronous write by st.async",
    ),
    (
        "a plain store where others poll",
        "grid_operand.h",
        "if (unit % 2 == 0) store_relaxed(to, pair_word(bits | upper << 16, phase));",
        "if (unit % 2 == 0 && !faulty()) store_relaxed(to, pair_word(bits | upper << 16, phase));\n"
        "        if (unit % 2 == 0 && faulty()) *to = pair_word(bits | upper << 16, phase);",
        "a race in global memory",
    ),
    (
        "the grid does not wait for its words",
        "exchange.h",
        "any_of_warp(missing & bit)",
        "any_of_warp(!faulty() && (missing & bit))",
        "is off by",
    ),
    (
        "a word of a phase that is not awaited",
        "grid_forward.h",
        "phase_of(version + 1, kPhase));",
        "phase_of(version + 1 + 2 * faulty(), kPhase));",
        "a word in global memory",
    ),
    (
        "a buffer of the grid is cleared a step early",
        "grid_forward.h",
        "    if (!more) break;\n    if (kRagged) {",
        "    if (!more) break;\n"
        "    if (faulty() && version > 0) {\n"
        "      store_relaxed(row_of(exchange, version % 2, buffer_bytes) + threadIdx.x, 0);\n"
        "    }\n    if (kRagged) {",
        "is off by",
    ),
    (
        "a block sends into the buffer that others read",
        "forward.h",
        "operand_at + (version + 1) % 2 * kBuffer +",
        "operand_at + (version + 1 + faulty()) % 2 * kBuffer +",
        "an asynchronous write by",
    ),
    (
        "a block does not wait for the last sums",
        "backward.h",
        "    receive(version);\n    if (!more) break;",
        "    if (more || !faulty()) receive(version);\n    if (!more) break;",
        "grad of h_0 is off by",
    ),
    (
        "sums of the gates are not waited for",
        "grid_backward.h",
        "barrier_wait(",
        "if (!faulty()) barrier_wait(",
        # Which comes first is chance: a sum that is still on its way, or the barrier's next phase
        ("an asynchronous write by", "more threads arrive at an mbarrier than it has arrivals"),
    ),
    (
        "more bytes are expected than come",
        "forward.h",
        "barrier_expect(barrier, sent_bytes)",
        "barrier_expect(barrier, 8 * faulty() + sent_bytes)",
        "threads that wait for an mbarrier (parity 1): 32",
    ),
    (
        "no fence after barriers are made",
        "forward.h",
        "barrier_init_fence();",
        "if (!faulty()) barrier_init_fence();",
        "which no fence has followed",
    ),
    (
        "a block sends to a cluster whose blocks have not begun",
        "forward.h",
        "    cluster_arrive();\n    cluster_wait();\n  }\n  const int operand_at",
        "    if (!faulty()) cluster_arrive();\n    if (!faulty()) cluster_wait();\n  }\n"
        "  const int operand_at",
        "a race in byte",
    ),
    (
        "a block reads its operand before all threads have stored it",
        "forward.h",
        "      }\n    }\n    if (!kCluster) __syncthreads();",
        "      }\n    }\n    if (!kCluster && !faulty()) __syncthreads();",
        "a race in byte",
    ),
    (
        "a block multiplies gradients before all threads have stored them",
        "backward.h",
        "    __syncthreads();\n    if (warp * kRowTiles",
        "    if (!faulty()) __syncthreads();\n    if (warp * kRowTiles",
        "a race in byte",
    ),
    (
        "sums are read before all warps have written them",
        "grid_forward.h",
        "    __syncthreads();\n    if (has_unit) {",
        "    if (!faulty()) __syncthreads();\n    if (has_unit) {",
        "a race in byte",
    ),
    (
        "an index off by one",
        "forward.h",
        "operand_offset(element / kPacked * kPacked, lane_sequence,",
        "operand_offset(element / kPacked * kPacked, (lane_sequence + faulty()) % 8,",
        "is off by",
    ),
    (
        "an output that is never written",
        "units.h",
        "    if (p.grad_cell) p.grad_cell[at] = grad_cell;",
        "    if (p.grad_cell && !faulty()) p.grad_cell[at] = grad_cell;",
        "grad of c_0 is off by",
    ),
]

# Of kernels that a GPU without clusters runs
FAULTS_WITHOUT_CLUSTERS = [
    (
        "sums of other blocks are not waited for",
        "exchange.h",
        "any_of_warp(!all_whole)",
        "any_of_warp(!faulty() && !all_whole)",
        "is off by",
    ),
    (
        "the words of the last sender are not awaited",
        "scatter_backward.h",
        "round_up(H, kSentUnits) ? senders : 0",
        "round_up(H, kSentUnits) ? senders - faulty() : 0",
        "is off by",
    ),
    (
        "sums in one buffer",
        "scatter_backward.h",
        "const int buffer = version % 2;",
        "const int buffer = faulty() ? 0 : version % 2;",
        "is off by",
    ),
    (
        "sums of a phase that is the zero words'",
        "scatter_backward.h",
        "phase_of(version, kFloatPhase);",
        "phase_of(version + 2 * faulty(), kFloatPhase);",
        "is off by",
    ),
    (
        "sums of a phase that is not awaited",
        "scatter_backward.h",
        "float_word(__float_as_uint(sum), phase)",
        "float_word(__float_as_uint(sum), phase ^ faulty())",
        "a word in global memory",
    ),
    (
        "gradients are multiplied before all threads have stored them",
        "scatter_backward.h",
        "    __syncthreads();\n\n    if (first_row < H) {",
        "    if (!faulty()) __syncthreads();\n\n    if (first_row < H) {",
        "a race in byte",
    ),
    (
        "gradients are stored where others may still multiply",
        "scatter_backward.h",
        "char* const its_operand = operand + version % 2 * kOperand;",
        "char* const its_operand = operand + version % 2 * !faulty() * kOperand;",
        "a race in byte",
    ),
    (
        "the last sums are left out",
        "scatter_backward.h",
        "      its.grad_hidden +=\n",
        "      if (more || !faulty()) its.grad_hidden +=\n",
        "grad of h_0 is off by",
    ),
    (
        "sums go to the sequence after theirs",
        "scatter_backward.h",
        "words_of_row(row) + s * kUnits",
        "words_of_row(row) + (s ^ faulty()) * kUnits",
        "is off by",
    ),
]

# Of kernels for large batches, on a GPU with few multiprocessors
FAULTS_OF_BATCHES = [
    (
        "a group's words are not waited for",
        "exchange.h",
        "while (any_of_warp(take_phase(phase, words) & bit)) load();",
        "while (any_of_warp(take_phase(phase, words) & bit) && !faulty()) load();",
        "is off by",
    ),
    (
        "words go to the first group",
        "batched_forward.h",
        "row_of(to, group, kGroupBytes)",
        "row_of(to, faulty() ? 0 : group, kGroupBytes)",
        ("a word in global memory", "is off by"),
    ),
    (
        "states of all groups in one place",
        "batched_forward.h",
        "      states[group * kBlockThreads] =",
        "      states[(faulty() ? 0 : group) * kBlockThreads] =",
        "is off by",
    ),
    (
        "a group's partial sums in the buffer of the one before",
        "batched_forward.h",
        "item % kPartialBuffers * kPartials",
        "(faulty() ? 0 : item % kPartialBuffers) * kPartials",
        "a race in byte",
    ),
    (
        "a group's sums are read before all warps have written them",
        "batched_forward.h",
        "    __syncthreads();\n\n    if (has_unit) {",
        "    if (!faulty()) __syncthreads();\n\n    if (has_unit) {",
        "a race in byte",
    ),
    (
        "a late group counts its versions from the first step",
        "batched_forward.h",
        "begun[group] = index;",
        "begun[group] = faulty() ? 0 : index;",
        ("a word in global memory", "is off by"),
    ),
    (
        "a group's sums are not waited for",
        "exchange.h",
        "while (sent.any_missing(words)) sent.load(words);",
        "while (sent.any_missing(words) && !faulty()) sent.load(words);",
        "is off by",
    ),
    (
        "a group's gradients are multiplied before all threads have stored them",
        "batched_backward.h",
        "    __syncthreads();\n    load(more ?",
        "    if (!faulty()) __syncthreads();\n    load(more ?",
        "a race in byte",
    ),
    (
        "a group's gradients are stored where others may still multiply",
        "batched_backward.h",
        "char* const its_operand = operand + item % 2 * kOperand;",
        "char* const its_operand = operand + item % 2 * !faulty() * kOperand;",
        "a race in byte",
    ),
    (
        "the sums of another group",
        "batched_backward.h",
        "from = received_of(version - 1, group);",
        "from = received_of(version - 1, faulty() ? groups - 1 - group : group);",
        "is off by",
    ),
    (
        "sums are sent where another group's lie",
        "batched_backward.h",
        "sent_group, group_bytes);",
        "sent_group * !faulty(), group_bytes);",
        "threads that wait for a word in global memory",
    ),
    (
        "groups' sums in one buffer",
        "batched_backward.h",
        "row_of(sent, sent_version % 2, buffer_bytes)",
        "row_of(sent, faulty() ? 1 : sent_version % 2, buffer_bytes)",
        "threads that wait for a word in global memory",
    ),
    (
        "the state of another group",
        "batched_backward.h",
        "float4* const state = states + group * kPairs;",
        "float4* const state = states + (faulty() ? 0 : group) * kPairs;",
        "is off by",
    ),
    (
        "the last sums of a group are left out",
        "batched_backward.h",
        "its.grad_hidden = state.x + sum;",
        "its.grad_hidden = state.x + (faulty() && group == 1 ? 0.0f : sum);",
        "grad of h_0 is off by",
    ),
]

# Of clusters that take two tiles of sequences, where few run at once
FAULTS_OF_SEQUENCE_TILES = [
    (
        "the first tile's operand is multiplied for both",
        "forward.h",
        "from[tile * (kTileBytes / 16) + pair * kWarpThreads]",
        "from[tile * !faulty() * (kTileBytes / 16) + pair * kWarpThreads]",
        "is off by",
    ),
    (
        "both tiles are sent to the first one's place",
        "forward.h",
        "destination[i] + at + tile * kTileBytes",
        "destination[i] + at + tile * !faulty() * kTileBytes",
        ("an asynchronous write by", "is off by"),
    ),
    (
        "the bytes of one tile alone are awaited",
        "forward.h",
        "      kSequenceTiles * kTileSequences * blocks",
        "      (faulty() ? 1 : kSequenceTiles) * kTileSequences * blocks",
        ("an asynchronous write by", "more threads arrive at an mbarrier than it has arrivals"),
    ),
    (
        "gradients of both tiles are stored in the first one's operand",
        "backward.h",
        "version % kOperands * kOperand + tile * kTileBytes +",
        "version % kOperands * kOperand + tile * !faulty() * kTileBytes +",
        ("a race in byte", "is off by"),
    ),
    (
        "sums of the first tile are read for both",
        "backward.h",
        "tile * received_tile + unit_of(0)",
        "tile * !faulty() * received_tile + unit_of(0)",
        "is off by",
    ),
    (
        "the sums of one tile alone are awaited",
        "backward.h",
        "if (threadIdx.x == 0) barrier_expect(barrier, buffer * 4);",
        "if (threadIdx.x == 0) barrier_expect(barrier, (faulty() ? received_tile : buffer) * 4);",
        ("an asynchronous write by", "more threads arrive at an mbarrier than it has arrivals"),
    ),
]

# By the emulated GPU on which they show, and what its kernels run
IN_CLUSTERS = "hopper-132 in clusters"  # backward on the grid
FAULTS_OF_STACKS = [
    (
        "the output of the layer before is not waited for",
        "forward.h",
        "await(/*awaits=*/part > 0,",
        "await(/*awaits=*/part > 0 && !faulty(),",
        # Or the NaN that it has read passes through to what backward awaits: on a host it may
        ("is off by", "threads that wait for a word in global memory"),
    ),
    (
        "an output by a plain store where a layer awaits it",
        "units.h",
        "    store_relaxed_if(does && present && b < rows.count,\n",
        "    if (faulty() && does && present && b < rows.count) {\n"
        "      *reinterpret_cast<uint32_t*>(row_of(output, rows.first, output_bytes)) = word;\n"
        "    }\n"
        "    store_relaxed_if(!faulty() && does && present && b < rows.count,\n",
        "a race in global memory",
    ),
    (
        "the input of a layer goes into the operand that is read",
        "forward.h",
        "store_words(version + 1, next, [&]",
        "store_words(version + 1 + faulty(), next, [&]",
        ("a race in byte", "an asynchronous write by", "threads that wait for"),
    ),
    (
        "the input of a step before",
        "forward.h",
        "if (has_words) load_words(index + 2 < T ? next : Rows{0, 0});",
        "if (has_words) load_words(index + 2 < T ? (faulty() ? now : next) : Rows{0, 0});",
        "is off by",
    ),
    (
        "bytes of the input are not expected",
        "forward.h",
        "(has_words ? kTileSequences",
        "(has_words && !faulty() ? kTileSequences",
        ("an asynchronous write by", "more bytes", "threads that wait for"),
    ),
    (
        "gradients of the layer after are not waited for",
        "backward.h",
        "await(awaits, [&]",
        "await(awaits && !faulty(), [&]",
        "is off by",
    ),
    (
        "gradients by a plain store where a layer awaits them",
        "units.h",
        "        store_relaxed_if(exists, at, grad[i]);",
        "        if (faulty()) store_if(exists, at, grad[i]);\n"
        "        store_relaxed_if(exists && !faulty(), at, grad[i]);",
        "a race in global memory",
    ),
    (
        "the last step has no gradient of its output",
        "backward.h",
        "    load_next_layer(now, true);",
        "    load_next_layer(now, !faulty());",
        "is off by",
    ),
    (
        "what an episode's start ends goes on",
        "backward.h",
        "kStacked && units[i].episodes.starts()",
        "kStacked && !faulty() && units[i].episodes.starts()",
        "is off by",
    ),
]
STACKS = "hopper-132 in stacks"
FAULTS_OF = {
    "hopper-132": [fault for fault in FAULTS if fault[1] != "grid_backward.h"],
    IN_CLUSTERS: [fault for fault in FAULTS if fault[1] == "grid_backward.h"],
    "a100": FAULTS_WITHOUT_CLUSTERS,
    "hopper": FAULTS_OF_BATCHES,
    "one-cluster-of-4": FAULTS_OF_SEQUENCE_TILES,
    STACKS: FAULTS_OF_STACKS,
}
ALL_FAULTS = [fault for faults in FAULTS_OF.values() for fault in faults]

# Read before any kernel runs: what threads read of it, none of them has written.
PRELUDE = """#include <cstdlib>
namespace {
const char* const fault = std::getenv("EMULATOR_FAULT");
const int faulty_number = fault ? std::atoi(fault) : 0;
inline bool faulty(int number) { return number == faulty_number; }
}  // namespace
"""


def build(emulated: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    sources = folder / "csrc"
    shutil.copytree(CSRC, sources)
    for number, (what, name, text, faulty, _) in enumerate(ALL_FAULTS, 1):
        path = sources / "cuda/persistent" / name
        before = path.read_text()
        assert before.count(text) == 1, f"{what}: {name} has {before.count(text)} times {text!r}"
        path.write_text(before.replace(text, faulty.replace("faulty()", f"faulty({number})")))
    instrument.build(emulated, folder, sources, "persistent_bfloat16", PRELUDE)


if __name__ == "__main__":
    build(*(Path(argument).resolve() for argument in sys.argv[1:]))
