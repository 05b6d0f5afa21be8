// What a step of a persistent LSTM is made of, each part timed alone on an idle GPU:
//
//   nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 benchmarks/latency.cu -o latency
//   ./latency
//
// A line each: what, cycles (median over the blocks), microseconds at the highest clock, the figure
// that the design assumes and whose it is: the plan's (csrc/plan/plan_cuda.cpp), or that of the
// count of cycles in the machine code ("SASS"). The exit status is the number of lines that could
// not be measured. Clusters need 9.0, the rest 8.0.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kWarmRounds = 16;
constexpr int kRounds = 256;
constexpr int kStoreRounds = 64;                   // rounds until stores return to an address
constexpr int kMaxStores = 6;                      // of a thread and round
constexpr size_t kScratchBytes = size_t{1} << 28;  // more than the L2 cache

// PTX

__device__ uint64_t clock_now() {
  uint64_t cycles;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles)::"memory");
  return cycles;
}

__device__ uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ uint4 load_relaxed(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

__device__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ void add_release(uint32_t* to) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
}

__device__ void add_relaxed(uint32_t* to) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
}

__device__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Plain stores of a thread to memory that is never read, as training has them before an exchange.
__device__ void store_results(float* scratch, int round, int stores) {
  for (int s = 0; s < stores; ++s) {
    const size_t row = static_cast<size_t>(round % kStoreRounds) * stores + s;
    scratch[(row * gridDim.x + blockIdx.x) * kThreads + threadIdx.x] = static_cast<float>(round);
  }
}

// 1. The exchange over the grid

enum class GridExchange { cooperative_groups, counter, relaxed_counter, flags, data_as_flag };

// `data` has two buffers of `bytes`; each block writes its part of one and reads all of it.
__global__ void __launch_bounds__(kThreads, 1)
    grid_exchange(GridExchange kind, uint32_t* counter, uint32_t* flags, char* data, int bytes,
                  float* scratch, int stores, uint64_t* cycles) {
  constexpr int kFlagStride = 8;  // a sector each
  const int blocks = gridDim.x;
  uint64_t begin = 0;
  uint32_t sum = 0;
  for (int iter = 0; iter < kWarmRounds + kRounds; ++iter) {
    if (iter == kWarmRounds) begin = clock_now();
    const uint32_t round = iter + 1;
    store_results(scratch, iter, stores);
    switch (kind) {
      case GridExchange::cooperative_groups:
        cg::this_grid().sync();
        break;
      case GridExchange::counter:
        __syncthreads();
        if (threadIdx.x == 0) {
          add_release(counter);
          while (load_acquire(counter) < round * blocks) {
          }
        }
        __syncthreads();
        break;
      case GridExchange::relaxed_counter:
        __syncthreads();
        if (threadIdx.x == 0) {
          add_relaxed(counter);
          while (load_relaxed(counter) < round * blocks) {
          }
        }
        __syncthreads();
        break;
      case GridExchange::flags:
        __syncthreads();
        if (threadIdx.x == 0) store_release(flags + blockIdx.x * kFlagStride, round);
        if (threadIdx.x < 32) {
          for (int i = threadIdx.x; i < blocks; i += 32) {
            while (load_relaxed(flags + i * kFlagStride) < round) {
            }
          }
          fence_gpu();
        }
        __syncthreads();
        break;
      case GridExchange::data_as_flag: {  // a word holds its round
        char* const buffer = data + (round & 1) * bytes;
        const int words = bytes / 4 / blocks;
        for (int i = threadIdx.x; i < words; i += kThreads) {
          store_relaxed(reinterpret_cast<uint32_t*>(buffer) + blockIdx.x * words + i, round);
        }
        for (int i = threadIdx.x; i < bytes / 16; i += kThreads) {
          uint4 v;
          do {
            v = load_relaxed(reinterpret_cast<const uint4*>(buffer) + i);
          } while (v.x < round || v.y < round || v.z < round || v.w < round);
          sum += v.x;
        }
        __syncthreads();
        break;
      }
    }
  }
  const uint64_t end = clock_now();
  if (threadIdx.x == 0) cycles[blockIdx.x] = (end - begin) / kRounds + (sum == 0xffffffff);
}

