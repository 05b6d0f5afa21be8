// Runs kernels on the host. Every CUDA thread is a fiber; all blocks that a GPU would hold at once
// are alive together, and who goes on at a wait is drawn by chance (EMULATOR_SEED), so that a
// missing barrier shows as a wrong number. Shared memory starts as NaN. When no thread can go on, a
// report says who waits where.
#include <cuda_runtime.h>
#include <emulated_instructions.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

namespace {

constexpr size_t stack_bytes = 256 * 1024;  // touched as far as needed
constexpr int warp_size = 32;

struct Block;

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  dim3 thread;
  Block* block = nullptr;
  const char* waits = nullptr;  // for what; null: it can go on
  void* brought = nullptr;      // to a warp's meeting
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;
  ~Fiber() {
    if (stack) munmap(stack, stack_bytes);
  }
};

// Threads come, and all go on when the last is there.
struct Meeting {
  unsigned arrived = 0, expected = 0;
  std::vector<Fiber*> waiting;
};

struct Cluster {
  Meeting meeting;
  unsigned phase = 0;  // meetings that are complete
  std::vector<Block*> blocks;
};

struct Block {
  dim3 index;
  Cluster* cluster = nullptr;
  std::unique_ptr<char, void (*)(void*)> memory = {nullptr, std::free};
  Meeting meeting;
  std::vector<Meeting> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned> cluster_phase;  // of each thread: the meeting it has arrived at
  unsigned finished = 0;
};

class Machine {
 public:
  cudaError_t run(const cudaLaunchConfig_t& config, unsigned cluster_size,
                  const std::function<void()>& thread) {
    thread_ = &thread;
    config_ = &config;
    blockDim = config.blockDim;
    gridDim = config.gridDim;
    unsigned next = 0;
    const unsigned resident = static_cast<unsigned>(properties.multiProcessorCount);
    polls_ = 0;
    while (next < config.gridDim.x || !blocks_.empty()) {
      while (next < config.gridDim.x && blocks_.size() + cluster_size <= resident) {
        start_cluster(next, cluster_size);
        next += cluster_size;
      }
      if (ready_.empty() || polls_ > 100 * (ready_.size() + 1)) return report();
      const size_t drawn = random_() % ready_.size();
      Fiber* const fiber = ready_[drawn];
      ready_[drawn] = ready_.back();
      ready_.pop_back();
      resume(*fiber);
    }
    clusters_.clear();
    return cudaSuccess;
  }

  Fiber& running() { return *running_; }

  // The running thread goes on later.
  void pause() {
    ready_.push_back(running_);
    to_scheduler();
  }
  void wait(const char* what) {
    running_->waits = what;
    to_scheduler();
  }
  void arrive(Meeting& meeting, const char* what) {
    progress();
    if (++meeting.arrived < meeting.expected) {
      meeting.waiting.push_back(running_);
      wait(what);
    } else {
      open(meeting);
    }
  }
  void open(Meeting& meeting) {
    meeting.arrived = 0;
    for (Fiber* const fiber : meeting.waiting) {
      fiber->waits = nullptr;
      ready_.push_back(fiber);
    }
    meeting.waiting.clear();
    progress();
  }
  void progress() { polls_ = 0; }
  void poll() {
    ++polls_;
    running_->waits = "a counter in global memory";
    pause();
    running_->waits = nullptr;
  }

 private:
  void start_cluster(unsigned first, unsigned size) {
    auto cluster = std::make_unique<Cluster>();
    const unsigned threads = config_->blockDim.x;
    cluster->meeting.expected = size * threads;
    for (unsigned rank = 0; rank < size; ++rank) {
      auto block = std::make_unique<Block>();
      block->index = dim3(first + rank, 0, 0);
      block->cluster = cluster.get();
      const size_t bytes = (config_->dynamicSmemBytes + 127) / 128 * 128;
      block->memory.reset(static_cast<char*>(std::aligned_alloc(128, bytes)));
      std::memset(block->memory.get(), 0xff, bytes);
      block->meeting.expected = threads;
      block->warps.resize((threads + warp_size - 1) / warp_size);
      for (Meeting& warp : block->warps) warp.expected = warp_size;
      block->cluster_phase.resize(threads, 0);
      for (unsigned i = 0; i < threads; ++i) {
        block->fibers.push_back(new_fiber());
        Fiber& fiber = *block->fibers.back();
        fiber.thread = dim3(i, 0, 0);
        fiber.block = block.get();
        ready_.push_back(&fiber);
      }
      cluster->blocks.push_back(block.get());
      blocks_[block->index.x] = std::move(block);
    }
    clusters_.push_back(std::move(cluster));
  }

  std::unique_ptr<Fiber> new_fiber() {
    std::unique_ptr<Fiber> fiber;
    if (free_.empty()) {
      fiber = std::make_unique<Fiber>();
      fiber->stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    } else {
      fiber = std::move(free_.back());
      free_.pop_back();
    }
    getcontext(&fiber->context);
    fiber->context.uc_stack = {fiber->stack, 0, stack_bytes};
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Machine::begin, 0);
    return fiber;
  }

  static void begin();

  void resume(Fiber& fiber) {
    running_ = &fiber;
    threadIdx = fiber.thread;
    blockIdx = fiber.block->index;
#ifdef __SANITIZE_ADDRESS__
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack, stack_bytes);
    swapcontext(&scheduler_, &fiber.context);
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#else
    swapcontext(&scheduler_, &fiber.context);
