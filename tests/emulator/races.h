// Finds data races of a launch: accesses to one place, one of them a write, that nothing orders.
// EMULATOR_RACES=1, with kernels compiled by instrument.py.
//
// Time is one number of the launch, and grows at each synchronisation. What a thread has done until
// some time is known to another if barriers, or a release and an acquire, lead from one to the
// other: a clock has that time of each thread (Lamport; FastTrack's epochs). Operations of a warp
// exchange values and order no memory.
//
// A read is over when its value is used, and a store of st.async when its barrier's phase is
// complete; a thread that then receives a value, by st.async or a relaxed load, may write to those
// places, though nothing else is known to it. Of that, the second clock of a Knowledge has the
// time, of each warp's reads and each barrier's stores. Order within a thread stands for the use of
// values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace emulator {

struct Block;
struct Fiber;

namespace races {

inline constexpr uint32_t barriers_of_block = 8;

enum class Kind : uint8_t { plain, relaxed, async };

using Clock = std::shared_ptr<const std::vector<uint32_t>>;

struct Knowledge {
  Clock accesses;   // of each thread, then of each barrier in shared memory
  Clock completed;  // of each warp, then of each barrier in shared memory
};

// What a thread knows at some moment.
struct Moment {
  Knowledge known;
  uint32_t thread = 0, warp = 0, time = 0, began = 0;
};

// What those know who have arrived at a barrier.
class Gathering {
 public:
  void add(const Moment& moment);
  void add_values(const Moment& moment);
  void add_barrier(uint32_t barrier);  // the stores that have come to it
  Knowledge finish();                  // and begins anew
  Clock finish_values();

 private:
  std::vector<Clock> accesses_, completed_;
  std::vector<std::pair<uint32_t, uint32_t>> times_, completed_times_;
};

bool on();
void begin_launch(unsigned resident, unsigned threads);
int end_launch();  // how many races it had; each is printed
void begin_block(const Block& block);

Moment now(const Fiber& fiber);
Moment send(const Fiber& fiber);  // now, before whatever comes later
void acquire(const Fiber& fiber, const Knowledge& known);
void acquire_own_block(const Fiber& fiber, const Knowledge& known);
void meet_as_warp(const Fiber& fiber);

// Through a counter in memory.
void release_to(const Fiber& fiber, const void* counter);
const Knowledge& released_to(const void* counter);

void read(const Fiber& fiber, const void* from, size_t bytes, Kind kind, const void* code);
void write(const Fiber& fiber, const void* to, size_t bytes, Kind kind, const void* code);
// A store of st.async comes, that was sent at `sent` and completes at a barrier.
void write_async(const Moment& sent, uint32_t barrier, const void* to, size_t bytes,
                 const void* code);

// A relaxed store, and a relaxed load of what it has stored.
void send_value(const Fiber& fiber, const void* to);
void receive_value(const Fiber& fiber, const void* from);

}  // namespace races
}  // namespace emulator
