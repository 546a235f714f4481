// What TVM's runtime takes from the header of this name.
#pragma once

#include <algorithm>
#include <string>

namespace tvm {
namespace support {

inline bool IsNumber(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace support
}  // namespace tvm
