#include "pit/packing/window.hpp"

#include <algorithm>
#include <utility>

#include "pit/support/error.hpp"

namespace pit {

Window::Window(std::int64_t longest)
    : by_length_(static_cast<std::size_t>(longest) + 1), lengths_waiting_(longest + 1) {}

Window::Index Window::new_node(const PendingTree& tree) {
    Index index = free_;
    if (index == kNone) {
        require_range("window: trees", static_cast<long long>(node_.size()), 0, INT32_MAX - 1);
        index = static_cast<Index>(node_.size());
        node_.emplace_back();
    } else {
        free_ = node_[index].younger_of_length;
    }
    node_[index] = {tree, next_age_++, kNone, kNone, kNone};
    return index;
}

void Window::add(const PendingTree& tree) {
    require_range("window: rows of a tree", tree.rows, 1, kMaxSegments);
    if (tree.rows == 1) {
        require_range("window: tokens of a tree", tree.total, 0, static_cast<long long>(by_length_.size()) - 1);
    }
    const Index index = new_node(tree);
    Queue& alike = by_rows_[tree.rows - 1];
    node_[index].older = alike.youngest;
    (alike.youngest == kNone ? alike.oldest : node_[alike.youngest].younger) = index;
    alike.youngest = index;
    rows_waiting_ |= std::uint64_t{1} << (tree.rows - 1);
    ++size_;
    if (tree.rows > 1) {
        return;
    }
    Queue& same = by_length_[tree.total];
    if (same.oldest == kNone) {
        lengths_waiting_.insert(tree.total);
    }
    (same.oldest == kNone ? same.oldest : node_[same.youngest].younger_of_length) = index;
    same.youngest = index;
}

PendingTree Window::remove(Index index) {
    Node& node = node_[index];
    const PendingTree tree = node.tree;
    Queue& alike = by_rows_[tree.rows - 1];
    (node.older == kNone ? alike.oldest : node_[node.older].younger) = node.younger;
    (node.younger == kNone ? alike.youngest : node_[node.younger].older) = node.older;
    if (alike.oldest == kNone) {
        rows_waiting_ &= ~(std::uint64_t{1} << (tree.rows - 1));
    }
    if (tree.rows == 1) {
        // It is the oldest of its length: the best fit is chosen so, and the oldest of all is so for any length.
        Queue& same = by_length_[tree.total];
        same.oldest = node.younger_of_length;
        if (same.oldest == kNone) {
            lengths_waiting_.erase(tree.total);
        }
    }
    node.younger_of_length = std::exchange(free_, index);
    --size_;
    return tree;
}

bool Window::take_oldest(std::int64_t rows, PendingTree& tree) {
    const std::uint64_t fitting = rows >= kMaxSegments ? ~std::uint64_t{0} : (std::uint64_t{1} << rows) - 1;
    Index oldest = kNone;
    for (std::uint64_t left = rows_waiting_ & fitting; left != 0; left &= left - 1) {
        const Index candidate = by_rows_[__builtin_ctzll(left)].oldest;
        if (oldest == kNone || node_[candidate].age < node_[oldest].age) {
            oldest = candidate;
        }
    }
    if (oldest == kNone) {
        return false;
    }
    tree = remove(oldest);
    return true;
}

bool Window::take_best_fit(std::int64_t room, PendingTree& tree) {
    const auto longest = static_cast<std::int64_t>(by_length_.size()) - 1;
    const std::int64_t total = lengths_waiting_.largest_at_most(std::min(room, longest));
    if (total < 0) {
        return false;
    }
    tree = remove(by_length_[total].oldest);
    return true;
}

std::vector<PendingTree> Window::contents() const {
    std::vector<std::pair<std::int64_t, Index>> by_age;
    for (const Queue& queue : by_rows_) {
        for (Index index = queue.oldest; index != kNone; index = node_[index].younger) {
            by_age.emplace_back(node_[index].age, index);
        }
    }
    std::sort(by_age.begin(), by_age.end());
    std::vector<PendingTree> out;
    for (const auto& [age, index] : by_age) {
        out.push_back(node_[index].tree);
    }
    return out;
}

}  // namespace pit
