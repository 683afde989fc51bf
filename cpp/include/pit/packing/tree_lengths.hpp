// Lengths of the trees of a data set, and the pieces of a tree that is longer than a row.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pit/packing/topology.hpp"

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
    SegmentMask owned;  // segments that no earlier piece of the tree has; only these carry loss
    std::int64_t length;
};

// The pieces of one tree; each ends with a tip, so there are at most as many as segments.
class Pieces {
  public:
    int size() const { return size_; }
    void push_back(const Piece& piece) { piece_[size_++] = piece; }
    Piece& back() { return piece_[size_ - 1]; }
    const Piece* begin() const { return piece_.data(); }
    const Piece* end() const { return piece_.data() + size_; }

  private:
    std::array<Piece, kMaxSegments> piece_;
    int size_ = 0;
};

// Content lengths (tokens without the closing ones) of every example's columns, under one topology. Memory:
// 4 bytes per length and 9 per example.
class TreeLengths {
  public:
    // lengths[example * columns + column]. Error, naming the example, for a root-to-leaf path longer than a row, and
    // for more pieces than a group has rows.
    TreeLengths(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology, PackingSizes sizes);

    std::int64_t examples() const { return static_cast<std::int64_t>(total_.size()); }
    // Tokens of a whole tree, each segment with its closing tokens. O(1).
    std::int64_t total(std::int64_t example) const { return total_[example]; }
    // Rows the tree opens: its number of pieces. O(1).
    std::int32_t rows(std::int64_t example) const { return rows_[example]; }
    // Tokens of the longest tree that is not split; 0 if there is none.
    std::int64_t longest_whole() const { return longest_whole_; }
    // The tree cut into pieces of at most a row: tips are taken depth-first into a piece while it has room, each with
    // all its ancestors. One piece if the tree fits in a row.
    Pieces split(std::int64_t example) const;

  private:
    std::int64_t mask_length(std::int64_t example, SegmentMask mask) const;
    void add_example(std::int64_t example);
    void check_example(std::int64_t example) const;

    std::vector<std::int32_t> lengths_;
    std::int64_t columns_;
    Topology topology_;
    PackingSizes sizes_;
    std::vector<std::int64_t> total_;
    std::vector<std::uint8_t> rows_;
    std::int64_t longest_whole_ = 0;
};

}  // namespace pit
