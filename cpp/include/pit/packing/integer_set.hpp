// A set of integers of a fixed range that finds its largest member below a bound: a bit an integer, and above every 64
// words of bits a word that says which of them hold any.
#pragma once

#include <cstdint>
#include <vector>

namespace pit {

class IntegerSet {
  public:
    // Members are in [0, size); size / 63 words of memory. Every call below takes O(log64 size) time, 4 looks at
    // memory for 16 million integers.
    explicit IntegerSet(std::int64_t size);

    void insert(std::int64_t value);
    void erase(std::int64_t value);
    // The largest member that is at most `bound`, a number of the range; -1 if there is none.
    std::int64_t largest_at_most(std::int64_t bound) const;

  private:
    using Word = std::uint64_t;

    std::vector<std::vector<Word>> level_;  // a bit of level i + 1 is a word of level i
};

}  // namespace pit
