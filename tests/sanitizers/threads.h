// Included before every source of the build for ThreadSanitizer: what at::parallel_for calls, on
// threads that ThreadSanitizer knows. It cannot see how libgomp's threads wait for one another, and
// would take each of them for a race.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace at {
int get_num_threads();
namespace internal {

template <class Body>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const Body& body) {
  const int64_t tasks = (end - begin + grain_size - 1) / std::max<int64_t>(grain_size, 1);
  const int64_t count = std::min<int64_t>(get_num_threads(), tasks);
  const int64_t each = (end - begin + count - 1) / count;
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += each) {
    threads.emplace_back([&, first] { body(first, std::min(first + each, end)); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace internal
}  // namespace at