// 2. The exchange within a cluster

enum class ClusterExchange { barrier, stores, async };

// Each block has `words` words for every block of its cluster; two buffers in shared memory.
__global__ void __launch_bounds__(kThreads, 1)
    cluster_exchange([[maybe_unused]] ClusterExchange kind, [[maybe_unused]] int words,
                     [[maybe_unused]] float* scratch, [[maybe_unused]] int stores,
                     [[maybe_unused]] uint64_t* cycles) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(8) uint64_t barriers[2];
  cg::cluster_group cluster = cg::this_cluster();
  const int blocks = cluster.num_blocks(), rank = cluster.block_rank();
  const auto address = [](const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  };
  const auto map = [](uint32_t own, int to) {
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(own), "r"(to));
    return mapped;
  };
  const auto expect = [&](int which) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&barriers[which])),
        "r"(words * blocks * 4)
        : "memory");
  };
  if (threadIdx.x == 0) {
    for (int which = 0; which < 2; ++which) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&barriers[which]))
                   : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int which = 0; which < 2; ++which) expect(which);
  }
  cluster.sync();
  uint64_t begin = 0;
  for (int iter = 0; iter < kWarmRounds + kRounds; ++iter) {
    if (iter == kWarmRounds) begin = clock_now();
    store_results(scratch, iter, stores);
    uint32_t* const buffer = reinterpret_cast<uint32_t*>(shared) + (iter & 1) * words * blocks;
    if (kind == ClusterExchange::async) {
      const uint32_t barrier = address(&barriers[iter & 1]);
      for (int i = threadIdx.x; i < words; i += kThreads) {
        const uint32_t to = address(buffer + rank * words + i);
        for (int block = 0; block < blocks; ++block) {
          asm volatile(
              "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                  map(to, block)),
              "r"(iter), "r"(map(barrier, block))
              : "memory");
        }
      }
      uint32_t complete = 0;
      while (!complete) {
        asm volatile(
            "{ .reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p; }"
            : "=r"(complete)
            : "r"(barrier), "r"((iter >> 1) & 1)
            : "memory");
      }
      __syncthreads();
      if (threadIdx.x == 0) expect(iter & 1);
    } else {
      if (kind == ClusterExchange::stores) {
        for (int i = threadIdx.x; i < words; i += kThreads) {
          for (int block = 0; block < blocks; ++block) {
            *static_cast<volatile uint32_t*>(cluster.map_shared_rank(buffer, block) + rank * words +
                                             i) = iter;
          }
        }
      }
      asm volatile("barrier.cluster.arrive.release;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
    }
  }
  const uint64_t end = clock_now();
  cluster.sync();  // no block ends while another may write to it
  if (threadIdx.x == 0) cycles[blockIdx.x] = (end - begin) / kRounds;
#endif
}

// 3. Memory: a word to and fro between two multiprocessors, and a chain of loads

__global__ void ping_pong(uint32_t* words, uint64_t* cycles) {
  const bool first = blockIdx.x == 0;
  if (threadIdx.x != 0 || (!first && blockIdx.x != gridDim.x - 1)) return;
  uint32_t* const mine = words + (first ? 0 : 64);
  const uint32_t* const other = words + (first ? 64 : 0);
  const uint64_t begin = clock_now();
  for (uint32_t round = 1; round <= kRounds; ++round) {
    if (first) store_relaxed(mine, round);
    while (load_relaxed(other) < round) {
    }
    if (!first) store_relaxed(mine, round);
  }
  if (first) *cycles = (clock_now() - begin) / kRounds;
}

__global__ void chase(const uint32_t* next, uint64_t* cycles) {
  uint32_t at = 0;
  for (int i = 0; i < kWarmRounds; ++i) at = load_relaxed(next + at);
  const uint64_t begin = clock_now();
  for (int i = 0; i < kRounds; ++i) at = load_relaxed(next + at);
  *cycles = (clock_now() - begin) / kRounds + (at == 0xffffffff);
}

// 4. Fences and the barrier of a block, with stores under way

