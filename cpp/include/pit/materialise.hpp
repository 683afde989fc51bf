// Writes planned groups of trees as the rows a model reads: tokens, positions, visibility, predecessors, loss weights.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pit/packing.hpp"
#include "pit/topology.hpp"

namespace pit {

// One run of rows of a token column: row r is values[offsets[r] .. offsets[r + 1]). Borrowed, never copied.
struct TokenChunk {
    const std::int32_t* values;
    std::int64_t value_count;
    const std::int64_t* offsets;
    std::int64_t rows;  // offsets has rows + 1 entries
};

struct TokenSpan {
    const std::int32_t* data;
    std::int64_t size;
};

// Token columns cut into chunks (each column in its own way). The memory of the chunks must outlive the table and keep
// the offsets that were checked.
class TokenTable {
  public:
    // Error unless every offset lies within its values, offsets never decrease, and all columns have the same rows.
    explicit TokenTable(std::vector<std::vector<TokenChunk>> columns);

    std::int64_t rows() const { return rows_; }
    std::int64_t columns() const { return static_cast<std::int64_t>(columns_.size()); }
    // Tokens of a row of a column, which the caller has checked to exist.
    TokenSpan at(std::int64_t column, std::int64_t row) const;
    // lengths[row * columns + column], tokens; Error for a row of more than 2^31 - 1.
    void lengths(std::int32_t* out) const;

  private:
    std::vector<std::vector<TokenChunk>> columns_;
    std::vector<std::vector<std::int64_t>> first_row_;  // of each chunk
    std::int64_t rows_ = 0;
};

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
