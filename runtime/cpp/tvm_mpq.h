// Runs networks that tvm_mpq compiled, without Python.
//
//     tvm_mpq::Network network("bundle");               // the folder that `tvm-mpq export` wrote
//     tvm_mpq::Array image = network.Input(0);          // zeros of the right shape and type
//     std::copy(pixels, pixels + 784, image.As<float>());
//     tvm_mpq::Array logits = network.Run({image}).at(0);
//
// Everything throws std::runtime_error with one line that says what is wrong. Link with -ltvm_runtime -ltvm_ffi.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tvm_mpq {

// A dense tensor in memory. `dtype` is spelled as NumPy does: float32, uint8, int64.
struct Array {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;

  template <typename T>
  T* As() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <typename T>
  const T* As() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

class Network {
 public:
  // Loads the bundle in `folder` to run with `threads` threads. The number of threads is the process's: the first
  // network that is loaded decides. Checks first that the processor has the instructions that the network needs.
  explicit Network(const std::string& folder, int threads = 1);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  size_t InputCount() const;
  size_t OutputCount() const;
  // Zeros, in the shape and type of an input.
  Array Input(size_t index) const;

  // The outputs for one array an input, in order.
  std::vector<Array> Run(const std::vector<Array>& inputs);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tvm_mpq
