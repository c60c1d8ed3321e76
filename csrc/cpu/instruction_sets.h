// Code for several instruction sets in one library; the best one is chosen at run time.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define UNIVG_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define UNIVG_AVX2 __attribute__((target("avx2,fma,f16c")))
static inline int cpu_level() {
  static const int level = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                               ? 2
                               : (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0);
  return level;
}
#else
#define UNIVG_AVX512
#define UNIVG_AVX2
static inline int cpu_level() { return 0; }
#endif
