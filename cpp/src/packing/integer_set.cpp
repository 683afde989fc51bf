#include "pit/packing/integer_set.hpp"

#include <cstddef>

namespace pit {

namespace {

constexpr int kWordBits = 64;
constexpr int kShift = 6;

// Index of the highest set bit of a word that is not 0.
std::int64_t highest(std::uint64_t word) {
    return kWordBits - 1 - __builtin_clzll(word);
}

std::uint64_t bit(std::int64_t value) {
    return std::uint64_t{1} << (value % kWordBits);
}

}  // namespace

IntegerSet::IntegerSet(std::int64_t size) {
    do {
        size = (size + kWordBits - 1) >> kShift;
        level_.emplace_back(static_cast<std::size_t>(size), 0);
    } while (size > 1);
}

void IntegerSet::insert(std::int64_t value) {
    for (std::vector<Word>& words : level_) {
        words[static_cast<std::size_t>(value >> kShift)] |= bit(value);
        value >>= kShift;
    }
}

void IntegerSet::erase(std::int64_t value) {
    for (std::vector<Word>& words : level_) {
        Word& word = words[static_cast<std::size_t>(value >> kShift)];
        word &= ~bit(value);
        if (word != 0) {
            return;
        }
        value >>= kShift;
    }
}

std::int64_t IntegerSet::largest_at_most(std::int64_t bound) const {
    std::size_t level = 0;
    Word word = 0;
    // Go up while the word that covers the bound has no member at or below it.
    while ((word = level_[level][static_cast<std::size_t>(bound >> kShift)] & (bit(bound) | (bit(bound) - 1))) == 0) {
        bound = (bound >> kShift) - 1;
        if (++level == level_.size() || bound < 0) {
            return -1;
        }
    }
    // Go down along the highest bits.
    std::int64_t value = (bound >> kShift << kShift) + highest(word);
    while (level-- > 0) {
        value = (value << kShift) + highest(level_[level][static_cast<std::size_t>(value)]);
    }
    return value;
}

}  // namespace pit
