#include "pit/random/permutation.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "pit/random/philox.hpp"
#include "pit/support/clones.hpp"
#include "pit/support/error.hpp"

namespace pit {

namespace {

using Word = std::uint32_t;

// Philox's multipliers, which its authors chose for how well they mix.
constexpr Word kMultiplier0 = 0xD2511F53u;
constexpr Word kMultiplier1 = 0xCD9E8D57u;

// The function of a round, whose high bits depend on all bits of x: a product carries each bit upwards only, so high
// ones are brought down before the second.
inline Word mix(Word x, Word before, Word between) {
    x = (x ^ before) * kMultiplier0;
    x ^= x >> 15;
    return (x + between) * kMultiplier1;
}

// Maps a mixed word to [0, size). Counts of words per number differ by at most one: below 2^-8 uneven at the largest n.
inline Word scale(Word x, Word size) {
    return static_cast<Word>((std::uint64_t{x} * size) >> 32);
}

// (a + b) mod size and (a - b) mod size for a, b < size < 2^31: the candidate that has not wrapped around 2^32.
inline Word add(Word a, Word b, Word size) {
    const Word sum = a + b;
    return std::min(sum, sum - size);
}
inline Word subtract(Word a, Word b, Word size) {
    const Word difference = a - b;
    return std::min(difference, difference + size);
}

PIT_CLONES void split(const std::int64_t* index, int count, int bits, Word* left, Word* right) {
    const Word mask = (Word{1} << bits) - 1;
    for (int i = 0; i < count; ++i) {
        left[i] = static_cast<Word>(static_cast<std::uint64_t>(index[i]) >> bits);
        right[i] = static_cast<Word>(index[i]) & mask;
    }
}

PIT_CLONES void join(const Word* left, const Word* right, int count, int bits, std::int64_t* index) {
    for (int i = 0; i < count; ++i) {
        index[i] = static_cast<std::int64_t>(std::uint64_t{left[i]} << bits | right[i]);
    }
}

template <bool forward>
inline void round_left(Word* left, const Word* right, int count, Word before, Word between, Word size) {
    for (int i = 0; i < count; ++i) {
        const Word change = scale(mix(right[i], before, between), size);
        left[i] = forward ? add(left[i], change, size) : subtract(left[i], change, size);
    }
}

// Clones cannot be templates, hence one function per direction.
PIT_CLONES void add_left(Word* left, const Word* right, int count, Word before, Word between, Word size) {
    round_left<true>(left, right, count, before, between, size);
}
PIT_CLONES void subtract_left(Word* left, const Word* right, int count, Word before, Word between, Word size) {
    round_left<false>(left, right, count, before, between, size);
}

PIT_CLONES void flip_right(const Word* left, Word* right, int count, Word before, Word between, int bits) {
    for (int i = 0; i < count; ++i) {
        right[i] ^= mix(left[i], before, between) >> (32 - bits);
    }
}

// Whether any value is outside [0, n). No branch per value, so the loop vectorises.
PIT_CLONES bool any_outside(const std::int64_t* value, int count, std::int64_t n) {
    const std::uint64_t last = static_cast<std::uint64_t>(n) - 1;
    std::uint64_t outside = 0;
    for (int i = 0; i < count; ++i) {
        // The sign bit: of a negative value, or of last - value for one that is too large.
        outside |= static_cast<std::uint64_t>(value[i]) | (last - static_cast<std::uint64_t>(value[i]));
    }
    return outside >> 63 != 0;
}

int right_bits(std::int64_t n) {
    int bits = 2;
    while (bits < 48 && (std::int64_t{1} << bits) < n) {
        ++bits;
    }
    return bits / 2;
}

}  // namespace

FeistelNetwork::FeistelNetwork(std::int64_t n, std::uint64_t key) : left_size_(1), right_bits_(right_bits(n)) {
    const std::int64_t right_size = std::int64_t{1} << right_bits_;
    left_size_ = static_cast<Word>((n + right_size - 1) / right_size);
    for (int round = 0; round < kRounds; ++round) {
        const std::uint64_t bits = random_bits(key, static_cast<std::uint32_t>(Stream::kRoundKey), round);
        key_[round] = {static_cast<Word>(bits), static_cast<Word>(bits >> 32)};
    }
}

std::uint64_t FeistelNetwork::encrypt(std::uint64_t index) const {
    Word left = static_cast<Word>(index >> right_bits_);
    Word right = static_cast<Word>(index) & ((Word{1} << right_bits_) - 1);
    for (int round = 0; round < kRounds; round += 2) {
        left = add(left, scale(mix(right, key_[round].before, key_[round].between), left_size_), left_size_);
        right ^= mix(left, key_[round + 1].before, key_[round + 1].between) >> (32 - right_bits_);
    }
    return std::uint64_t{left} << right_bits_ | right;
}

std::uint64_t FeistelNetwork::decrypt(std::uint64_t index) const {
    Word left = static_cast<Word>(index >> right_bits_);
    Word right = static_cast<Word>(index) & ((Word{1} << right_bits_) - 1);
    for (int round = kRounds - 2; round >= 0; round -= 2) {
        right ^= mix(left, key_[round + 1].before, key_[round + 1].between) >> (32 - right_bits_);
        left = subtract(left, scale(mix(right, key_[round].before, key_[round].between), left_size_), left_size_);
    }
    return std::uint64_t{left} << right_bits_ | right;
}

void FeistelNetwork::encrypt(std::int64_t* index, int count) const {
    std::array<Word, kBlock> left, right;
    split(index, count, right_bits_, left.data(), right.data());
    for (int round = 0; round < kRounds; round += 2) {
        const RoundKey &first = key_[round], &second = key_[round + 1];
        add_left(left.data(), right.data(), count, first.before, first.between, left_size_);
        flip_right(left.data(), right.data(), count, second.before, second.between, right_bits_);
    }
    join(left.data(), right.data(), count, right_bits_, index);
}

void FeistelNetwork::decrypt(std::int64_t* index, int count) const {
    std::array<Word, kBlock> left, right;
    split(index, count, right_bits_, left.data(), right.data());
    for (int round = kRounds - 2; round >= 0; round -= 2) {
        const RoundKey &first = key_[round], &second = key_[round + 1];
        flip_right(left.data(), right.data(), count, second.before, second.between, right_bits_);
        subtract_left(left.data(), right.data(), count, first.before, first.between, left_size_);
    }
    join(left.data(), right.data(), count, right_bits_, index);
}

Permutation::Permutation(std::int64_t n, std::uint64_t key)
    : n_((require_range("Permutation: n", n, 0, kMaxSize), n)), network_(std::max<std::int64_t>(n, 1), key) {
    if (n_ <= kMaxTable) {
        fill_tables(key);
    }
}

// Fisher and Yates's shuffle, from unbiased draws.
void Permutation::fill_tables(std::uint64_t key) {
    for (std::int64_t i = 0; i < n_; ++i) {
        image_[i] = static_cast<std::uint8_t>(i);
    }
    for (std::int64_t i = n_ - 1; i > 0; --i) {
        const auto place = uniform_below(key, static_cast<std::uint32_t>(Stream::kShuffle),
                                         static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(i) + 1);
        std::swap(image_[i], image_[place]);
    }
    for (std::int64_t i = 0; i < n_; ++i) {
        source_[image_[i]] = static_cast<std::uint8_t>(i);
    }
}

void Permutation::check(const std::int64_t* index, int count) const {
    if (!any_outside(index, count, n_)) {
        return;
    }
    const std::int64_t* bad = std::find_if(index, index + count, [this](std::int64_t i) { return i < 0 || i >= n_; });
    throw Error("index=" + std::to_string(*bad) + " is outside [0, " + std::to_string(n_) +
                "), the range of the permutation; give indices in that range");
}

template <bool forward>
std::int64_t Permutation::map(std::int64_t index) const {
    check(&index, 1);
    if (n_ <= kMaxTable) {
        return (forward ? image_ : source_)[static_cast<std::size_t>(index)];
    }
    std::uint64_t value = static_cast<std::uint64_t>(index);
    do {
        value = forward ? network_.encrypt(value) : network_.decrypt(value);
    } while (value >= static_cast<std::uint64_t>(n_));
    return static_cast<std::int64_t>(value);
}

template <bool forward>
void Permutation::map_block(const std::int64_t* index, int count, std::int64_t* out) const {
    check(index, count);
    if (n_ <= kMaxTable) {
        const auto& table = forward ? image_ : source_;
        std::transform(index, index + count, out, [&](std::int64_t i) { return table[static_cast<std::size_t>(i)]; });
        return;
    }
    std::copy_n(index, out == index ? 0 : count, out);
    forward ? network_.encrypt(out, count) : network_.decrypt(out, count);
    if (!any_outside(out, count, n_)) {
        return;
    }
    for (int i = 0; i < count; ++i) {
        while (out[i] >= n_) {
            const auto value = static_cast<std::uint64_t>(out[i]);
            out[i] = static_cast<std::int64_t>(forward ? network_.encrypt(value) : network_.decrypt(value));
        }
    }
}

template <bool forward>
void Permutation::map(const std::int64_t* index, std::int64_t count, std::int64_t* out) const {
    for (std::int64_t i = 0; i < count; i += FeistelNetwork::kBlock) {
        const auto size = static_cast<int>(std::min<std::int64_t>(count - i, FeistelNetwork::kBlock));
        map_block<forward>(index + i, size, out + i);
    }
}

std::int64_t Permutation::apply(std::int64_t index) const {
    return map<true>(index);
}

std::int64_t Permutation::invert(std::int64_t index) const {
    return map<false>(index);
}

void Permutation::apply(const std::int64_t* index, std::int64_t count, std::int64_t* out) const {
    map<true>(index, count, out);
}

void Permutation::invert(const std::int64_t* index, std::int64_t count, std::int64_t* out) const {
    map<false>(index, count, out);
}

}  // namespace pit
