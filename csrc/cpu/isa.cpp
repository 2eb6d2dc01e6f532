#include "isa.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace worldr1 {
namespace {

#if defined(__x86_64__)
const char* const kNames[] = {"x86-64-v2", "x86-64-v3", "x86-64-v4"};

int best() {
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? 2 : v3 ? 1 : 0;
}
#else
const char* const kNames[] = {"baseline"};

int best() { return 0; }
#endif

}  // namespace

int choose_isa(const char* level) {
  const int last = best();
  if (level == nullptr || level[0] == 0) return last;
  for (int i = 0; i <= last; ++i)
    if (!std::strcmp(level, kNames[i])) return i;
  throw std::runtime_error(std::string("this processor cannot run instruction set ") + level);
}

const char* isa_name(int index) { return kNames[index]; }

}  // namespace worldr1
