#include "races.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <unordered_map>

#include "delays.h"
#include "machine.h"

namespace emulator {
namespace races {

namespace {

constexpr size_t granule = 2;  // bytes; no kernel writes fewer
constexpr size_t page_bytes = 4096;
constexpr uint16_t relaxed_bit = 0x8000;

// The reads of a place by a warp since it was written last.
struct Reads {
  uint32_t time = 0;  // of the last; 0: none
  uint32_t lanes = 0;
  uint32_t code = 0;
  uint16_t warp = 0;  // and relaxed_bit
};

struct Cell {
  uint32_t time = 0;  // of the last write; 0: none
  uint32_t code = 0;
  uint16_t writer = 0;  // a thread, or a barrier
  Kind kind = Kind::plain;
  Reads reads;
  uint32_t more = 0;  // where State::more has those of further warps; 0: there are none
};

struct Page {
  Cell cells[page_bytes / granule];
};

struct State {
  uint32_t time = 1;
  uint32_t threads = 0;  // of a block
  uint32_t warps = 0;    // of a block
  uint32_t all_threads = 0, all_warps = 0, all_barriers = 0;
  std::vector<uint32_t> began;   // when the block of each resident place began
  std::vector<Clock> accesses;   // of each thread
  std::vector<Clock> completed;  // of each warp
  std::vector<uint32_t> met;     // when each warp has met last
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  std::vector<std::unique_ptr<Page>> free;
  uintptr_t last_number = 0;
  Page* last = nullptr;
  std::vector<std::vector<Reads>> more;
  std::unordered_map<uintptr_t, Clock> values;  // what relaxed stores tell, by where they store
  std::unordered_map<uintptr_t, Knowledge> counters;
  std::set<std::pair<std::pair<uint32_t, uint32_t>, int>> found;
  int races = 0;
};
State state;

struct Joined {
  Clock a, b, result;
};
Joined joined[64];

Clock join(const Clock& a, const Clock& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  const size_t key =
      (reinterpret_cast<uintptr_t>(a.get()) / 16 * 31 + reinterpret_cast<uintptr_t>(b.get()) / 16) %
      64;
  Joined& known = joined[key];
  if (known.a == a && known.b == b) return known.result;
  bool a_has_all = true, b_has_all = true;
  for (size_t i = 0; i < a->size(); ++i) {
    a_has_all = a_has_all && (*a)[i] >= (*b)[i];
    b_has_all = b_has_all && (*b)[i] >= (*a)[i];
  }
  Clock result = a_has_all ? a : b;
  if (!a_has_all && !b_has_all) {
    auto both = std::make_shared<std::vector<uint32_t>>(*a);
    for (size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
    result = std::move(both);
  }
  known = {a, b, result};
  return result;
}

Clock join(const std::vector<Clock>& clocks,
           const std::vector<std::pair<uint32_t, uint32_t>>& times, size_t size) {
  auto all = std::make_shared<std::vector<uint32_t>>(size, 0);
  for (const Clock& clock : clocks) {
    for (size_t i = 0; i < size; ++i) (*all)[i] = std::max((*all)[i], (*clock)[i]);
  }
  for (const auto& [which, time] : times) (*all)[which] = std::max((*all)[which], time);
  return all;
}

void add_once(std::vector<Clock>& clocks, const Clock& clock) {
  if (clock && std::find(clocks.begin(), clocks.end(), clock) == clocks.end()) {
    clocks.push_back(clock);
  }
}

uint32_t time_of(const Clock& clock, uint32_t which) { return clock ? (*clock)[which] : 0; }

uint32_t place_of(uint32_t thread) { return thread / state.threads; }

Page& page_of(uintptr_t number) {
  if (state.last && state.last_number == number) return *state.last;
  std::unique_ptr<Page>& page = state.pages[number];
  if (!page) {
    if (state.free.empty()) {
      page = std::make_unique<Page>();
    } else {
      page = std::move(state.free.back());
      state.free.pop_back();
      std::fill(std::begin(page->cells), std::end(page->cells), Cell{});
    }
  }
  state.last_number = number;
  state.last = page.get();
  return *page;
}

template <class Body>
void for_cells(const void* first, size_t bytes, const Body& body) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(first);
  for (uintptr_t at = address / granule * granule; at < address + bytes; at += granule) {
    body(page_of(at / page_bytes).cells[at % page_bytes / granule], at);
  }
}

// Code by where it lies in this library.
uintptr_t library() {
  static const uintptr_t base = [] {
    Dl_info info;
    return dladdr(&state, &info) ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  }();
  return base;
}
uint32_t code_of(const void* code) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - library());
}

// The line of a kernel that does it, and not that of the instruction's twin.
std::string line_of(uint32_t code) {
  Dl_info info;
  if (!dladdr(&state, &info)) return "";
  char text[1024];
  std::snprintf(text, sizeof(text), "addr2line -e '%s' -s -i 0x%x 2>/dev/null", info.dli_fname,
                code - 1);
  std::string line;
  if (std::FILE* const from = popen(text, "r")) {
    while (std::fgets(text, sizeof(text), from)) {
      if (line.empty() || line.find("emulated_instructions.h") == 0) line = text;
    }
    pclose(from);
  }
  return line.substr(0, line.find_first_of(" \n"));
}

std::string name_of_thread(uint32_t thread) {
  return "thread " + std::to_string(thread % state.threads) + " of the block in place " +
         std::to_string(place_of(thread));
}
std::string name_of_writer(const Cell& cell) {
  if (cell.writer < state.all_threads) return name_of_thread(cell.writer);
  const uint32_t barrier = cell.writer - state.all_threads;
  return "st.async to mbarrier " + std::to_string(barrier % barriers_of_block) +
         " of the block in place " + std::to_string(barrier / barriers_of_block);
}

void report(const std::string& before, uint32_t before_code, const std::string& after,
            uint32_t after_code, int what, uintptr_t at) {
  ++state.races;
  if (state.found.size() >= 20 || !state.found.insert({{before_code, after_code}, what}).second) {
    return;
  }
  const Block* const block = machine().block_at(at);
  const std::string where =
      block ? "byte " + std::to_string(at - reinterpret_cast<uintptr_t>(block->memory.get())) +
                  " of the shared memory of block " + std::to_string(block->index.x)
            : "global memory";
  std::fprintf(stderr, "emulator: a race in %s: %s (%s), then %s (%s)\n", where.c_str(),
               before.c_str(), line_of(before_code).c_str(), after.c_str(),
               line_of(after_code).c_str());
}

std::string article(Kind kind) {
  return kind == Kind::plain ? "a " : kind == Kind::relaxed ? "a relaxed " : "an asynchronous ";
}

// Whether what was written is known to be there.
bool knows_write(const Moment& moment, const Cell& cell, bool only_completed) {
  if (cell.writer < state.all_threads) {
    if (cell.writer == moment.thread) return cell.time >= moment.began;
    return time_of(moment.known.accesses, cell.writer) >= cell.time;
  }
  if (time_of(moment.known.accesses, cell.writer) >= cell.time) return true;
  const uint32_t barrier = cell.writer - state.all_threads;
  return only_completed && time_of(moment.known.completed, state.all_warps + barrier) >= cell.time;
}

bool knows_reads(const Moment& moment, const Reads& reads) {
  const uint32_t warp = reads.warp & ~relaxed_bit;
  if (time_of(moment.known.completed, warp) >= reads.time) return true;
  if (warp != moment.warp) return false;
  if (state.met[warp] >= reads.time) return reads.time >= moment.began;
  const uint32_t first = warp / state.warps * state.threads + warp % state.warps * warp_size;
  for (uint32_t lane = 0; lane < warp_size; ++lane) {
    if (!(reads.lanes >> lane & 1)) continue;
    const bool known = first + lane == moment.thread
                           ? reads.time >= moment.began
                           : time_of(moment.known.accesses, first + lane) >= reads.time;
    if (!known) return false;
  }
  return true;
}

void check_write(const Moment& moment, Cell& cell, uintptr_t at, uint32_t writer, Kind kind,
                 uint32_t code) {
  const bool relaxed = kind == Kind::relaxed;
  const auto self = [&] { return article(kind) + "write by " + name_of_thread(moment.thread); };
  if (cell.time && !(relaxed && cell.kind == Kind::relaxed) && !knows_write(moment, cell, true)) {
    report(article(cell.kind) + "write by " + name_of_writer(cell), cell.code, self(), code, 0, at);
  }
  const auto check = [&](const Reads& reads) {
    if (reads.time == 0 || (relaxed && (reads.warp & relaxed_bit)) || knows_reads(moment, reads)) {
      return;
    }
    const uint32_t warp = reads.warp & ~relaxed_bit;
    report("a read by warp " + std::to_string(warp % state.warps) + " of the block in place " +
               std::to_string(warp / state.warps),
           reads.code, self(), code, 1, at);
  };
  check(cell.reads);
  cell.reads = {};
  if (cell.more) {
    for (const Reads& reads : state.more[cell.more]) check(reads);
    state.more[cell.more].clear();
  }
  cell.time = state.time;
  cell.writer = static_cast<uint16_t>(writer);
  cell.kind = kind;
  cell.code = code;
}

void check_read(const Moment& moment, Cell& cell, uintptr_t at, Kind kind, uint32_t code) {
  const bool relaxed = kind == Kind::relaxed;
  if (cell.time && !(relaxed && cell.kind == Kind::relaxed) && !knows_write(moment, cell, false)) {
    report(article(cell.kind) + "write by " + name_of_writer(cell), cell.code,
           article(kind) + "read by " + name_of_thread(moment.thread), code, 2, at);
  }
  const uint16_t warp = static_cast<uint16_t>(moment.warp | (relaxed ? relaxed_bit : 0));
  const uint32_t lane = 1u << (moment.thread % state.threads % warp_size);
  const auto add = [&](Reads& reads) {
    if (reads.time == state.time) {
      reads.lanes |= lane;
    } else {
      reads.lanes = reads.time && !knows_reads(moment, reads) ? reads.lanes | lane : lane;
      reads.time = state.time;
    }
    reads.warp = warp;
    reads.code = code;
  };
  if (cell.reads.time == 0 || cell.reads.warp == warp) return add(cell.reads);
  if (!cell.more) {
    cell.more = static_cast<uint32_t>(state.more.size());
    state.more.emplace_back();
  }
  for (Reads& reads : state.more[cell.more]) {
    if (reads.warp == warp) return add(reads);
  }
  state.more[cell.more].emplace_back();
  add(state.more[cell.more].back());
}

uint32_t thread_of(const Fiber& fiber) {
  return fiber.block->place * state.threads + fiber.thread.x;
}
uint32_t warp_of(const Fiber& fiber) {
  return fiber.block->place * state.warps + fiber.thread.x / warp_size;
}

// Without a copy of the clocks: a Moment of the running thread.
const Moment& moment_of(const Fiber& fiber) {
  static Moment moment;
  moment.thread = thread_of(fiber);
  moment.warp = warp_of(fiber);
  moment.time = state.time;
  moment.began = state.began[fiber.block->place];
  if (moment.known.accesses != state.accesses[moment.thread]) {
    moment.known.accesses = state.accesses[moment.thread];
  }
  if (moment.known.completed != state.completed[moment.warp]) {
    moment.known.completed = state.completed[moment.warp];
  }
  return moment;
}

void acquire_values(const Fiber& fiber, const Clock& completed) {
  Clock& its = state.completed[warp_of(fiber)];
  its = join(its, completed);
}

}  // namespace

