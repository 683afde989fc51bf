#include "pit/attention/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "elements.hpp"
#include "tiles.hpp"

namespace pit::attention {

namespace {

// Parts of a row's queries whose shares of the gradients of keys and values are summed apart: enough for many cores.
// The number follows from the shape alone, so that the sums do.
constexpr std::int64_t kParts = 16;

// What all parts of a call share: sizes, and visible_until and position padded to whole blocks.
struct Plan {
    Shape shape;
    Settings settings;
    std::int64_t blocks;
    std::int64_t group;   // heads that share keys
    std::int64_t padded;  // width
    const TileFunctions& tiles;
    std::vector<std::int32_t> visible_until;
    std::vector<std::int32_t> position;
    std::vector<std::int32_t> reach;  // [B, n]: largest visible_until of a block

    explicit Plan(const Inputs& in)
        : shape(in.shape), settings(in.settings), tiles(in.tiles == nullptr ? best() : *in.tiles) {
        blocks = (shape.tokens + kBlock - 1) / kBlock;
        group = shape.heads / shape.kv_heads;
        padded = (shape.width + kPad - 1) / kPad * kPad;
        visible_until = to_blocks(in.visible_until);
        position = settings.window == 0 ? std::vector<std::int32_t>() : to_blocks(in.position);
        reach.resize(static_cast<std::size_t>(shape.batch * blocks));
        for (std::size_t n = 0; n < reach.size(); ++n) {
            const auto first = visible_until.begin() + static_cast<std::ptrdiff_t>(n) * kBlock;
            reach[n] = *std::max_element(first, first + kBlock);
        }
    }

    std::int64_t row_tokens() const { return blocks * kBlock; }
    const std::int32_t* until(std::int64_t row) const { return visible_until.data() + row * row_tokens(); }
    const std::int32_t* positions(std::int64_t row) const {
        return settings.window == 0 ? nullptr : position.data() + row * row_tokens();
    }
    bool alive(std::int64_t row, std::int64_t token) const { return until(row)[token] > token; }

    // Blocks of keys that some query of block i of a row sees.
    std::vector<std::int32_t> visited(std::int64_t row, std::int64_t i) const {
        std::vector<std::int32_t> found;
        for (std::int64_t j = 0; j < i; ++j) {
            if (reach[static_cast<std::size_t>(row * blocks + j)] > i * kBlock && in_window(row, i, j)) {
                found.push_back(static_cast<std::int32_t>(j));
            }
        }
        found.push_back(static_cast<std::int32_t>(i));
        return found;
    }

  private:
    std::vector<std::int32_t> to_blocks(const std::int32_t* from) const {
        std::vector<std::int32_t> made(static_cast<std::size_t>(shape.batch * row_tokens()), 0);
        for (std::int64_t row = 0; row < shape.batch; ++row) {
            std::copy_n(from + row * shape.tokens, shape.tokens, made.begin() + row * row_tokens());
        }
        return made;
    }

