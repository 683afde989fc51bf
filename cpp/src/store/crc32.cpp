#include "pit/store/crc32.hpp"

#include <array>

namespace pit {

namespace {

constexpr std::uint32_t kPolynomial = 0xEDB88320u;
constexpr std::size_t kSlices = 16;

using Tables = std::array<std::array<std::uint32_t, 256>, kSlices>;

// tables[k][b]: contribution of byte b to the checksum when k more bytes follow it.
constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1u) != 0 ? kPolynomial : 0u);
        }
        tables[0][byte] = crc;
    }
    for (std::size_t k = 1; k < kSlices; ++k) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[k - 1][byte];
            tables[k][byte] = (before >> 8) ^ tables[0][before & 0xFFu];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

// Four bytes as a little-endian word; compilers turn this into one load.
std::uint32_t word(const unsigned char* bytes) {
    return static_cast<std::uint32_t>(bytes[0]) | static_cast<std::uint32_t>(bytes[1]) << 8 |
           static_cast<std::uint32_t>(bytes[2]) << 16 | static_cast<std::uint32_t>(bytes[3]) << 24;
}

// Contribution of a word to the checksum when `follow` bytes follow it.
std::uint32_t slice(std::uint32_t value, std::size_t follow) {
    return kTables[follow + 3][value & 0xFFu] ^ kTables[follow + 2][(value >> 8) & 0xFFu] ^
           kTables[follow + 1][(value >> 16) & 0xFFu] ^ kTables[follow][value >> 24];
}

}  // namespace

// Slicing (Kounavis and Berry, "A systematic approach to building high performance software-based CRC generators",
// 2005): each byte of a step has its own table, so the look-ups do not wait for each other.
std::uint32_t crc32(std::uint32_t crc, const void* data, std::size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    crc = ~crc;
    for (; size >= kSlices; size -= kSlices, bytes += kSlices) {
        crc = slice(word(bytes) ^ crc, 12) ^ slice(word(bytes + 4), 8) ^ slice(word(bytes + 8), 4) ^
              slice(word(bytes + 12), 0);
    }
    for (; size > 0; --size, ++bytes) {
        crc = (crc >> 8) ^ kTables[0][(crc ^ *bytes) & 0xFFu];
    }
    return ~crc;
}

}  // namespace pit