void Gathering::add(const Moment& moment) {
  add_once(accesses_, moment.known.accesses);
  times_.emplace_back(moment.thread, moment.time);
  add_values(moment);
}
void Gathering::add_values(const Moment& moment) {
  add_once(completed_, moment.known.completed);
  if (completed_times_.empty() || completed_times_.back().first != moment.warp) {
    completed_times_.emplace_back(moment.warp, moment.time);
  } else {
    completed_times_.back().second = moment.time;
  }
}
void Gathering::add_barrier(uint32_t barrier) {
  times_.emplace_back(state.all_threads + barrier, state.time);
  completed_times_.emplace_back(state.all_warps + barrier, state.time);
}
Knowledge Gathering::finish() {
  Clock accesses = join(accesses_, times_, state.all_threads + state.all_barriers);
  return {std::move(accesses), finish_values()};
}
Clock Gathering::finish_values() {
  Clock completed = join(completed_, completed_times_, state.all_warps + state.all_barriers);
  *this = Gathering();
  ++state.time;
  return completed;
}

bool on() {
  static const bool asked = [] {
    const char* const text = std::getenv("EMULATOR_RACES");
    return text && std::atoi(text) != 0;
  }();
  return asked;
}

void begin_launch(unsigned resident, unsigned threads) {
  for (Joined& known : joined) known = {};
  for (auto& [number, page] : state.pages) state.free.push_back(std::move(page));
  State fresh;
  fresh.free = std::move(state.free);
  state = std::move(fresh);
  state.threads = threads;
  state.warps = (threads + warp_size - 1) / warp_size;
  state.all_threads = resident * state.threads;
  state.all_warps = resident * state.warps;
  state.all_barriers = resident * barriers_of_block;
  state.began.assign(resident, 0);
  state.accesses.resize(state.all_threads);
  state.completed.resize(state.all_warps);
  state.met.assign(state.all_warps, 0);
  state.more.resize(1);
}

