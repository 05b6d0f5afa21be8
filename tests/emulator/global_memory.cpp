// Loads and stores of global memory through which blocks reach one another while they run.
#include <emulated_instructions.h>

#include <cstring>

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
  for (int i = 0; i < words; ++i) {
    std::memcpy(to + i, from + i, 4);
    if (machine().by_chance(16)) machine().poll(polled);
  }
  if (machine().by_chance(4)) machine().poll(polled);
}

void store_relaxed(uint32_t* to, const uint32_t* from, int words) {
  if (reinterpret_cast<uintptr_t>(to) % (4 * static_cast<size_t>(words))) {
    fail("st.relaxed of %d bytes is not aligned", 4 * words);
  }
  for (int i = 0; i < words; ++i) {
    std::memcpy(to + i, from + i, 4);
    machine().progress();
    if (machine().by_chance(16)) machine().pause();
  }
}

void add_release(unsigned* counter, unsigned value) {
  *counter += value;
  machine().progress();
}

unsigned load_acquire(const unsigned* counter) {
  const unsigned value = *counter;
  machine().poll("a counter in global memory");
  return value;
}

}  // namespace emulator
