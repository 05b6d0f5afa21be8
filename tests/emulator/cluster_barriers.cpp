// Barriers in shared memory (mbarriers), and stores to other blocks of a cluster that complete them
// (st.async). A store comes at some later time, its data and its bytes' count together; stores
// overtake one another.
#include <emulated_instructions.h>

#include <cstring>

#include "machine.h"

namespace emulator {

namespace {

constexpr uint64_t marker = 0x9bad5eed0ba221e5;  // what the word of a barrier holds here
constexpr int most_bytes = (1 << 20) - 1;

struct Place {
  Block* block;
  size_t at;
};

// What lies at an address in the shared memory of the cluster.
Place find(uintptr_t address, size_t bytes, const char* what) {
  const Fiber& self = machine().running();
  for (Block* const block : self.block->cluster->blocks) {
    if (!block) continue;
    const size_t at = address - reinterpret_cast<uintptr_t>(block->memory.get());
    if (at < block->bytes && at + bytes <= block->bytes) {
      if (at % bytes) fail("%s of %zu bytes is not aligned", what, bytes);
      if (!block->begun) fail("%s for block %u, which has not begun", what, block->index.x);
      return {block, at};
    }
  }
  fail("%s by block %u lies in no block of its cluster that still runs", what,
       self.block->index.x);
}

Barrier& barrier_at(Block& block, size_t at) {
  const auto found = block.barriers.find(at);
  if (found == block.barriers.end()) {
    fail("block %u has no mbarrier at byte %zu of its shared memory", block.index.x, at);
  }
  uint64_t word;
  std::memcpy(&word, block.memory.get() + at, sizeof(word));
  if (word != marker) {
    fail("the mbarrier at byte %zu of block %u's shared memory is overwritten", at, block.index.x);
  }
  return found->second;
}

Barrier& own_barrier(const uint64_t* barrier, const char* what) {
  Block& own = *machine().running().block;
  const Place place = find(reinterpret_cast<uintptr_t>(barrier), sizeof(*barrier), what);
  if (place.block != &own) fail("%s is of another block's mbarrier", what);
  return barrier_at(own, place.at);
}

void complete(Barrier& barrier) {
  if (barrier.bytes > most_bytes || barrier.bytes < -most_bytes) {
    fail("an mbarrier expects %d bytes, more than it can count", barrier.bytes);
  }
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  machine().wake(barrier.waiting);
}

}  // namespace

uintptr_t cluster_address(const void* shared, unsigned rank) {
  const Block& own = *machine().running().block;
  char* const mapped = map_shared(const_cast<char*>(static_cast<const char*>(shared)), rank);
  const Block& other = *own.cluster->blocks[rank];
  if (mapped < other.memory.get() || mapped >= other.memory.get() + other.bytes) {
    fail("an address that is mapped to another block lies in no shared memory");
  }
  return reinterpret_cast<uintptr_t>(mapped);
}

void store_async(uintptr_t to, const void* value, size_t bytes, uintptr_t barrier) {
  const Place place = find(to, bytes, "st.async");
  const Place its = find(barrier, sizeof(uint64_t), "the mbarrier of st.async");
  if (its.block != place.block) fail("st.async stores to one block and completes at another");
  barrier_at(*its.block, its.at);
  Delivery delivery = {place.block, place.at, its.at, bytes, {}};
  std::memcpy(delivery.data, value, bytes);
  machine().send(delivery);
}

void deliver(const Delivery& delivery) {
  std::memcpy(delivery.to->memory.get() + delivery.at, delivery.data, delivery.bytes);
  Barrier& barrier = barrier_at(*delivery.to, delivery.barrier);
  barrier.bytes -= static_cast<int>(delivery.bytes);
  complete(barrier);
}

void barrier_init(uint64_t* barrier, unsigned arrivals) {
  Block& own = *machine().running().block;
  const Place place = find(reinterpret_cast<uintptr_t>(barrier), sizeof(*barrier), "mbarrier.init");
  if (place.block != &own) fail("mbarrier.init is of another block's mbarrier");
  if (own.barriers.count(place.at)) fail("an mbarrier is initialised twice");
  std::memcpy(barrier, &marker, sizeof(marker));
  Barrier& its = own.barriers[place.at];
  its.arrivals = its.pending = arrivals;
}

void barrier_expect(uint64_t* barrier, unsigned bytes) {
  Barrier& its = own_barrier(barrier, "mbarrier.arrive");
  if (its.pending == 0) fail("more threads arrive at an mbarrier than it has arrivals");
  machine().progress();
  its.bytes += static_cast<int>(bytes);
  --its.pending;
  complete(its);
}

// A thread that goes on late may find a phase later than the one that woke it, and of the same
// parity: it waits again, as a GPU's would.
void barrier_wait(uint64_t* barrier, unsigned parity) {
  Barrier& its = own_barrier(barrier, "mbarrier.try_wait");
  machine().pause();
  while ((its.phase & 1) == parity) {
    its.waiting.push_back(&machine().running());
    machine().wait(parity ? "an mbarrier (parity 1)" : "an mbarrier (parity 0)");
  }
}

}  // namespace emulator
