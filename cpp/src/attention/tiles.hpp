// One block of queries against the keys that it sees, in float. The tile functions are compiled once for each set of
// instructions (tiles.inl), so nothing here may be an inline function: the linker would keep one of them for all.
#pragma once

#include <cstdint>

namespace pit::attention {

constexpr std::int64_t kBlock = 64;  // tokens of a block of queries and of a block of keys
constexpr std::int64_t kPad = 32;    // widths are padded to multiples of this many floats

// Keys and values of one row and head: blocks of kBlock tokens, zeros in padding.
struct Keys {
    const float* k;    // [T, P], the width padded to P; null where it is not needed
    const float* k_t;  // [n, P, kBlock]
    const float* v;    // [T, P]; null where it is not needed
    const float* v_t;  // [n, P, kBlock]; null where it is not needed
};

// A block of queries of all heads that share the keys: M = heads * kBlock rows, head after head.
struct Queries {
    std::int64_t heads;
    std::int64_t first;                 // flat index of the first token
    std::int64_t padded;                // P
    float soft_cap;                     // 0 for none
    std::int64_t window;                // 0 for none
    const std::int32_t* visible_until;  // of the whole row, padded with zeros to whole blocks
    const std::int32_t* position;       // of the whole row; read with a window only
    const std::int32_t* visited;        // blocks of keys, in order
    std::int64_t visits;
    const float* q;  // [M, P], scaled, zeros in padding
};

// Sums of M queries over keys: of exp(logit - peak) times the values, and of exp(logit - peak).
struct Sums {
    std::int64_t padded;  // P
    float* weighted;      // [M, P]
    float* peak;          // [M]
    float* total;         // [M]
};

struct ForwardTile {
    Queries queries;
    Keys keys;
    float* p;  // [M, kBlock], scratch
    Sums sums;
};

// Queries of one head over the first `length` keys of a cache.
struct CacheTile {
    std::int64_t rows;  // M, even
    std::int64_t length;
    const std::int32_t* first;  // [M]: first key that a query sees; null for all
    float soft_cap;             // 0 for none
    const float* q;             // [M, P], scaled
    Keys keys;
    float* p;  // [M, kBlock], scratch
    Sums sums;
};

struct BackwardTile {
    Queries queries;
    Keys keys;
    const float* lse;    // [M]
    const float* delta;  // [M]
    const float* d_out;  // [M, P], zeros in padding
    float* p;            // [M, kBlock], scratch
    float* d_p;          // [M, kBlock], scratch
    float* d_q;          // [M, P]: of the scaled queries
    float* d_k;          // [T, P], added to: of the keys under scaled queries
    float* d_v;          // [T, P], added to
};

struct TileFunctions {
    void (*forward)(const ForwardTile& tile);
    void (*cache)(const CacheTile& tile);
    void (*backward)(const BackwardTile& tile);
    const char* name;
};

extern const TileFunctions kBaseline;
#if defined(__x86_64__)
extern const TileFunctions kAvx2;
extern const TileFunctions kAvx512;
#endif

// The best ones for this machine, and whether it has the instructions of some.
const TileFunctions& best();
bool runs(const TileFunctions& tiles);

}  // namespace pit::attention
