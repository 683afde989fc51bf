// CRC-32 as zlib, gzip and PNG compute it (ISO 3309, reflected polynomial 0xEDB88320), sixteen bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pit {

// Continues the checksum `crc` of the preceding bytes (0 if there are none): zlib's crc32(crc, data, size).
std::uint32_t crc32(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace pit
