#include "device/pool.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#include "device/device.h"

#if __has_include(<sys/mman.h>)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#define FUSED_LSTM_HAS_POOL 1
#endif

namespace fused_lstm {

#ifdef FUSED_LSTM_HAS_POOL
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMinPooled = size_t{64} << 10;  // bytes
constexpr size_t kMinHuge = size_t{1} << 20;     // of a block in huge pages

struct Block {
  void* data;
  size_t bytes;
};

size_t read_limit() {
  if (const char* const given = std::getenv("FUSED_LSTM_CACHE_MB"); given && *given) {
    char* end = nullptr;
    const long long megabytes = std::strtoll(given, &end, 10);
    TORCH_CHECK(*end == '\0' && megabytes >= 0 && megabytes < (1LL << 40),
                "FUSED_LSTM_CACHE_MB is '", given, "', must be a number of megabytes, 0 or more");
    return static_cast<size_t>(megabytes) << 20;
  }
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<size_t>(pages) * page / 4 : 0;
}

class Pool {
 public:
  // A block of at least so many bytes, or none if there is no memory.
  Block take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      size_t best = kept_.size();
      for (size_t i = 0; i < kept_.size(); ++i) {
        if (kept_[i].bytes < bytes || kept_[i].bytes > 2 * bytes) continue;
        if (best == kept_.size() || kept_[i].bytes < kept_[best].bytes) best = i;
      }
      if (best < kept_.size()) {
        const Block block = kept_[best];
        kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(best));
        kept_bytes_ -= block.bytes;
        return block;
      }
    }
    Block block = map(bytes);
    if (!block.data) {
      clear();
      block = map(bytes);
    }
    return block;
  }

  // Keeps a block; the oldest ones no longer, where all are over the limit.
  void give(const Block& block) {
#ifdef MADV_FREE
    if (block.bytes >= kMinHuge) madvise(block.data, block.bytes, MADV_FREE);  // may be taken back
#endif
    std::vector<Block> released;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      kept_.push_back(block);
      kept_bytes_ += block.bytes;
      while (kept_bytes_ > limit_) {
        kept_bytes_ -= kept_.front().bytes;
        released.push_back(kept_.front());
        kept_.erase(kept_.begin());
      }
    }
    for (const Block& old : released) munmap(old.data, old.bytes);
  }

  void clear() {
    std::vector<Block> released;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      released.swap(kept_);
      kept_bytes_ = 0;
    }
    for (const Block& block : released) munmap(block.data, block.bytes);
  }

  size_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_bytes_;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // A large block is whole huge pages: of a mapping that is one longer, without the rest.
  static Block map(size_t bytes) {
    if (bytes < kMinHuge) {
      void* const data =
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      return data == MAP_FAILED ? Block{nullptr, 0} : Block{data, bytes};
    }
    void* const raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return {nullptr, 0};
    char* const begin = static_cast<char*>(raw);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(raw) % kHugePage) % kHugePage;
    if (before > 0) munmap(begin, before);
    munmap(begin + before + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
    madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
    return {begin + before, bytes};
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
  size_t kept_bytes_ = 0;
  const size_t limit_ = read_limit();
};

// Never destroyed: tensors may outlive every static object. A child process after fork must not
// find the lock taken by a thread that it does not have.
Pool& pool() {
  static Pool* const one = [] {
    Pool* const made = new Pool;
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    return made;
  }();
  return *one;
}

// The profiler's memory view sees the tensors as those of torch's allocator.
void report(void* data, int64_t bytes) {
  if (!c10::memoryProfilingEnabled()) return;
  c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(c10::DeviceType::CPU));
}

}  // namespace

at::Tensor allocate_pooled(at::IntArrayRef sizes, const at::TensorOptions& options) {
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  if (!options.device().is_cpu() || bytes < kMinPooled) return allocate(sizes, options);
  const size_t unit = bytes < kMinHuge ? kMinPooled : kHugePage;
  const Block block = pool().take((bytes + unit - 1) / unit * unit);
  if (!block.data) return allocate(sizes, options);  // which says so
  const auto size = static_cast<int64_t>(bytes);
  report(block.data, size);
  const auto release = [block, size](void*) {
    report(block.data, -size);
    pool().give(block);
  };
  return at::from_blob(block.data, sizes, release, options);
}

int64_t cached_bytes() { return static_cast<int64_t>(pool().kept_bytes()); }
void empty_cache() { pool().clear(); }

#else

at::Tensor allocate_pooled(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return allocate(sizes, options);
}
int64_t cached_bytes() { return 0; }
void empty_cache() {}

#endif

}  // namespace fused_lstm
