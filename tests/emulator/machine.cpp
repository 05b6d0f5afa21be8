// Runs kernels on the host. Every CUDA thread is a fiber; all blocks that a GPU would hold at once
// are alive together, and who goes on at a wait is drawn by chance (EMULATOR_SEED), so that a
// missing barrier shows as a wrong number. Shared memory starts as NaN. When no thread can go on, a
// report says who waits where.
#include "machine.h"

#include <emulated_instructions.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "delays.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

void fail(const char* format, ...) {
  std::fputs("emulator: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

Counts counts;

Machine& machine() {
  static Machine only;
  return only;
}

cudaError_t Machine::run(const cudaLaunchConfig_t& config, unsigned cluster_size,
                         const std::function<void()>& thread) {
  thread_ = &thread;
  config_ = &config;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  unsigned next = 0;
  const unsigned resident =
      std::min(static_cast<unsigned>(properties.multiProcessorCount), config.gridDim.x);
  polls_ = 0;
  taken_.assign(resident, false);
  if (races::on()) races::begin_launch(resident, config.blockDim.x);
  while (next < config.gridDim.x || !blocks_.empty()) {
    while (next < config.gridDim.x && blocks_.size() + cluster_size <= resident) {
      start_cluster(next, cluster_size);
      next += cluster_size;
    }
    if (!go_on()) return report();
  }
  clusters_.clear();
  return races::on() && races::end_launch() > 0 ? cudaErrorLaunchFailure : cudaSuccess;
}

// One step of what is drawn: a thread, or what a thread has sent. Those are as often drawn as
// all threads together, for a while, and a hundred times less often for another while, so that a
// store may be overtaken by much or by little.
bool Machine::go_on() {
  const bool stuck = ready_.empty() || polls_ > 1000 * (ready_.size() + 1);
  if (!deliveries_.empty()) {
    if (random_() % 4096 == 0) rarely_ = !rarely_;
    if (stuck || random_() % (rarely_ ? 128 : 2) == 0) {
      deliver_one();
      return true;
    }
  }
  if (stuck) {
    progress();
    return delays::on() && delays::release_all();
  }
  const size_t drawn = random_() % ready_.size();
  Fiber* const fiber = ready_[drawn];
  ready_[drawn] = ready_.back();
  ready_.pop_back();
  if (delays::on()) delays::enter(*fiber->block, random_);
  resume(*fiber);
  return true;
}

void Machine::deliver_one() {
  const size_t drawn = random_() % deliveries_.size();
  const Delivery delivery = deliveries_[drawn];
  deliveries_[drawn] = deliveries_.back();
  deliveries_.pop_back();
  progress();
  deliver(delivery);
}

void Machine::pause() {
  ready_.push_back(running_);
  to_scheduler();
}
void Machine::wait(const char* what) {
  running_->waits = what;
  to_scheduler();
}
void Machine::poll(const char* what) {
  ++polls_;
  running_->waits = what;
  pause();
  running_->waits = nullptr;
}
void Machine::arrive(Meeting& meeting, const char* what) {
  if (meeting.orders_memory) progress();  // warps meet while they poll
  if (races::on() && meeting.orders_memory) meeting.gathering.add(races::now(*running_));
  if (++meeting.arrived < meeting.expected) {
    meeting.waiting.push_back(running_);
    wait(what);
  } else {
    open(meeting);
  }
}
void Machine::open(Meeting& meeting) {
  meeting.arrived = 0;
  if (races::on() && meeting.orders_memory) {
    const races::Knowledge known = meeting.gathering.finish();
    for (const Fiber* const fiber : meeting.waiting) races::acquire(*fiber, known);
    races::acquire(*running_, known);
  }
  wake(meeting.waiting);
}
void Machine::wake(std::vector<Fiber*>& waiting) {
  for (Fiber* const fiber : waiting) {
    fiber->waits = nullptr;
    ready_.push_back(fiber);
  }
  waiting.clear();
}

void Machine::start_cluster(unsigned first, unsigned size) {
  auto cluster = std::make_unique<Cluster>();
  const unsigned threads = config_->blockDim.x;
  cluster->meeting.expected = size * threads;
  for (unsigned rank = 0; rank < size; ++rank) {
    auto block = std::make_unique<Block>();
    block->index = dim3(first + rank, 0, 0);
    block->cluster = cluster.get();
    while (taken_[block->place]) ++block->place;
    taken_[block->place] = true;
    const size_t bytes = (config_->dynamicSmemBytes + 127) / 128 * 128;
    block->memory.reset(static_cast<char*>(std::aligned_alloc(128, bytes)));
    block->bytes = bytes;
    std::memset(block->memory.get(), 0xff, bytes);
    block->meeting.expected = threads;
    block->meeting.orders_memory = true;
    if (races::on()) races::begin_block(*block);
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

std::unique_ptr<Fiber> Machine::new_fiber() {
  std::unique_ptr<Fiber> fiber;
  if (free_.empty()) {
    fiber = std::make_unique<Fiber>();
    if (!stacks_) {
      void* const all = mmap(nullptr, stack_bytes * most_fibers, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (all == MAP_FAILED) fail("no memory for the threads' stacks");
      stacks_ = static_cast<char*>(all);
    }
    if (stacks_used_ == most_fibers) fail("more than %zu threads at once", most_fibers);
    fiber->stack = stacks_ + stacks_used_++ * stack_bytes;
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

void Machine::resume(Fiber& fiber) {
  running_ = &fiber;
  fiber.block->begun = true;
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
  running_ = nullptr;
  if (finished_) {
    finished_ = false;
    finish(fiber);
  }
}

void Machine::to_scheduler() {
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

void Machine::finish(Fiber& fiber) {
  progress();
  Block& block = *fiber.block;
  if (++block.finished < block.fibers.size()) return;
  for (const Delivery& delivery : deliveries_) {
    if (delivery.to == &block) {
      fail("block %u has returned, and a store of its cluster is still on its way to it",
           block.index.x);
    }
  }
  if (delays::on()) {
    delays::release(block);
    if (delays::forget(block)) {
      fail("block %u has returned before stores to its shared memory have come", block.index.x);
    }
  }
  taken_[block.place] = false;
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

cudaError_t Machine::report() {
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
  deliveries_.clear();
  // The fibers' frames are abandoned, with what they own.
  for (auto& [index, block] : blocks_) {
    for (auto& fiber : block->fibers) fiber.release();
  }
  blocks_.clear();
  clusters_.clear();
  return cudaErrorLaunchFailure;
}

uint32_t Machine::seed() {
  const char* const text = std::getenv("EMULATOR_SEED");
  return text ? static_cast<uint32_t>(std::strtoul(text, nullptr, 10)) : 1;
}

void Machine::begin() {
  Machine& self = machine();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_bytes_);
#endif
  (*self.thread_)();
  self.finished_ = true;
  self.to_scheduler();
}

const Block* Machine::block_at(uintptr_t address) const {
  for (const auto& [index, block] : blocks_) {
    if (address - reinterpret_cast<uintptr_t>(block->memory.get()) < block->bytes) {
      return block.get();
    }
  }
  return nullptr;
}

cudaError_t run(const cudaLaunchConfig_t& config, unsigned cluster,
                const std::function<void()>& thread) {
  if (records_launches()) {
    thread();  // writes the launch
    return cudaSuccess;
  }
  return machine().run(config, cluster, thread);
}

void wait_for_block() {
  if (machine().running().block->meeting.arrived == 0) ++counts.block_barriers;
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
        fail("a warp meets at %s and at %s", what, other.waits);
      }
      all[lane] = other.brought;
    }
    together(all);
    if (std::strncmp(what, "mma", 3) == 0) ++counts.mma;
    if (races::on()) races::meet_as_warp(self);
  }
  machine().arrive(meeting, what);
}

char* block_memory() { return machine().running().block->memory.get(); }

char* map_shared(char* shared, unsigned rank) {
  Block& own = *machine().running().block;
  Block* const other = rank < own.cluster->blocks.size() ? own.cluster->blocks[rank] : nullptr;
  if (!other) fail("block %u of the cluster is not there, or has returned", rank);
  return other->memory.get() + (shared - own.memory.get());
}

void cluster_arrive() {
  Fiber& self = machine().running();
  Cluster& cluster = *self.block->cluster;
  self.block->cluster_phase[self.thread.x] = cluster.phase + 1;
  Meeting& meeting = cluster.meeting;
  machine().progress();
  if (races::on()) meeting.gathering.add(races::now(self));
  if (delays::on()) delays::release(*self.block);
  if (++meeting.arrived == meeting.expected) {
    ++cluster.phase;
    machine().progress();
    if (races::on()) cluster.known = meeting.gathering.finish();
    machine().open(meeting);
  }
}

void cluster_wait() {
  Fiber& self = machine().running();
  Cluster& cluster = *self.block->cluster;
  if (cluster.phase >= self.block->cluster_phase[self.thread.x]) {
    machine().pause();
  } else {
    cluster.meeting.waiting.push_back(&self);
    machine().wait("the cluster");
  }
  if (races::on()) races::acquire(self, cluster.known);
}

}  // namespace emulator

extern "C" {
int64_t emulated_mma() { return emulator::counts.mma; }
int64_t emulated_block_barriers() { return emulator::counts.block_barriers; }
int64_t emulated_loaded_bytes() { return emulator::counts.loaded_bytes; }
int64_t emulated_stored_bytes() { return emulator::counts.stored_bytes; }
int64_t emulated_sent_bytes() { return emulator::counts.sent_bytes; }
}
