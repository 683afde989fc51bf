#include "pit/curriculum/weight_table.hpp"

#include <algorithm>
#include <string>

#include "pit/support/error.hpp"

namespace pit {

namespace {

constexpr std::size_t blocks(std::size_t items, std::size_t block) {
    return (items + block - 1) / block;
}

// Index of the item that holds `place`; `place` becomes the place within it. Every item is read, so no branch depends
// on random numbers.
template <std::size_t size, typename T>
std::size_t descend(const T* items, std::uint64_t& place) {
    std::uint64_t sum = 0;
    std::uint64_t before = 0;
    std::size_t index = 0;
    for (std::size_t i = 0; i < size; ++i) {
        sum += items[i];
        const bool passed = sum <= place;
        index += passed;
        before = passed ? sum : before;
    }
    place -= before;
    return index;
}

void prefetch(const void* memory) {
#if defined(__GNUC__)
    __builtin_prefetch(memory);
#else
    (void)memory;
#endif
}

std::size_t checked_size(std::int64_t size) {
    require_range("weight table: size", size, 1, WeightTable::kMaxSize);
    return static_cast<std::size_t>(size);
}

}  // namespace

WeightTable::WeightTable(std::int64_t size) : size_(size), weights_(blocks(checked_size(size), kLeaf) * kLeaf) {
    std::size_t count = weights_.size() / kLeaf;
    while (count > 1) {
        levels_.emplace_back(blocks(count, kFan) * kFan);
        count = levels_.back().size() / kFan;
    }
    levels_.emplace_back(1);
}

void WeightTable::check(std::int64_t entry) const {
    if (entry < 0 || entry >= size_) {
        throw Error("weight table: entry=" + std::to_string(entry) + " is outside [0, " + std::to_string(size_) +
                    "); give an entry of the table");
    }
}

std::uint32_t WeightTable::weight(std::int64_t entry) const {
    check(entry);
    return weights_[static_cast<std::size_t>(entry)];
}

void WeightTable::set(const std::int64_t* entries, const std::uint32_t* weights, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        check(entries[i]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t ahead = entries[std::min(i + kTogether, count - 1)];
        prefetch(weights_.data() + ahead);
        prefetch(levels_[0].data() + ahead / static_cast<std::int64_t>(kLeaf));
        set_one(static_cast<std::size_t>(entries[i]), weights[i]);
    }
}

void WeightTable::set_one(std::size_t index, std::uint32_t weight) {
    // Sums are modulo 2^64, so a decrease is the addition of its complement.
    const std::uint64_t change = std::uint64_t{weight} - weights_[index];
    weights_[index] = weight;
    index /= kLeaf;
    for (LineArray<std::uint64_t>& level : levels_) {
        level[index] += change;
        index /= kFan;
    }
}

void WeightTable::assign(const std::uint32_t* weights) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(size_); ++i) {
        weights_[i] = weights[i];
    }
    for (std::size_t block = 0; block < weights_.size() / kLeaf; ++block) {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < kLeaf; ++i) {
            sum += weights_[block * kLeaf + i];
        }
        levels_[0][block] = sum;
    }
    for (std::size_t level = 1; level < levels_.size(); ++level) {
        const LineArray<std::uint64_t>& below = levels_[level - 1];
        for (std::size_t node = 0; node < below.size() / kFan; ++node) {
            std::uint64_t sum = 0;
            for (std::size_t i = 0; i < kFan; ++i) {
                sum += below[node * kFan + i];
            }
            levels_[level][node] = sum;
        }
    }
}

void WeightTable::find(const std::uint64_t* places, std::int64_t count, std::int64_t* entries) const {
    for (std::int64_t i = 0; i < count; ++i) {
        check_place(places[i]);
    }
    for (std::int64_t first = 0; first < count; first += kTogether) {
        find_together(places + first, static_cast<std::size_t>(std::min(kTogether, count - first)), entries + first);
    }
}

// Walks down with several places at once: while one waits for memory, the others compute.
void WeightTable::find_together(const std::uint64_t* places, std::size_t count, std::int64_t* entries) const {
    std::uint64_t place[kTogether];
    std::size_t node[kTogether];
    for (std::size_t i = 0; i < count; ++i) {
        place[i] = places[i];
        node[i] = 0;
    }
    for (std::size_t level = levels_.size() - 1; level-- > 0;) {
        const std::uint64_t* sums = levels_[level].data();
        for (std::size_t i = 0; i < count; ++i) {
            node[i] = node[i] * kFan + descend<kFan>(sums + node[i] * kFan, place[i]);
            if (level > 0) {
                prefetch(levels_[level - 1].data() + node[i] * kFan);
            } else {
                prefetch(weights_.data() + node[i] * kLeaf);
            }
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t leaf = descend<kLeaf>(weights_.data() + node[i] * kLeaf, place[i]);
        entries[i] = static_cast<std::int64_t>(node[i] * kLeaf + leaf);
    }
}

void WeightTable::check_place(std::uint64_t place) const {
    if (place >= total()) {
        throw Error("weight table: place=" + std::to_string(place) + " is not below the total weight " +
                    std::to_string(total()) + "; give a smaller place, or give an entry a positive weight");
    }
}

}  // namespace pit
