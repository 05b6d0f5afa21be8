#include "delays.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace emulator {
namespace delays {

namespace {

// A word: what others see of it while the block's threads run, and else what the block sees. Of
// which halves, since neighbouring ones may be of different blocks. A word that is stored whole
// reaches others whole.
struct Word {
  uint16_t other[2];
  bool stored[2];
};
using Stored = std::unordered_map<uintptr_t, Word>;  // by their address
constexpr size_t half_bytes = sizeof(uint16_t);
constexpr size_t word_bytes = 2 * half_bytes;
constexpr size_t most_stored = 512;

std::unordered_map<Block*, Stored> stored;  // by each block that has any
Block* inside = nullptr;                    // whose view the memory has

void exchange(uintptr_t address, Word& word) {
  for (int half = 0; half < 2; ++half) {
    if (!word.stored[half]) continue;
    void* const at = reinterpret_cast<void*>(address + half * half_bytes);
    uint16_t seen;
    std::memcpy(&seen, at, half_bytes);
    std::memcpy(at, &word.other[half], half_bytes);
    word.other[half] = seen;
  }
}
void exchange(Stored& its) {
  for (auto& [address, word] : its) exchange(address, word);
}

// Of a block that is not inside: all that reaches others now, one of `one_of` by chance.
void reach(Stored& its, std::mt19937& random, unsigned one_of) {
  for (auto at = its.begin(); at != its.end();) {
    if (random() % one_of != 0) {
      ++at;
      continue;
    }
    exchange(at->first, at->second);
    at = its.erase(at);
  }
}

}  // namespace

bool on() {
  static const bool asked = [] {
    const char* const text = std::getenv("EMULATOR_DELAY");
    return text && std::atoi(text) != 0;
  }();
  return asked;
}

void leave_all() {
  if (inside) {
    const auto found = stored.find(inside);
    if (found != stored.end()) exchange(found->second);
  }
  inside = nullptr;
}

void enter(Block& block, std::mt19937& random) {
  if (inside == &block) return;
  Block* const left = inside;
  leave_all();
  const auto of_left = stored.find(left);
  if (of_left != stored.end()) {
    // Now soon, now late: a minority of the visits hurries.
    const unsigned one_of = of_left->second.size() > most_stored ? 2 : 4u << random() % 8;
    reach(of_left->second, random, one_of);
  }
  inside = &block;
  const auto found = stored.find(inside);
  if (found != stored.end()) exchange(found->second);
}

void store(Block& block, void* to, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(to);
  if (first % half_bytes || bytes % half_bytes) return;  // single bytes are seen at once
  const uintptr_t own = reinterpret_cast<uintptr_t>(block.memory.get());
  if (first - own < block.bytes) return;
  Stored& its = stored[&block];
  for (uintptr_t at = first; at < first + bytes; at += half_bytes) {
    Word& word = its[at / word_bytes * word_bytes];
    const size_t half = at % word_bytes / half_bytes;
    if (word.stored[half]) continue;  // others see what they saw
    word.stored[half] = true;
    std::memcpy(&word.other[half], reinterpret_cast<void*>(at), half_bytes);
  }
}

void release(Block& block) {
  if (inside != &block) {
    const auto found = stored.find(&block);
    if (found != stored.end()) exchange(found->second);
  }
  stored.erase(&block);
}

bool release_all() {
  leave_all();
  if (stored.empty()) return false;
  for (auto& [block, its] : stored) exchange(its);
  stored.clear();
  return true;
}

bool forget(const Block& block) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(block.memory.get());
  for (const auto& [other, its] : stored) {
    for (const auto& [address, word] : its) {
      if (address - first < block.bytes) return true;
    }
  }
  return false;
}

}  // namespace delays
}  // namespace emulator
