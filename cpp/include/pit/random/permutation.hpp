// A keyed permutation of [0, n) that costs O(1) time per index and a fixed amount of memory. Up to 256 indices it is a
// shuffled table, every order equally likely. Above, it is a Feistel network of two unequal halves on a domain that
// barely exceeds n, walked until it lands below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
#pragma once

#include <array>
#include <cstdint>

namespace pit {

// An index is left * 2^right_bits + right, with left in [0, left_size). Rounds change the halves in turn: the left one
// by addition modulo left_size, the right one bit by bit. With right_bits half of n's bits, the domain exceeds n by
// less than 2^right_bits <= sqrt(n), so that a walk is rare for every n, one more than a power of two included.
class FeistelNetwork {
  public:
    static constexpr int kRounds = 8;
    static constexpr int kBlock = 256;

    // n in [1, 2^48].
    FeistelNetwork(std::int64_t n, std::uint64_t key);

    // Map one index of the domain, and its inverse.
    std::uint64_t encrypt(std::uint64_t index) const;
    std::uint64_t decrypt(std::uint64_t index) const;
    // The same for a block of at most kBlock indices, in place.
    void encrypt(std::int64_t* index, int count) const;
    void decrypt(std::int64_t* index, int count) const;

  private:
    struct RoundKey {
        std::uint32_t before, between;  // the two multiplications of a round
    };

    std::uint32_t left_size_;
    int right_bits_;
    std::array<RoundKey, kRounds> key_;
};

class Permutation {
  public:
    static constexpr std::int64_t kMaxSize = std::int64_t{1} << 48;
    static constexpr std::int64_t kMaxTable = 256;

    // n in [0, 2^48].
    Permutation(std::int64_t n, std::uint64_t key);

    std::int64_t size() const { return n_; }

    // The image of `index`, and its preimage; Error if it is outside [0, n).
    std::int64_t apply(std::int64_t index) const;
    std::int64_t invert(std::int64_t index) const;
    // The same for `count` indices, several times faster per index. `out` is `index` itself or does not overlap it.
    // Error, naming the first index outside [0, n); `out` is then partly written.
    void apply(const std::int64_t* index, std::int64_t count, std::int64_t* out) const;
    void invert(const std::int64_t* index, std::int64_t count, std::int64_t* out) const;

  private:
    template <bool forward>
    std::int64_t map(std::int64_t index) const;
    template <bool forward>
    void map(const std::int64_t* index, std::int64_t count, std::int64_t* out) const;
    template <bool forward>
    void map_block(const std::int64_t* index, int count, std::int64_t* out) const;
    void fill_tables(std::uint64_t key);
    void check(const std::int64_t* index, int count) const;

    std::int64_t n_;
    FeistelNetwork network_;
    std::array<std::uint8_t, kMaxTable> image_{}, source_{};  // both ways, of a permutation of at most kMaxTable
};

}  // namespace pit
