// Packs trees into the rows of groups by their lengths alone. A group is what must stay together: one microbatch of one
// data shard; every piece of a tree is in one group.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "pit/topology.hpp"

namespace pit {

struct PackingSizes {
    std::int64_t row_length;       // T, tokens of a row
    std::int64_t rows_per_group;   // rows of a group
    std::int64_t trees_per_group;  // most trees of a group: slots of its leaf table

    // Error unless row_length is in [1, 2^30] and the others in [1, 2^24].
    void check() const;
};

// A connected part of a tree, as it lies in one row.
struct Piece {
    SegmentMask segments;
    SegmentMask owned;  // those that no earlier piece of the tree has; only they carry loss
    std::int64_t length;
};

// Content lengths (tokens without the closing role token) of every example's columns, under one topology.
class TreeLengths {
  public:
    // lengths[example * columns + column]. Error, naming the example, for one that can be placed in no group: a
    // root-to-leaf path longer than a row, or more pieces than a group has rows.
    TreeLengths(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology, PackingSizes sizes);

    std::int64_t examples() const { return examples_; }
    // Tokens of a whole tree, each segment with its closing token.
    std::int64_t total(std::int64_t example) const;
    // The tree cut into pieces of at most a row: tips are taken depth-first into a piece while it has room, each with
    // all its ancestors. One piece if the tree fits in a row.
    std::vector<Piece> split(std::int64_t example) const;

  private:
    std::int64_t segment_length(std::int64_t example, int segment) const;
    std::int64_t mask_length(std::int64_t example, SegmentMask mask) const;
    void check_example(std::int64_t example) const;

    std::vector<std::int32_t> lengths_;
    std::int64_t columns_;
    std::int64_t examples_;
    Topology topology_;
    PackingSizes sizes_;
};

struct PendingTree {
    std::int64_t example;
    std::uint8_t source;
    std::int64_t total;  // tokens of the tree, unsplit
    std::int64_t rows;   // rows it opens: 1, or its number of pieces
};

// Trees that wait to be placed, by age and by length.
class Window {
  public:
    void add(const PendingTree& tree);
    bool empty() const { return by_age_.empty(); }
    std::int64_t size() const { return static_cast<std::int64_t>(by_age_.size()); }
    // Removes and returns through `tree` the oldest that opens at most `rows` rows; false if there is none.
    bool take_oldest(std::int64_t rows, PendingTree& tree);
    // The same for the largest tree of at most `room` tokens; the older one of equals.
    bool take_best_fit(std::int64_t room, PendingTree& tree);
    // The trees from the oldest to the youngest.
    std::vector<PendingTree> contents() const;

  private:
    std::map<std::int64_t, PendingTree> by_age_;
    std::set<std::pair<std::int64_t, std::int64_t>> by_fit_;  // (total, -age)
    std::int64_t next_age_ = 0;
};

// Where every tree of some groups lies. Trees and pieces are listed group by group, in the order of their placement.
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

    // First tree and first piece of each group; one entry more than there are groups.
    std::vector<std::int64_t> group_tree{0};
    std::vector<std::int64_t> group_piece{0};
};

// Appends one group to the plan. Row by row: the oldest waiting tree whose pieces fit in the rows that are left opens
// the row (a split tree opens several, one a piece), then the largest tree that fits the room left, and so on. `refill`
// is called before each choice. The oldest tree always goes first in a group, so with a window of w trees one is placed
// at most w groups (and, if no tree is split, w rows) after it entered.
void pack_group(const TreeLengths& lengths, Window& window, const std::function<void()>& refill, Plan& plan);

// Packs every example once, into as many groups as it takes; the look-ahead is all of them. Sources are 0.
Plan plan_trees(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology, PackingSizes sizes);

}  // namespace pit
