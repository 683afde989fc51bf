// Philox4x32-10, a counter-based random number generator: the number at a place is a function of (key, stream, index),
// so nothing has to be replayed on resuming. Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace pit {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

// Ten rounds on one counter; a bijection of the counters for every key.
PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key);

// Purpose of a number; numbers of different streams are independent.
enum class Stream : std::uint32_t { kEpochKey = 0, kRoundKey = 1, kSource = 2, kEntry = 3, kShuffle = 4 };

// 64 random bits at `index` of a stream. `attempt` numbers the retries of one draw.
std::uint64_t random_bits(std::uint64_t key, std::uint32_t stream, std::uint64_t index, std::uint32_t attempt = 0);

// A number in [0, n), all exactly equally likely: multiply-high, and a draw from the short last interval is rejected
// for the next attempt (Lemire, "Fast Random Integer Generation in an Interval", 2019). Error if n is 0.
std::uint64_t uniform_below(std::uint64_t key, std::uint32_t stream, std::uint64_t index, std::uint64_t n);

}  // namespace pit
