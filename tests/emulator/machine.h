// What runs kernels on the host: fibers, blocks, clusters, and the machine that draws who goes on.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "races.h"

namespace emulator {

inline constexpr size_t stack_bytes = 256 * 1024;  // touched as far as needed
inline constexpr int warp_size = 32;
inline constexpr size_t most_fibers = 64 * 1024;

struct Block;

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  dim3 thread;
  Block* block = nullptr;
  const char* waits = nullptr;  // for what; null: it can go on
  void* brought = nullptr;      // to a warp's meeting
};

// Threads come, and all go on when the last is there.
struct Meeting {
  unsigned arrived = 0, expected = 0;
  bool orders_memory = false;  // that of a warp does not
  std::vector<Fiber*> waiting;
  races::Gathering gathering;
};

// An mbarrier: a phase is complete when all have arrived and all bytes have come that are expected.
struct Barrier {
  unsigned arrivals = 0;  // of each phase
  unsigned pending = 0;   // of this phase
  int bytes = 0;          // expected, less those that have come; below zero if they come first
  unsigned phase = 0;     // phases that are complete
  bool fenced = false;    // others of the cluster may know of it
  uint32_t number = 0;    // of all that the resident blocks may have
  std::vector<Fiber*> waiting;
  races::Gathering gathering;
  races::Knowledge known[2];  // of the last phases of parity 0 and 1
};

// What a thread has sent by st.async and has not come yet.
struct Delivery {
  Block* to;
  size_t at;       // in its memory, in bytes
  size_t barrier;  // in the same memory
  size_t bytes;
  unsigned char data[16];
  races::Moment sent;
  const void* code;
};

struct Cluster {
  Meeting meeting;
  unsigned phase = 0;  // meetings that are complete
  races::Knowledge known;
  std::vector<Block*> blocks;
};

struct Block {
  dim3 index;
  unsigned place = 0;  // among the resident blocks
  Cluster* cluster = nullptr;
  std::unique_ptr<char, void (*)(void*)> memory = {nullptr, std::free};
  size_t bytes = 0;
  Meeting meeting;
  std::vector<Meeting> warps;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned> cluster_phase;  // of each thread: the meeting it has arrived at
  std::map<size_t, Barrier> barriers;   // by where they lie in its memory
  bool begun = false;
  unsigned finished = 0;
};

class Machine {
 public:
  cudaError_t run(const cudaLaunchConfig_t& config, unsigned cluster_size,
                  const std::function<void()>& thread);

  Fiber& running() { return *running_; }

  // The running thread goes on later.
  void pause();
  void wait(const char* what);
  void poll(const char* what);
  void arrive(Meeting& meeting, const char* what);
  void open(Meeting& meeting);
  void wake(std::vector<Fiber*>& waiting);
  void progress() { polls_ = 0; }  // a thread that polls may find what it waits for

  // Arrives by chance, before the launch ends.
  void send(const Delivery& delivery) { deliveries_.push_back(delivery); }

  // The block in whose shared memory an address lies, or null.
  const Block* block_at(uintptr_t address) const;
  bool in_kernel() const { return running_ != nullptr; }
  bool is_stack(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(stacks_) < stack_bytes * most_fibers;
  }

  bool by_chance(unsigned one_of) { return random_() % one_of == 0; }

 private:
  void start_cluster(unsigned first, unsigned size);
  std::unique_ptr<Fiber> new_fiber();
  static void begin();
  void resume(Fiber& fiber);
  void to_scheduler();
  void finish(Fiber& fiber);
  void deliver_one();
  bool go_on();
  cudaError_t report();

  static uint32_t seed();

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
  std::vector<Delivery> deliveries_;
  bool rarely_ = false;  // are they drawn
  std::vector<std::unique_ptr<Fiber>> free_;
  char* stacks_ = nullptr;
  size_t stacks_used_ = 0;
  std::vector<bool> taken_;  // places for blocks
  std::map<unsigned, std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Cluster>> clusters_;
};

Machine& machine();

// What launches have done since the process began, all together.
struct Counts {
  int64_t mma = 0;             // of a warp
  int64_t block_barriers = 0;  // of a block
  int64_t loaded_bytes = 0;    // by relaxed loads, through the L2 cache
  int64_t stored_bytes = 0;    // likewise
  int64_t sent_bytes = 0;      // to blocks of the cluster
};
extern Counts counts;

// What a kernel does that no GPU would forgive ends the process.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// cluster_barriers.cpp
void deliver(const Delivery& delivery);

}  // namespace emulator
