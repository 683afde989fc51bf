// Writes planned groups of trees as the rows that a model reads: tokens, positions, visibility, predecessors, weights.
#pragma once

#include <cstdint>

#include "pit/packing/plan.hpp"
#include "pit/packing/topology.hpp"
#include "pit/store/token_table.hpp"

namespace pit {

// Arrays of a batch for groups [first, last): R = groups * rows_per_group, G = groups * trees_per_group. They
// belong to the caller, may be reused for the next batch, and must not overlap.
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

constexpr int kMaxThreads = 256;

// Error unless 0 <= first_group <= last_group <= plan.groups.
void check_groups(const Plan& plan, std::int64_t first_group, std::int64_t last_group);

// Writes every element of `out` once, in time proportional to their number. The rows are divided among `threads`
// threads, at most one per row; the result does not depend on their number. `pad` is the token of padding. Error if the
// group range is outside the plan, the table's lengths differ from those that were planned, or threads is not in [1,
// kMaxThreads]; `out` is then partly written. If several examples differ, which one the message names depends on the
// threads.
void materialise(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const TokenTable& table,
                 std::int32_t pad, const BatchArrays& out, int threads = 1);

}  // namespace pit
