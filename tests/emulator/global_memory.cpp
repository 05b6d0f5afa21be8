// Loads and stores of global memory through which blocks reach one another while they run.
#include <emulated_instructions.h>

#include <cstring>

#include "delays.h"
#include "machine.h"

namespace emulator {

namespace {
constexpr const char* polled = "a word in global memory";
}

// Words are atomic, each for itself: between two of them others may go on.
void load_relaxed(const void* from, void* to, int count, int bytes) {
  if (reinterpret_cast<uintptr_t>(from) % (static_cast<size_t>(bytes) * count)) {
    fail("ld.relaxed of %d bytes is not aligned", bytes * count);
  }
  const Fiber& self = machine().running();
  counts.loaded_bytes += bytes * count;
  for (int i = 0; i < count; ++i) {
    const char* const word = static_cast<const char*>(from) + i * bytes;
    if (races::on()) {
      races::read(self, word, bytes, races::Kind::relaxed, __builtin_return_address(0));
      races::receive_value(self, word);
    }
    std::memcpy(static_cast<char*>(to) + i * bytes, word, bytes);
    if (machine().by_chance(16)) machine().poll(polled);
  }
  if (machine().by_chance(4)) machine().poll(polled);
}

void store_relaxed(void* to, const void* from, int count, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % (static_cast<size_t>(bytes) * count)) {
    fail("st.relaxed of %d bytes is not aligned", bytes * count);
  }
  const Fiber& self = machine().running();
  counts.stored_bytes += bytes * count;
  for (int i = 0; i < count; ++i) {
    char* const word = static_cast<char*>(to) + i * bytes;
    if (races::on()) {
      races::write(self, word, bytes, races::Kind::relaxed, __builtin_return_address(0));
      races::send_value(self, word);
    }
    if (delays::on()) delays::store(*self.block, word, bytes);
    std::memcpy(word, static_cast<const char*>(from) + i * bytes, bytes);
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
