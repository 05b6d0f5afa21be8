// Small kernels, each a way in which threads hand memory to one another, right and with a fault:
// patterns NAME [FAULT]. test_races.py sees the faults, and nothing in what is right. `main`
// returns 1 for a wrong number, 2 for a launch that fails. Without the runtime, and so without
// torch.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/ptx.h"

namespace {

using namespace fused_lstm::cuda;
using emulator::Scope;

constexpr int threads = 64;
constexpr int steps = 6;

struct Memory {
  uint32_t* words;    // what blocks hand to one another, zero at the launch
  unsigned* counter;  // zero at the launch
  uint32_t* result;   // [blocks, threads]
  const char* fault;
  bool has(const char* name) const { return std::strcmp(fault, name) == 0; }
};

uint32_t* shared_words() { return reinterpret_cast<uint32_t*>(dynamic_shared()); }

// Threads of a block, through shared memory and a barrier.
void block_kernel(Memory m) {
  uint32_t* const own = shared_words();
  own[threadIdx.x] = threadIdx.x;
  if (!m.has("no barrier")) __syncthreads();
  m.result[blockIdx.x * threads + threadIdx.x] = own[(threadIdx.x + 1) % threads];
  if (m.has("rewritten early")) own[threadIdx.x] = 0;
}
uint32_t block_result(int, int thread) { return static_cast<uint32_t>((thread + 1) % threads); }

// Lanes of a warp, which an exchange of values does not order.
void warp_kernel(Memory m) {
  uint32_t* const own = shared_words();
  own[threadIdx.x] = threadIdx.x;
  __shfl_xor_sync(0xffffffff, 1.0f, 1);
  if (!m.has("a shuffle")) __syncthreads();
  m.result[blockIdx.x * threads + threadIdx.x] = own[threadIdx.x ^ 1];
}
uint32_t warp_result(int, int thread) { return static_cast<uint32_t>(thread ^ 1); }

// From block to block, round, by a counter in global memory.
void counter_kernel(Memory m) {
  const unsigned next = (blockIdx.x + 1) % gridDim.x;
  for (unsigned step = 0; step < steps; ++step) {
    uint32_t* const words = m.words + (step & 1) * gridDim.x * threads;
    words[blockIdx.x * threads + threadIdx.x] = step * 1000 + threadIdx.x;
    if (!m.has("counted before all have stored")) __syncthreads();
    if (threadIdx.x == 0) {
      if (m.has("a relaxed counter")) {
        store_relaxed(m.counter + 1 + blockIdx.x, step + 1);
        emulator::add_release(m.counter, 1, Scope::cta);
      } else {
        emulator::add_release(m.counter, 1,
                              m.has("released to the block") ? Scope::cta : Scope::gpu);
      }
    }
    const Scope acquired = m.has("acquired by the block") ? Scope::cta : Scope::gpu;
    if (threadIdx.x == 0 && !m.has("no wait")) {
      while (emulator::load_acquire(m.counter, acquired) < (step + 1) * gridDim.x) {
      }
    }
    if (!m.has("one thread alone waits")) __syncthreads();
    m.result[blockIdx.x * threads + threadIdx.x] = words[next * threads + threadIdx.x];
  }
}
uint32_t counter_result(int, int thread) {
  return static_cast<uint32_t>((steps - 1) * 1000 + thread);
}

// Blocks of a cluster, by plain stores and the cluster's barrier.
void cluster_kernel(Memory m) {
  uint32_t* const own = shared_words();
  const unsigned other = (blockIdx.x + 1) % gridDim.x;
  own[threadIdx.x] = 0;
  cluster_arrive();
  cluster_wait();
  auto* const its = reinterpret_cast<uint32_t*>(emulator::map_shared(dynamic_shared(), other));
  its[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
  if (!m.has("no barrier")) cluster_arrive();
  if (m.has("no barrier")) __syncthreads();
  if (!m.has("no barrier") && !m.has("no wait")) cluster_wait();
  m.result[blockIdx.x * threads + threadIdx.x] = own[threadIdx.x];
}
uint32_t cluster_result(int block, int thread) {
  return static_cast<uint32_t>((block + 3) % 4 * 1000 + thread);
}

// Every block to all of its cluster, step by step, by st.async: two buffers, and no barrier but
// theirs. A warp has read what it needs of a buffer when it sends what it has computed of it.
void async_kernel(Memory m) {
  char* const shared = dynamic_shared();
  auto* const barriers = reinterpret_cast<uint64_t*>(shared);
  auto* const buffers = reinterpret_cast<uint32_t*>(shared + 64);  // [2, blocks, threads]
  const unsigned blocks = gridDim.x, bytes = blocks * threads * 4;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers + i, 1);
    if (!m.has("no fence")) barrier_init_fence();
  }
  if (m.has("barriers that not all know of")) {
    cluster_arrive();
  } else {
    cluster_arrive();
    cluster_wait();
  }
  uint32_t sum = threadIdx.x + blockIdx.x;
  for (unsigned step = 0; step < steps; ++step) {
    const unsigned buffer = m.has("one buffer") ? 0 : step & 1;
    const unsigned parity = (step >> 1) & 1;
    if (threadIdx.x == 0) barrier_expect(barriers + (step & 1), bytes);
    const uint32_t* const received = buffers + buffer * blocks * threads;
    for (unsigned rank = 0; rank < blocks; ++rank) {
      store_async(cluster_address(received + blockIdx.x * threads + threadIdx.x, rank), sum,
                  cluster_address(barriers + (step & 1), rank));
    }
    if (m.has("no last wait") && step + 1 == steps) break;
    if (!m.has("no wait") || threadIdx.x == 0) {
      emulator::barrier_wait(barriers + (step & 1), parity,
                             m.has("a wait of the block") ? Scope::cta : Scope::cluster);
    }
    if (m.has("cleared early")) buffers[(buffer ^ 1) * blocks * threads + threadIdx.x] = 0;
    uint32_t mine = 0;
    for (unsigned rank = 0; rank < blocks; ++rank) {
      // A lane depends on what all of its warp have read.
      mine += received[rank * threads + (threadIdx.x ^ 1)];
    }
    sum = __shfl_xor_sync(0xffffffff, mine, 1) + threadIdx.x;
  }
  m.result[blockIdx.x * threads + threadIdx.x] = sum;
  cluster_arrive();
  cluster_wait();
}
uint32_t async_result(int, int thread) {
  const auto at = static_cast<uint32_t>(thread);
  uint32_t sum = 4 * at + 6;
  for (int step = 1; step < steps; ++step) sum = 4 * (sum + at);
  return sum + at;
}

