// PIT_CLONES compiles a hot loop twice, for any x86-64 and for AVX2; the loader chooses one. It is used on integer
// loops only, so both give the same result. It is empty on other platforms, and under sanitizers (whose runtime is not
// ready when the choice is made).
#pragma once

#include <cstdlib>  // defines __GLIBC__; other C libraries of Linux cannot choose at load time

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define PIT_NO_CLONES
#endif
#endif

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(PIT_NO_CLONES) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define PIT_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define PIT_CLONES
#endif
