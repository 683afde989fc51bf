// The keyed permutation: a bijection for every size, and as even as chance. Keys are fixed, so a run either always
// passes or always fails; each statistic has a bound on its distance from the mean. A fair permutation would miss one
// of the bounds below, all taken together, for about one choice of fixed keys in 10,000.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "check.hpp"
#include "pit/random/permutation.hpp"
#include "pit/random/philox.hpp"

namespace {

// A normal variable exceeds 5 with probability 3e-7 (there are some 100 such checks), 6.5 with 4e-11 (20,000 checks).
constexpr double kFew = 5.0;
constexpr double kMany = 6.5;

std::uint64_t random(std::uint64_t index) {
    return pit::random_bits(2026, 99, index);
}

std::vector<std::int64_t> all_images(const pit::Permutation& permutation) {
    std::vector<std::int64_t> image(static_cast<std::size_t>(permutation.size()));
    std::iota(image.begin(), image.end(), 0);
    permutation.apply(image.data(), permutation.size(), image.data());
    return image;
}

void check_bijective(std::int64_t n, std::uint64_t key) {
    const pit::Permutation permutation(n, key);
    std::vector<std::int64_t> image = all_images(permutation);
    std::vector<bool> seen(image.size(), false);
    std::int64_t bad = 0;
    for (const std::int64_t value : image) {
        const bool fresh = value >= 0 && value < n && !seen[static_cast<std::size_t>(value)];
        bad += !fresh;
        if (fresh) {
            seen[static_cast<std::size_t>(value)] = true;
        }
    }
    for (std::int64_t i = 0; i < n; i += std::max<std::int64_t>(1, n / 100)) {
        const std::int64_t value = image[static_cast<std::size_t>(i)];
        bad += permutation.apply(i) != value || permutation.invert(value) != i;
    }
    permutation.invert(image.data(), n, image.data());
    for (std::int64_t i = 0; i < n; ++i) {
        bad += image[static_cast<std::size_t>(i)] != i;
    }
    CHECK(bad == 0);
}

void test_bijective() {
    for (std::int64_t n = 0; n <= 5000; ++n) {
        check_bijective(n, random(static_cast<std::uint64_t>(n)));
    }
    for (int power = 13; power <= 22; ++power) {
        for (const std::int64_t delta : {-1, 0, 1}) {
            check_bijective((std::int64_t{1} << power) + delta, ~std::uint64_t{0});
        }
    }
}

void test_large_sizes() {
    for (const std::int64_t n : {pit::Permutation::kMaxSize, pit::Permutation::kMaxSize - 1,
                                 (std::int64_t{1} << 47) + 1, std::int64_t{1} << 47, std::int64_t{1} << 33}) {
        const pit::Permutation permutation(n, 1);
        for (std::uint64_t i = 0; i < 1000; ++i) {
            const auto index = static_cast<std::int64_t>(random(i) % static_cast<std::uint64_t>(n));
            const std::int64_t image = permutation.apply(index);
            CHECK(image >= 0 && image < n && permutation.invert(image) == index);
        }
        CHECK(permutation.invert(permutation.apply(0)) == 0);
        CHECK(permutation.invert(permutation.apply(n - 1)) == n - 1);
    }
}

void test_refusals() {
    CHECK_THROWS(pit::Permutation(-1, 0), "n=-1 is outside [0, 281474976710656]");
    CHECK_THROWS(pit::Permutation(pit::Permutation::kMaxSize + 1, 0), "is outside [0, 281474976710656]");
    CHECK_THROWS(pit::Permutation(0, 0).apply(0), "index=0 is outside [0, 0)");
    CHECK_THROWS(pit::Permutation(3, 0).invert(INT64_MIN), "is outside [0, 3)");
    std::vector<std::int64_t> index(1000, 999);
    index[700] = 1000;
    const pit::Permutation permutation(1000, 0);
    CHECK_THROWS(permutation.apply(index.data(), 1000, index.data()), "index=1000 is outside [0, 1000)");
}

// Over random keys and indices, one flipped bit of either flips each bit of the image half of the time.
void check_avalanche(int bits, int flipped, bool of_key) {
    constexpr int kSamples = 4096;
    std::array<int, 48> flips{};
    for (std::uint64_t i = 0; i < kSamples; ++i) {
        const std::uint64_t key = random(2 * i);
        const auto index = static_cast<std::int64_t>(random(2 * i + 1) >> (64 - bits));
        const std::uint64_t bit = std::uint64_t{1} << flipped;
        const pit::Permutation permutation(std::int64_t{1} << bits, key);
        const std::int64_t changed =
            permutation.apply(index) ^ (of_key ? pit::Permutation(permutation.size(), key ^ bit).apply(index)
                                               : permutation.apply(index ^ static_cast<std::int64_t>(bit)));
        for (int out = 0; out < bits; ++out) {
            flips[static_cast<std::size_t>(out)] += static_cast<int>(changed >> out & 1);
        }
    }
    for (int out = 0; out < bits; ++out) {
        const double deviation = flips[static_cast<std::size_t>(out)] - kSamples / 2;
        CHECK(std::abs(deviation) < kMany * std::sqrt(kSamples) / 2);
    }
}

void test_avalanche() {
    for (const int bits : {17, 32, 48}) {
        for (int flipped = 0; flipped < 64; ++flipped) {
            check_avalanche(bits, flipped, true);
        }
        for (int flipped = 0; flipped < bits; ++flipped) {
            check_avalanche(bits, flipped, false);
        }
    }
}

// Chi-square of counts that should be equal, as a normal variable (Wilson and Hilferty, 1931).
double unevenness(const std::vector<std::int64_t>& count) {
    const double expected = static_cast<double>(std::accumulate(count.begin(), count.end(), std::int64_t{0})) /
                            static_cast<double>(count.size());
    double chi_square = 0;
    for (const std::int64_t c : count) {
        chi_square += (static_cast<double>(c) - expected) * (static_cast<double>(c) - expected) / expected;
    }
    const double freedom = static_cast<double>(count.size()) - 1;
    const double spread = 2.0 / (9.0 * freedom);
    return (std::cbrt(chi_square / freedom) - (1 - spread)) / std::sqrt(spread);
}

// The image of an index over many keys: each place equally often, for tables and for networks.
void test_places() {
    for (const std::int64_t n : {2, 3, 7, 256, 257, 272, 1000}) {
        for (const std::int64_t index : {std::int64_t{0}, std::int64_t{1}, n / 2, n - 1}) {
            std::vector<std::int64_t> count(static_cast<std::size_t>(n));
            for (std::uint64_t key = 0; key < static_cast<std::uint64_t>(50 * n); ++key) {
                ++count[static_cast<std::size_t>(pit::Permutation(n, random(key)).apply(index))];
            }
            CHECK(std::abs(unevenness(count)) < kFew);
        }
    }
}

// The joint image of two indices, on a grid of 16 x 16: neighbours, and indices that share a half of the network.
void test_pairs_of_places() {
    constexpr std::int64_t kGrid = 16;
    for (const std::int64_t n : {257, 272, 1000, 1 << 20}) {
        for (const std::int64_t distance : {std::int64_t{1}, std::int64_t{16}, std::int64_t{17}, n / 2}) {
            std::vector<std::int64_t> count(kGrid * kGrid);
            for (std::uint64_t key = 0; key < 30000; ++key) {
                const pit::Permutation permutation(n, random(key));
                // n need not be a multiple of the grid: the last, smaller cell is left out.
                const std::int64_t cell = n / kGrid;
                const std::int64_t a = permutation.apply(3) / cell, b = permutation.apply(3 + distance) / cell;
                if (a < kGrid && b < kGrid && a != b) {
                    ++count[static_cast<std::size_t>(a * kGrid + b)];
                }
            }
            // The diagonal is rarer, for two indices never share a place.
            std::vector<std::int64_t> apart;
            for (std::int64_t i = 0; i < kGrid * kGrid; ++i) {
                if (i / kGrid != i % kGrid) {
                    apart.push_back(count[static_cast<std::size_t>(i)]);
                }
            }
            CHECK(std::abs(unevenness(apart)) < kFew);
        }
    }
}

// The order of five images: all 120 equally often.
void test_orders() {
    for (const std::int64_t n : {5, 256, 257, 1000, 10000000}) {
        for (const std::int64_t stride : {std::int64_t{1}, n / 5}) {
            std::vector<std::int64_t> count(120);
            for (std::uint64_t key = 0; key < 24000; ++key) {
                std::array<std::int64_t, 5> image{0, stride, 2 * stride, 3 * stride, 4 * stride};
                pit::Permutation(n, random(key)).apply(image.data(), 5, image.data());
                std::size_t order = 0;  // Lehmer's code of the five
                for (std::size_t i = 0; i < 5; ++i) {
                    const auto smaller = std::count_if(image.begin() + static_cast<std::ptrdiff_t>(i), image.end(),
                                                       [&](std::int64_t later) { return later < image[i]; });
                    order = order * (5 - i) + static_cast<std::size_t>(smaller);
                }
                ++count[order];
            }
            CHECK(std::abs(unevenness(count)) < kFew);
        }
    }
}

// A random permutation has one fixed point on average, and the number of them has variance 1.
void test_fixed_points() {
    for (const std::int64_t n : {50, 257, 1000}) {
        constexpr int kKeys = 4000;
        std::int64_t fixed = 0;
        for (std::uint64_t key = 0; key < kKeys; ++key) {
            const std::vector<std::int64_t> image = all_images(pit::Permutation(n, random(key)));
            for (std::int64_t i = 0; i < n; ++i) {
                fixed += image[static_cast<std::size_t>(i)] == i;
            }
        }
        CHECK(std::abs(static_cast<double>(fixed) - kKeys) < kFew * std::sqrt(kKeys));
    }
}

// Pairs out of order: mean n(n - 1)/4, variance n(n - 1)(2n + 5)/72.
void test_inversions() {
    for (const std::int64_t n : {100, 300}) {
        constexpr int kKeys = 2000;
        double sum = 0, squares = 0;
        const auto size = static_cast<double>(n);
        for (std::uint64_t key = 0; key < kKeys; ++key) {
            const std::vector<std::int64_t> image = all_images(pit::Permutation(n, random(key)));
            std::int64_t inversions = 0;
            for (auto later = image.begin(); later != image.end(); ++later) {
                inversions +=
                    std::count_if(image.begin(), later, [&](std::int64_t earlier) { return earlier > *later; });
            }
            const double z = (static_cast<double>(inversions) - size * (size - 1) / 4) /
                             std::sqrt(size * (size - 1) * (2 * size + 5) / 72);
            sum += z;
            squares += z * z;
        }
        CHECK(std::abs(sum) < kFew * std::sqrt(kKeys));
        CHECK(std::abs(squares - kKeys) < kFew * std::sqrt(2 * kKeys));
    }
}

}  // namespace

int main() {
    test_bijective();
    test_large_sizes();
    test_refusals();
    test_avalanche();
    test_places();
    test_pairs_of_places();
    test_orders();
    test_fixed_points();
    test_inversions();
    return pit_test::failures() != 0;
}
