#include "tvm_mpq.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <sstream>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tvm_mpq {
namespace {

namespace ffi = tvm::ffi;

constexpr DLDevice kCpu{kDLCPU, 0};
constexpr int kPooledAllocator = 2;
constexpr int kShareAllCores = -3;
constexpr size_t kAlignment = 64;

struct Allocator {
  void AllocData(DLTensor* tensor) {
    size_t size = std::max<size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data = std::aligned_alloc(kAlignment, (size + kAlignment - 1) / kAlignment * kAlignment);
    if (tensor->data == nullptr) throw std::runtime_error("out of memory");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

[[noreturn]] void Fail(const std::string& what) { throw std::runtime_error(what); }

// What a bundle's network.txt says: one fact a line, the name of an array last.
struct Description {
  std::vector<std::string> features;
  std::vector<Array> inputs, outputs;
  std::string weights;
};

Array ReadArray(std::istream& line) {
  Array array;
  size_t rank = 0;
  line >> array.dtype >> rank;
  array.shape.resize(rank);
  for (int64_t& extent : array.shape) line >> extent;
  std::getline(line >> std::ws, array.name);
  DLDataType dtype = ffi::StringToDLDataType(array.dtype);
  int64_t count = std::accumulate(array.shape.begin(), array.shape.end(), int64_t{1}, std::multiplies<int64_t>());
  array.bytes.resize(count * ((dtype.bits + 7) / 8));
  return array;
}

Description ReadDescription(const std::string& path) {
  std::ifstream file(path);
  if (!file) Fail("cannot read " + path);
  Description found;
  std::string text;
  bool known = false;
  while (std::getline(file, text)) {
    std::istringstream line(text);
    std::string fact;
    line >> fact;
    if (fact == "tvm-mpq-bundle") {
      int version = 0;
      known = (line >> version) && version == 1;
    } else if (fact == "feature") {
      found.features.emplace_back();
      line >> found.features.back();
    } else if (fact == "input") {
      found.inputs.push_back(ReadArray(line));
    } else if (fact == "output") {
      found.outputs.push_back(ReadArray(line));
    } else if (fact == "weights") {
      line >> found.weights;
    }
    if (line.fail()) Fail(path + " is damaged: " + text);
  }
  if (!known) Fail(path + " is no bundle that this version can read");
  return found;
}

void CheckFeatures(const std::vector<std::string>& needed) {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> here;
  std::string text;
  while (std::getline(file, text)) {
    std::string key = text.substr(0, text.find_first_of("\t :"));
    if (key != "flags" && key != "Features" && key != "isa") continue;
    std::istringstream words(text.substr(text.find(':') + 1));
    for (std::string word; words >> word;) {
      here.insert(word);
      // RISC-V writes its extensions as one word: rv64imafdc_zicsr.
      if (key == "isa") {
        for (char letter : word.substr(4, word.find('_') - 4)) here.insert(std::string(1, letter));
      }
    }
    break;
  }
#if defined(__x86_64__) && defined(__linux__)
  // A process may use AMX's tiles once it has asked Linux to, which may refuse: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
  if (here.count("amx_tile") && syscall(SYS_arch_prctl, 0x1023, 18) != 0) {
    for (const char* name : {"amx_tile", "amx_int8", "amx_bf16"}) here.erase(name);
  }
#endif
  if (here.empty()) return;  // Linux says nothing here: the kernels will
  std::string lacking;
  for (const std::string& feature : needed) {
    if (here.count(feature)) continue;
    lacking += (lacking.empty() ? "" : ", ") + (feature == "asimddp" ? "dotprod" : feature);
  }
  if (!lacking.empty()) Fail("this device lacks " + lacking + ", which the network was compiled for");
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail("cannot read " + path);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

ffi::Tensor Copy(const void* data, size_t size, const std::vector<int64_t>& shape, const std::string& dtype) {
  ffi::Tensor tensor =
      ffi::Tensor::FromNDAlloc(Allocator(), ffi::Shape(shape), ffi::StringToDLDataType(dtype), kCpu);
  std::memcpy(tensor.data_ptr(), data, size);
  return tensor;
}

// TVM's errors are many lines long; the last one says what is wrong.
template <typename Work>
auto Guarded(const char* doing, Work work) {
  try {
    return work();
  } catch (const std::exception& error) {
    std::string said = error.what();
    said.erase(said.find_last_not_of('\n') + 1);
    Fail(std::string(doing) + ": " + said.substr(said.find_last_of('\n') + 1));
  }
}

}  // namespace

struct Network::State {
  Description description;
  ffi::Optional<ffi::Module> library, machine;
  ffi::Optional<ffi::Function> main;
  std::vector<ffi::Tensor> weights;

  ffi::Function Get(const ffi::Module& from, const char* name) {
    ffi::Optional<ffi::Function> found = ffi::Module(from)->GetFunction(name, false);
    if (!found.has_value()) Fail(std::string("the library has no function ") + name);
    return found.value();
  }
};

Network::Network(const std::string& folder, int threads) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.description = ReadDescription(folder + "/network.txt");
  CheckFeatures(s.description.features);
  Guarded("cannot load the network", [&] {
    ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kShareAllCores, threads,
                                                                  ffi::Array<ffi::String>(), threads);
    s.library = ffi::Module::LoadFromFile(folder + "/model.so");
    s.machine = s.Get(s.library.value(), "vm_load_executable")().cast<ffi::Module>();
    s.Get(s.machine.value(), "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    s.main = s.Get(s.machine.value(), "main");
    if (s.description.weights.empty()) return;
    std::string stream = ReadFile(folder + "/" + s.description.weights);
    std::vector<int64_t> shape{static_cast<int64_t>(stream.size())};
    ffi::Tensor packed = Copy(stream.data(), stream.size(), shape, "uint8");
    auto expanded = s.Get(s.machine.value(), "expand_weights")(packed).cast<ffi::Array<ffi::Tensor>>();
    s.weights.assign(expanded.begin(), expanded.end());
  });
}

Network::~Network() = default;

size_t Network::InputCount() const { return state_->description.inputs.size(); }

size_t Network::OutputCount() const { return state_->description.outputs.size(); }

Array Network::Input(size_t index) const { return state_->description.inputs.at(index); }

std::vector<Array> Network::Run(const std::vector<Array>& inputs) {
  State& s = *state_;
  const std::vector<Array>& wanted = s.description.inputs;
  if (inputs.size() != wanted.size()) Fail("the network has " + std::to_string(wanted.size()) + " inputs");
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (inputs[i].dtype != wanted[i].dtype || inputs[i].shape != wanted[i].shape ||
        inputs[i].bytes.size() != wanted[i].bytes.size()) {
      Fail("the input " + wanted[i].name + " has another shape or type than the network takes");
    }
  }
  return Guarded("cannot run the network", [&] {
    std::vector<ffi::Tensor> tensors;
    for (const Array& input : inputs) {
      tensors.push_back(Copy(input.bytes.data(), input.bytes.size(), input.shape, input.dtype));
    }
    tensors.insert(tensors.end(), s.weights.begin(), s.weights.end());
    std::vector<ffi::AnyView> arguments(tensors.begin(), tensors.end());
    ffi::Any result;
    s.main.value().CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    std::vector<ffi::Tensor> found;
    if (auto one = result.as<ffi::Tensor>()) {
      found.push_back(one.value());
    } else {
      for (ffi::Tensor each : result.cast<ffi::Array<ffi::Tensor>>()) found.push_back(each);
    }
    std::vector<Array> outputs = s.description.outputs;
    for (size_t i = 0; i < outputs.size(); ++i) {
      std::memcpy(outputs[i].bytes.data(), found.at(i).data_ptr(), outputs[i].bytes.size());
    }
    return outputs;
  });
}

}  // namespace tvm_mpq
