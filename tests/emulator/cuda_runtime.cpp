// The CUDA runtime on the host: a GPU chosen by EMULATED_GPU, attributes of kernels, the checks of
// a launch, occupancy, the error that stays latched, and what tests read of all that.
#include <c10/core/Allocator.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace emulator {

namespace {

// A GPU, and where it differs from what it says of itself.
struct Profile {
  const char* name;
  cudaDeviceProp says;
  int ptx_version = 90;                // that the kernels were compiled for
  std::vector<unsigned> gpcs = {};     // multiprocessors of each; a cluster lives in one of them
  unsigned largest_cluster = 16;       // 0: it has none
  unsigned cooperative_blocks = 1000;  // that a launch takes at most
  unsigned launched_cluster = 16;      // likewise, though the occupancy says largest_cluster
};

const Profile& profile() {
  constexpr size_t shared_memory = 227 * 1024;
  static const std::vector<Profile> all = {
      // Few multiprocessors, each with the shared memory of compute capability 9.0
      {"hopper", {9, 0, 12, shared_memory}, 90, {12}},
      // GPCs of several sizes, as where some multiprocessors are switched off
      {"hopper-132", {9, 0, 132, shared_memory}, 90, {18, 18, 18, 18, 16, 16, 14, 14}},
      {"no-clusters-of-16", {9, 0, 32, shared_memory}, 90, {16, 16}, 8},
      {"one-cluster-of-4", {9, 0, 4, shared_memory}, 90, {4}, 4},
      {"one-cluster-of-8", {9, 0, 8, shared_memory}, 90, {8}, 8},
      {"one-cluster-of-16", {9, 0, 16, shared_memory}, 90, {16}},
      {"fewer-sms", {9, 0, 12, shared_memory}, 90, {12}, 16, /*cooperative_blocks=*/5},
      {"ptx-8.0-on-9.0", {9, 0, 12, shared_memory}, 80, {12}},
      {"ada", {8, 9, 12, 99 * 1024}, 80, {12}, /*largest_cluster=*/0},
      {"a100", {8, 0, 108, 163 * 1024}, 80, {108}, /*largest_cluster=*/0},
      {"l4", {8, 9, 58, 99 * 1024}, 80, {58}, /*largest_cluster=*/0},
      {"green", {9, 0, 12, shared_memory}, 90, {12}, 16, 0, 0},
  };
  static const Profile& chosen = [&]() -> const Profile& {
    const char* const name = std::getenv("EMULATED_GPU");
    for (const Profile& one : all) {
      if (std::strcmp(one.name, name ? name : "hopper-132") == 0) return one;
    }
    std::fprintf(stderr, "EMULATED_GPU is '%s', must be one of:", name);
    for (const Profile& one : all) std::fprintf(stderr, " %s", one.name);
    std::fprintf(stderr, "\n");
    std::abort();
  }();
  return chosen;
}

struct KernelAttributes {
  int shared_memory = 48 * 1024;
  unsigned cluster = 8;
};

std::map<const void*, KernelAttributes> attributes;
std::mutex mutex;  // one launch at a time

std::atomic<cudaError_t> latched = cudaSuccess;
std::atomic<bool> sticky = false;  // the latched error is for good

std::atomic<int64_t> launches = 0, refused = 0, gemms = 0, allocations = 0, attributes_set = 0;
std::atomic<void (*)()> on_allocation = nullptr;

cudaError_t latch(cudaError_t error) {
  if (sticky) return latched;
  if (error != cudaSuccess) latched = error;
  return error;
}

struct LaunchAttributes {
  unsigned cluster = 0;  // blocks; 0: no cluster launch
  bool cooperative = false;
};
LaunchAttributes attributes_of(const cudaLaunchConfig_t& config) {
  LaunchAttributes attributes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& its = config.attrs[i];
    if (its.id == cudaLaunchAttributeClusterDimension) attributes.cluster = its.val.clusterDim.x;
    if (its.id == cudaLaunchAttributeCooperative) attributes.cooperative = its.val.cooperative;
  }
  return attributes;
}

int clusters_at_once(unsigned blocks) {
  unsigned clusters = 0;
  for (const unsigned multiprocessors : profile().gpcs) clusters += multiprocessors / blocks;
  return static_cast<int>(clusters);
}

