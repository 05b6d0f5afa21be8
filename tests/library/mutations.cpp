// The fuzz target without libFuzzer: mutations RUNS SEED FILES ... Mutates one of the files, or one
// of its last mutations that could be loaded, up to eight times, again and again. Prints how many
// could be loaded.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fused_lstm.h"

void mutate(std::string& file, std::mt19937_64& random);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

int main(int count, char** arguments) {
  if (count < 4) return 2;
  const long runs = std::strtol(arguments[1], nullptr, 10);
  std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
  std::vector<std::string> files;
  for (int i = 3; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (files.back().empty()) return 3;
  }
  const size_t valid = files.size();
  long loaded = 0;
  for (long run = 0; run < runs; ++run) {
    std::string file = files[random() % files.size()];
    for (uint64_t times = 1 + random() % 8; times > 0; --times) mutate(file, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(file.data()), file.size());
    fl_model* model = nullptr;
    if (fl_model_load_memory(file.data(), file.size(), nullptr, &model) != FL_OK) continue;
    fl_model_free(model);
    ++loaded;
    if (files.size() < 2 * valid) {
      files.push_back(file);
    } else {
      files[valid + random() % valid] = file;
    }
  }
  std::printf("%ld mutations, %ld loaded\n", runs, loaded);
  return 0;
}