#endif
    if (finished_) {
      finished_ = false;
      finish(fiber);
    }
  }

  void to_scheduler() {
    Fiber& fiber = *running_;
#ifdef __SANITIZE_ADDRESS__
    void* own = nullptr;
    __sanitizer_start_switch_fiber(finished_ ? nullptr : &own, scheduler_stack_,
                                   scheduler_stack_bytes_);
    swapcontext(&fiber.context, &scheduler_);
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#else
    swapcontext(&fiber.context, &scheduler_);
#endif
  }

  void finish(Fiber& fiber) {
    progress();
    Block& block = *fiber.block;
    if (++block.finished < block.fibers.size()) return;
    Cluster& cluster = *block.cluster;
    for (auto& done : block.fibers) free_.push_back(std::move(done));
    block.fibers.clear();
    // Its memory goes at once, though others of its cluster may still run: a block that writes to it
    // then writes to freed memory, which AddressSanitizer sees.
    block.memory.reset();
    for (Block*& member : cluster.blocks) {
      if (member == &block) member = nullptr;
    }
    blocks_.erase(block.index.x);
  }

  cudaError_t report() {
    std::map<std::string, unsigned> waits;
    for (const auto& [index, block] : blocks_) {
      for (const auto& fiber : block->fibers) {
        const char* const what = fiber->waits ? fiber->waits : "nothing, or has returned";
        ++waits["block " + std::to_string(index) + " warp " +
                std::to_string(fiber->thread.x / warp_size) + ": threads that wait for " + what];
      }
    }
    std::fprintf(stderr, "emulator: no thread can go on\n");
    for (const auto& [where, threads] : waits) {
      std::fprintf(stderr, "  %s: %u\n", where.c_str(), threads);
    }
    ready_.clear();
    // The fibers' frames are abandoned, with what they own.
    for (auto& [index, block] : blocks_) {
      for (auto& fiber : block->fibers) fiber.release();
    }
    blocks_.clear();
    clusters_.clear();
    return cudaErrorLaunchFailure;
  }

  static uint32_t seed() {
    const char* const text = std::getenv("EMULATOR_SEED");
    return text ? static_cast<uint32_t>(std::strtoul(text, nullptr, 10)) : 1;
  }

  const std::function<void()>* thread_ = nullptr;
  const cudaLaunchConfig_t* config_ = nullptr;
  std::mt19937 random_{seed()};
  ucontext_t scheduler_;
#ifdef __SANITIZE_ADDRESS__
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
#endif
  Fiber* running_ = nullptr;
  bool finished_ = false;
  uint64_t polls_ = 0;  // since anything happened
  std::vector<Fiber*> ready_;
  std::vector<std::unique_ptr<Fiber>> free_;
  std::map<unsigned, std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
};

Machine& machine() {
  static Machine only;
  return only;
}

void Machine::begin() {
  Machine& self = machine();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_bytes_);
#endif
  (*self.thread_)();
  if (!self.running_->copies.empty()) {
    std::fprintf(stderr, "emulator: a thread has returned without waiting for its copies\n");
    std::abort();
  }
  self.finished_ = true;
  self.to_scheduler();
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, unsigned cluster,
                const std::function<void()>& thread) {
  return machine().run(config, cluster, thread);
}

void wait_for_block() {
  machine().arrive(machine().running().block->meeting, "__syncthreads");
}

void wait_for_warp(const char* what, void* mine, void (*together)(void* const (&all)[32])) {
  Fiber& self = machine().running();
  Block& block = *self.block;
  Meeting& meeting = block.warps[self.thread.x / warp_size];
  self.brought = mine;
  if (meeting.arrived + 1 == meeting.expected) {
    void* all[32];
    const unsigned first = self.thread.x / warp_size * warp_size;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
      Fiber& other = *block.fibers[first + lane];
      if (&other != &self && other.waits != what) {
        std::fprintf(stderr, "emulator: a warp meets at %s and at %s\n", what, other.waits);
        std::abort();
      }
      all[lane] = other.brought;
    }
    together(all);
  }
  machine().arrive(meeting, what);
}

char* block_memory() { return machine().running().block->memory.get(); }

char* map_shared(char* shared, unsigned rank) {
  Block& own = *machine().running().block;
  Block* const other = rank < own.cluster->blocks.size() ? own.cluster->blocks[rank] : nullptr;
  if (!other) {
    std::fprintf(stderr, "emulator: block %u of the cluster is not there, or has returned\n", rank);
    std::abort();
  }
  return other->memory.get() + (shared - own.memory.get());
}

void cluster_arrive() {
  Fiber& self = machine().running();
  Cluster& cluster = *self.block->cluster;
  self.block->cluster_phase[self.thread.x] = cluster.phase + 1;
  Meeting& meeting = cluster.meeting;
  machine().progress();
  if (++meeting.arrived == meeting.expected) {
    ++cluster.phase;
    machine().open(meeting);
  }
}

void cluster_wait() {
  Fiber& self = machine().running();
  Cluster& cluster = *self.block->cluster;
  if (cluster.phase >= self.block->cluster_phase[self.thread.x]) return machine().pause();
  cluster.meeting.waiting.push_back(&self);
  machine().wait("the cluster");
}

void copy_later(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    std::fprintf(stderr, "emulator: a copy of %zu bytes is not aligned\n", bytes);
    std::abort();
  }
  machine().running().copies.push_back({to, from, bytes});
}

void copy_now() {
  Fiber& self = machine().running();
  for (const Fiber::Copy& copy : self.copies) std::memcpy(copy.to, copy.from, copy.bytes);
  self.copies.clear();
}

void add_release(unsigned* counter, unsigned value) {
  *counter += value;
  machine().progress();
}

unsigned load_acquire(const unsigned* counter) {
  const unsigned value = *counter;
  machine().poll();
  return value;
}

}  // namespace emulator
