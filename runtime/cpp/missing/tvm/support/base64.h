// Streams of base64 over another stream, as TVM's runtime includes them under this name.
#pragma once

#include <tvm/ffi/extra/base64.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "io.h"

namespace tvm {
namespace support {

class Base64OutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64OutStream(Stream* to) : to_(to) {}

  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void* data, size_t size) override {
    bytes_.append(static_cast<const char*>(data), size);
    return size;
  }
  // Writes what was given so far; there is nothing more to come.
  void Finish() {
    ffi::String text = ffi::Base64Encode(TVMFFIByteArray{bytes_.data(), bytes_.size()});
    to_->Write(static_cast<const void*>(text.data()), text.size());
  }

 private:
  Stream* to_;
  std::string bytes_;
};

class Base64InStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64InStream(Stream* from) : from_(from) {}

  // Reads all that there is: to be called once, first.
  void InitPosition() {
    std::string text;
    char part[4096];
    while (size_t size = from_->Read(static_cast<void*>(part), sizeof(part))) text.append(part, size);
    ffi::Bytes bytes = ffi::Base64Decode(TVMFFIByteArray{text.data(), text.size()});
    bytes_.assign(bytes.data(), bytes.size());
  }
  size_t Read(void* data, size_t size) override {
    size = std::min(size, bytes_.size() - place_);
    if (size != 0) std::memcpy(data, bytes_.data() + place_, size);
    place_ += size;
    return size;
  }
  size_t Write(const void*, size_t) override { return 0; }

 private:
  Stream* from_;
  std::string bytes_;
  size_t place_ = 0;
};

}  // namespace support
}  // namespace tvm
