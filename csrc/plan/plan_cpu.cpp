// The plan of a CPU: slices of the batch or of the hidden units for the threads, and a GEMM
// strategy for each weight: those with the least time by a model of the machine.
//
//   time of a GEMM = the sum over its tiles of max(FMAs, loads, bytes / GB/s of the level that
//                    holds them), + packing
//
// The level is the one that holds all of the weight where each step reads it again. What all
// choices have in common (gates, states) is left out.
#include <algorithm>

#include "plan/plan.h"

namespace fused_lstm {
namespace {

// Rows of activations of one input GEMM, whose results stay in the L2 cache until their step.
constexpr int64_t kChunkRows = 96;
constexpr int64_t kTileVectors = 4;
constexpr int64_t kDotRows = 3;
constexpr int64_t kDepthBlock = 512;  // of a GEMM with a plain weight
constexpr int64_t kAmxRows = 16;
constexpr int64_t kGradientColumns = 192 + 64;
// The part of a level's rate at which several rows of a weight come, each a stream of its own.
constexpr double kStreams = 0.75;
// Vectors that a thread's slice of the hidden units fills at least.
constexpr int64_t kMinUnitVectors = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Choice {
  Gemm gemm;
  double ns;
};

void keep_cheaper(Choice& best, const Choice& other) {
  if (other.ns < best.ns) best = other;
}

// The times, in nanoseconds, of GEMMs of one thread.
class Model {
 public:
  explicit Model(const Problem& p)
      : machine_(p.machine),
        operand_bytes_(p.operand_bytes),
        element_bytes_(p.element_bytes),
        lanes_(machine_.vector_bytes / (p.operand_bytes == 8 ? 8 : 4)),
        in_place_(p.element_bytes == p.operand_bytes && p.operand_bytes != 2) {
    const int64_t float_lanes = machine_.vector_bytes / 4;
    fma_ = machine_.fma_ns(float_lanes);
    step_ = p.operand_bytes == 1 ? 4 : p.operand_bytes == 2 ? 2 : 1;
    frozen_ = p.frozen;
    multiply_ = fma_;
    if (step_ > 1) {
      const double rate = p.operand_bytes == 1 ? machine_.int8_gops
                          : frozen_            ? machine_.frozen_bf16_gflops
                                               : machine_.bf16_gflops;
      multiply_ = static_cast<double>(2 * step_ * float_lanes) / rate;
      has_tiles_ = multiply_ < 0.4 * fma_;  // no dot product is so fast: AMX
    }
    // What a call reads again at each of its steps, or else the next call reads again.
    const int64_t weights = 4 * p.hidden * (p.projection + (p.length == 1 ? p.input : 0));
    resident_bytes_ = size(weights * p.directions, p.operand_bytes);
    // All weights and their panels.
    packed_bytes_ = size(4 * p.hidden * (p.projection + p.input) * p.directions,
                         p.operand_bytes + p.element_bytes);
    load_ = static_cast<double>(machine_.vector_bytes) / machine_.read_gbps[0];
  }

  // x [rows, depth] times the transpose of a gate weight [4 units, depth], `times` times; a weight
  // that is used once may also be packed on use or multiplied by transposed activations.
  Choice gates(int64_t rows, int64_t units, int64_t depth, int64_t times, bool once) const {
    const double n = static_cast<double>(times);
    const int64_t elements = 4 * units * depth;
    const double tiles = n * panels(rows, units, depth);
    if (frozen_) return {Gemm::packed_ahead, tiles};
    Choice best = {Gemm::packed_ahead, pack_ahead(elements) + tiles};
    if (once) best = {Gemm::packed_on_use, pack_on_use(elements) + tiles};
    keep_cheaper(best, {Gemm::dot, n * dot(rows, units, depth)});
    if (once && in_place_ && rows <= kTileVectors * lanes_) {
      keep_cheaper(best, {Gemm::transposed, n * transposed(rows, units, depth)});
    }
    return best;
  }