__global__ void __launch_bounds__(kThreads, 1)
    fence(bool fenced, float* scratch, int stores, uint64_t* cycles) {
  uint64_t begin = 0;
  for (int iter = 0; iter < kWarmRounds + kRounds; ++iter) {
    if (iter == kWarmRounds) begin = clock_now();
    store_results(scratch, iter, stores);
    if (fenced) fence_gpu();
    __syncthreads();
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = (clock_now() - begin) / kRounds;
}

// 5. mma.sync: `chains` independent sums of a warp; hundredths of a cycle an instruction of a warp

template <int chains, bool tf32>
__global__ void __launch_bounds__(kThreads, 1) mma(float* scratch, uint64_t* cycles) {
  float d[chains][4] = {};
  const uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {threadIdx.x, 5};
  __syncthreads();
  const uint64_t begin = clock_now();
#pragma unroll 8
  for (int i = 0; i < kRounds; ++i) {
#pragma unroll
    for (int c = 0; c < chains; ++c) {
      if constexpr (tf32) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
      } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
      }
    }
  }
  const uint64_t end = clock_now();
  float sum = 0;
  for (int c = 0; c < chains; ++c) sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
  scratch[blockIdx.x * kThreads + threadIdx.x] = sum;
  if (threadIdx.x == 0) cycles[blockIdx.x] = (end - begin) * 100 / (kRounds * chains);
}

// 6. Straight code of `kilobytes`, run by 8 warps that meet after each pass: hundredths of a cycle
// an instruction of a warp

template <int kilobytes>
__global__ void __launch_bounds__(kThreads, 1)
    straight_code(float x, float* scratch, uint64_t* cycles) {
  constexpr int kPasses = 32, kWarmPasses = 8;
  constexpr int kInstructions = kilobytes * 1024 / 16;
  float sums[4] = {};
  uint64_t begin = 0;
#pragma unroll 1
  for (int pass = 0; pass < kWarmPasses + kPasses; ++pass) {
    if (pass == kWarmPasses) begin = clock_now();
#pragma unroll
    for (int i = 0; i < kInstructions; ++i) {
      asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(sums[i % 4]) : "f"(x));
    }
    __syncthreads();
  }
  const uint64_t end = clock_now();
  scratch[blockIdx.x * kThreads + threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
  if (threadIdx.x == 0) cycles[blockIdx.x] = (end - begin) * 100 / (kPasses * kInstructions);
}

// The host

