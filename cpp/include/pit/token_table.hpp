// Token columns as a store maps them: borrowed chunks of values and offsets, checked before they are read.
#pragma once

#include <cstdint>
#include <vector>

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

}  // namespace pit