// Every block to all of the grid, by words that carry the phase of their version: a word is there
// when its lowest bit is that of the phase. Two buffers: a version is sent when the one before is
// received, whole, so that the one before that is read everywhere.
void words_kernel(Memory m) {
  uint32_t sum = threadIdx.x;
  for (unsigned version = 2; version < 2 + steps; ++version) {
    const uint32_t phase = (version >> 1) & 1;
    uint32_t* const buffer = m.words + (version & 1) * gridDim.x * threads;
    uint32_t* const own = buffer + blockIdx.x * threads + threadIdx.x;
    if (m.has("a plain store")) {
      *own = 2 * sum + phase;
    } else {
      store_relaxed(own, 2 * sum + phase);
    }
    sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) {
      const auto* const from = reinterpret_cast<const uint4*>(buffer + block * threads +
                                                              (threadIdx.x / 4 * 4 + 4) % threads);
      uint4 words;
      do {
        words = load_relaxed(from);
        if (m.has("a plain load")) words = *from;
      } while ((words.x & words.y & words.z & words.w & 1) != phase ||
               ((words.x | words.y | words.z | words.w) & 1) != phase);
      sum += (words.x + words.y + words.z + words.w) / 2;
    }
    if (!m.has("no barrier")) __syncthreads();
    if (m.has("cleared early")) store_relaxed(own, 0);
  }
  m.result[blockIdx.x * threads + threadIdx.x] = sum;
}
uint32_t words_result(int, int thread) {
  std::vector<uint32_t> sums(threads);
  for (uint32_t i = 0; i < threads; ++i) sums[i] = i;
  for (unsigned version = 2; version < 2 + steps; ++version) {
    const uint32_t phase = (version >> 1) & 1;
    std::vector<uint32_t> next(threads);
    for (int i = 0; i < threads; ++i) {
      const int first = (i / 4 * 4 + 4) % threads;
      const uint32_t four = sums[first] + sums[first + 1] + sums[first + 2] + sums[first + 3];
      next[i] = 4 * (four + 2 * phase);
    }
    sums = next;
  }
  return sums[thread];
}

