// CRC-32 as zlib, gzip and PNG compute it (ISO 3309, reflected polynomial 0xEDB88320), sixteen bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pit {

// Checksum of the bytes before, whose checksum is `crc` (0 for none), followed by these: zlib's crc32(crc, data, size).
std::uint32_t crc32(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace pit