    bool in_window(std::int64_t row, std::int64_t i, std::int64_t j) const {
        if (settings.window == 0) {
            return true;
        }
        std::int64_t first = std::numeric_limits<std::int32_t>::max();
        for (std::int64_t t = i * kBlock; t < (i + 1) * kBlock; ++t) {
            first = alive(row, t) ? std::min<std::int64_t>(first, positions(row)[t]) : first;
        }
        const std::int32_t* const keys = positions(row) + j * kBlock;
        return first - *std::max_element(keys, keys + kBlock) < settings.window;
    }
};

// Tokens [first, first + count) of one head of x [B,T,heads,H] as floats [count, padded], times a factor; zeros in
// padding.
template <typename T>
void gather(const Plan& plan, const T* x, std::int64_t heads, std::int64_t row, std::int64_t head, std::int64_t first,
            std::int64_t count, float factor, float* to) {
    const std::int64_t width = plan.shape.width;
    for (std::int64_t t = first; t < first + count; ++t, to += plan.padded) {
        std::fill_n(to, plan.padded, 0.0f);
        if (t < plan.shape.tokens && plan.alive(row, t)) {
            const T* const from = x + ((row * plan.shape.tokens + t) * heads + head) * width;
            for (std::int64_t h = 0; h < width; ++h) {
                to[h] = factor * read(from + h);
            }
        }
    }
}

// [T, padded] as [n, padded, kBlock].
void transpose(const Plan& plan, const float* from, float* to) {
    for (std::int64_t block = 0; block < plan.blocks; ++block) {
        for (std::int64_t s = 0; s < kBlock; ++s, from += plan.padded) {
            for (std::int64_t h = 0; h < plan.padded; ++h) {
                to[h * kBlock + s] = from[h];
            }
        }
        to += plan.padded * kBlock;
    }
}

// A block of queries, packed, with the blocks of keys that it visits.
struct Packed {
    std::int64_t row;
    std::int64_t kv_head;
    std::vector<std::int32_t> visited;
    Floats q;
    Queries queries;
};

template <typename T>
Packed pack(const Plan& plan, const T* q, std::int64_t row, std::int64_t kv_head, std::int64_t i) {
    Packed made{row, kv_head, plan.visited(row, i), floats(plan.group * kBlock * plan.padded), {}};
    for (std::int64_t r = 0; r < plan.group; ++r) {
        gather(plan, q, plan.shape.heads, row, kv_head * plan.group + r, i * kBlock, kBlock, plan.settings.scale,
               made.q.get() + r * kBlock * plan.padded);
    }
    made.queries = {plan.group,
                    i * kBlock,
                    plan.padded,
                    plan.settings.soft_cap,
                    plan.settings.window,
                    plan.until(row),
                    plan.positions(row),
                    made.visited.data(),
                    static_cast<std::int64_t>(made.visited.size()),
                    made.q.get()};
    return made;
}

// Calls function(m, head, token) for every query of a packed block that is in the row, m its row of the tile.
template <typename Function>
void for_queries(const Plan& plan, const Packed& of, const Function& function) {
    const std::int64_t first = of.queries.first, end = std::min(first + kBlock, plan.shape.tokens);
    for (std::int64_t r = 0; r < plan.group; ++r) {
        for (std::int64_t t = first; t < end; ++t) {
            function(r * kBlock + t - first, of.kv_head * plan.group + r, t);
        }
    }
}

// Where a query's numbers are in [B,N,T], and where its vector is in [B,T,N,H].
std::int64_t statistic_at(const Plan& plan, std::int64_t row, std::int64_t head, std::int64_t token) {
    return (row * plan.shape.heads + head) * plan.shape.tokens + token;
}

std::int64_t vector_at(const Plan& plan, std::int64_t row, std::int64_t head, std::int64_t token) {
    return ((row * plan.shape.tokens + token) * plan.shape.heads + head) * plan.shape.width;
}

template <typename T>
void forward_block(const Plan& plan, const T* q, const Keys& keys, std::int64_t row, std::int64_t kv_head,
                   std::int64_t i, T* out, float* lse) {
    const Packed of = pack(plan, q, row, kv_head, i);
    const std::int64_t rows = plan.group * kBlock;
    const Floats p = floats(rows * kBlock);
    std::vector<float> peak(static_cast<std::size_t>(rows), -std::numeric_limits<float>::max());
    std::vector<float> total(static_cast<std::size_t>(rows), 0.0f);
    std::vector<float> sum(static_cast<std::size_t>(rows * plan.padded), 0.0f);
    plan.tiles.forward({of.queries, keys, p.get(), {plan.padded, sum.data(), peak.data(), total.data()}});
    for_queries(plan, of, [&](std::int64_t m, std::int64_t head, std::int64_t t) {
        const bool alive = plan.alive(row, t);
        const auto at = static_cast<std::size_t>(m);
        const float share = alive ? 1.0f / total[at] : 0.0f;
        T* const to = out + vector_at(plan, row, head, t);
        for (std::int64_t h = 0; h < plan.shape.width; ++h) {
            write(alive ? share * sum[at * static_cast<std::size_t>(plan.padded) + static_cast<std::size_t>(h)] : 0.0f,
                  to + h);
        }
        lse[statistic_at(plan, row, head, t)] =
            alive ? peak[at] + std::log(total[at]) : -std::numeric_limits<float>::infinity();
    });
}

template <typename T>
void forward_as(const Inputs& in, const Executor& run, T* out, float* lse) {
    const Plan plan(in);
    const std::int64_t heads = plan.shape.batch * plan.shape.kv_heads, size = plan.row_tokens() * plan.padded;
    const Floats k_t = floats(heads * size), v = floats(heads * size);
    run(heads, [&](std::int64_t n) {
        const std::int64_t row = n / plan.shape.kv_heads, head = n % plan.shape.kv_heads;
        const Floats k = floats(size);
        gather(plan, static_cast<const T*>(in.k), plan.shape.kv_heads, row, head, 0, plan.row_tokens(), 1.0f, k.get());
        transpose(plan, k.get(), k_t.get() + n * size);
        gather(plan, static_cast<const T*>(in.v), plan.shape.kv_heads, row, head, 0, plan.row_tokens(), 1.0f,
               v.get() + n * size);
    });
    // The last blocks see the most keys, so they come first.
    run(heads * plan.blocks, [&](std::int64_t n) {
        const std::int64_t of = n % heads, i = plan.blocks - 1 - n / heads;
        const Keys keys{nullptr, k_t.get() + of * size, v.get() + of * size, nullptr};
        forward_block(plan, static_cast<const T*>(in.q), keys, of / plan.shape.kv_heads, of % plan.shape.kv_heads, i,
                      out, lse);
    });
}

template <typename T>
struct Gradient {
    const float* lse;
    const float* delta;
    const T* d_out;
    T* d_q;
};

template <typename T>
void backward_block(const Plan& plan, const T* q, const Keys& keys, std::int64_t row, std::int64_t kv_head,
                    std::int64_t i, const Gradient<T>& of, float* d_k, float* d_v) {
    const Packed packed = pack(plan, q, row, kv_head, i);
    const std::int64_t rows = plan.group * kBlock;
    const Floats p = floats(rows * kBlock), d_p = floats(rows * kBlock), d_out = floats(rows * plan.padded);
    std::vector<float> lse(static_cast<std::size_t>(rows), 0.0f), delta(static_cast<std::size_t>(rows), 0.0f);
    std::vector<float> d_q(static_cast<std::size_t>(rows * plan.padded), 0.0f);
    for (std::int64_t r = 0; r < plan.group; ++r) {
        gather(plan, of.d_out, plan.shape.heads, row, kv_head * plan.group + r, i * kBlock, kBlock, 1.0f,
               d_out.get() + r * kBlock * plan.padded);
    }
    for_queries(plan, packed, [&](std::int64_t m, std::int64_t head, std::int64_t t) {
        const std::int64_t from = statistic_at(plan, row, head, t);
        lse[static_cast<std::size_t>(m)] = plan.alive(row, t) ? of.lse[from] : 0.0f;
        delta[static_cast<std::size_t>(m)] = plan.alive(row, t) ? of.delta[from] : 0.0f;
    });
    plan.tiles.backward(
        {packed.queries, keys, lse.data(), delta.data(), d_out.get(), p.get(), d_p.get(), d_q.data(), d_k, d_v});
    for_queries(plan, packed, [&](std::int64_t m, std::int64_t head, std::int64_t t) {
        const bool alive = plan.alive(row, t);
        const float* const from = d_q.data() + m * plan.padded;
        T* const to = of.d_q + vector_at(plan, row, head, t);
        for (std::int64_t h = 0; h < plan.shape.width; ++h) {
            write(alive ? plan.settings.scale * from[h] : 0.0f, to + h);
        }
    });
}

// The sum of all parts' shares [parts, T, padded] as one head of x [B,T,K,H]; 0 in padding.
template <typename T>
void scatter_sum(const Plan& plan, const float* shares, std::int64_t parts, std::int64_t row, std::int64_t head, T* x) {
    const std::int64_t size = plan.row_tokens() * plan.padded;
    for (std::int64_t t = 0; t < plan.shape.tokens; ++t) {
        T* const to = x + ((row * plan.shape.tokens + t) * plan.shape.kv_heads + head) * plan.shape.width;
        for (std::int64_t h = 0; h < plan.shape.width; ++h) {
            float sum = 0;
            for (std::int64_t part = 0; part < parts; ++part) {
                sum += shares[part * size + t * plan.padded + h];
            }
            write(plan.alive(row, t) ? sum : 0.0f, to + h);
        }
    }
}

template <typename T>
void backward_as(const Inputs& in, const Executor& run, const Gradient<T>& of, T* d_k, T* d_v) {
    const Plan plan(in);
    const std::int64_t heads = plan.shape.batch * plan.shape.kv_heads, size = plan.row_tokens() * plan.padded;
    if (heads * plan.blocks == 0) {
        return;
    }
    const std::int64_t parts = std::min(plan.blocks, (kParts + heads - 1) / heads);
    const Floats k = floats(heads * size), k_t = floats(heads * size), v_t = floats(heads * size);
    run(heads, [&](std::int64_t n) {
        const std::int64_t row = n / plan.shape.kv_heads, head = n % plan.shape.kv_heads;
        const Floats v = floats(size);
        gather(plan, static_cast<const T*>(in.k), plan.shape.kv_heads, row, head, 0, plan.row_tokens(), 1.0f,
               k.get() + n * size);
        transpose(plan, k.get() + n * size, k_t.get() + n * size);
        gather(plan, static_cast<const T*>(in.v), plan.shape.kv_heads, row, head, 0, plan.row_tokens(), 1.0f, v.get());
        transpose(plan, v.get(), v_t.get() + n * size);
    });
    const Floats k_shares = floats(heads * parts * size), v_shares = floats(heads * parts * size);
    run(heads * parts, [&](std::int64_t n) {
        const std::int64_t head = n / parts, part = n % parts;
        const Keys keys{k.get() + head * size, k_t.get() + head * size, nullptr, v_t.get() + head * size};
        float* const k_share = k_shares.get() + n * size;
        float* const v_share = v_shares.get() + n * size;
        std::fill_n(k_share, size, 0.0f);
        std::fill_n(v_share, size, 0.0f);
        for (std::int64_t i = part; i < plan.blocks; i += parts) {
            backward_block(plan, static_cast<const T*>(in.q), keys, head / plan.shape.kv_heads,
                           head % plan.shape.kv_heads, i, of, k_share, v_share);
        }
    });
    run(heads, [&](std::int64_t n) {
        const std::int64_t row = n / plan.shape.kv_heads, head = n % plan.shape.kv_heads;
        scatter_sum(plan, k_shares.get() + n * parts * size, parts, row, head, d_k);
        scatter_sum(plan, v_shares.get() + n * parts * size, parts, row, head, d_v);
    });
}

}  // namespace

void forward(const Inputs& in, const Executor& run, void* out, float* lse) {
    if (in.element == Element::kBfloat16) {
        forward_as(in, run, static_cast<std::uint16_t*>(out), lse);
    } else {
        forward_as(in, run, static_cast<float*>(out), lse);
    }
}

void backward(const Inputs& in, const float* lse, const float* delta, const void* d_out, const Executor& run, void* d_q,
              void* d_k, void* d_v) {
    const auto as = [&](auto zero) {
        using T = decltype(zero);
        backward_as<T>(in, run, {lse, delta, static_cast<const T*>(d_out), static_cast<T*>(d_q)}, static_cast<T*>(d_k),
                       static_cast<T*>(d_v));
    };
    if (in.element == Element::kBfloat16) {
        as(std::uint16_t{});
    } else {
        as(float{});
    }
}

}  // namespace pit::attention
