// Packs trees into the rows of groups by their lengths alone.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "pit/packing/plan.hpp"
#include "pit/packing/topology.hpp"
#include "pit/packing/tree_lengths.hpp"
#include "pit/packing/window.hpp"

namespace pit {

// Appends one group to the plan. Row by row, the oldest waiting tree whose pieces fit in the remaining rows opens the
// row (a split tree opens one row per piece); then the largest tree that fits the remaining room follows, and so on.
// `refill` is called before each choice. The oldest tree always goes first in a group, so with a window of w trees a
// tree is placed at most w groups (w rows if no tree is split) after it entered.
void pack_group(const TreeLengths& lengths, Window& window, const std::function<void()>& refill, Plan& plan);

// Packs every example once, into as many groups as it takes; the look-ahead is all of them. Sources are 0.
Plan plan_trees(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology, PackingSizes sizes);

}  // namespace pit
