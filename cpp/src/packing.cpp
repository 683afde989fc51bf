#include "pit/packing.hpp"

#include <string>

#include "pit/error.hpp"

namespace pit {

namespace {

constexpr std::int64_t kMaxRowLength = std::int64_t{1} << 30;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 24;

// The group that is being filled.
class Group {
  public:
    Group(const TreeLengths& lengths, Plan& plan)
        : lengths_(lengths), plan_(plan), filled_(static_cast<std::size_t>(plan.sizes.rows_per_group), 0) {}

    bool full() const { return trees_ == plan_.sizes.trees_per_group; }
    std::int64_t room(std::int64_t row) const { return plan_.sizes.row_length - filled_[row]; }
    bool opened(std::int64_t row) const { return filled_[row] > 0; }

    // Piece i of the tree goes behind what row + i holds.
    void place(const PendingTree& tree, std::int64_t row) {
        plan_.tree_example.push_back(tree.example);
        plan_.tree_source.push_back(tree.source);
        plan_.tree_group.push_back(static_cast<std::int32_t>(plan_.groups));
        for (const Piece& piece : lengths_.split(tree.example)) {
            plan_.piece_tree.push_back(static_cast<std::int32_t>(plan_.tree_example.size() - 1));
            plan_.piece_row.push_back(static_cast<std::int32_t>(row));
            plan_.piece_start.push_back(static_cast<std::int32_t>(filled_[row]));
            plan_.piece_length.push_back(static_cast<std::int32_t>(piece.length));
            plan_.piece_segments.push_back(piece.segments);
            plan_.piece_owned.push_back(piece.owned);
            filled_[row] += piece.length;
            ++row;
        }
        ++trees_;
    }

