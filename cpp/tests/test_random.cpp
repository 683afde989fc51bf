// Philox's published answers and unbiased integers.
#include <cstdint>

#include "check.hpp"
#include "pit/random/philox.hpp"

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

}  // namespace

int main() {
    test_known_answers();
    test_uniform_below();
    return pit_test::failures() != 0;
}
