// A set of integers of a fixed range that finds its largest member up to a bound. It keeps one bit per integer, and on
// each higher level one bit per word of the level below, set if that word is not 0.
#pragma once

#include <cstdint>
#include <vector>

namespace pit {

class IntegerSet {
  public:
    // Members are in [0, size); size / 63 words of memory. Every call below takes O(log64 size) time: 4 memory
    // accesses for 16 million integers.
    explicit IntegerSet(std::int64_t size);

    void insert(std::int64_t value);
    void erase(std::int64_t value);
    // The largest member <= `bound`, which lies in the range; -1 if there is none.
    std::int64_t largest_at_most(std::int64_t bound) const;

  private:
    using Word = std::uint64_t;

    std::vector<std::vector<Word>> level_;  // a bit of level i + 1 is a word of level i
};

}  // namespace pit