int end_launch() {
  if (state.races > 0) {
    std::fprintf(stderr, "emulator: %d races, %zu places in the code\n", state.races,
                 state.found.size());
  }
  return state.races;
}

// Of what had the place before it knows nothing.
void begin_block(const Block& block) {
  ++state.time;
  const uint32_t place = block.place;
  state.began[place] = state.time;
  for (uint32_t i = 0; i < state.threads; ++i) state.accesses[place * state.threads + i] = nullptr;
  for (uint32_t i = 0; i < state.warps; ++i) {
    state.completed[place * state.warps + i] = nullptr;
    state.met[place * state.warps + i] = 0;
  }
  for_cells(block.memory.get(), block.bytes, [](Cell& cell, uintptr_t) { cell = {}; });
}

Moment now(const Fiber& fiber) { return moment_of(fiber); }
Moment send(const Fiber& fiber) {
  const Moment& moment = moment_of(fiber);
  ++state.time;
  return moment;
}

void acquire(const Fiber& fiber, const Knowledge& known) {
  Clock& accesses = state.accesses[thread_of(fiber)];
  accesses = join(accesses, known.accesses);
  acquire_values(fiber, known.completed);
}
void acquire_own_block(const Fiber& fiber, const Knowledge& known) {
  if (!known.accesses) return;
  auto own = std::make_shared<std::vector<uint32_t>>(known.accesses->size(), 0);
  const uint32_t first = fiber.block->place * state.threads;
  for (uint32_t i = first; i < first + state.threads; ++i) (*own)[i] = (*known.accesses)[i];
  acquire(fiber, {std::move(own), nullptr});
}
void meet_as_warp(const Fiber& fiber) { state.met[warp_of(fiber)] = state.time++; }

