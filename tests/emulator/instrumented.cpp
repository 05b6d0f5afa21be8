// What -fsanitize=thread calls before each access to memory, here without ThreadSanitizer's
// library: kernels that instrument.py compiles tell the emulator of what they read and write.
#include <cstddef>
#include <cstdint>

#include "delays.h"
#include "machine.h"
#include "races.h"

namespace emulator {
namespace {

// The memory of a launch: neither the threads' stacks nor what the emulator keeps of them.
bool counts(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto is_in = [&](const dim3& index) {
    return at - reinterpret_cast<uintptr_t>(&index) < sizeof(index);
  };
  return machine().in_kernel() && !machine().is_stack(at) && !is_in(threadIdx) &&
         !is_in(blockIdx) && !is_in(blockDim) && !is_in(gridDim);
}

void read(const void* from, size_t bytes, const void* code) {
  if (!races::on() || !counts(from)) return;
  races::read(machine().running(), from, bytes, races::Kind::plain, code);
}

void write(void* to, size_t bytes, const void* code) {
  if (!counts(to)) return;
  Fiber& self = machine().running();
  if (races::on()) races::write(self, to, bytes, races::Kind::plain, code);
  if (delays::on()) delays::store(*self.block, to, bytes);
}

}  // namespace
}  // namespace emulator

extern "C" {
#pragma GCC visibility push(default)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
#define ACCESSES(bytes)                                                                           \
  void __tsan_read##bytes(void* from) {                                                           \
    emulator::read(from, bytes, __builtin_return_address(0));                                     \
  }                                                                                               \
  void __tsan_write##bytes(void* to) { emulator::write(to, bytes, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##bytes(void* from) {                                                 \
    emulator::read(from, bytes, __builtin_return_address(0));                                     \
  }                                                                                               \
  void __tsan_unaligned_write##bytes(void* to) {                                                  \
    emulator::write(to, bytes, __builtin_return_address(0));                                      \
  }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
#undef ACCESSES
void __tsan_read_range(void* from, size_t bytes) {
  emulator::read(from, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* to, size_t bytes) {
  emulator::write(to, bytes, __builtin_return_address(0));
}
// Of a static variable's guard, in the host's code beside the kernels
uint8_t __tsan_atomic8_load(const volatile uint8_t* from, int /*order*/) {
  return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
#pragma GCC visibility pop
}
