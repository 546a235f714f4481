// runner BUNDLE [--threads N] [--repeat N] [--outputs PREFIX] INPUT.bin...
//
// Runs a bundle on raw arrays, one file an input (none: zeros), writes PREFIX0.bin, PREFIX1.bin, … and prints the
// latency and the process's peak resident memory.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

#include "tvm_mpq.h"

namespace {

long PeakKilobytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

int Main(const std::vector<std::string>& words) {
  std::string folder, prefix;
  std::vector<std::string> files;
  int threads = 1, repeat = 1;
  for (size_t i = 0; i < words.size(); ++i) {
    bool option = words[i].rfind("--", 0) == 0;
    if (option && i + 1 == words.size()) throw std::runtime_error(words[i] + " needs a value");
    if (words[i] == "--threads") {
      threads = std::atoi(words[++i].c_str());
    } else if (words[i] == "--repeat") {
      repeat = std::atoi(words[++i].c_str());
    } else if (words[i] == "--outputs") {
      prefix = words[++i];
    } else if (option) {
      throw std::runtime_error("unknown option " + words[i]);
    } else if (folder.empty()) {
      folder = words[i];
    } else {
      files.push_back(words[i]);
    }
  }
  if (folder.empty()) throw std::runtime_error("usage: runner BUNDLE [--threads N] [--repeat N] [--outputs PREFIX] INPUT.bin...");
  if (threads < 1 || repeat < 1) throw std::runtime_error("--threads and --repeat need a number of at least 1");

  tvm_mpq::Network network(folder, threads);
  std::vector<tvm_mpq::Array> inputs;
  for (size_t i = 0; i < network.InputCount(); ++i) inputs.push_back(network.Input(i));
  if (!files.empty() && files.size() != inputs.size()) {
    throw std::runtime_error("the network has " + std::to_string(inputs.size()) + " inputs: give a file for each");
  }
  for (size_t i = 0; i < files.size(); ++i) {
    std::ifstream file(files[i], std::ios::binary);
    char* data = reinterpret_cast<char*>(inputs[i].bytes.data());
    std::streamsize size = static_cast<std::streamsize>(inputs[i].bytes.size());
    if (!file.read(data, size) || file.peek() != EOF) {
      throw std::runtime_error(files[i] + " is not a file of " + std::to_string(size) + " bytes");
    }
  }
  std::vector<tvm_mpq::Array> outputs;
  std::vector<double> milliseconds;
  for (int i = 0; i < repeat; ++i) {
    auto start = std::chrono::steady_clock::now();
    outputs = network.Run(inputs);
    milliseconds.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::printf("%s: %s, %zu bytes\n", outputs[i].name.c_str(), outputs[i].dtype.c_str(), outputs[i].bytes.size());
    if (prefix.empty()) continue;
    std::ofstream file(prefix + std::to_string(i) + ".bin", std::ios::binary);
    file.write(reinterpret_cast<const char*>(outputs[i].bytes.data()),
               static_cast<std::streamsize>(outputs[i].bytes.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + prefix + std::to_string(i) + ".bin");
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::printf("median %.3f ms, min %.3f ms of %d runs; peak resident %ld kB\n", milliseconds[repeat / 2],
              milliseconds.front(), repeat, PeakKilobytes());
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return Main(std::vector<std::string>(words + 1, words + count));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
