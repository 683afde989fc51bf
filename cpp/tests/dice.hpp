// Numbers for the tests, from the core's own generator.
#pragma once

#include <cstdint>

#include "pit/random/philox.hpp"

namespace pit_test {

class Dice {
  public:
    explicit Dice(std::uint64_t key) : key_(key) {}
    // A number in [low, high].
    std::int64_t roll(std::int64_t low, std::int64_t high) {
        return low + static_cast<std::int64_t>(
                         pit::uniform_below(key_, 99, index_++, static_cast<std::uint64_t>(high - low + 1)));
    }

  private:
    std::uint64_t key_;
    std::uint64_t index_ = 0;
};

}  // namespace pit_test