  // a [rows, depth] times a weight [depth, columns], `times` times.
  Choice plain(int64_t rows, int64_t columns, int64_t depth, int64_t times) const {
    const double n = static_cast<double>(times), bytes = size(columns * depth, operand_bytes_);
    const double vectors = static_cast<double>(ceil_div(columns, lanes_));  // of a row
    const double panels = vectors / kTileVectors;
    const double tiles = panels * tile_column(rows, depth, bytes / std::max(1.0, panels),
                                              ceil_div(depth, kDepthBlock));
    Choice best = {Gemm::packed_ahead, pack_ahead(columns * depth) + n * tiles};
    // Row by row: each FMA loads its weight, every eighth a sum, to which eight are added in turn.
    const double latency = 8 * fma_, reading = vectors * machine_.vector_bytes / far_gbps();
    const double computing = std::max({vectors * fma_, vectors * 1.25 * load_, latency});
    const double dot = std::max(computing, reading) + static_cast<double>(rows - 1) * computing;
    keep_cheaper(best, {Gemm::dot, n * static_cast<double>(depth) * dot});
    if (in_place_) {
      // Neighbouring rows of the weight lie far apart: beyond the L2 cache in other pages.
      const bool near = resident_bytes_ <= static_cast<double>(machine_.cache_bytes[1]);
      keep_cheaper(best, {Gemm::unpacked, n * (near ? 1.1 : 1.5) * tiles});
    }
    return best;
  }

 private:
  static double size(int64_t elements, int64_t bytes) {
    return static_cast<double>(elements * bytes);
  }

  // A weight into panels of its own, which are read before they are written.
  double pack_ahead(int64_t elements) const {
    const double bytes = size(elements, element_bytes_);
    const double moved = bytes + 2 * size(elements, operand_bytes_);
    return std::max(bytes / machine_.pack_gbps, moved / machine_.gbps_of(packed_bytes_));
  }
  // Into one panel after the other, which stay in a near cache.
  double pack_on_use(int64_t elements) const {
    const double bytes = size(elements, element_bytes_);
    return bytes / std::min(machine_.pack_gbps, far_gbps());
  }

  double far_gbps() const { return machine_.gbps_of(resident_bytes_); }

  // All tiles of `rows` rows by one panel, whose bytes the first tile reads from the level that
  // holds the weights, the others, by blocks of depth, from a near one.
  double tile_column(int64_t rows, int64_t depth, double panel_bytes, int64_t blocks = 1) const {
    const int64_t most = has_tiles_ ? kAmxRows : machine_.tile_rows;
    const int64_t tiles = ceil_div(rows, most);
    const double steps = static_cast<double>(ceil_div(depth, step_));
    const double height = has_tiles_ ? static_cast<double>(kAmxRows)
                                     : static_cast<double>(rows) / static_cast<double>(tiles);
    const double loads = has_tiles_ ? 0 : (kTileVectors + height) * load_;
    const double computing = steps * std::max(kTileVectors * height * multiply_, loads);
    const double first = std::max(computing, panel_bytes / far_gbps());
    const double block_bytes = panel_bytes / static_cast<double>(blocks);
    const double other = std::max(computing, panel_bytes / machine_.gbps_of(block_bytes));
    return first + static_cast<double>(tiles - 1) * other;
  }

  double panels(int64_t rows, int64_t units, int64_t depth) const {
    const int64_t count = ceil_div(units, lanes_);
    const double panel_bytes = size(kTileVectors * lanes_ * depth, operand_bytes_);
    return static_cast<double>(count) * tile_column(rows, depth, panel_bytes);
  }

  double dot(int64_t rows, int64_t units, int64_t depth) const {
    const double bytes = size(4 * units * depth, element_bytes_);
    const int64_t passes = ceil_div(rows, kDotRows);
    const double height = static_cast<double>(rows) / static_cast<double>(passes);
    const double vectors = size(4 * units, ceil_div(depth, lanes_ * step_));
    // A block of weight rows shares each load of x; then each sum is added up over its lanes.
    const double block = static_cast<double>(rows == 1 ? lanes_ : lanes_ / 2);
    const double computing = vectors * std::max(height * multiply_, (1 + height / block) * load_);
    const double adding_up = 3 * fma_ * height * static_cast<double>(4 * units);
    const double block_bytes = size(kTileVectors * lanes_ * depth, element_bytes_);
    const double first = std::max(computing, bytes / (kStreams * far_gbps()));
    const double other = std::max(computing, bytes / (kStreams * machine_.gbps_of(block_bytes)));
    return first + static_cast<double>(passes - 1) * other +
           static_cast<double>(passes) * adding_up;
  }

  double transposed(int64_t rows, int64_t units, int64_t depth) const {
    const double groups = static_cast<double>(ceil_div(rows, lanes_));
    const double height = static_cast<double>(machine_.tile_rows);
    const double elements = size(4 * units, depth);
    const double computing = elements * std::max(groups * fma_, (1 + groups / height) * load_);
    const double reading = elements * static_cast<double>(element_bytes_) / (kStreams * far_gbps());
    const double turning = 5 * fma_ * groups * static_cast<double>(4 * units + depth);
    return std::max(computing, reading) + turning;
  }

