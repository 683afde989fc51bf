#include "pit/permutation.hpp"

#include <string>

#include "pit/error.hpp"
#include "pit/philox.hpp"

namespace pit {

namespace {

// SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

}  // namespace

Permutation::Permutation(std::int64_t n, std::uint64_t key) : n_(n), half_bits_(1) {
    require_range("Permutation: n", n, 0, kMaxSize);
    // The walk is short: the domain 4^half_bits is below 4n for n > 1.
    while ((std::int64_t{1} << (2 * half_bits_)) < n) {
        ++half_bits_;
    }
    for (int round = 0; round < kRounds; ++round) {
        round_key_[round] = random_bits(key, static_cast<std::uint32_t>(Stream::kRoundKey), round);
    }
}

void Permutation::check(std::int64_t index) const {
    if (index < 0 || index >= n_) {
        throw Error("index=" + std::to_string(index) + " is outside [0, " + std::to_string(n_) +
                    "), the range that is permuted; give indices of that range");
    }
}

std::uint64_t Permutation::encrypt(std::uint64_t block) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = block >> half_bits_;
    std::uint64_t right = block & mask;
    for (int round = 0; round < kRounds; ++round) {
        const std::uint64_t next = left ^ (mix(right ^ round_key_[round]) & mask);
        left = right;
        right = next;
    }
    return (left << half_bits_) | right;
}

std::uint64_t Permutation::decrypt(std::uint64_t block) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = block >> half_bits_;
    std::uint64_t right = block & mask;
    for (int round = kRounds - 1; round >= 0; --round) {
        const std::uint64_t previous = right ^ (mix(left ^ round_key_[round]) & mask);
        right = left;
        left = previous;
    }
    return (left << half_bits_) | right;
}

std::int64_t Permutation::apply(std::int64_t index) const {
    check(index);
    std::uint64_t block = static_cast<std::uint64_t>(index);
    do {
        block = encrypt(block);
    } while (block >= static_cast<std::uint64_t>(n_));
    return static_cast<std::int64_t>(block);
}

std::int64_t Permutation::invert(std::int64_t index) const {
    check(index);
    std::uint64_t block = static_cast<std::uint64_t>(index);
    do {
        block = decrypt(block);
    } while (block >= static_cast<std::uint64_t>(n_));
    return static_cast<std::int64_t>(block);
}

}  // namespace pit
