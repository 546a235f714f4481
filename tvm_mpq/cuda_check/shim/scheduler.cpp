// Runs a grid: blocks one after the other, the threads of a block as fibers that change at barriers and collectives.
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

#define EMULATED_RUNTIME
#include "runtime.h"

namespace emulated {

struct Fiber {
  jmp_buf at;
  bool started;
  char* stack;
};

Options options;
Launch launch;
const Kernel* kernel;
unsigned linear_thread;
uint64_t linear_block;
uint32_t interval, block_interval;
uint16_t warp_interval[32];

namespace {

constexpr int kThreads = 1024, kStack = 128 << 10, kPage = 4096;
char* stacks;
Fiber fibers[kThreads];
int free_fibers[kThreads], free_count;
Lane lanes[kThreads];
int threads;
uint64_t shared_limit = 227 << 10;
jmp_buf scheduler, outside;
Fiber* running;
ucontext_t entry_context;
const Any* arguments;
Failure failure;

void entry() {
  for (;;) {
    kernel->call(arguments);
    lanes[linear_thread].state = DONE;
    if (!_setjmp(running->at)) _longjmp(scheduler, 1);
  }
}

void resume(Fiber* fiber) {
  running = fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->started) _longjmp(fiber->at, 1);
  fiber->started = true;
  fiber->stack = stacks + (fiber - fibers) * size_t(kStack);
  mprotect(fiber->stack, kPage, PROT_NONE);  // what grows beyond it is told as a signal
  getcontext(&entry_context);
  entry_context.uc_stack.ss_sp = fiber->stack + kPage;
  entry_context.uc_stack.ss_size = kStack - kPage;
  entry_context.uc_link = nullptr;
  makecontext(&entry_context, entry, 0);
  setcontext(&entry_context);
}

void yield() {
  if (!_setjmp(running->at)) _longjmp(scheduler, 1);
}

void run_thread(int index) {
  Lane& lane = lanes[index];
  if (lane.state == NEW) {
    lane.fiber = &fibers[free_fibers[--free_count]];
  }
  lane.state = READY;
  linear_thread = index;
  threadIdx.x = index % launch.block.x;
  threadIdx.y = index / launch.block.x % launch.block.y;
  threadIdx.z = index / launch.block.x / launch.block.y;
  resume(lane.fiber);
  if (lane.state == DONE) free_fibers[free_count++] = lane.fiber - fibers;
}

unsigned existing(int warp) {
  int count = threads - 32 * warp;
  return count >= 32 ? ~0u : (1u << count) - 1;
}

// Lanes that ask who is with them: those at one line, once no other lane of the warp can go on.
bool answer(int warp) {
  Lane* first = lanes + 32 * warp;
  unsigned present = existing(warp), line = 0, mask = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(present >> i & 1) || first[i].state != ASKING) continue;
    if (!mask) line = first[i].line;
    if (first[i].line == line) mask |= 1u << i;
  }
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      first[i].mask = mask;
      first[i].state = READY;
    }
  return mask != 0;
}

void run_warp(int warp) {
  for (bool moved = true; moved;) {
    moved = false;
    for (int i = 0; i < 32; ++i) {
      int index = 32 * warp + (options.reverse ? 31 - i : i);
      if (index >= threads || lanes[index].state > READY) continue;
      run_thread(index);
      moved = true;
    }
    if (!moved) moved = answer(warp);
  }
}

// After a round in which no thread can go on: everybody is through, or at the same barrier, or it is an error.
bool release() {
  int waiting = -1, done = -1;
  for (int i = 0; i < threads; ++i) {
    Lane& lane = lanes[i];
    if (lane.state == IN_WARP) {
      linear_thread = i;
      fail("warp divergence", nullptr, "thread %d waits at line %u for lanes %08x of its warp, which do not come", i,
           lane.line, lane.mask);
    }
    if (lane.state == DONE) done = i;
    if (lane.state == AT_BARRIER && waiting < 0) waiting = i;
  }
  if (waiting < 0) return false;
  linear_thread = waiting;
  if (done >= 0)
    fail("barrier divergence", nullptr, "thread %d waits at the barrier of line %u, thread %d has ended", waiting,
         lanes[waiting].line, done);
  for (int i = 0; i < threads; ++i) {
    if (lanes[i].line != lanes[waiting].line)
      fail("barrier divergence", nullptr, "thread %d waits at the barrier of line %u, thread %d at that of line %u",
           waiting, lanes[waiting].line, i, lanes[i].line);
    lanes[i].state = READY;
  }
  ++interval;
  return true;
}

void run_block() {
  block_interval = ++interval;
  free_count = 0;
  for (int i = kThreads; i-- > 0;) free_fibers[free_count++] = i;
  for (int i = 0; i < threads; ++i) lanes[i] = Lane{NEW, 0, 0, 0, nullptr, nullptr};
  int warps = (threads + 31) / 32;
  do {
    for (int i = 0; i < warps; ++i) run_warp(options.reverse ? warps - 1 - i : i);
  } while (release());
}

void on_signal(int number, siginfo_t* info, void*) {
  failure.where = nullptr;
  snprintf(failure.kind, sizeof failure.kind, "signal");
  snprintf(failure.message, sizeof failure.message, "%s at address %p", strsignal(number), info->si_addr);
  siglongjmp(outside, 1);
}