void release_to(const Fiber& fiber, const void* counter) {
  Gathering gathering;
  gathering.add(moment_of(fiber));
  const Knowledge known = gathering.finish();
  Knowledge& its = state.counters[reinterpret_cast<uintptr_t>(counter)];
  its = {join(its.accesses, known.accesses), join(its.completed, known.completed)};
}
const Knowledge& released_to(const void* counter) {
  return state.counters[reinterpret_cast<uintptr_t>(counter)];
}

void read(const Fiber& fiber, const void* from, size_t bytes, Kind kind, const void* code) {
  const Moment& moment = moment_of(fiber);
  const uint32_t its = code_of(code);
  for_cells(from, bytes,
            [&](Cell& cell, uintptr_t at) { check_read(moment, cell, at, kind, its); });
}
void write(const Fiber& fiber, const void* to, size_t bytes, Kind kind, const void* code) {
  const Moment& moment = moment_of(fiber);
  const uint32_t its = code_of(code);
  for_cells(to, bytes, [&](Cell& cell, uintptr_t at) {
    check_write(moment, cell, at, moment.thread, kind, its);
  });
}
void write_async(const Moment& sent, uint32_t barrier, const void* to, size_t bytes,
                 const void* code) {
  const uint32_t its = code_of(code);
  for_cells(to, bytes, [&](Cell& cell, uintptr_t at) {
    check_write(sent, cell, at, state.all_threads + barrier, Kind::async, its);
  });
}

void send_value(const Fiber& fiber, const void* to) {
  Gathering gathering;
  gathering.add_values(moment_of(fiber));
  state.values[reinterpret_cast<uintptr_t>(to)] = gathering.finish_values();
}
void receive_value(const Fiber& fiber, const void* from) {
  const auto found = state.values.find(reinterpret_cast<uintptr_t>(from));
  if (found != state.values.end()) acquire_values(fiber, found->second);
}

}  // namespace races
}  // namespace emulator
