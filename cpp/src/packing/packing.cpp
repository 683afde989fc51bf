#include "pit/packing/packing.hpp"

#include <utility>

namespace pit {

namespace {

// The group that is being filled.
class Group {
  public:
    Group(const TreeLengths& lengths, Plan& plan)
        : lengths_(lengths), plan_(plan), filled_(static_cast<std::size_t>(plan.sizes.rows_per_group), 0) {}

    bool full() const { return trees_ == plan_.sizes.trees_per_group; }
    std::int64_t room(std::int64_t row) const { return plan_.sizes.row_length - filled_[row]; }
    bool opened(std::int64_t row) const { return filled_[row] > 0; }

    // Piece i of the tree is appended to row + i.
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
    Window window(trees.longest_whole());
    for (std::int64_t example = 0; example < trees.examples(); ++example) {
        window.add({example, trees.total(example), trees.rows(example), 0});
    }
    Plan plan(topology, sizes);
    while (!window.empty()) {
        pack_group(trees, window, [] {}, plan);
    }
    return plan;
}

}  // namespace pit
