// A structure-aware fuzzer in a loop: valid bytes are damaged, and most of them get a valid checksum again to pass the
// outer check. Their reader must throw a pit::Error or hold valid values. Run it under sanitizers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dice.hpp"

namespace pit_fuzz {

using pit_test::Dice;

// Counts of the inputs of a run, by result.
struct Tally {
    std::int64_t inputs = 0;
    std::int64_t passed_header = 0;  // the outer check (magic, version, checksum) held
    std::int64_t accepted = 0;

    // At least half of the inputs must reach the fields behind the header.
    int report(const char* name) const {
        std::printf("%s: %lld inputs, %lld passed the header, %lld accepted\n", name, static_cast<long long>(inputs),
                    static_cast<long long>(passed_header), static_cast<long long>(accepted));
        return 2 * passed_header >= inputs ? 0 : 1;
    }
};

// Boundary values.
inline std::uint64_t boundary(Dice& dice) {
    const std::uint64_t values[] = {0,
                                    1,
                                    2,
                                    0x7F,
                                    0x80,
                                    0xFFFF,
                                    0x10000,
                                    INT32_MAX,
                                    std::uint64_t{1} << 32,
                                    (std::uint64_t{1} << 48) + 1,
                                    std::uint64_t{1} << 62,
                                    INT64_MAX,
                                    std::uint64_t{1} << 63,
                                    UINT64_MAX};
    return values[dice.roll(0, 13)];
}

inline void write_number(std::string& bytes, std::size_t at, std::uint64_t value) {
    for (std::size_t i = 0; i < 8 && at + i < bytes.size(); ++i) {
        bytes[at + i] = static_cast<char>(value >> (8 * i));
    }
}

// Damages the bytes once, at or after `first`: a bit, a byte, a number, a truncation, a doubled or a missing piece.
inline void damage(std::string& bytes, std::size_t first, Dice& dice) {
    if (bytes.size() <= first) {
        return;
    }
    const auto last = static_cast<std::int64_t>(bytes.size() - 1);
    const auto at = static_cast<std::size_t>(dice.roll(static_cast<std::int64_t>(first), last));
    const auto length = static_cast<std::size_t>(dice.roll(1, 24));
    switch (dice.roll(0, 6)) {
        case 0:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << dice.roll(0, 7)));
            break;
        case 1:
            bytes[at] = static_cast<char>(dice.roll(0, 255));
            break;
        case 2:
        case 3:
            write_number(bytes, first + (at - first) / 8 * 8, boundary(dice));
            break;
        case 4:
            bytes.resize(at);
            break;
        case 5:
            bytes.insert(at, bytes.substr(at, length));
            break;
        default:
            bytes.erase(at, length);
    }
}

// Number of inputs: the first argument, or few enough for a test.
inline std::int64_t inputs(int count, char** words) {
    return count > 1 ? std::atoll(words[1]) : 20'000;
}

}  // namespace pit_fuzz
