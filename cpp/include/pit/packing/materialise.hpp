// Writes planned groups of trees as the rows a model reads: tokens, positions, visibility, predecessors, loss weights.
#pragma once

#include <array>
#include <cstdint>

#include "pit/packing/plan.hpp"
#include "pit/packing/topology.hpp"
#include "pit/store/token_table.hpp"

namespace pit {

// Arrays of a batch for groups [first, last): R = groups * rows_per_group, G = groups * trees_per_group. They are the
// caller's, may be used again for the next batch, and must not overlap.
struct BatchArrays {
    std::int32_t* token;          // [R, T]
    std::int32_t* position;       // [R, T]
    std::int32_t* visible_until;  // [R, T]
    std::int32_t* previous;       // [R, T]
    float* loss_weight;           // [R, T]
    std::int32_t* leaf;           // [G, L, 2]: row of the batch and index in it; -1, -1 for none
    std::int64_t* example_id;     // [G]
    std::uint8_t* source;         // [G]
};

struct TokenIds {
    std::array<std::int32_t, kKinds> closing;  // by kind of segment
    std::int32_t pad;
};

constexpr int kMaxThreads = 256;

// Error unless 0 <= first_group <= last_group <= plan.groups.
void check_groups(const Plan& plan, std::int64_t first_group, std::int64_t last_group);

// Writes every element of `out`, each once, in time proportional to their number. The rows are shared out to `threads`
// threads, at most one a row; what they write does not depend on how many there are. Error if the group range is not
// the plan's, the table's lengths are not those the plan was made from, or threads is not in [1, kMaxThreads]; `out` is
// then partly written. Of several examples that do not agree, threads decide which is named.
void materialise(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const TokenTable& table,
                 const TokenIds& ids, const BatchArrays& out, int threads = 1);

}  // namespace pit
