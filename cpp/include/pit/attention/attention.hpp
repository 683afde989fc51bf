// Three-way attention on CPUs, forward and backward, blockwise with an online softmax (FlashAttention-2, Dao, arXiv
// 2307.08691). A token t of a row sees the tokens s <= t < visible_until[s]; one that does not see itself is padding:
// its output and gradients are 0, its log-sum-exp is -inf, and what it holds reaches nothing.
//
// Arrays are dense: q, out [B,T,N,H]; k, v [B,T,K,H]; visible_until, position [B,T]; lse, delta [B,N,T] in float.
// Sums are float whatever the elements are. The result depends on shapes and numbers only, not on the threads.
#pragma once

#include <cstdint>
#include <functional>

namespace pit::attention {

struct TileFunctions;

enum class Element { kFloat32, kBfloat16 };

struct Shape {
    std::int64_t batch;
    std::int64_t tokens;
    std::int64_t heads;
    std::int64_t kv_heads;  // divides heads: each serves neighbours
    std::int64_t width;
};

struct Settings {
    float scale;          // of the logits
    float soft_cap;       // c of c tanh(logit / c); 0 for none
    std::int64_t window;  // positions of its path that a token sees; 0 for all
};

struct Inputs {
    Shape shape;
    Settings settings;
    Element element;
    const void* q;
    const void* k;
    const void* v;
    const std::int32_t* visible_until;
    const std::int32_t* position;          // read with a window only
    const TileFunctions* tiles = nullptr;  // instructions to use; the machine's best where null
};

// Calls task(0) ... task(count - 1), in any order and on any threads, and returns when all have ended.
using Executor = std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& task)>;

void forward(const Inputs& in, const Executor& run, void* out, float* lse);

// lse and delta are read where a token is alive.
void backward(const Inputs& in, const float* lse, const float* delta, const void* d_out, const Executor& run, void* d_q,
              void* d_k, void* d_v);

// Queries of groups over the group's cache: q [G,K,M,H]; k, v [G,K,C,H]; a cache holds `length` entries from `start`
// on, around its end; what it does not hold is not read.
struct Cache {
    std::int64_t groups;
    std::int64_t kv_heads;
    std::int64_t queries;
    std::int64_t capacity;
    std::int64_t width;
};

struct CacheInputs {
    Cache shape;
    Settings settings;  // its window is not read
    Element element;
    const void* q;
    const void* k;
    const void* v;
    const std::int32_t* start;             // [G]
    const std::int32_t* length;            // [G]
    const std::int32_t* first;             // [G,M]: first entry that a query sees, where start is 0; null for all
    const TileFunctions* tiles = nullptr;  // as in Inputs
};

// Sums of exp(logit - peak): weighted [G,K,M,H] of the values, total [G,K,M] of 1; 0 and a finite peak for no entry.
void cached(const CacheInputs& in, const Executor& run, float* weighted, float* peak, float* total);

// The instructions that the kernels of this machine use: "avx512", "avx2" or "baseline".
const char* instructions();

}  // namespace pit::attention
