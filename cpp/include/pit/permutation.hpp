// A keyed permutation of [0, n) that costs O(1) time per index and no memory: a Feistel network on the next power of
// four, walked until it lands below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
#pragma once

#include <array>
#include <cstdint>

namespace pit {

class Permutation {
  public:
    static constexpr std::int64_t kMaxSize = std::int64_t{1} << 48;

    // n in [0, 2^48].
    Permutation(std::int64_t n, std::uint64_t key);

    std::int64_t size() const { return n_; }

    // Where `index` goes, and where it came from; Error if it is outside [0, n).
    std::int64_t apply(std::int64_t index) const;
    std::int64_t invert(std::int64_t index) const;

  private:
    static constexpr int kRounds = 8;

    std::uint64_t encrypt(std::uint64_t block) const;
    std::uint64_t decrypt(std::uint64_t block) const;
    void check(std::int64_t index) const;

    std::int64_t n_;
    int half_bits_;
    std::array<std::uint64_t, kRounds> round_key_;
};

}  // namespace pit
