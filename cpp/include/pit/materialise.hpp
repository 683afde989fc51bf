// Writes planned groups of trees as the rows a model reads: tokens, positions, visibility, predecessors, loss weights.
#pragma once

#include <array>
#include <cstdint>

#include "pit/plan.hpp"
#include "pit/token_table.hpp"
#include "pit/topology.hpp"

namespace pit {

// Arrays of a batch for groups [first, last): R = groups * rows_per_group, G = groups * trees_per_group.
struct BatchArrays {
    std::int32_t* token;          // [R, T]
    std::int32_t* position;       // [R, T]
    std::int32_t* visible_until;  // [R, T]
    std::int32_t* previous;       // [R, T]
    float* loss_weight;           // [R, T]
    std::int32_t* leaf;           // [G, L, 2]
    std::int64_t* example_id;     // [G]
    std::uint8_t* source;         // [G]
};

struct TokenIds {
    std::array<std::int32_t, kKinds> closing;  // by kind of segment
    std::int32_t pad;
};

// Error unless 0 <= first_group <= last_group <= plan.groups.
void check_groups(const Plan& plan, std::int64_t first_group, std::int64_t last_group);

// Writes every element of `out`. Error if the group range is not the plan's or the table's lengths are not those
// the plan was made from; `out` is then partly written.
void materialise(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const TokenTable& table,
                 const TokenIds& ids, const BatchArrays& out);

}  // namespace pit