struct Handlers {
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction old[3];
  stack_t old_stack;
  char* own;
  Handlers() {
    own = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    stack_t ours = {own, 0, kStack};
    sigaltstack(&ours, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old[i]);
  }
  void restore() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    munmap(own, kStack);
  }
};

// Stacks last as long as a launch: the system counts protected pages.
void make_stacks() {
  stacks = static_cast<char*>(mmap(nullptr, size_t(kThreads) * kStack, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (auto& fiber : fibers) fiber.started = false;
}

void check_launch(uint64_t fixed) {
  uint64_t all = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  if (all == 0 || all > kThreads || launch.block.z > 64)
    fail("launch", nullptr, "a block of %u × %u × %u threads; at most 1024 are possible", launch.block.x, launch.block.y,
         launch.block.z);
  if (!launch.grid.x || !launch.grid.y || !launch.grid.z || launch.grid.x > 0x7fffffff || launch.grid.y > 65535 ||
      launch.grid.z > 65535)
    fail("launch", nullptr, "a grid of %u × %u × %u blocks is impossible", launch.grid.x, launch.grid.y, launch.grid.z);
  if (fixed > 48 << 10)
    fail("launch", nullptr, "%llu bytes of static shared memory; at most 49152 are possible",
         static_cast<unsigned long long>(fixed));
  if (fixed + launch.shared > shared_limit)
    fail("launch", nullptr, "%llu bytes of shared memory; the device has %llu for a block",
         static_cast<unsigned long long>(fixed + launch.shared), static_cast<unsigned long long>(shared_limit));
}

}  // namespace

bool on_stack(uintptr_t address) { return address - reinterpret_cast<uintptr_t>(stacks) < size_t(kThreads) * kStack; }

void fail(const char* kind, const void* where, const char* format, ...) {
  va_list list;
  va_start(list, format);
  int used = 0;
  if (threads)
    used = snprintf(failure.message, sizeof failure.message, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x,
                    blockIdx.y, blockIdx.z, linear_thread % launch.block.x, linear_thread / launch.block.x % launch.block.y,
                    linear_thread / launch.block.x / launch.block.y);
  vsnprintf(failure.message + used, sizeof failure.message - used, format, list);
  va_end(list);
  snprintf(failure.kind, sizeof failure.kind, "%s", kind);
  failure.where = where;
  siglongjmp(outside, 1);
}

void barrier(unsigned line) {
  Lane& lane = lanes[linear_thread];
  lane.state = AT_BARRIER;
  lane.line = line;
  yield();
}

unsigned active_mask(unsigned line) {
  Lane& lane = lanes[linear_thread];
  lane.state = ASKING;
  lane.line = line;
  yield();
  return lanes[linear_thread].mask;
}

void collective(int kind, unsigned line, unsigned mask, void* data, void (*combine)(void**, unsigned)) {
  int warp = linear_thread / 32;
  Lane* first = lanes + 32 * warp;
  Lane& lane = lanes[linear_thread];
  mask &= existing(warp);
  if (!(mask >> linear_thread % 32 & 1))
    fail("warp divergence", nullptr, "the mask %08x at line %u does not hold the calling lane", mask, line);
  lane.line = line;
  lane.mask = mask;
  lane.kind = kind;
  lane.data = data;
  lane.state = IN_WARP;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    if (first[i].state == DONE)
      fail("warp divergence", nullptr, "lane %d of the mask %08x at line %u has ended", i, mask, line);
    if (first[i].state == IN_WARP && (first[i].line != line || first[i].kind != kind || first[i].mask != mask))
      fail("warp divergence", nullptr, "lane %d is at line %u with mask %08x, this one at line %u with mask %08x", i,
           first[i].line, first[i].mask, line, mask);
    if (first[i].state != IN_WARP) {
      yield();
      return;
    }
  }
  void* all[32] = {};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      all[i] = first[i].data;
      first[i].state = READY;
    }
  combine(all, mask);
}

void sync_warp(unsigned mask, unsigned line) {
  collective(-1, line, mask, nullptr, [](void**, unsigned) { ++warp_interval[linear_thread / 32]; });
}

}  // namespace emulated

using namespace emulated;

uint3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" {

__attribute__((visibility("default"))) Failure* cuda_check_failure() { return &failure; }

__attribute__((visibility("default"))) void cuda_check_limit(uint64_t shared) { shared_limit = shared; }

// 0, or 1 after an error, which cuda_check_failure tells.
__attribute__((visibility("default"))) int cuda_check_run(const Kernel* what, const Any* values, const uint64_t* bytes,
                                                          const Launch* how, const Options* wanted) {
  make_stacks();
  kernel = what;
  arguments = values;
  launch = *how;
  options = *wanted;
  threads = 0;
  Handlers handlers;
  volatile int status = 1;
  if (!sigsetjmp(outside, 1)) {
    check_launch(begin_memory(values, bytes, what->parameters));
    blockDim = launch.block;
    gridDim = launch.grid;
    threads = launch.block.x * launch.block.y * launch.block.z;
    uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
      linear_block = options.reverse ? blocks - 1 - i : i;
      blockIdx.x = linear_block % launch.grid.x;
      blockIdx.y = linear_block / launch.grid.x % launch.grid.y;
      blockIdx.z = linear_block / launch.grid.x / launch.grid.y;
      run_block();
    }
    status = 0;
  }
  handlers.restore();
  end_memory();
  munmap(stacks, size_t(kThreads) * kStack);
  return status;
}
}
