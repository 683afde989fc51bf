// The tile functions for AVX2; CMakeLists.txt compiles this file with its flags.
#if defined(__x86_64__)
#define PIT_LANES 8
#define PIT_ROWS 6
#include "tiles.inl"

namespace pit::attention {

const TileFunctions kAvx2{forward_tile, cache_tile, backward_tile, "avx2"};

}  // namespace pit::attention
#endif
