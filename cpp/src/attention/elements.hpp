// Elements of arrays as floats and back, and scratch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace pit::attention {

inline float read(const float* from) {
    return *from;
}

inline float read(const std::uint16_t* from) {
    const std::uint32_t bits = static_cast<std::uint32_t>(*from) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline void write(float value, float* to) {
    *to = value;
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline void write(float value, std::uint16_t* to) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *to = static_cast<std::uint16_t>(std::isnan(value) ? (bits >> 16) | 0x40 : rounded);
}

using Floats = std::unique_ptr<float[]>;

// Not set to anything: every element is written before it is read.
inline Floats floats(std::int64_t count) {
    return Floats(new float[static_cast<std::size_t>(count)]);
}

}  // namespace pit::attention
