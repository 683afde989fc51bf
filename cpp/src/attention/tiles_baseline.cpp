// The tile functions for any machine.
#define PIT_LANES 4
#define PIT_ROWS 6
#include "tiles.inl"

namespace pit::attention {

const TileFunctions kBaseline{forward_tile, cache_tile, backward_tile, "baseline"};

}  // namespace pit::attention