void must(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "latency: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

template <class T>
T* allocate(size_t bytes) {
  void* memory;
  must(cudaMalloc(&memory, bytes));
  must(cudaMemset(memory, 0, bytes));
  return static_cast<T*>(memory);
}

// What the design assumes, in cycles, and where it does: "plan" or "SASS".
struct Assumed {
  double cycles;
  const char* by;
};

class Table {
 public:
  Table() : cycles_(allocate<uint64_t>(kMaxBlocks * sizeof(uint64_t))) {
    int kilohertz = 0;
    must(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
    cycles_a_microsecond_ = kilohertz / 1e3;
    std::printf("%-60s %9s %8s  %s\n", "", "cycles", "us", "assumed");
  }

  uint64_t* cycles() { return cycles_; }
  int failed() const { return failed_; }

  // Prints what the launch just made has found. `divisor` is 100 for hundredths.
  void add(const std::string& what, int blocks, std::optional<Assumed> assumed = std::nullopt,
           double divisor = 1) {
    cudaError_t status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    std::vector<uint64_t> found(blocks);
    if (status == cudaSuccess) {
      status = cudaMemcpy(found.data(), cycles_, blocks * sizeof(uint64_t), cudaMemcpyDefault);
    }
    std::printf("%-60s ", what.c_str());
    if (status != cudaSuccess) {
      ++failed_;
      std::printf("not measured: %s\n", cudaGetErrorString(status));
      cudaGetLastError();
    } else {
      std::nth_element(found.begin(), found.begin() + blocks / 2, found.end());
      const double cycles = found[blocks / 2] / divisor;
      std::printf("%9.2f %8.3f", cycles, cycles / cycles_a_microsecond_);
      if (assumed) std::printf("  %.0f (%s)", assumed->cycles, assumed->by);
      std::printf("\n");
    }
    std::fflush(stdout);  // a run that is cut short keeps its lines
  }

 private:
  static constexpr int kMaxBlocks = 1024;
  uint64_t* cycles_;
  double cycles_a_microsecond_;
  int failed_ = 0;
};

std::string before(int stores) {
  return stores ? ", " + std::to_string(stores) + " stores before" : "";
}

void time_grid(Table& table, int multiprocessors, float* scratch) {
  struct Kind {
    GridExchange exchange;
    const char* name;
    std::optional<Assumed> assumed;
  };
  const Kind kinds[] = {{GridExchange::cooperative_groups, "grid.sync", {}},
                        {GridExchange::counter, "counter, release and acquire", {{1700, "plan"}}},
                        {GridExchange::relaxed_counter, "counter, no order (a floor)", {}},
                        {GridExchange::flags, "a flag a block", {}},
                        {GridExchange::data_as_flag, "data as flag", {{650, "SASS"}}}};
  auto* const counter = allocate<uint32_t>(4);
  constexpr size_t kFlagBytes = 1 << 16, kDataBytes = 1 << 20;
  auto* const flags = allocate<uint32_t>(kFlagBytes);
  auto* const data = allocate<char>(kDataBytes);
  for (int blocks : {48, 96, multiprocessors}) {
    if (blocks > multiprocessors) continue;
    for (const Kind& kind : kinds) {
      for (int stores : {0, kMaxStores}) {
        // h of 16 sequences at H 768 in 16 bits, dL/da of one gate in float32
        for (int bytes : {24576, 49152}) {
          const bool carries = kind.exchange == GridExchange::data_as_flag;
          if (!carries && bytes != 24576) continue;
          GridExchange exchange = kind.exchange;
          int size = bytes / (16 * blocks) * 16 * blocks;
          uint64_t* cycles = table.cycles();
          must(cudaMemset(counter, 0, 4));
          must(cudaMemset(flags, 0, kFlagBytes));
          must(cudaMemset(data, 0, kDataBytes));
          auto* counter_argument = counter;
          auto* flags_argument = flags;
          auto* data_argument = data;
          void* arguments[] = {&exchange, &counter_argument, &flags_argument, &data_argument,
                               &size,     &scratch,          &stores,         &cycles};
          cudaLaunchCooperativeKernel(reinterpret_cast<void*>(grid_exchange), dim3(blocks),
                                      dim3(kThreads), arguments, 0, nullptr);
          table.add("grid of " + std::to_string(blocks) + ": " + kind.name +
                        (carries ? ", " + std::to_string(size) + " bytes" : "") + before(stores),
                    blocks, kind.assumed);
        }
      }
    }
  }
}

void time_clusters(Table& table, float* scratch) {
  struct Kind {
    ClusterExchange exchange;
    const char* name;
    Assumed assumed;
  };
  const Kind kinds[] = {{ClusterExchange::barrier, "barrier", {400, "plan"}},
                        {ClusterExchange::stores, "stores + barrier", {400, "plan"}},
                        {ClusterExchange::async, "st.async + mbarrier", {250, "SASS"}}};
  constexpr int kSharedBytes = 120 << 10;  // so much that a multiprocessor has one block
  must(cudaFuncSetAttribute(cluster_exchange, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  must(cudaFuncSetAttribute(cluster_exchange, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            kSharedBytes));
  for (unsigned size : {4u, 8u, 16u}) {
    for (const Kind& kind : kinds) {
      for (int stores : {0, kMaxStores}) {
        // Of each block for every block, 32 units of 16 sequences: h in 16 bits, sums in float32
        for (int words : {256, 512}) {
          if (kind.exchange == ClusterExchange::barrier && words != 256) continue;
          cudaLaunchConfig_t config = {};
          cudaLaunchAttribute attribute;
          attribute.id = cudaLaunchAttributeClusterDimension;
          attribute.val.clusterDim = {size, 1, 1};
          config.gridDim = dim3(size * (16 / size));
          config.blockDim = dim3(kThreads);
          config.dynamicSmemBytes = kSharedBytes;
          config.attrs = &attribute;
          config.numAttrs = 1;
          cudaLaunchKernelEx(&config, cluster_exchange, kind.exchange, words, scratch, stores,
                             table.cycles());
          const bool carries = kind.exchange != ClusterExchange::barrier;
          table.add("cluster of " + std::to_string(size) + ": " + kind.name +
                        (carries ? ", " + std::to_string(words) + " words" : "") + before(stores),
                    static_cast<int>(config.gridDim.x), kind.assumed);
        }
      }
    }
  }
}

void time_memory(Table& table, int multiprocessors, float* scratch) {
  auto* const words = allocate<uint32_t>(1024);
  ping_pong<<<multiprocessors, 32>>>(words, table.cycles());
  table.add("a word through L2, there and back", 1);
  struct Array {
    size_t megabytes;
    std::optional<Assumed> assumed;
  };
  for (const Array& array : {Array{4, {{280, "SASS"}}}, Array{256, {{600, "SASS"}}}}) {
    constexpr size_t kStride = 1056;  // words: 4 KB and a sector line, another set each time
    std::vector<uint32_t> next(array.megabytes << 18);
    const size_t links = next.size() / kStride;
    for (size_t i = 0; i < links; ++i) {
      next[i * kStride] = static_cast<uint32_t>((i + 1) % links * kStride);
    }
    must(cudaMemcpy(scratch, next.data(), next.size() * 4, cudaMemcpyDefault));
    auto* const chain = reinterpret_cast<const uint32_t*>(scratch);
    chase<<<1, 1>>>(chain, table.cycles());
    if (array.megabytes < 32) {  // in the L2 cache from the second time on
      for (int i = 0; i < 8; ++i) chase<<<1, 1>>>(chain, table.cycles());
    }
    table.add("a dependent load, array of " + std::to_string(array.megabytes) + " MB", 1,
              array.assumed);
  }
  for (bool fenced : {false, true}) {
    for (int stores : {0, 1, kMaxStores}) {
      fence<<<multiprocessors, kThreads>>>(fenced, scratch, stores, table.cycles());
      table.add((fenced ? "fence.gpu + __syncthreads" : "__syncthreads") + before(stores),
                multiprocessors, fenced ? Assumed{600, "SASS"} : Assumed{50, "plan"});
    }
  }
}

template <int chains, bool tf32>
void time_mma(Table& table, int multiprocessors, float* scratch, int warps,
              std::optional<Assumed> assumed) {
  mma<chains, tf32><<<multiprocessors, 32 * warps>>>(scratch, table.cycles());
  table.add(std::string("mma ") + (tf32 ? "tf32" : "bf16") + ", " + std::to_string(chains) +
                " chains, " + std::to_string(warps) + " warps",
            multiprocessors, assumed, 100);
}

template <int kilobytes>
void time_code(Table& table, int multiprocessors, float* scratch) {
  straight_code<kilobytes><<<multiprocessors, kThreads>>>(0.5f, scratch, table.cycles());
  // Two warps share a scheduler, which issues an instruction a cycle.
  table.add("an instruction of straight code of " + std::to_string(kilobytes) + " KB",
            multiprocessors, Assumed{2, "SASS"}, 100);
}

}  // namespace

int main() {
  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0));
  const int multiprocessors = device.multiProcessorCount;
  std::printf("%s, %d.%d, %d multiprocessors, L2 cache %d MB\n", device.name, device.major,
              device.minor, multiprocessors, device.l2CacheSize >> 20);
  Table table;
  auto* const scratch = allocate<float>(kScratchBytes);
  time_grid(table, multiprocessors, scratch);
  if (device.major >= 9) time_clusters(table, scratch);
  time_memory(table, multiprocessors, scratch);
  // A chain waits for each sum; two warps on a scheduler share its tensor core.
  time_mma<1, false>(table, multiprocessors, scratch, 1, Assumed{33, "SASS"});
  time_mma<4, false>(table, multiprocessors, scratch, 8, Assumed{20, "plan"});
  time_mma<1, true>(table, multiprocessors, scratch, 1, Assumed{33, "SASS"});
  time_mma<4, true>(table, multiprocessors, scratch, 8, Assumed{20, "plan"});
  time_code<4>(table, multiprocessors, scratch);
  time_code<16>(table, multiprocessors, scratch);
  time_code<32>(table, multiprocessors, scratch);
  time_code<64>(table, multiprocessors, scratch);
  time_code<128>(table, multiprocessors, scratch);
  return table.failed();
}