// Data, then a flag: both reach another block, in any order unless the flag is released.
void flag_kernel(Memory m) {
  if (blockIdx.x == 0) {
    store_relaxed(m.words + threadIdx.x, threadIdx.x + 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      if (m.has("a relaxed flag")) {
        store_relaxed(m.counter, 1);
      } else {
        emulator::add_release(m.counter, 1, Scope::gpu);
      }
    }
    for (int i = 0; i < 100; ++i) __syncthreads();  // it lives on: its end would be a release
    return;
  }
  if (threadIdx.x == 0) {
    while (emulator::load_acquire(m.counter, Scope::gpu) == 0) {
    }
  }
  __syncthreads();
  uint32_t word[4];
  emulator::load_relaxed(m.words + threadIdx.x, word, 1);
  m.result[blockIdx.x * threads + threadIdx.x] = word[0];
}
uint32_t flag_result(int block, int thread) {
  return block == 0 ? 0 : static_cast<uint32_t>(thread) + 1;
}

struct Pattern {
  void (*kernel)(Memory);
  uint32_t (*result)(int block, int thread);
  int blocks;
  bool cluster;
};

const std::map<std::string, Pattern> patterns = {
    {"block", {block_kernel, block_result, 2, false}},
    {"warp", {warp_kernel, warp_result, 2, false}},
    {"counter", {counter_kernel, counter_result, 4, false}},
    {"cluster", {cluster_kernel, cluster_result, 4, true}},
    {"async", {async_kernel, async_result, 4, true}},
    {"words", {words_kernel, words_result, 4, false}},
    {"flag", {flag_kernel, flag_result, 4, false}},
};

constexpr cudaDeviceProp device = [] {
  cudaDeviceProp its = {};
  its.multiProcessorCount = 4;
  return its;
}();

}  // namespace

const cudaDeviceProp& emulator::properties = device;
bool emulator::records_launches() { return false; }

int main(int count, char** arguments) {
  const auto found = patterns.find(count > 1 ? arguments[1] : "");
  if (found == patterns.end()) {
    std::fprintf(stderr, "patterns NAME [FAULT]; there is no %s\n", count > 1 ? arguments[1] : "");
    return 3;
  }
  const Pattern& pattern = found->second;
  std::vector<uint32_t> words(2 * pattern.blocks * threads, 0);
  std::vector<unsigned> counter(64, 0);
  std::vector<uint32_t> result(pattern.blocks * threads, 0);
  const Memory memory = {words.data(), counter.data(), result.data(),
                         count > 2 ? arguments[2] : ""};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(pattern.blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = 64 + 2 * 4 * threads * 4;
  const unsigned cluster = pattern.cluster ? config.gridDim.x : 1;
  if (emulator::run(config, cluster, [&] { pattern.kernel(memory); }) != cudaSuccess) return 2;
  for (int block = 0; block < pattern.blocks; ++block) {
    for (int thread = 0; thread < threads; ++thread) {
      const uint32_t expected = pattern.result(block, thread);
      const uint32_t its = result[block * threads + thread];
      if (its == expected) continue;
      std::fprintf(stderr, "block %d thread %d has %u, not %u\n", block, thread, its, expected);
      return 1;
    }
  }
  return 0;
}