  const Machine& machine_;
  int64_t operand_bytes_, element_bytes_;
  double resident_bytes_;  // of weights that are read again and again
  double packed_bytes_;
  int64_t lanes_;           // of a sum
  bool in_place_;           // weights can be multiplied as they are stored
  int64_t step_;            // elements of depth that one instruction multiplies
  bool has_tiles_ = false;  // AMX
  bool frozen_;
  double fma_, multiply_;  // of one vector; of operands
  double load_;            // of a vector from the L1 cache
};

// The plan for these slices, with its time.
Plan plan_slices(const Problem& p, const Model& model, int64_t batch_slices, int64_t unit_slices,
                 bool parallel) {
  Plan plan = {};
  plan.batch_slices = batch_slices;
  plan.unit_slices = unit_slices;
  plan.parallel = parallel;
  const int64_t batch = ceil_div(p.batch, batch_slices);
  const int64_t units = ceil_div(p.hidden, unit_slices);
  const int64_t rows = ceil_div(p.rows, batch_slices);
  const int64_t chunks = std::max<int64_t>(1, p.length * batch / kChunkRows);
  plan.chunk = ceil_div(p.length, chunks);
  // A block of the gates' gradients and a panel of x or h_prev fill half of the L2 cache. More rows
  // of both gain nothing: the result is then read and written rarely enough.
  const int64_t row_bytes = kGradientColumns * p.operand_bytes;
  plan.gradient_rows = std::clamp<int64_t>(p.machine.cache_bytes[1] / 2 / row_bytes, 64, 384) & ~1;
  const int64_t chunk_rows = std::max<int64_t>(1, ceil_div(rows, chunks));
  Choice input, recurrent;
  if (p.backward) {
    const int64_t columns = p.projected ? p.projection : units;
    recurrent = model.plain(batch, columns, 4 * p.hidden, p.length);
    input = model.plain(ceil_div(rows, unit_slices), p.input, 4 * p.hidden, 1);
  } else {
    recurrent = model.gates(batch, units, p.projection, p.length, p.length == 1);
    input = model.gates(chunk_rows, units, p.input, chunks, chunks == 1);
  }
  plan.input_gemm = input.gemm;
  plan.recurrent_gemm = recurrent.gemm;
  const int64_t groups = p.directions * batch_slices * unit_slices;  // of which each has a thread
  const double rounds =
      parallel ? static_cast<double>(ceil_div(groups, p.threads)) : static_cast<double>(groups);
  plan.microseconds = rounds * (input.ns + recurrent.ns) / 1e3;
  if (unit_slices > 1) plan.microseconds += static_cast<double>(p.length) * p.machine.barrier_us;
  if (parallel) plan.microseconds += p.machine.parallel_us;
  plan.kernel = recurrent.gemm == Gemm::dot ? Kernel::direct : Kernel::panels;
  return plan;
}

}  // namespace

// The gates of a vector have five quotients, each a division, which runs beside FMAs, or seven FMAs
// more: 105 FMAs in all, or 140.
bool make_division_plan(const Machine& machine) {
  const double fma = machine.fma_ns(machine.vector_bytes / 4);
  return std::max(105 * fma, 5 * machine.division_ns) < 140 * fma;
}

Plan make_cpu_plan(const Problem& p) {
  const Model model(p);
  Plan best = plan_slices(p, model, 1, 1, /*parallel=*/false);
  if (p.threads == 1) return best;
  const auto consider = [&](int64_t batch_slices, int64_t unit_slices) {
    if (p.directions * batch_slices * unit_slices == 1) return;
    const Plan plan = plan_slices(p, model, batch_slices, unit_slices, /*parallel=*/true);
    if (plan.microseconds < best.microseconds) best = plan;
  };
  const int64_t each = ceil_div(p.threads, p.directions);  // threads for each direction
  consider(std::max<int64_t>(1, std::min(each, p.batch)), 1);
  // Slices of the hidden units meet at a barrier each step.
  const int64_t lanes = p.machine.vector_bytes / (p.operand_bytes == 8 ? 8 : 4);
  const int64_t units = std::min(each, p.hidden / (kMinUnitVectors * lanes));
  if (p.concurrent_threads && !p.projected && units > 1) consider(1, units);
  return best;
}

}  // namespace fused_lstm
