// The tile functions for AVX512; CMakeLists.txt compiles this file with its flags.
#if defined(__x86_64__)
#define PIT_LANES 16
#define PIT_ROWS 12
#include "tiles.inl"

namespace pit::attention {

const TileFunctions kAvx512{forward_tile, cache_tile, backward_tile, "avx512"};

}  // namespace pit::attention
#endif
