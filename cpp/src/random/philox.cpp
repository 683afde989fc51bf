#include "pit/random/philox.hpp"

#include "pit/support/error.hpp"

namespace pit {

namespace {

__extension__ using Uint128 = unsigned __int128;

constexpr std::uint64_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;

}  // namespace

PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = kMultiplier0 * counter[0];
        const std::uint64_t product1 = kMultiplier1 * counter[2];
        counter = {
            static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
            static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
        key[0] += kWeyl0;
        key[1] += kWeyl1;
    }
    return counter;
}

std::uint64_t random_bits(std::uint64_t key, std::uint32_t stream, std::uint64_t index, std::uint32_t attempt) {
    const PhiloxCounter out =
        philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), attempt, stream},
                   {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)});
    return (static_cast<std::uint64_t>(out[1]) << 32) | out[0];
}

std::uint64_t uniform_below(std::uint64_t key, std::uint32_t stream, std::uint64_t index, std::uint64_t n) {
    if (n == 0) {
        throw Error("uniform_below: n=0, but [0, 0) holds no number; give n >= 1");
    }
    for (std::uint32_t attempt = 0;; ++attempt) {
        const Uint128 product = static_cast<Uint128>(random_bits(key, stream, index, attempt)) * n;
        const std::uint64_t low = static_cast<std::uint64_t>(product);
        // The short interval has 2^64 mod n numbers, fewer than n: the division is rarely needed.
        if (low >= n || low >= (0 - n) % n) {
            return static_cast<std::uint64_t>(product >> 64);
        }
    }
}

}  // namespace pit
