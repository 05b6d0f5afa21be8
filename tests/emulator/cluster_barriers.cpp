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
  fail("%s by block %u lies in no block of its cluster that still runs", what, self.block->index.x);
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

Place own_place(const uint64_t* barrier, const char* what) {
  const Place place = find(reinterpret_cast<uintptr_t>(barrier), sizeof(*barrier), what);
  if (place.block != machine().running().block) fail("%s is of another block's mbarrier", what);
  return place;
}

// A barrier's word, as memory: that others may use it, something has to tell them.
void use_word(const Barrier& barrier, const Block& block, size_t at, const void* code) {
  const Fiber& self = machine().running();
  if (self.block != &block && !barrier.fenced) {
    fail("block %u uses block %u's mbarrier, which no fence has followed", self.block->index.x,
         block.index.x);
  }
  if (!races::on()) return;
  races::read(self, block.memory.get() + at, sizeof(uint64_t), races::Kind::relaxed, code);
}

void complete(Barrier& barrier) {
  if (barrier.bytes > most_bytes || barrier.bytes < -most_bytes) {
    fail("an mbarrier expects %d bytes, more than it can count", barrier.bytes);
  }
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  if (races::on()) {
    barrier.gathering.add_barrier(barrier.number);
    barrier.known[barrier.phase & 1] = barrier.gathering.finish();
  }
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  machine().progress();
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
  const void* const code = __builtin_return_address(0);
  const Place place = find(to, bytes, "st.async");
  const Place its = find(barrier, sizeof(uint64_t), "the mbarrier of st.async");
  if (its.block != place.block) fail("st.async stores to one block and completes at another");
  use_word(barrier_at(*its.block, its.at), *its.block, its.at, code);
  Delivery delivery = {place.block, place.at, its.at, bytes, {}, {}, code};
  if (races::on()) delivery.sent = races::send(machine().running());
  std::memcpy(delivery.data, value, bytes);
  counts.sent_bytes += static_cast<int64_t>(bytes);
  machine().send(delivery);
}

void deliver(const Delivery& delivery) {
  char* const to = delivery.to->memory.get() + delivery.at;
  Barrier& barrier = barrier_at(*delivery.to, delivery.barrier);
  if (races::on()) {
    races::write_async(delivery.sent, barrier.number, to, delivery.bytes, delivery.code);
    barrier.gathering.add_values(delivery.sent);
  }
  std::memcpy(to, delivery.data, delivery.bytes);
  barrier.bytes -= static_cast<int>(delivery.bytes);
  complete(barrier);
}

void barrier_init(uint64_t* barrier, unsigned arrivals) {
  const Fiber& self = machine().running();
  Block& own = *self.block;
  const Place place = find(reinterpret_cast<uintptr_t>(barrier), sizeof(*barrier), "mbarrier.init");
  if (place.block != &own) fail("mbarrier.init is of another block's mbarrier");
  if (own.barriers.count(place.at)) fail("an mbarrier is initialised twice");
  if (own.barriers.size() == races::barriers_of_block) {
    fail("more than %u mbarriers in a block", races::barriers_of_block);
  }
  if (races::on()) {
    races::write(self, barrier, sizeof(*barrier), races::Kind::plain, __builtin_return_address(0));
  }
  std::memcpy(barrier, &marker, sizeof(marker));
  const auto number = static_cast<uint32_t>(own.barriers.size());
  Barrier& its = own.barriers[place.at];
  its.arrivals = its.pending = arrivals;
  its.number = own.place * races::barriers_of_block + number;
}

void barrier_init_fence() {
  for (auto& [at, barrier] : machine().running().block->barriers) barrier.fenced = true;
}

void barrier_expect(uint64_t* barrier, unsigned bytes) {
  const Fiber& self = machine().running();
  const Place place = own_place(barrier, "mbarrier.arrive");
  Barrier& its = barrier_at(*place.block, place.at);
  use_word(its, *place.block, place.at, __builtin_return_address(0));
  if (its.pending == 0) fail("more threads arrive at an mbarrier than it has arrivals");
  machine().progress();
  if (races::on()) its.gathering.add(races::now(self));
  its.bytes += static_cast<int>(bytes);
  --its.pending;
  complete(its);
}

// A thread that goes on late may find a phase later than the one that woke it, and of the same
// parity: it waits again, as a GPU's would.
void barrier_wait(uint64_t* barrier, unsigned parity, Scope scope) {
  Fiber& self = machine().running();
  const Place place = own_place(barrier, "mbarrier.try_wait");
  Barrier& its = barrier_at(*place.block, place.at);
  use_word(its, *place.block, place.at, __builtin_return_address(0));
  machine().pause();
  while ((its.phase & 1) == parity) {
    its.waiting.push_back(&self);
    machine().wait(parity ? "an mbarrier (parity 1)" : "an mbarrier (parity 0)");
  }
  if (!races::on() || its.phase == 0) return;
  if (scope == Scope::cta) {
    races::acquire_own_block(self, its.known[parity]);
  } else {
    races::acquire(self, its.known[parity]);
  }
}

}  // namespace emulator
