#include "pit/packing/topology.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "pit/support/error.hpp"
#include "pit/support/state.hpp"

namespace pit {

Topology::Topology(std::vector<std::int32_t> parent, std::vector<std::int32_t> column,
                   std::vector<std::vector<std::int32_t>> closing, std::vector<bool> loss,
                   std::vector<std::int32_t> leaf)
    : parent_(std::move(parent)),
      column_(std::move(column)),
      closing_(std::move(closing)),
      loss_(std::move(loss)),
      leaf_(std::move(leaf)) {
    check_sizes();
    leaves_ = static_cast<int>(std::count_if(leaf_.begin(), leaf_.end(), [](std::int32_t l) { return l >= 0; }));
    std::vector<bool> slot_used(leaves_, false);
    std::vector<bool> has_child(parent_.size(), false);
    for (int i = 0; i < segments(); ++i) {
        check_segment(i);
        path_.push_back((i == 0 ? 0 : path_[parent_[i]]) | (SegmentMask{1} << i));
        if (i > 0) {
            has_child[parent_[i]] = true;
        }
        if (leaf_[i] < 0) {
            continue;
        }
        if (leaf_[i] >= leaves_ || slot_used[leaf_[i]]) {
            throw Error("topology: segment " + std::to_string(i) + " has leaf slot " + std::to_string(leaf_[i]) +
                        ", but the " + std::to_string(leaves_) + " slots must be 0.." + std::to_string(leaves_ - 1) +
                        ", each once; number the leaves from 0");
        }
        slot_used[leaf_[i]] = true;
    }
    for (int i = 0; i < segments(); ++i) {
        if (!has_child[i]) {
            tips_.push_back(i);
        }
    }
}

void Topology::check_sizes() const {
    const std::size_t n = parent_.size();
    if (n == 0 || n > kMaxSegments) {
        throw Error("topology: " + std::to_string(n) + " segments, but a tree has 1 to " +
                    std::to_string(kMaxSegments) + "; cut it into several trees");
    }
    if (column_.size() != n || closing_.size() != n || loss_.size() != n || leaf_.size() != n) {
        throw Error("topology: parents, columns, closings, loss and leaf_slots must have one entry per segment, got " +
                    std::to_string(n) + ", " + std::to_string(column_.size()) + ", " + std::to_string(closing_.size()) +
                    ", " + std::to_string(loss_.size()) + " and " + std::to_string(leaf_.size()));
    }
}

void Topology::check_segment(int i) const {
    const std::string name = "topology: segment " + std::to_string(i);
    // Depth-first order: the parent is on the path of the segment before.
    const bool placed =
        i == 0 ? parent_[0] == -1 : parent_[i] >= 0 && parent_[i] < i && contains(path_[i - 1], parent_[i]);
    if (!placed) {
        throw Error(name + " has parent " + std::to_string(parent_[i]) + ", but " +
                    (i == 0 ? "the first segment is the root, with parent -1"
                            : "segments are written depth-first: the parent is on the path of the segment before"));
    }
    if (column_[i] < 0) {
        throw Error(name + " has column " + std::to_string(column_[i]) + "; columns are numbered from 0");
    }
    if (closing_[i].empty()) {
        throw Error(name + " has no closing token; give each segment at least one");
    }
    if (leaf_[i] < -1) {
        throw Error(name + " has leaf slot " + std::to_string(leaf_[i]) +
                    "; give a slot of at least 0, or -1 for none");
    }
}

int Topology::columns() const {
    return *std::max_element(column_.begin(), column_.end()) + 1;
}

std::uint64_t Topology::fingerprint() const {
    Fingerprint out;
    out.number(parent_.size());
    for (std::size_t i = 0; i < parent_.size(); ++i) {
        out.number(static_cast<std::uint64_t>(parent_[i]))
            .number(static_cast<std::uint64_t>(column_[i]))
            .number(closing_[i].size())
            .number(loss_[i] ? 1 : 0)
            .number(static_cast<std::uint64_t>(leaf_[i]));
    }
    return out.value();
}

}  // namespace pit
