// Philox's published answers, unbiased integers, and the bijectivity of the keyed permutation.
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "pit/permutation.hpp"
#include "pit/philox.hpp"

namespace {

// From Random123, the authors' implementation (kat_vectors, philox4x32 10).
void test_known_answers() {
    CHECK(
        (pit::philox4x32({0, 0, 0, 0}, {0, 0}) == pit::PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    CHECK((pit::philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
           pit::PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    CHECK((pit::philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
           pit::PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

void test_uniform_below() {
    for (const std::uint64_t n :
         {std::uint64_t{1}, std::uint64_t{2}, (std::uint64_t{1} << 63) + 1, ~std::uint64_t{0}}) {
        for (std::uint64_t i = 0; i < 1000; ++i) {
            CHECK(pit::uniform_below(7, 0, i, n) < n);
        }
    }
    CHECK_THROWS(pit::uniform_below(0, 0, 0, 0), "n=0, but [0, 0) holds no number");
}

void test_bijective(std::int64_t n, std::uint64_t key) {
    const pit::Permutation permutation(n, key);
    std::vector<bool> seen(static_cast<std::size_t>(n), false);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t image = permutation.apply(i);
        CHECK(image >= 0 && image < n && !seen[static_cast<std::size_t>(image)]);
        CHECK(permutation.invert(image) == i);
        seen[static_cast<std::size_t>(image)] = true;
    }
}

void test_permutation() {
    for (std::int64_t n = 0; n <= 300; ++n) {
        test_bijective(n, static_cast<std::uint64_t>(n) * 77);
    }
    for (int power = 9; power <= 14; ++power) {
        for (const std::int64_t delta : {-1, 0, 1}) {
            test_bijective((std::int64_t{1} << power) + delta, ~std::uint64_t{0});
        }
    }
    const pit::Permutation largest(pit::Permutation::kMaxSize, 1);
    for (const std::int64_t i : {std::int64_t{0}, pit::Permutation::kMaxSize - 1}) {
        CHECK(largest.invert(largest.apply(i)) == i);
    }
    CHECK_THROWS(pit::Permutation(-1, 0), "n=-1 is outside [0, 281474976710656]");
    CHECK_THROWS(pit::Permutation(pit::Permutation::kMaxSize + 1, 0), "is outside [0, 281474976710656]");
    CHECK_THROWS(pit::Permutation(0, 0).apply(0), "index=0 is outside [0, 0)");
    CHECK_THROWS(pit::Permutation(3, 0).invert(INT64_MIN), "is outside [0, 3)");
}

}  // namespace

int main() {
    test_known_answers();
    test_uniform_below();
    test_permutation();
    return pit_test::failures() != 0;
}
