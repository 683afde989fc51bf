#include "pit/curriculum/edit_distance.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace pit {

namespace {

constexpr std::int64_t kBits = 64;

// 64 rows of a column of the distance matrix, as differences between neighbours: +1 where `plus` has a bit, -1 where
// `minus` has.
struct Block {
    std::uint64_t plus = ~std::uint64_t{0};
    std::uint64_t minus = 0;

    // Advances by one column. `equal`: rows whose token equals the column's; `above`: difference (-1, 0, 1) to the
    // preceding column in the row above the block. Returns that difference in the row `last`.
    int advance(std::uint64_t equal, int above, int last) {
        const std::uint64_t vertical = equal | minus;
        equal |= above < 0;
        const std::uint64_t diagonal = (((equal & plus) + plus) ^ plus) | equal;
        std::uint64_t up = minus | ~(diagonal | plus);
        std::uint64_t down = plus & diagonal;
        const int below = static_cast<int>((up >> last) & 1) - static_cast<int>((down >> last) & 1);
        up = up << 1 | (above > 0);
        down = down << 1 | (above < 0);
        plus = down | ~(vertical | up);
        minus = up & vertical;
        return below;
    }
};

// Places of each token in the pattern, 64 places per word.
class Places {
  public:
    explicit Places(TokenSpan pattern) : words_((pattern.size + kBits - 1) / kBits) {
        tokens_.assign(pattern.data, pattern.data + pattern.size);
        std::sort(tokens_.begin(), tokens_.end());
        tokens_.erase(std::unique(tokens_.begin(), tokens_.end()), tokens_.end());
        bits_.resize((tokens_.size() + 1) * static_cast<std::size_t>(words_), 0);  // the last: other tokens
        for (std::int64_t i = 0; i < pattern.size; ++i) {
            bits_[index(pattern.data[i]) + static_cast<std::size_t>(i / kBits)] |= std::uint64_t{1} << (i % kBits);
        }
    }

    std::int64_t words() const { return words_; }
    const std::uint64_t* of(std::int32_t token) const { return bits_.data() + index(token); }

  private:
    std::size_t index(std::int32_t token) const {
        const auto found = std::lower_bound(tokens_.begin(), tokens_.end(), token);
        const bool known = found != tokens_.end() && *found == token;
        return static_cast<std::size_t>((known ? found : tokens_.end()) - tokens_.begin()) *
               static_cast<std::size_t>(words_);
    }

    std::int64_t words_;
    std::vector<std::int32_t> tokens_;
    std::vector<std::uint64_t> bits_;
};

}  // namespace

std::int64_t edit_distance(TokenSpan a, TokenSpan b) {
    if (a.size > b.size) {
        std::swap(a, b);
    }
    if (a.size == 0) {
        return b.size;
    }
    const Places places(a);
    std::vector<Block> blocks(static_cast<std::size_t>(places.words()));
    const int last_row = static_cast<int>((a.size - 1) % kBits);
    std::int64_t distance = a.size;
    for (std::int64_t i = 0; i < b.size; ++i) {
        const std::uint64_t* equal = places.of(b.data[i]);
        int difference = 1;  // the empty pattern has one more token to insert
        for (std::size_t word = 0; word < blocks.size(); ++word) {
            difference = blocks[word].advance(equal[word], difference, word + 1 < blocks.size() ? 63 : last_row);
        }
        distance += difference;
    }
    return distance;
}

}  // namespace pit
