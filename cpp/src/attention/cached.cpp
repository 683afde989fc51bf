#include <algorithm>
#include <limits>
#include <vector>

#include "elements.hpp"
#include "pit/attention/attention.hpp"
#include "tiles.hpp"

namespace pit::attention {

namespace {

// The part of the cache of one group and head that is held, as packed keys and values: from `start` on, around the end.
template <typename T>
void gather_held(const Cache& shape, std::int64_t padded, const T* k, const T* v, std::int64_t start,
                 std::int64_t length, float* k_t, float* v_to) {
    const std::int64_t blocks = (length + kBlock - 1) / kBlock;
    std::fill_n(k_t, blocks * kBlock * padded, 0.0f);
    std::fill_n(v_to, blocks * kBlock * padded, 0.0f);
    for (std::int64_t e = 0; e < length; ++e) {
        const std::int64_t entry = (start + e) % shape.capacity * shape.width;
        float* const to = k_t + e / kBlock * kBlock * padded + e % kBlock;
        for (std::int64_t h = 0; h < shape.width; ++h) {
            to[h * kBlock] = read(k + entry + h);
            v_to[e * padded + h] = read(v + entry + h);
        }
    }
}

template <typename T>
void cached_head(const CacheInputs& in, std::int64_t n, float* weighted, float* peak, float* total) {
    const Cache& shape = in.shape;
    const std::int64_t group = n / shape.kv_heads, queries = shape.queries, width = shape.width;
    const std::int64_t padded = (width + kPad - 1) / kPad * kPad, rows = (queries + 1) / 2 * 2;
    const std::int64_t length = std::clamp<std::int64_t>(in.length[group], 0, shape.capacity);
    std::fill_n(weighted + n * queries * width, queries * width, 0.0f);
    std::fill_n(peak + n * queries, queries, std::numeric_limits<float>::lowest());
    std::fill_n(total + n * queries, queries, 0.0f);
    if (length == 0) {
        return;
    }
    const std::int64_t keys = (length + kBlock - 1) / kBlock * kBlock;
    const Floats q = floats(rows * padded), k_t = floats(keys * padded), v = floats(keys * padded);
    const Floats p = floats(rows * kBlock), sums = floats(rows * padded), peaks = floats(rows), totals = floats(rows);
    std::fill_n(q.get(), rows * padded, 0.0f);
    std::fill_n(sums.get(), rows * padded, 0.0f);
    std::fill_n(peaks.get(), rows, std::numeric_limits<float>::lowest());
    std::fill_n(totals.get(), rows, 0.0f);
    for (std::int64_t m = 0; m < queries; ++m) {
        for (std::int64_t h = 0; h < width; ++h) {
            q[static_cast<std::size_t>(m * padded + h)] =
                in.settings.scale * read(static_cast<const T*>(in.q) + (n * queries + m) * width + h);
        }
    }
    std::vector<std::int32_t> first(in.first == nullptr ? 0 : static_cast<std::size_t>(rows), 0);
    if (in.first != nullptr) {
        std::copy_n(in.first + group * queries, queries, first.begin());
    }
    const std::int64_t capacity = shape.capacity;
    const std::int64_t start = ((in.start[group] % capacity) + capacity) % capacity;
    gather_held(shape, padded, static_cast<const T*>(in.k) + n * capacity * width,
                static_cast<const T*>(in.v) + n * capacity * width, start, length, k_t.get(), v.get());
    const TileFunctions& tiles = in.tiles == nullptr ? best() : *in.tiles;
    tiles.cache({rows,
                 length,
                 in.first == nullptr ? nullptr : first.data(),
                 in.settings.soft_cap,
                 q.get(),
                 {nullptr, k_t.get(), v.get(), nullptr},
                 p.get(),
                 {padded, sums.get(), peaks.get(), totals.get()}});
    for (std::int64_t m = 0; m < queries; ++m) {
        std::copy_n(sums.get() + m * padded, width, weighted + (n * queries + m) * width);
    }
    std::copy_n(peaks.get(), queries, peak + n * queries);
    std::copy_n(totals.get(), queries, total + n * queries);
}

}  // namespace

void cached(const CacheInputs& in, const Executor& run, float* weighted, float* peak, float* total) {
    run(in.shape.groups * in.shape.kv_heads, [&](std::int64_t n) {
        if (in.element == Element::kBfloat16) {
            cached_head<std::uint16_t>(in, n, weighted, peak, total);
        } else {
            cached_head<float>(in, n, weighted, peak, total);
        }
    });
}

}  // namespace pit::attention
