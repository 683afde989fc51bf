// The trees that wait to be placed. They are found by age and by length, in time that does not grow with their number.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pit/packing/integer_set.hpp"
#include "pit/packing/topology.hpp"

namespace pit {

struct PendingTree {
    std::int64_t example;
    std::int64_t total;  // tokens of the tree, unsplit
    std::int32_t rows;   // rows it opens: 1, or its number of pieces (at most kMaxSegments)
    std::uint8_t source;
};

// For each number of rows there is a queue, from old to young, of the trees that open so many; a tree that opens a
// single row is also in the queue of its length. Memory: 56 bytes per tree of the fullest window, 8 bytes per token of
// `longest`.
class Window {
  public:
    // `longest`: maximal tokens of a tree that opens one row.
    explicit Window(std::int64_t longest);

    // O(1), up to the growth of a vector. Error for a tree that opens one row and is longer than `longest`.
    void add(const PendingTree& tree);
    bool empty() const { return size_ == 0; }
    std::int64_t size() const { return size_; }
    // Removes the oldest tree that opens at most `rows` rows and returns it through `tree`; false if there is none.
    // O(1): at most kMaxSegments queues are examined, two as a rule.
    bool take_oldest(std::int64_t rows, PendingTree& tree);
    // The same for the largest tree that opens one row and has at most `room` tokens; the older of equal ones.
    // O(log64 longest).
    bool take_best_fit(std::int64_t room, PendingTree& tree);
    // The trees from the oldest to the youngest; O(n log n).
    std::vector<PendingTree> contents() const;

  private:
    using Index = std::int32_t;  // of a node
    static constexpr Index kNone = -1;

    struct Node {
        PendingTree tree;
        std::int64_t age;         // place in the order of `add`
        Index older, younger;     // in the queue of its number of rows
        Index younger_of_length;  // in the queue of its length; in a free node, the next free node
    };
    struct Queue {
        Index oldest = kNone, youngest = kNone;
    };

    Index new_node(const PendingTree& tree);
    PendingTree remove(Index index);

    std::vector<Node> node_;
    Index free_ = kNone;
    std::array<Queue, kMaxSegments> by_rows_;
    std::uint64_t rows_waiting_ = 0;  // bit r: by_rows_[r], the trees of r + 1 rows, is not empty
    std::vector<Queue> by_length_;
    IntegerSet lengths_waiting_;
    std::int64_t size_ = 0;
    std::int64_t next_age_ = 0;
};

}  // namespace pit
