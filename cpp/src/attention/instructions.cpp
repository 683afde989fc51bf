#include "pit/attention/attention.hpp"
#include "tiles.hpp"

namespace pit::attention {

const TileFunctions& best() {
#if defined(__x86_64__)
    if (runs(kAvx512)) {
        return kAvx512;
    }
    if (runs(kAvx2)) {
        return kAvx2;
    }
#endif
    return kBaseline;
}

bool runs(const TileFunctions& tiles) {
#if defined(__x86_64__)
    if (&tiles == &kAvx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    if (&tiles == &kAvx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
#endif
    return &tiles == &kBaseline;
}

const char* instructions() {
    return best().name;
}

}  // namespace pit::attention