  private:
    const TreeLengths& lengths_;
    Plan& plan_;
    std::vector<std::int64_t> filled_;
    std::int64_t trees_ = 0;
};

}  // namespace

void PackingSizes::check() const {
    require_range("row_length", row_length, 1, kMaxRowLength);
    require_range("rows_per_group", rows_per_group, 1, kMaxCount);
    require_range("trees_per_group", trees_per_group, 1, kMaxCount);
}

TreeLengths::TreeLengths(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology,
                         PackingSizes sizes)
    : lengths_(std::move(lengths)), columns_(columns), examples_(0), topology_(topology), sizes_(sizes) {
    sizes_.check();
    if (columns_ < topology_.columns()) {
        throw Error("lengths has " + std::to_string(columns_) + " columns, but the topology names column " +
                    std::to_string(topology_.columns() - 1) + "; give a length for every column it names");
    }
    examples_ = static_cast<std::int64_t>(lengths_.size()) / columns_;
    for (std::int64_t example = 0; example < examples_; ++example) {
        check_example(example);
    }
}

std::int64_t TreeLengths::segment_length(std::int64_t example, int segment) const {
    return std::int64_t{lengths_[static_cast<std::size_t>(example * columns_ + topology_.column(segment))]} + 1;
}

std::int64_t TreeLengths::mask_length(std::int64_t example, SegmentMask mask) const {
    std::int64_t length = 0;
    for (int segment = 0; segment < topology_.segments(); ++segment) {
        length += contains(mask, segment) ? segment_length(example, segment) : 0;
    }
    return length;
}

void TreeLengths::check_example(std::int64_t example) const {
    const std::string name = "example " + std::to_string(example);
    for (std::int64_t column = 0; column < columns_; ++column) {
        const std::int32_t length = lengths_[static_cast<std::size_t>(example * columns_ + column)];
        if (length < 0) {
            throw Error(name + ": column " + std::to_string(column) + " has length " + std::to_string(length) +
                        "; lengths are at least 0");
        }
    }
    if (total(example) <= sizes_.row_length) {
        return;
    }
    for (const int tip : topology_.tips()) {
        const std::int64_t length = mask_length(example, topology_.path(tip));
        if (length > sizes_.row_length) {
            throw Error(name + ": the path from the root to segment " + std::to_string(tip) + " has " +
                        std::to_string(length) + " tokens (closing tokens included), more than row_length=" +
                        std::to_string(sizes_.row_length) + "; truncate the example or lengthen the rows");
        }
    }
    const std::int64_t pieces = static_cast<std::int64_t>(split(example).size());
    if (pieces > sizes_.rows_per_group) {
        throw Error(name + ": its tree of " + std::to_string(total(example)) + " tokens needs " +
                    std::to_string(pieces) + " rows, more than rows_per_group=" +
                    std::to_string(sizes_.rows_per_group) + "; truncate it, or make rows longer or groups larger");
    }
}

std::int64_t TreeLengths::total(std::int64_t example) const {
    return mask_length(example, ~SegmentMask{0});
}

std::vector<Piece> TreeLengths::split(std::int64_t example) const {
    std::vector<Piece> pieces{{0, 0, 0}};
    SegmentMask seen = 0;
    for (const int tip : topology_.tips()) {
        SegmentMask added = topology_.path(tip) & ~pieces.back().segments;
        if (pieces.back().length + mask_length(example, added) > sizes_.row_length) {
            pieces.push_back({0, 0, 0});
            added = topology_.path(tip);
        }
        Piece& piece = pieces.back();
        piece.segments |= added;
        piece.owned |= added & ~seen;
        piece.length += mask_length(example, added);
        seen |= added;
    }
    return pieces;
}

void Window::add(const PendingTree& tree) {
    by_age_.emplace(next_age_, tree);
    by_fit_.emplace(tree.total, -next_age_);
    ++next_age_;
}

bool Window::take_oldest(std::int64_t rows, PendingTree& tree) {
    for (auto it = by_age_.begin(); it != by_age_.end(); ++it) {
        if (it->second.rows <= rows) {
            tree = it->second;
            by_fit_.erase({tree.total, -it->first});
            by_age_.erase(it);
            return true;
        }
    }
    return false;
}

bool Window::take_best_fit(std::int64_t room, PendingTree& tree) {
    // A split tree is longer than a row, so it is never found here.
    auto it = by_fit_.upper_bound({room, 0});
    if (it == by_fit_.begin()) {
        return false;
    }
    --it;
    const auto entry = by_age_.find(-it->second);
    tree = entry->second;
    by_age_.erase(entry);
    by_fit_.erase(it);
    return true;
}

std::vector<PendingTree> Window::contents() const {
    std::vector<PendingTree> out;
    for (const auto& entry : by_age_) {
        out.push_back(entry.second);
    }
    return out;
}

void pack_group(const TreeLengths& lengths, Window& window, const std::function<void()>& refill, Plan& plan) {
    Group group(lengths, plan);
    PendingTree tree{};
    for (std::int64_t row = 0; row < plan.sizes.rows_per_group && !group.full(); ++row) {
        if (!group.opened(row)) {
            refill();
            if (!window.take_oldest(plan.sizes.rows_per_group - row, tree)) {
                break;
            }
            group.place(tree, row);
        }
        while (!group.full()) {
            refill();
            if (!window.take_best_fit(group.room(row), tree)) {
                break;
            }
            group.place(tree, row);
        }
    }
    ++plan.groups;
    plan.group_tree.push_back(static_cast<std::int64_t>(plan.tree_example.size()));
    plan.group_piece.push_back(static_cast<std::int64_t>(plan.piece_tree.size()));
}

Plan plan_trees(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology, PackingSizes sizes) {
    const TreeLengths trees(std::move(lengths), columns, topology, sizes);
    Window window;
    for (std::int64_t example = 0; example < trees.examples(); ++example) {
        window.add({example, 0, trees.total(example), static_cast<std::int64_t>(trees.split(example).size())});
    }
    Plan plan(topology, sizes);
    while (!window.empty()) {
        pack_group(trees, window, [] {}, plan);
    }
    return plan;
}

}  // namespace pit
