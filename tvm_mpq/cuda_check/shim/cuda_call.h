// Behind the kernels: calls of them with arguments as TVM passes them.
#pragma once
namespace emulated {

template <class T>
__attribute__((no_sanitize("thread"))) T unpacked(const Any& value) {
  if constexpr (std::is_pointer<T>::value) return static_cast<T>(value.pointer);
  else if constexpr (std::is_floating_point<T>::value) return static_cast<T>(value.real);
  else return static_cast<T>(value.integer);
}

template <class... P, size_t... I>
__attribute__((no_sanitize("thread"))) void apply(void (*function)(P...), const Any* values, std::index_sequence<I...>) {
  function(unpacked<P>(values[I])...);
}

template <class... P>
__attribute__((no_sanitize("thread"))) void apply(void (*function)(P...), const Any* values) {
  apply(function, values, std::index_sequence_for<P...>());
}

}  // namespace emulated

extern "C" int cuda_check_packed(emulated::Kernel* kernel, const emulated::Any* values, int count);
