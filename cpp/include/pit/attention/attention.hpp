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

enum class Element { kFloat32, kBfloat16 };

struct Shape {
    std::int64_t batch;
    std::int64_t tokens;
    std::int64_t heads;
    std::int64_t kv_heads;  // divides heads: each serves neighbours
    std::int64_t width;
};

struct Settings {
    float scale;           // of the logits
    float soft_cap;        // c of c tanh(logit / c); 0 for none
    std::int64_t window;   // positions of its path that a token sees; 0 for all
};

struct Inputs {
    Shape shape;
    Settings settings;
    Element element;
    const void* q;
    const void* k;
    const void* v;
    const std::int32_t* visible_until;
    const std::int32_t* position;  // read with a window only
};

// Calls task(0) ... task(count - 1), in any order and on any threads, and returns when all have ended.
using Executor = std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& task)>;

void forward(const Inputs& in, const Executor& run, void* out, float* lse);

// lse and delta are read where a token is alive.
void backward(const Inputs& in, const float* lse, const float* delta, const void* d_out, const Executor& run,
              void* d_q, void* d_k, void* d_v);

// The instructions that the kernels of this machine use: "avx512", "avx2" or "baseline".
const char* instructions();

}  // namespace pit::attention
