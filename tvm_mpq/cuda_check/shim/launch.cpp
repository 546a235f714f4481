// Calls of kernels: by TVM's host code, and each twice where it is checked, in opposite orders of blocks and threads.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <malloc.h>

#define EMULATED_RUNTIME
#include "runtime.h"

using namespace emulated;

#define EXPORTED extern "C" __attribute__((visibility("default")))

extern "C" {
Failure* cuda_check_failure();
int cuda_check_run(const Kernel*, const Any*, const uint64_t*, const Launch*, const Options*);
extern Kernel cuda_check_kernels[];
}

namespace {

enum Mode { NEVER, FIRST, ALWAYS };
Mode mode = FIRST;
void (*tell_fault)(const char* kernel);

// The bytes of all buffers, one behind the other.
uint64_t total(const Kernel* what, const uint64_t* bytes) {
  uint64_t sum = 0;
  for (int i = 0; i < what->parameters; ++i) sum += bytes[i];
  return sum;
}

void copy(const Kernel* what, const Any* values, const uint64_t* bytes, char* saved, bool back) {
  for (int i = 0; i < what->parameters; saved += bytes[i++]) {
    if (back) memcpy(values[i].pointer, saved, bytes[i]);
    else memcpy(saved, values[i].pointer, bytes[i]);
  }
}

int differing(const Kernel* what, const Any* values, const uint64_t* bytes, const char* saved) {
  for (int i = 0; i < what->parameters; saved += bytes[i++]) {
    const char* now = static_cast<const char*>(values[i].pointer);
    for (uint64_t b = 0; b < bytes[i]; ++b)
      if (now[b] != saved[b]) {
        Failure* failure = cuda_check_failure();
        snprintf(failure->kind, sizeof failure->kind, "order");
        snprintf(failure->message, sizeof failure->message,
                 "byte %llu of parameter %d depends on the order of threads or on where fragments lie in the lanes",
                 static_cast<unsigned long long>(b), i);
        failure->where = nullptr;
        return 1;
      }
  }
  return 0;
}

}  // namespace

EXPORTED void cuda_check_mode(int wanted) { mode = static_cast<Mode>(wanted); }

EXPORTED void cuda_check_on_fault(void (*function)(const char*)) { tell_fault = function; }

EXPORTED Kernel* cuda_check_kernel(int index) { return cuda_check_kernels + index; }

// Runs a kernel on host memory; 0, or 1 after an error, which cuda_check_failure tells.
EXPORTED int cuda_check_launch(Kernel* what, const Any* values, const uint64_t* bytes, const Launch* how) {
  bool check = mode == ALWAYS || (mode == FIRST && !what->checked);
  ++what->calls;
  Options options = {check, false, 0};
  if (!check) return cuda_check_run(what, values, bytes, how, &options);
  ++what->checked;
  uint64_t size = total(what, bytes);
  char *before = static_cast<char*>(malloc(size)), *after = static_cast<char*>(malloc(size));
  copy(what, values, bytes, before, false);
  int status = cuda_check_run(what, values, bytes, how, &options);
  if (!status) {
    copy(what, values, bytes, after, false);
    copy(what, values, bytes, before, true);
    options.reverse = true;
    options.lanes = 21;
    status = cuda_check_run(what, values, bytes, how, &options) || differing(what, values, bytes, after);
  }
  free(before);
  free(after);
  return status;
}

// As TVM's host code calls it: the parameters, then what ``tags`` names.
extern "C" int cuda_check_packed(Kernel* what, const Any* values, int count) {
  Launch how = {{1, 1, 1}, {1, 1, 1}, 0};
  for (int i = 0; what->tags[i] && what->parameters + i < count; ++i) {
    int64_t value = values[what->parameters + i].integer;
    switch (what->tags[i]) {
      case 'x': how.grid.x = value; break;
      case 'y': how.grid.y = value; break;
      case 'z': how.grid.z = value; break;
      case 'X': how.block.x = value; break;
      case 'Y': how.block.y = value; break;
      case 'Z': how.block.z = value; break;
      case 's': how.shared = value; break;
    }
  }
  uint64_t bytes[64];
  for (int i = 0; i < what->parameters && i < 64; ++i)  // see kernels.ALLOCATED
    bytes[i] = what->bytes[i] == ~uint64_t(0) ? malloc_usable_size(values[i].pointer) : what->bytes[i];
  if (!cuda_check_launch(what, values, bytes, &how)) return 0;
  tell_fault(what->name);
  return -1;
}
