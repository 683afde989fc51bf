// The shape of a context tree: segments in depth-first order, parents before children.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace pit {

constexpr int kMaxSegments = 64;  // a set of segments is one 64-bit mask

using SegmentMask = std::uint64_t;

class Topology {
  public:
    // Per segment: its parent (-1 for the root), the token column that fills it, the tokens that close it, whether its
    // content and the first closing token carry loss, its slot in the leaf table (-1 for none).
    Topology(std::vector<std::int32_t> parent, std::vector<std::int32_t> column,
             std::vector<std::vector<std::int32_t>> closing, std::vector<bool> loss, std::vector<std::int32_t> leaf);

    int segments() const { return static_cast<int>(parent_.size()); }
    int leaves() const { return leaves_; }
    int parent(int segment) const { return parent_[segment]; }
    int column(int segment) const { return column_[segment]; }
    // At least one token.
    const std::vector<std::int32_t>& closing(int segment) const { return closing_[segment]; }
    std::int64_t closing_size(int segment) const { return static_cast<std::int64_t>(closing_[segment].size()); }
    bool loss(int segment) const { return loss_[segment]; }
    int leaf(int segment) const { return leaf_[segment]; }
    // The segments from the root to `segment`, both included.
    SegmentMask path(int segment) const { return path_[segment]; }
    // The segments that have no child, in depth-first order.
    const std::vector<int>& tips() const { return tips_; }
    // The largest named column, plus 1.
    int columns() const;
    // Of all that decides a plan; of the closing tokens that is their number.
    std::uint64_t fingerprint() const;

  private:
    void check_sizes() const;
    void check_segment(int segment) const;

    std::vector<std::int32_t> parent_, column_;
    std::vector<std::vector<std::int32_t>> closing_;
    std::vector<bool> loss_;
    std::vector<std::int32_t> leaf_;
    std::vector<SegmentMask> path_;
    std::vector<int> tips_;
    int leaves_ = 0;
};

inline bool contains(SegmentMask mask, int segment) {
    return (mask >> segment) & 1u;
}

}  // namespace pit