// What is wrong with a launch for the GPU that it says it is.
cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const KernelAttributes its = attributes[kernel];
  const LaunchAttributes attributes = attributes_of(config);
  const unsigned resident = static_cast<unsigned>(properties.multiProcessorCount);
  if (config.gridDim.x == 0 || config.blockDim.x == 0) return cudaErrorInvalidConfiguration;
  if (attributes.cluster > 0) {
    if (profile().largest_cluster == 0) return cudaErrorNotSupported;
    if (config.gridDim.x % attributes.cluster != 0) return cudaErrorInvalidConfiguration;
    if (attributes.cluster > its.cluster || attributes.cluster > profile().largest_cluster) {
      return cudaErrorInvalidClusterSize;
    }
  }
  if (config.dynamicSmemBytes > static_cast<size_t>(its.shared_memory)) {
    return cudaErrorInvalidValue;
  }
  if (attributes.cooperative && config.gridDim.x > resident) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

// What the GPU takes of the launches that it should.
cudaError_t refusal(const cudaLaunchConfig_t& config) {
  const LaunchAttributes attributes = attributes_of(config);
  if (attributes.cluster > 0 && (attributes.cluster > profile().launched_cluster ||
                                 clusters_at_once(attributes.cluster) == 0)) {
    return cudaErrorInvalidClusterSize;
  }
  if (attributes.cooperative && config.gridDim.x > profile().cooperative_blocks) {
    return profile().cooperative_blocks > 0 ? cudaErrorCooperativeLaunchTooLarge
                                            : cudaErrorNotSupported;
  }
  return cudaSuccess;
}

// Counts the tensors that are allocated; CUDA's allocator has no memory for an empty one.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes > 0) {
      ++allocations;
      if (void (*const call)() = on_allocation) call();
    }
    return inner_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    inner_->copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* const inner_;
};
const bool counting = [] {
  static CountingAllocator allocator(c10::GetAllocator(c10::kCPU));
  c10::SetAllocator(c10::kCPU, &allocator, /*priority=*/100);
  return true;
}();

}  // namespace

const cudaDeviceProp& properties = profile().says;

void count_gemm() { ++gemms; }

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  ++attributes_set;
  KernelAttributes& its = attributes[kernel];
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (profile().largest_cluster == 0) return latch(cudaErrorNotSupported);
    its.cluster = value ? 16 : 8;
  } else {
    if (value > static_cast<int>(properties.sharedMemPerBlockOptin)) {
      return latch(cudaErrorInvalidValue);
    }
    its.shared_memory = value;
  }
  return latch(cudaSuccess);
}

cudaError_t get_attributes(cudaFuncAttributes* its) {
  *its = {};
  its->ptxVersion = profile().ptx_version;
  its->binaryVersion = properties.major * 10 + properties.minor;
  return latch(cudaSuccess);
}

cudaError_t active_clusters(int* clusters, const cudaLaunchConfig_t& config, const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  const cudaError_t error = check(config, kernel);
  *clusters = error == cudaSuccess ? clusters_at_once(attributes_of(config).cluster) : 0;
  return latch(error);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (sticky) return latched;
  ++launches;
  cudaError_t error = check(config, kernel);
  if (error == cudaSuccess) error = refusal(config);
  if (error != cudaSuccess) {
    ++refused;
    return latch(error);
  }
  const unsigned cluster = attributes_of(config).cluster;
  if (cluster > 0 && profile().ptx_version < 90) {
    error = cudaErrorLaunchFailure;  // the kernels' bodies trap
  } else {
    error = run(config, cluster > 0 ? cluster : 1, thread);
  }
  latch(error);
  sticky = error != cudaSuccess;
  return error;
}

}  // namespace emulator

cudaError_t cudaGetLastError() {
  using namespace emulator;
  return sticky ? latched.load() : latched.exchange(cudaSuccess);
}

cudaError_t cudaPeekAtLastError() { return emulator::latched; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorInvalidClusterSize:
      return "invalid cluster size";
  }
  return "unknown error";
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t /*stream*/) {
  ++emulator::launches;
  if (!emulator::records_launches()) std::memset(to, byte, bytes);
  return cudaSuccess;
}

// For tests, which call them by ctypes (tests/emulated.py).
extern "C" {
int64_t emulated_launches() { return emulator::launches; }
int64_t emulated_gemms() { return emulator::gemms; }
int64_t emulated_refused() { return emulator::refused; }
int64_t emulated_allocations() { return emulator::allocations; }
int64_t emulated_attributes_set() { return emulator::attributes_set; }
void emulated_on_allocation(void (*call)()) { emulator::on_allocation = call; }
const char* emulated_last_error() { return cudaGetErrorString(cudaPeekAtLastError()); }
}
