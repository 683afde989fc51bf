// Where the trees of some groups lie, row by row. A group is one microbatch of one data shard: all pieces of a
// tree are in the same group.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "pit/packing/topology.hpp"
#include "pit/packing/tree_lengths.hpp"

namespace pit {

// Trees and pieces are listed group by group, in the order of their placement. The pieces of a row follow one another
// from its start, in that order and without gaps.
struct Plan {
    Plan(Topology topology_, PackingSizes sizes_) : topology(std::move(topology_)), sizes(sizes_) {}

    Topology topology;
    PackingSizes sizes;
    std::int64_t groups = 0;
    std::int64_t step = 0;

    std::vector<std::int64_t> tree_example;
    std::vector<std::uint8_t> tree_source;
    std::vector<std::int32_t> tree_group;

    std::vector<std::int32_t> piece_tree;
    std::vector<std::int32_t> piece_row;  // local to the group
    std::vector<std::int32_t> piece_start;
    std::vector<std::int32_t> piece_length;
    std::vector<SegmentMask> piece_segments;
    std::vector<SegmentMask> piece_owned;

    // First tree and first piece of each group, then the end: groups + 1 entries.
    std::vector<std::int64_t> group_tree{0};
    std::vector<std::int64_t> group_piece{0};
};

}  // namespace pit
