// Attention against sums over all pairs in double, by every set of instructions that this machine has; a machine
// without AVX-512 runs its tiles of 16 lanes as whatever the compiler makes of them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <vector>

#include "check.hpp"
#include "dice.hpp"
#include "pit/attention/attention.hpp"
#include "pit/support/parts.hpp"

#define PIT_LANES 16
#define PIT_ROWS 12
#include "../src/attention/tiles.inl"

namespace {

using pit::attention::Element;
using pit::attention::Executor;
using pit::attention::Inputs;
using pit::attention::Settings;
using pit::attention::Shape;

using pit::attention::TileFunctions;

constexpr TileFunctions kSixteen{pit::attention::forward_tile, pit::attention::cache_tile,
                                 pit::attention::backward_tile, "16 lanes"};

// All that this machine runs.
std::vector<const TileFunctions*> instructions() {
    std::vector<const TileFunctions*> found{&kSixteen, &pit::attention::kBaseline};
#if defined(__x86_64__)
    for (const TileFunctions* tiles : {&pit::attention::kAvx2, &pit::attention::kAvx512}) {
        if (pit::attention::runs(*tiles)) {
            found.push_back(tiles);
        }
    }
#endif
    return found;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> draw(pit_test::Dice& dice, std::int64_t count) {
    std::vector<float> made(static_cast<std::size_t>(count));
    for (float& x : made) {
        x = static_cast<float>(dice.roll(-2000, 2000)) / 1000;
    }
    return made;
}

// Rows of trees: a trunk with branches, one of them with leaves, then padding; positions count along the path.
void draw_rows(pit_test::Dice& dice, const Shape& shape, std::vector<std::int32_t>& until,
               std::vector<std::int32_t>& position) {
    until.assign(static_cast<std::size_t>(shape.batch * shape.tokens), 0);
    position.assign(until.size(), 0);
    for (std::int64_t row = 0; row < shape.batch; ++row) {
        std::int32_t* const u = until.data() + row * shape.tokens;
        std::int32_t* const p = position.data() + row * shape.tokens;
        for (std::int64_t t = 0; t + 8 < shape.tokens;) {
            const std::int64_t trunk = dice.roll(1, 90), branch = dice.roll(1, 60), count = dice.roll(1, 3);
            const std::int64_t end = t + trunk + count * branch;
            if (end > shape.tokens) {
                break;
            }
            for (std::int64_t s = t; s < end; ++s) {
                const std::int64_t of = s < t + trunk ? -1 : (s - t - trunk) / branch;
                u[s] = static_cast<std::int32_t>(of < 0 ? end : t + trunk + (of + 1) * branch);
                p[s] = static_cast<std::int32_t>(of < 0 ? s - t : s - t - of * branch);
            }
            t = end;
        }
    }
}

struct Results {
    std::vector<float> out, lse, d_q, d_k, d_v;
};

struct Problem {
    Shape shape;
    Settings settings;
    std::vector<float> q, k, v, d_out, d_lse;
    std::vector<std::int32_t> until, position;

    // Rows of trees; with a length, one chain of so many tokens a row.
    Problem(pit_test::Dice& dice, const Shape& of, const Settings& with, std::int32_t chain = 0)
        : shape(of), settings(with) {
        const std::int64_t tokens = of.batch * of.tokens;
        q = draw(dice, tokens * of.heads * of.width);
        k = draw(dice, tokens * of.kv_heads * of.width);
        v = draw(dice, tokens * of.kv_heads * of.width);
        d_out = draw(dice, tokens * of.heads * of.width);
        d_lse = draw(dice, tokens * of.heads);
        draw_rows(dice, of, until, position);
        for (std::int64_t t = 0; chain != 0 && t < tokens; ++t) {
            until[static_cast<std::size_t>(t)] = t % of.tokens < chain ? chain : 0;
            position[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t % of.tokens);
        }
        for (std::int64_t t = 0; t < tokens; ++t) {
            if (!alive(t / of.tokens, t % of.tokens)) {
                for (std::vector<float>* x : {&q, &k, &v, &d_out}) {
                    const std::int64_t size = static_cast<std::int64_t>(x->size()) / tokens;
                    std::fill_n(x->begin() + t * size, size, kNan);
                }
            }
        }
    }

    bool alive(std::int64_t row, std::int64_t t) const { return until[index(row, t)] > t; }
    std::size_t index(std::int64_t row, std::int64_t t) const {
        return static_cast<std::size_t>(row * shape.tokens + t);
    }
    bool sees(std::int64_t row, std::int64_t t, std::int64_t s) const {
        return s <= t && t < until[index(row, s)] && alive(row, t) &&
               (settings.window == 0 || position[index(row, t)] - position[index(row, s)] < settings.window);
    }
    std::size_t at(std::int64_t row, std::int64_t t, std::int64_t head, std::int64_t heads) const {
        return static_cast<std::size_t>(((row * shape.tokens + t) * heads + head) * shape.width);
    }
};

double dot(const float* a, const float* b, std::int64_t width) {
    double sum = 0;
    for (std::int64_t h = 0; h < width; ++h) {
        sum += static_cast<double>(a[h]) * static_cast<double>(b[h]);
    }
    return sum;
}

// The formulas, pair by pair. d_lse joins the gradient of a logit as -delta does.
Results by_pairs(const Problem& of) {
    const Shape& shape = of.shape;
    Results made{std::vector<float>(of.q.size(), 0), std::vector<float>(of.d_lse.size(), 0),
                 std::vector<float>(of.q.size(), 0), std::vector<float>(of.k.size(), 0),
                 std::vector<float>(of.v.size(), 0)};
    for (std::int64_t row = 0; row < shape.batch; ++row) {
        for (std::int64_t head = 0; head < shape.heads; ++head) {
            const std::int64_t kv = head / (shape.heads / shape.kv_heads);
            for (std::int64_t t = 0; t < shape.tokens; ++t) {
                const std::size_t query = of.at(row, t, head, shape.heads);
                float& lse = made.lse[static_cast<std::size_t>((row * shape.heads + head) * shape.tokens + t)];
                if (!of.alive(row, t)) {
                    lse = -std::numeric_limits<float>::infinity();
                    continue;
                }
                std::vector<double> logit, slope;
                std::vector<std::size_t> key;
                double total = 0, delta = 0;
                for (std::int64_t s = 0; s <= t; ++s) {
                    if (of.sees(row, t, s)) {
                        key.push_back(of.at(row, s, kv, shape.kv_heads));
                        const double z =
                            static_cast<double>(of.settings.scale) * dot(&of.q[query], &of.k[key.back()], shape.width);
                        const double cap = static_cast<double>(of.settings.soft_cap);
                        const double tanh = cap != 0 ? std::tanh(z / cap) : 0;
                        logit.push_back(cap != 0 ? cap * tanh : z);
                        slope.push_back(1 - tanh * tanh);
                        total += std::exp(logit.back());
                    }
                }
                lse = static_cast<float>(std::log(total));
                for (std::size_t n = 0; n < key.size(); ++n) {
                    const double p = std::exp(logit[n]) / total;
                    delta += p * dot(&of.d_out[query], &of.v[key[n]], shape.width);
                    for (std::size_t h = 0; h < static_cast<std::size_t>(shape.width); ++h) {
                        made.out[query + h] += static_cast<float>(p * static_cast<double>(of.v[key[n] + h]));
                        made.d_v[key[n] + h] += static_cast<float>(p * static_cast<double>(of.d_out[query + h]));
                    }
                }
                for (std::size_t n = 0; n < key.size(); ++n) {
                    const double p = std::exp(logit[n]) / total;
                    const double d_p = dot(&of.d_out[query], &of.v[key[n]], shape.width);
                    const double d = static_cast<double>(of.settings.scale) * slope[n] * p * (d_p - delta);
                    for (std::size_t h = 0; h < static_cast<std::size_t>(shape.width); ++h) {
                        made.d_q[query + h] += static_cast<float>(d * static_cast<double>(of.k[key[n] + h]));
                        made.d_k[key[n] + h] += static_cast<float>(d * static_cast<double>(of.q[query + h]));
                    }
                }
            }
        }
    }
    return made;
}

Results by_tiles(const Problem& of, const Executor& run, const TileFunctions& tiles) {
    Results made{std::vector<float>(of.q.size(), kNan), std::vector<float>(of.d_lse.size(), kNan),
                 std::vector<float>(of.q.size(), kNan), std::vector<float>(of.k.size(), kNan),
                 std::vector<float>(of.v.size(), kNan)};
    const Inputs in{of.shape,    of.settings,     Element::kFloat32,  of.q.data(), of.k.data(),
                    of.v.data(), of.until.data(), of.position.data(), &tiles};
    pit::attention::forward(in, run, made.out.data(), made.lse.data());
    std::vector<float> delta(made.lse.size(), kNan);
    for (std::int64_t row = 0; row < of.shape.batch; ++row) {
        for (std::int64_t t = 0; t < of.shape.tokens; ++t) {
            for (std::int64_t head = 0; head < of.shape.heads && of.alive(row, t); ++head) {
                const std::size_t at = of.at(row, t, head, of.shape.heads);
                delta[static_cast<std::size_t>((row * of.shape.heads + head) * of.shape.tokens + t)] =
                    static_cast<float>(dot(&made.out[at], &of.d_out[at], of.shape.width));
            }
        }
    }
    pit::attention::backward(in, made.lse.data(), delta.data(), of.d_out.data(), run, made.d_q.data(), made.d_k.data(),
                             made.d_v.data());
    return made;
}

void in_turn(std::int64_t count, const std::function<void(std::int64_t)>& task) {
    for (std::int64_t n = 0; n < count; ++n) {
        task(n);
    }
}

void backwards_on_threads(std::int64_t count, const std::function<void(std::int64_t)>& task) {
    pit::run_parts(3, [&](int part) {
        for (std::int64_t n = count - 1 - part; n >= 0; n -= 3) {
            task(n);
        }
    });
}

bool near(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
    for (std::size_t n = 0; n < a.size(); ++n) {
        const double x = static_cast<double>(a[n]), y = static_cast<double>(b[n]);
        if (!(a[n] == b[n] || std::abs(x - y) <= tolerance * (1 + std::abs(y)))) {
            std::fprintf(stderr, "element %zu: %g, expected %g\n", n, x, y);
            return false;
        }
    }
    return a.size() == b.size();
}

void check(const Problem& of) {
    const Results expected = by_pairs(of);
    for (const TileFunctions* tiles : instructions()) {
        const Results made = by_tiles(of, in_turn, *tiles), other = by_tiles(of, backwards_on_threads, *tiles);
        CHECK(near(made.out, expected.out, 2e-5));
        CHECK(near(made.lse, expected.lse, 2e-5));
        CHECK(near(made.d_q, expected.d_q, 1e-4));
        CHECK(near(made.d_k, expected.d_k, 2e-4));
        CHECK(near(made.d_v, expected.d_v, 2e-4));
        // Threads and their order change no bit.
        CHECK(made.out == other.out && made.lse == other.lse);
        CHECK(made.d_q == other.d_q && made.d_k == other.d_k && made.d_v == other.d_v);
    }
}

struct CacheProblem {
    pit::attention::Cache shape;
    Settings settings;
    bool windowed;
};

// Queries over caches that hold parts of their entries, around the end, and NaN elsewhere.
void check_cache(pit_test::Dice& dice, const CacheProblem& of) {
    const pit::attention::Cache& shape = of.shape;
    const std::int64_t heads = shape.groups * shape.kv_heads, entries = heads * shape.capacity;
    const std::vector<float> q = draw(dice, heads * shape.queries * shape.width);
    std::vector<float> k = draw(dice, entries * shape.width), v = draw(dice, entries * shape.width);
    std::vector<std::int32_t> start, length, first;
    for (std::int64_t group = 0; group < shape.groups; ++group) {
        start.push_back(of.windowed ? 0 : static_cast<std::int32_t>(dice.roll(0, 2 * shape.capacity)));
        length.push_back(group == 0 ? -1 : static_cast<std::int32_t>(dice.roll(1, shape.capacity + 3)));
        for (std::int64_t m = 0; m < shape.queries; ++m) {
            first.push_back(static_cast<std::int32_t>(dice.roll(-2, length.back())));
        }
    }
    const auto entry_of = [&](std::int64_t group, std::int64_t e) {
        return (start[static_cast<std::size_t>(group)] + e) % shape.capacity;
    };
    const auto held = [&](std::int64_t group) {
        return std::min<std::int64_t>(std::max(length[static_cast<std::size_t>(group)], 0), shape.capacity);
    };
    for (std::int64_t n = 0; n < heads; ++n) {
        for (std::int64_t e = held(n / shape.kv_heads); e < shape.capacity; ++e) {
            const std::int64_t at = (n * shape.capacity + entry_of(n / shape.kv_heads, e)) * shape.width;
            std::fill_n(k.begin() + at, shape.width, kNan);
            std::fill_n(v.begin() + at, shape.width, kNan);
        }
    }
    for (const TileFunctions* tiles : instructions()) {
        std::vector<float> weighted(q.size(), kNan), peak(static_cast<std::size_t>(heads * shape.queries), kNan);
        std::vector<float> total(peak.size(), kNan);
        pit::attention::cached({shape, of.settings, Element::kFloat32, q.data(), k.data(), v.data(), start.data(),
                                length.data(), of.windowed ? first.data() : nullptr, tiles},
                               backwards_on_threads, weighted.data(), peak.data(), total.data());
        for (std::int64_t row = 0; row < heads * shape.queries; ++row) {
            const std::int64_t n = row / shape.queries, group = n / shape.kv_heads;
            const std::int64_t m = group * shape.queries + row % shape.queries;
            const auto at = static_cast<std::size_t>(row);
            std::vector<double> sum(static_cast<std::size_t>(shape.width), 0);
            double count = 0;
            for (std::int64_t e = 0; e < held(group); ++e) {
                if (of.windowed && e < first[static_cast<std::size_t>(m)]) {
                    continue;
                }
                const std::int64_t entry = (n * shape.capacity + entry_of(group, e)) * shape.width;
                const double cap = static_cast<double>(of.settings.soft_cap);
                double z =
                    static_cast<double>(of.settings.scale) * dot(&q[static_cast<std::size_t>(row * shape.width)],
                                                                 &k[static_cast<std::size_t>(entry)], shape.width);
                z = cap != 0 ? cap * std::tanh(z / cap) : z;
                const double p = std::exp(z - static_cast<double>(peak[at]));
                count += p;
                for (std::int64_t h = 0; h < shape.width; ++h) {
                    sum[static_cast<std::size_t>(h)] += p * static_cast<double>(v[static_cast<std::size_t>(entry + h)]);
                }
            }
            CHECK(std::isfinite(peak[at]));
            CHECK(std::abs(static_cast<double>(total[at]) - count) <= 2e-5 * (1 + count));
            for (std::int64_t h = 0; h < shape.width; ++h) {
                const double x = static_cast<double>(weighted[static_cast<std::size_t>(row * shape.width + h)]);
                CHECK(std::abs(x - sum[static_cast<std::size_t>(h)]) <= 5e-5 * (1 + count));
            }
        }
    }
}

// The nearest bfloat16, ties to even.
void check_bfloat16() {
    const std::int32_t until = 1;
    const auto written = [&](std::uint16_t bits) {
        const std::vector<std::uint16_t> x{bits};
        std::uint16_t out = 0;
        float lse = 0;
        pit::attention::forward(
            {{1, 1, 1, 1, 1}, {1, 0, 0}, Element::kBfloat16, x.data(), x.data(), x.data(), &until, nullptr}, in_turn,
            &out, &lse);
        return out;
    };
    CHECK(written(0x3f81) == 0x3f81);
    CHECK(written(0xc0a0) == 0xc0a0);
    CHECK((written(0x7fc1) & 0x7fff) > 0x7f80);
}

}  // namespace

int main() {
    pit_test::Dice dice(11);
    check(Problem(dice, {2, 200, 3, 1, 64}, {0.125f, 0, 0}));
    check(Problem(dice, {1, 331, 4, 2, 8}, {0.3f, 0, 0}));
    check(Problem(dice, {1, 130, 2, 2, 80}, {0.2f, 5.0f, 0}));
    check(Problem(dice, {1, 260, 5, 1, 33}, {0.1f, 0, 40}));
    check(Problem(dice, {3, 64, 1, 1, 16}, {0.5f, 2.0f, 7}));
    check(Problem(dice, {1, 5, 2, 1, 4}, {1.0f, 0, 0}));
    // One token past a block's edge, alone and in a window that holds one token before it.
    check(Problem(dice, {1, 130, 2, 1, 8}, {0.3f, 0, 0}, 65));
    check(Problem(dice, {1, 130, 2, 1, 8}, {0.3f, 0, 2}, 65));
    check_cache(dice, {{3, 2, 5, 70, 64}, {0.125f, 0, 0}, false});
    check_cache(dice, {{2, 1, 48, 130, 16}, {0.3f, 4.0f, 0}, false});
    check_cache(dice, {{4, 2, 3, 150, 33}, {0.2f, 0, 0}, true});
    check_bfloat16();
    return pit_test::failures() == 0 ? 0 : 1;
}
