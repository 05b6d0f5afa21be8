// Launches written to files instead of run, for tests/machine_code, which executes their machine
// code: EMULATOR_RECORD names the folder.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

namespace emulator {
namespace {

constexpr size_t kRegionBytes = 64 * 1024;  // lengths, resets and offsets of the recorded calls

// Bytes of this process's memory from `address` on, up to kRegionBytes or the first page that is
// not there.
std::string readable(uintptr_t address) {
  constexpr size_t page = 4096;
  std::string bytes(kRegionBytes, '\0');
  size_t count = 0;
  while (count < kRegionBytes) {
    const size_t part = std::min(kRegionBytes - count, page - (address + count) % page);
    const iovec to = {&bytes[count], part};
    const iovec from = {reinterpret_cast<void*>(address + count), part};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != static_cast<ssize_t>(part)) break;
    count += part;
  }
  bytes.resize(count);
  return bytes;
}

void write_number(std::ostream& out, uint64_t number) {
  out.write(reinterpret_cast<const char*>(&number), sizeof(number));
}

}  // namespace

bool records_launches() {
  static const bool records = std::getenv("EMULATOR_RECORD") != nullptr;
  return records;
}

// NUMBER.launch, all numbers of 64 bits: the kernel's offset in the library, the length of the
// library's path and the path, grid, block, cluster, dynamic shared memory; the length of the
// parameter block and the block; then, for each word of the block that is an address, the address,
// the length of what follows it in memory and these bytes.
void record(const cudaLaunchConfig_t& config, const void* kernel,
            std::initializer_list<Argument> arguments) {
  static unsigned number = 0;
  Dl_info library = {};
  if (!dladdr(kernel, &library)) std::abort();
  const std::string path = library.dli_fname;
  uint64_t cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& its = config.attrs[i];
    if (its.id == cudaLaunchAttributeClusterDimension) cluster = its.val.clusterDim.x;
  }

  std::string block;  // as CUDA lays out arguments: one after the other, each aligned
  for (const Argument& argument : arguments) {
    block.resize((block.size() + argument.alignment - 1) / argument.alignment * argument.alignment);
    block.append(static_cast<const char*>(argument.value), argument.bytes);
  }
  std::map<uintptr_t, std::string> regions;
  for (size_t i = 0; i + sizeof(uintptr_t) <= block.size(); i += sizeof(uintptr_t)) {
    uintptr_t word;
    std::memcpy(&word, &block[i], sizeof(word));
    if (word >= 1 << 16 && !regions.count(word)) regions[word] = readable(word);
  }

  const std::string folder = std::getenv("EMULATOR_RECORD");
  std::ofstream out(folder + "/" + std::to_string(number++) + ".launch", std::ios::binary);
  write_number(out, static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase));
  write_number(out, path.size());
  out << path;
  for (const uint64_t value : {uint64_t{config.gridDim.x}, uint64_t{config.blockDim.x}, cluster,
                               uint64_t{config.dynamicSmemBytes}}) {
    write_number(out, value);
  }
  write_number(out, block.size());
  out << block;
  for (const auto& [address, bytes] : regions) {
    if (bytes.empty()) continue;
    write_number(out, address);
    write_number(out, bytes.size());
    out << bytes;
  }
  if (!out.flush()) {
    std::fprintf(stderr, "emulator: cannot write to EMULATOR_RECORD=%s\n", folder.c_str());
    std::abort();
  }
}

}  // namespace emulator
