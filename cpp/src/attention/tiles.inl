// The tile functions for vectors of PIT_LANES floats. Included by one file for each set of instructions, in a namespace
// without a name, and without any function of the standard library.
#include "tiles.hpp"

namespace pit::attention {
namespace {

constexpr std::int64_t kLanes = PIT_LANES;
constexpr int kRows = PIT_ROWS;  // rows of a product that are summed at a time, in registers

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::int32_t Integers __attribute__((vector_size(kLanes * sizeof(float))));
// Arrays are aligned to floats only.
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

constexpr float kLowest = -3.0e38f;

Vector load(const float* from) {
    return *reinterpret_cast<const Unaligned*>(from);
}

void store(float* to, Vector x) {
    *reinterpret_cast<Unaligned*>(to) = x;
}

// x - 0 is x, also of -0, so that the compiler leaves the subtraction out.
Vector all(float x) {
    return x - Vector{};
}

// Where the mask is -1, a; where it is 0, b.
Vector select(Integers mask, Vector a, Vector b) {
    return reinterpret_cast<Vector>((mask & reinterpret_cast<Integers>(a)) | (~mask & reinterpret_cast<Integers>(b)));
}

Vector larger(Vector a, Vector b) {
    return select(a > b, a, b);
}

// exp(x) for x <= 88, to about one unit in the last place; 0 below -87. With x = n ln 2 + r and |r| <= ln 2 / 2, exp(r)
// is Taylor's polynomial of degree 7 and 2^n is made of its bits.
Vector exponential(Vector x) {
    const Integers tiny = x < -87.0f;
    x = select(tiny, all(0.0f), x);
    const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vector n = (x * 1.44269504088896f + shift) - shift;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = all(1.0f / 5040);
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return select(tiny, Vector{}, sum * reinterpret_cast<Vector>(power));
}

// c tanh(x / c), by exp(-2 |x / c|) so that nothing overflows.
Vector capped(Vector x, float cap) {
    const Vector z = x / cap;
    const Vector size = select(z < 0.0f, -z, z);
    const Vector small = exponential(-2.0f * size);
    const Vector tanh = (1.0f - small) / (1.0f + small);
    return cap * select(z < 0.0f, -tanh, tanh);
}

float sum_of(Vector x) {
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) {
        sum += x[i];
    }
    return sum;
}

float largest_of(Vector x) {
    float largest = x[0];
    for (int i = 1; i < kLanes; ++i) {
        largest = x[i] > largest ? x[i] : largest;
    }
    return largest;
}

// c [rows, 2 vectors] = or += a [rows, depth] b [depth, 2 vectors]; a's element (m, d) is a[m * row + d * step].
template <int rows, bool add>
void product_strip(const float* a, std::int64_t row, std::int64_t step, const float* b, std::int64_t b_row, float* c,
                   std::int64_t c_row, std::int64_t depth) {
    Vector sum[rows][2];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
        sum[m][0] = add ? load(c + m * c_row) : Vector{};
        sum[m][1] = add ? load(c + m * c_row + kLanes) : Vector{};
    }
    for (std::int64_t d = 0; d < depth; ++d) {
        const Vector b0 = load(b + d * b_row);
        const Vector b1 = load(b + d * b_row + kLanes);
        const float* const from = a + d * step;
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) {
            const Vector x = all(from[m * row]);
            sum[m][0] += x * b0;
            sum[m][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
        store(c + m * c_row, sum[m][0]);
        store(c + m * c_row + kLanes, sum[m][1]);
    }
}

// c [rows, columns] = or += a [rows, depth] b [depth, columns], strip by strip; rows are even, columns multiples of
// kPad.
template <bool add>
void product(const float* a, std::int64_t row, std::int64_t step, const float* b, std::int64_t b_row, float* c,
             std::int64_t c_row, std::int64_t rows, std::int64_t depth, std::int64_t columns) {
    for (std::int64_t n = 0; n < columns; n += 2 * kLanes) {
        std::int64_t m = 0;
        for (; m + kRows <= rows; m += kRows) {
            product_strip<kRows, add>(a + m * row, row, step, b + n, b_row, c + m * c_row + n, c_row, depth);
        }
        for (; m + 4 <= rows; m += 4) {
            product_strip<4, add>(a + m * row, row, step, b + n, b_row, c + m * c_row + n, c_row, depth);
        }
        for (; m < rows; m += 2) {
            product_strip<2, add>(a + m * row, row, step, b + n, b_row, c + m * c_row + n, c_row, depth);
        }
    }
}

// Whether all living queries of the block see all keys of the block.
bool sees_all(const Queries& of, std::int64_t first_key) {
    if (first_key >= of.first || of.window != 0) {
        return false;
    }
    for (std::int64_t s = 0; s < kBlock; ++s) {
        if (of.visible_until[first_key + s] < of.first + kBlock) {
            return false;
        }
    }
    return true;
}

// Which of kLanes keys from `key` on a query sees.
Integers seen(const Queries& of, std::int64_t query, std::int64_t key, Integers index) {
    Integers until;
    __builtin_memcpy(&until, of.visible_until + key, sizeof(until));
    const std::int32_t at = static_cast<std::int32_t>(query);
    Integers mask = (index + static_cast<std::int32_t>(key) <= at) & (until > at);
    if (of.window != 0) {
        Integers position;
        __builtin_memcpy(&position, of.position + key, sizeof(position));
        mask &= of.position[query] - position < static_cast<std::int32_t>(of.window);
    }
    return mask;
}

Integers lane_index() {
    Integers index;
    for (int i = 0; i < kLanes; ++i) {
        index[i] = i;
    }
    return index;
}

// Turns logits [rows, kBlock] into weights exp(logit - peak), and what was summed under an older peak fades. `seen(m,
// s)` tells which of the keys s, s + 1 ... query m sees.
template <typename Seen>
void softmax(float* p, std::int64_t rows, float soft_cap, const Sums& sums, bool masked, const Seen& seen) {
    for (std::int64_t m = 0; m < rows; ++m, p += kBlock) {
        Vector most = all(kLowest);
        for (std::int64_t s = 0; s < kBlock; s += kLanes) {
            Vector x = load(p + s);
            x = soft_cap != 0.0f ? capped(x, soft_cap) : x;
            x = masked ? select(seen(m, s), x, all(kLowest)) : x;
            store(p + s, x);
            most = larger(most, x);
        }
        const float before = sums.peak[m], now = largest_of(most);
        const float peak = now > before ? now : before;
        if (peak > before) {
            const Vector fade = exponential(all(before - peak));
            sums.total[m] *= fade[0];
            sums.peak[m] = peak;
            for (std::int64_t h = 0; h < sums.padded; h += kLanes) {
                float* const at = sums.weighted + m * sums.padded + h;
                store(at, load(at) * fade);
            }
        }
        Vector sum = Vector{};
        for (std::int64_t s = 0; s < kBlock; s += kLanes) {
            const Vector x = load(p + s);
            // A query that has seen nothing yet has the peak kLowest, as has all that it does not see.
            const Vector weight = select(x <= kLowest, Vector{}, exponential(x - peak));
            store(p + s, weight);
            sum += weight;
        }
        sums.total[m] += sum_of(sum);
    }
}

void forward_tile(const ForwardTile& tile) {
    const Queries& of = tile.queries;
    const Integers index = lane_index();
    for (std::int64_t visit = 0; visit < of.visits; ++visit) {
        const std::int64_t first_key = of.visited[visit] * kBlock;
        product<false>(of.q, of.padded, 1, tile.keys.k_t + first_key * of.padded, kBlock, tile.p, kBlock,
                       of.heads * kBlock, of.padded, kBlock);
        softmax(tile.p, of.heads * kBlock, of.soft_cap, tile.sums, !sees_all(of, first_key),
                [&](std::int64_t m, std::int64_t s) { return seen(of, of.first + m % kBlock, first_key + s, index); });
        product<true>(tile.p, kBlock, 1, tile.keys.v + first_key * of.padded, of.padded, tile.sums.weighted, of.padded,
                      of.heads * kBlock, kBlock, of.padded);
    }
}

void cache_tile(const CacheTile& tile) {
    const std::int64_t padded = tile.sums.padded;
    const Integers index = lane_index();
    for (std::int64_t first_key = 0; first_key < tile.length; first_key += kBlock) {
        product<false>(tile.q, padded, 1, tile.keys.k_t + first_key * padded, kBlock, tile.p, kBlock, tile.rows, padded,
                       kBlock);
        const bool masked = tile.first != nullptr || first_key + kBlock > tile.length;
        softmax(tile.p, tile.rows, tile.soft_cap, tile.sums, masked, [&](std::int64_t m, std::int64_t s) {
            const Integers key = index + static_cast<std::int32_t>(first_key + s);
            const Integers held = key < static_cast<std::int32_t>(tile.length);
            return tile.first == nullptr ? held : held & (key >= tile.first[m]);
        });
        product<true>(tile.p, kBlock, 1, tile.keys.v + first_key * padded, padded, tile.sums.weighted, padded,
                      tile.rows, kBlock, padded);
    }
}

void backward_tile(const BackwardTile& tile) {
    const Queries& of = tile.queries;
    const std::int64_t rows = of.heads * kBlock;
    const Integers index = lane_index();
    for (std::int64_t visit = 0; visit < of.visits; ++visit) {
        const std::int64_t first_key = of.visited[visit] * kBlock;
        const std::int64_t at = first_key * of.padded;
        product<false>(of.q, of.padded, 1, tile.keys.k_t + at, kBlock, tile.p, kBlock, rows, of.padded, kBlock);
        product<false>(tile.d_out, of.padded, 1, tile.keys.v_t + at, kBlock, tile.d_p, kBlock, rows, of.padded, kBlock);
        const bool masked = !sees_all(of, first_key);
        for (std::int64_t m = 0; m < rows; ++m) {
            float* const p = tile.p + m * kBlock;
            float* const d_p = tile.d_p + m * kBlock;
            const std::int64_t query = of.first + m % kBlock;
            for (std::int64_t s = 0; s < kBlock; s += kLanes) {
                Vector x = load(p + s);
                Vector slope = all(1.0f);
                if (of.soft_cap != 0.0f) {
                    x = capped(x, of.soft_cap);
                    slope -= x * x / (of.soft_cap * of.soft_cap);
                }
                if (masked) {
                    x = select(seen(of, query, first_key + s, index), x, all(kLowest));
                }
                const Vector weight = select(x <= kLowest, Vector{}, exponential(x - tile.lse[m]));
                store(p + s, weight);
                store(d_p + s, weight * (load(d_p + s) - tile.delta[m]) * slope);
            }
        }
        product<true>(tile.p, 1, kBlock, tile.d_out, of.padded, tile.d_v + at, of.padded, kBlock, rows, of.padded);
        product<true>(tile.d_p, 1, kBlock, of.q, of.padded, tile.d_k + at, of.padded, kBlock, rows, of.padded);
        product<true>(tile.d_p, kBlock, 1, tile.keys.k + at, of.padded, tile.d_q, of.padded, rows, kBlock, of.padded);
    }
}

}  // namespace
}  // namespace pit::attention
