// Token columns as a store maps them: borrowed chunks of values and offsets, checked before they are read.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pit {

// One run of rows of a token column: row r is values[offsets[r] .. offsets[r + 1]). Borrowed, never copied.
struct TokenChunk {
    const std::int32_t* values;
    std::int64_t value_count;
    const std::int64_t* offsets;
    std::int64_t rows;  // offsets has rows + 1 entries
};

// A record batch of a store: one chunk per column, all with the same number of rows.
struct TokenBatch {
    std::string name;  // file and number, for messages
    std::vector<TokenChunk> columns;
    std::uint32_t crc32;  // expected, over the bytes of each column's offsets and values in turn
};

struct TokenSpan {
    const std::int32_t* data;
    std::int64_t size;
};

// Token columns in chunks. The memory of the chunks must outlive the table. If it changes under the table (as a mapped
// file can), rows are wrong or raise an Error, but nothing outside the chunks is read. Methods may be called from
// several threads.
class TokenTable {
  public:
    // Columns in memory, which may be chunked differently; any token is accepted. Error unless every offset lies within
    // its values, offsets never decrease, and all columns have the same number of rows.
    explicit TokenTable(std::vector<std::vector<TokenChunk>> columns);

    // Columns of a store. Error for offsets as above, and unless each batch has every named column and its offsets
    // span all of its values. Tokens and checksum of a batch are verified when one of its rows is first read.
    TokenTable(std::vector<TokenBatch> batches, std::vector<std::string> columns, std::int64_t vocab_size);

    std::int64_t rows() const { return rows_; }
    std::int64_t columns() const { return static_cast<std::int64_t>(columns_.size()); }
    // Tokens of a row of a column; the caller has checked that it exists. Error if the row's batch is damaged.
    TokenSpan at(std::int64_t column, std::int64_t row) const;
    // out[row * columns + column], in tokens; Error for a row of more than 2^31 - 1.
    void lengths(std::int32_t* out) const;
    // Verifies every batch, even if it was verified before; Error if one is damaged.
    void verify() const;

  private:
    void add_columns();
    std::string chunk_name(std::size_t column, std::size_t chunk) const;
    void verify_batch(std::size_t index) const;
    void require_tokens(std::size_t column, std::size_t index) const;

    std::vector<std::vector<TokenChunk>> columns_;
    std::vector<std::vector<std::int64_t>> first_row_;  // of each chunk
    std::int64_t rows_ = 0;

    // Of a store only: batch i is chunk i of every column.
    struct BatchCheck {
        std::string name;
        std::uint32_t crc32;
    };
    std::vector<BatchCheck> checks_;
    std::vector<std::string> names_;
    std::int64_t vocab_size_ = 0;
    // Two threads may both verify a batch. Their results agree, so only the flag has to be atomic.
    std::unique_ptr<std::atomic<bool>[]> verified_;
};

}  // namespace pit
