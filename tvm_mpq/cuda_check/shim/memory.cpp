// Every access of a kernel to memory, as the compiler's thread sanitizer reports it (the functions __tsan_… are called
// in front of each load and store that another thread may see): bounds, alignment, races, uninitialized shared memory.
#include <cstdlib>
#include <cstring>

#define EMULATED_RUNTIME
#include "runtime.h"

using namespace emulated;

// Dynamic shared memory, in its own 227 KiB: kernels declare it without a size.
alignas(1024) thread_local unsigned char buf_dyn_shmem[227 << 10];

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) const char _end[];

namespace {

// Who touched a byte of shared memory last. Intervals are those between barriers; of readers two are remembered,
// which is enough to know whether somebody else than a writer has read.
struct Touched {
  uint32_t written, read;
  uint16_t writer, writer_warp_interval;
  uint16_t reader[2], reader_warp_interval[2];
};

struct Writer {
  uint32_t thread;  // in the grid, from 1; 0: nobody
  uint32_t interval;
};

struct Region {
  uintptr_t begin, end;
  Writer* writers;
};

constexpr int kRegions = 64, kArrays = 4096;
Region regions[kRegions];
int region_count;
SharedArray all_arrays[kArrays], arrays[kArrays];  // of the module, of the kernel that runs
int all_array_count, array_count;
uintptr_t shared_begin, shared_end, dynamic_begin;
Touched* touched;



// Whether an access of thread ``other`` in the same interval is unordered with one of this thread.
bool unordered(unsigned other, uint16_t its_warp_interval) {
  if (other == linear_thread) return false;
  return other / 32 != linear_thread / 32 || its_warp_interval == warp_interval[other / 32];
}

[[noreturn]] void race(const char* verb, const char* other_verb, uint64_t offset, const char* memory, unsigned other,
                       const void* where) {
  fail("race", where, "%s byte %llu of %s, which thread (%u, %u, %u) %s with no barrier between", verb,
       static_cast<unsigned long long>(offset), memory, other % launch.block.x, other / launch.block.x % launch.block.y,
       other / launch.block.x / launch.block.y, other_verb);
}

void shared_access(uintptr_t address, size_t bytes, bool write, const void* where) {
  uintptr_t begin = 0, end = 0;
  const char* memory = "dynamic shared memory";
  if (address - dynamic_begin < launch.shared) {
    begin = dynamic_begin;
    end = begin + launch.shared;
  } else {
    for (int i = 0; i < array_count; ++i)
      if (address - arrays[i].begin < arrays[i].end - arrays[i].begin) {
        begin = arrays[i].begin;
        end = arrays[i].end;
        memory = arrays[i].name;
      }
  }
  if (!*memory) return;  // not the kernel's: see symbols.py
  if (!begin || address + bytes > end)
    fail("out of bounds", where, "%s %zu bytes of shared memory outside of its arrays", write ? "writes" : "reads", bytes);
  uint16_t me = linear_thread, my_warp_interval = warp_interval[linear_thread / 32];
  for (size_t i = 0; i < bytes; ++i) {
    Touched& t = touched[address + i - shared_begin];
    uint64_t offset = address + i - begin;
    if (!write && t.written < block_interval)
      fail("uninitialized", where, "reads byte %llu of %s, which no thread of the block has written",
           static_cast<unsigned long long>(offset), memory);
    if (t.written == interval && unordered(t.writer, t.writer_warp_interval))
      race(write ? "writes" : "reads", "wrote", offset, memory, t.writer, where);
    if (write) {
      if (t.read == interval)
        for (int r = 0; r < 2; ++r)
          if (unordered(t.reader[r], t.reader_warp_interval[r]))
            race("writes", "read", offset, memory, t.reader[r], where);
      t.written = interval;
      t.writer = me;
      t.writer_warp_interval = my_warp_interval;
    } else if (t.read != interval) {
      t.read = interval;
      t.reader[0] = t.reader[1] = me;
      t.reader_warp_interval[0] = t.reader_warp_interval[1] = my_warp_interval;
    } else {
      int slot = t.reader[0] == me ? 0 : 1;
      t.reader[slot] = me;
      t.reader_warp_interval[slot] = my_warp_interval;
    }
  }
}

void global_access(Region& region, uintptr_t address, size_t bytes, bool write, const void* where) {
  if (!region.writers) {
    if (!write) return;
    region.writers = static_cast<Writer*>(calloc(region.end - region.begin, sizeof(Writer)));
  }
  uint32_t threads = launch.block.x * launch.block.y * launch.block.z;
  uint32_t me = uint32_t(linear_block) * threads + linear_thread + 1;
  Writer* writer = region.writers + (address - region.begin);
  for (size_t i = 0; i < bytes; ++i) {
    uint32_t other = writer[i].thread;
    if (other && other != me) {
      bool same_block = (other - 1) / threads == uint32_t(linear_block);
      if (!same_block)
        fail("race", where, "%s byte %zu of parameter %d, which a thread of block %u wrote", write ? "writes" : "reads",
             size_t(address + i - region.begin), int(&region - regions), (other - 1) / threads);
      if (writer[i].interval == interval)
        race(write ? "writes" : "reads", "wrote", address + i - region.begin, "a parameter's buffer",
             (other - 1) % threads, where);
    }
    if (write) writer[i] = {me, interval};
  }
}

}  // namespace

