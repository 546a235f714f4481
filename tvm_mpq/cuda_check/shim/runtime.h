// What kernels, the scheduler and the memory checks share: threads of a block as fibers, collectives of a warp.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

// Each thread's own. To a kernel they are constants, which the compiler may keep in registers.
#ifdef EMULATED_RUNTIME
extern "C" uint3 threadIdx, blockIdx, blockDim, gridDim;
#else
extern "C" const uint3 threadIdx, blockIdx, blockDim, gridDim;
#endif

namespace emulated {

// An argument as TVM's functions take it (TVMFFIAny): the type's number and eight bytes of value.
struct Any {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    double real;
    void* pointer;
  };
};

struct Kernel {
  const char* name;
  void (*call)(const Any* arguments);
  int parameters;
  const uint64_t* bytes;  // of the buffer behind each parameter; 0: no buffer
  const char* tags;       // what the launch arguments behind them are: x y z of the grid, X Y Z of the block, s: shared bytes
  uint64_t calls, checked;
};

// What went wrong, and where in the code (nullptr: not known).
struct Failure {
  char kind[32];
  char message[480];
  const void* where;
};

struct Launch {
  uint3 grid, block;
  uint64_t shared;
};

// One array in shared memory, and the kernel that it belongs to.
struct SharedArray {
  uintptr_t begin, end;
  const char *kernel, *name;
};

enum State : uint8_t { NEW, READY, AT_BARRIER, IN_WARP, ASKING, DONE };

struct Lane {
  State state;
  unsigned line;       // of the barrier or collective that it waits at
  unsigned mask;       // of the collective
  int kind;            // of the collective
  void* data;          // of the collective: operands in, result out
  struct Fiber* fiber;
};

struct Options {
  bool check;      // races, bounds, alignment, uninitialized shared memory
  bool reverse;  // the last block and thread first
  unsigned lanes;  // wmma fragments lie in the lanes in an order that this changes (0 … 31)
};

extern Options options;
extern Launch launch;
extern const Kernel* kernel;
extern unsigned linear_thread;  // in the block
extern uint64_t linear_block;
extern uint32_t interval;       // grows with every block and barrier
extern uint32_t block_interval; // its value at the block's start
extern uint16_t warp_interval[32];  // grows with every __syncwarp

[[noreturn]] void fail(const char* kind, const void* where, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

void barrier(unsigned line);
unsigned active_mask(unsigned line);
void sync_warp(unsigned mask, unsigned line);
// All lanes of ``mask`` meet; the last one to come runs ``combine`` on their data.
void collective(int kind, unsigned line, unsigned mask, void* data, void (*combine)(void** lanes, unsigned mask));

// Memory: told of every access of a kernel to what may be shared between threads.
void access(const void* address, size_t bytes, bool write, const void* where);
// Returns the bytes of the kernel's static shared memory.
uint64_t begin_memory(const Any* arguments, const uint64_t* bytes, int count);
void end_memory();
bool on_stack(uintptr_t address);

}  // namespace emulated
