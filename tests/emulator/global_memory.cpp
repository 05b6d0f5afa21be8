// Loads and stores of global memory through which blocks reach one another while they run.
#include <emulated_instructions.h>

#include <cstring>

#include "delays.h"
#include "machine.h"

namespace emulator {

namespace {
constexpr const char* polled = "a word in global memory";
}

// Words of 32 bits are atomic, each for itself: between two of them others may go on.
void load_relaxed(const uint32_t* from, uint32_t* to, int words) {
  if (reinterpret_cast<uintptr_t>(from) % (4 * static_cast<size_t>(words))) {
    fail("ld.relaxed of %d bytes is not aligned", 4 * words);
  }
  const Fiber& self = machine().running();
  counts.loaded_bytes += 4 * words;
  for (int i = 0; i < words; ++i) {
    if (races::on()) {
      races::read(self, from + i, 4, races::Kind::relaxed, __builtin_return_address(0));
      races::receive_value(self, from + i);
    }
    std::memcpy(to + i, from + i, 4);
    if (machine().by_chance(16)) machine().poll(polled);
  }
  if (machine().by_chance(4)) machine().poll(polled);
}

void store_relaxed(uint32_t* to, const uint32_t* from, int words) {
  if (reinterpret_cast<uintptr_t>(to) % (4 * static_cast<size_t>(words))) {
    fail("st.relaxed of %d bytes is not aligned", 4 * words);
  }
  const Fiber& self = machine().running();
  counts.stored_bytes += 4 * words;
  for (int i = 0; i < words; ++i) {
    if (races::on()) {
      races::write(self, to + i, 4, races::Kind::relaxed, __builtin_return_address(0));
      races::send_value(self, to + i);
    }
    if (delays::on()) delays::store(*self.block, to + i, 4);
    std::memcpy(to + i, from + i, 4);
    machine().progress();
    if (machine().by_chance(16)) machine().pause();
  }
}

void add_release(unsigned* counter, unsigned value, Scope scope) {
  const Fiber& self = machine().running();
  if (races::on()) {
    races::write(self, counter, 4, races::Kind::relaxed, __builtin_return_address(0));
    if (scope != Scope::cta) races::release_to(self, counter);
  }
  if (delays::on() && scope != Scope::cta) delays::release(*self.block);
  *counter += value;
  machine().progress();
}

unsigned load_acquire(const unsigned* counter, Scope scope) {
  const Fiber& self = machine().running();
  const unsigned value = *counter;
  if (races::on()) {
    races::read(self, counter, 4, races::Kind::relaxed, __builtin_return_address(0));
    if (scope == Scope::cta) {
      races::acquire_own_block(self, races::released_to(counter));
    } else {
      races::acquire(self, races::released_to(counter));
    }
  }
  machine().poll("a counter in global memory");
  return value;
}

}  // namespace emulator
