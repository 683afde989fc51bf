// The look-ahead window and its set of lengths, each against a twin that searches everything.
#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "check.hpp"
#include "dice.hpp"
#include "pit/packing/integer_set.hpp"
#include "pit/packing/window.hpp"

namespace {

using pit_test::Dice;

void test_integer_set() {
    for (const std::int64_t size : {1, 2, 63, 64, 65, 4095, 4096, 4097, 300000}) {
        Dice dice(static_cast<std::uint64_t>(size));
        pit::IntegerSet fast(size);
        std::set<std::int64_t> twin;
        for (int i = 0; i < 4000; ++i) {
            const std::int64_t value = dice.roll(0, size - 1);
            if (dice.roll(0, 2) == 0) {
                fast.insert(value);
                twin.insert(value);
            } else {
                fast.erase(value);
                twin.erase(value);
            }
            const std::int64_t bound = dice.roll(0, size - 1);
            const auto above = twin.upper_bound(bound);
            CHECK(fast.largest_at_most(bound) == (above == twin.begin() ? -1 : *std::prev(above)));
        }
    }
}

// The trees from the oldest to the youngest, and nothing else.
class TwinWindow {
  public:
    void add(const pit::PendingTree& tree) { trees_.push_back(tree); }

    bool take_oldest(std::int64_t rows, pit::PendingTree& tree) {
        return take(std::find_if(trees_.begin(), trees_.end(), [&](const auto& t) { return t.rows <= rows; }), tree);
    }

    bool take_best_fit(std::int64_t room, pit::PendingTree& tree) {
        auto best = trees_.end();
        for (auto it = trees_.begin(); it != trees_.end(); ++it) {
            if (it->rows == 1 && it->total <= room && (best == trees_.end() || it->total > best->total)) {
                best = it;
            }
        }
        return take(best, tree);
    }

    const std::vector<pit::PendingTree>& contents() const { return trees_; }

  private:
    bool take(std::vector<pit::PendingTree>::iterator it, pit::PendingTree& tree) {
        if (it == trees_.end()) {
            return false;
        }
        tree = *it;
        trees_.erase(it);
        return true;
    }

    std::vector<pit::PendingTree> trees_;
};

bool same(const pit::PendingTree& a, const pit::PendingTree& b) {
    return a.example == b.example && a.total == b.total && a.rows == b.rows && a.source == b.source;
}

// A small range of lengths gives many equal ones; some trees are split, a few into the maximal number of pieces.
pit::PendingTree random_tree(Dice& dice, std::int64_t longest, std::int64_t example) {
    const bool whole = dice.roll(0, 3) > 0;
    const std::int64_t rows = whole ? 1 : dice.roll(0, 9) == 0 ? pit::kMaxSegments : dice.roll(2, 5);
    const std::int64_t total = whole ? dice.roll(0, longest) : longest + dice.roll(1, 9);
    return {example, total, static_cast<std::int32_t>(rows), static_cast<std::uint8_t>(dice.roll(0, 3))};
}

void test_window() {
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        Dice dice(seed);
        const std::int64_t longest = dice.roll(0, seed % 2 == 0 ? 12 : 5000);
        pit::Window fast(longest);
        TwinWindow twin;
        for (std::int64_t i = 0; i < 1500; ++i) {
            const std::int64_t action = dice.roll(0, 9);
            pit::PendingTree a{}, b{};
            if (action < 4) {
                const pit::PendingTree tree = random_tree(dice, longest, i);
                fast.add(tree);
                twin.add(tree);
            } else if (action < 6) {
                const std::int64_t rows = dice.roll(0, 9) == 0 ? (std::int64_t{1} << 24) : dice.roll(1, 6);
                CHECK(fast.take_oldest(rows, a) == twin.take_oldest(rows, b) && same(a, b));
            } else {
                const std::int64_t room = dice.roll(0, longest + 10);
                CHECK(fast.take_best_fit(room, a) == twin.take_best_fit(room, b) && same(a, b));
            }
            CHECK(fast.size() == static_cast<std::int64_t>(twin.contents().size()));
        }
        const std::vector<pit::PendingTree> rest = fast.contents();
        CHECK(std::equal(rest.begin(), rest.end(), twin.contents().begin(), twin.contents().end(), same));
        CHECK(fast.empty() == twin.contents().empty());
    }
}

void test_refusals() {
    pit::Window window(5);
    CHECK_THROWS(window.add({0, 6, 1, 0}), "window: tokens of a tree=6 is outside [0, 5]");
    CHECK_THROWS(window.add({0, 6, 0, 0}), "window: rows of a tree=0 is outside [1, 64]");
    CHECK_THROWS(window.add({0, 6, 65, 0}), "window: rows of a tree=65 is outside [1, 64]");
    CHECK(window.empty());
}

}  // namespace

int main() {
    test_integer_set();
    test_window();
    test_refusals();
    return pit_test::failures() != 0;
}