namespace emulated {

uint64_t begin_memory(const Any* values, const uint64_t* bytes, int count) {
  ++interval;
  dynamic_begin = reinterpret_cast<uintptr_t>(buf_dyn_shmem);
  if (!touched) {
    shared_begin = dynamic_begin;
    shared_end = dynamic_begin + sizeof buf_dyn_shmem;
    for (int i = 0; i < all_array_count; ++i) {
      if (all_arrays[i].begin < shared_begin) shared_begin = all_arrays[i].begin;
      if (all_arrays[i].end > shared_end) shared_end = all_arrays[i].end;
    }
    touched = static_cast<Touched*>(calloc(shared_end - shared_begin, sizeof(Touched)));
  }
  array_count = 0;
  for (int i = 0; i < all_array_count; ++i)
    if (!strcmp(all_arrays[i].kernel, kernel->name)) arrays[array_count++] = all_arrays[i];
  region_count = 0;
  for (int i = 0; i < count && i < kRegions; ++i) {
    uintptr_t begin = bytes[i] ? reinterpret_cast<uintptr_t>(values[i].pointer) : 0;
    regions[region_count++] = {begin, begin + bytes[i], nullptr};
  }
  uint64_t fixed = 0;
  for (int i = 0; i < array_count; ++i)
    if (*arrays[i].name) fixed += arrays[i].end - arrays[i].begin;
  return fixed;
}

void end_memory() {
  for (int i = 0; i < region_count; ++i) free(regions[i].writers);
  region_count = 0;
}

void access(const void* pointer, size_t bytes, bool write, const void* where) {
  uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (!options.check || on_stack(address)) return;
  if (address - shared_begin < shared_end - shared_begin) return shared_access(address, bytes, write, where);
  for (int i = 0; i < region_count; ++i)
    if (address - regions[i].begin < regions[i].end - regions[i].begin) {
      if (address + bytes > regions[i].end)
        fail("out of bounds", where, "%s %zu bytes at byte %zu of parameter %d, which has %zu", write ? "writes" : "reads",
             bytes, size_t(address - regions[i].begin), i, size_t(regions[i].end - regions[i].begin));
      return global_access(regions[i], address, bytes, write, where);
    }
  // Constant tables of the module itself.
  if (!write && address - reinterpret_cast<uintptr_t>(__ehdr_start) < size_t(_end - __ehdr_start)) return;
  int nearest = -1;
  intptr_t distance = 0;
  for (int i = 0; i < region_count; ++i) {
    intptr_t d = address < regions[i].begin ? intptr_t(address - regions[i].begin) : intptr_t(address - regions[i].end);
    if (regions[i].begin && (nearest < 0 || llabs(d) < llabs(distance))) nearest = i, distance = d;
  }
  fail("out of bounds", where, "%s %zu bytes, %lld bytes %s the buffer of parameter %d", write ? "writes" : "reads", bytes,
       static_cast<long long>(llabs(distance)), distance < 0 ? "before" : "behind the end of", nearest);
}

}  // namespace emulated

extern "C" {

// Where shared arrays lie: offsets in the module's thread-local block, that of buf_dyn_shmem for comparison.
__attribute__((visibility("default"))) void cuda_check_shared(const SharedArray* where, int count, uintptr_t dynamic) {
  uintptr_t base = reinterpret_cast<uintptr_t>(buf_dyn_shmem) - dynamic;
  all_array_count = count < kArrays ? count : kArrays;
  for (int i = 0; i < all_array_count; ++i) {
    all_arrays[i] = where[i];
    all_arrays[i].begin += base;
    all_arrays[i].end += base;
  }
  free(touched);
  touched = nullptr;
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

static inline void sized(const void* address, size_t bytes, bool write, const void* where) {
  if (options.check && reinterpret_cast<uintptr_t>(address) % bytes && !on_stack(reinterpret_cast<uintptr_t>(address)))
    fail("misaligned", where, "%s %zu bytes at an address that is no multiple of them", write ? "writes" : "reads", bytes);
  access(address, bytes, write, where);
}

#define ACCESS(bytes)                                                                                      \
  void __tsan_read##bytes(void* a) { sized(a, bytes, false, __builtin_return_address(0)); }                \
  void __tsan_write##bytes(void* a) { sized(a, bytes, true, __builtin_return_address(0)); }                \
  void __tsan_unaligned_read##bytes(void* a) { sized(a, bytes, false, __builtin_return_address(0)); }      \
  void __tsan_unaligned_write##bytes(void* a) { sized(a, bytes, true, __builtin_return_address(0)); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* a, size_t bytes) { access(a, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* a, size_t bytes) { access(a, bytes, true, __builtin_return_address(0)); }
}
