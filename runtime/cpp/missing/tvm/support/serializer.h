// How values lie in a stream, as TVM's runtime includes it under this name: numbers are little-endian, a string or list
// is its length (64 bits) and its elements.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/endian.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "io.h"

namespace tvm {
namespace support {

static_assert(TVM_FFI_IO_NO_ENDIAN_SWAP, "big-endian machines are not supported");

// Numbers, enumerations and records of numbers.
template <typename T>
struct Serializer {
  static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>, "no way of writing this is known");
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const T& value) { stream->Write(static_cast<const void*>(&value), sizeof(T)); }
  static bool Read(Stream* stream, T* value) {
    return stream->Read(static_cast<void*>(value), sizeof(T)) == sizeof(T);
  }
};

template <typename List>
struct ListSerializer {
  using Element = typename List::value_type;
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const List& list) {
    stream->Write(static_cast<uint64_t>(list.size()));
    for (const Element& element : list) stream->Write(element);
  }
  static bool Read(Stream* stream, List* list) {
    uint64_t size;
    if (!stream->Read(&size)) return false;
    list->clear();
    for (uint64_t i = 0; i < size; ++i) {
      Element element;
      if (!stream->Read(&element)) return false;
      list->push_back(element);
    }
    return true;
  }
};

template <typename T>
struct Serializer<std::vector<T>> : ListSerializer<std::vector<T>> {};

template <>
struct Serializer<std::string> : ListSerializer<std::string> {};

template <>
struct Serializer<ffi::String> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::String& text) { stream->Write(std::string(text)); }
  static bool Read(Stream* stream, ffi::String* text) {
    std::string found;
    if (!stream->Read(&found)) return false;
    *text = found;
    return true;
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::Array<T>& array) {
    stream->Write(std::vector<T>(array.begin(), array.end()));
  }
  static bool Read(Stream* stream, ffi::Array<T>* array) {
    std::vector<T> found;
    if (!stream->Read(&found)) return false;
    *array = ffi::Array<T>(found.begin(), found.end());
    return true;
  }
};

}  // namespace support
}  // namespace tvm
