#include "pit/token_table.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "pit/error.hpp"

namespace pit {

namespace {

std::string chunk_name(std::size_t column, std::size_t chunk) {
    return "token table: column " + std::to_string(column) + ", chunk " + std::to_string(chunk);
}

void check_chunk(const TokenChunk& chunk, const std::string& name) {
    for (std::int64_t row = 0; row <= chunk.rows; ++row) {
        const std::int64_t offset = chunk.offsets[row];
        const std::int64_t least = row == 0 ? 0 : chunk.offsets[row - 1];
        if (offset < least || offset > chunk.value_count) {
            throw Error(name + ": offset " + std::to_string(row) + " is " + std::to_string(offset) + ", outside [" +
                        std::to_string(least) + ", " + std::to_string(chunk.value_count) +
                        "] (the offset before it and the number of values); write the store anew");
        }
    }
}

}  // namespace

TokenTable::TokenTable(std::vector<std::vector<TokenChunk>> columns) : columns_(std::move(columns)) {
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        std::int64_t rows = 0;
        std::vector<std::int64_t> first;
        for (std::size_t chunk = 0; chunk < columns_[column].size(); ++chunk) {
            check_chunk(columns_[column][chunk], chunk_name(column, chunk));
            first.push_back(rows);
            rows += columns_[column][chunk].rows;
        }
        if (column > 0 && rows != rows_) {
            throw Error("token table: column " + std::to_string(column) + " has " + std::to_string(rows) +
                        " rows, column 0 has " + std::to_string(rows_) + "; give columns of one table");
        }
        rows_ = rows;
        first_row_.push_back(std::move(first));
    }
}

TokenSpan TokenTable::at(std::int64_t column, std::int64_t row) const {
    // The last chunk that starts at or before the row; empty chunks before it start there too.
    const std::vector<std::int64_t>& first = first_row_[column];
    const std::size_t index = std::upper_bound(first.begin(), first.end(), row) - first.begin() - 1;
    const TokenChunk& chunk = columns_[column][index];
    const std::int64_t* offset = chunk.offsets + (row - first[index]);
    return {chunk.values + offset[0], offset[1] - offset[0]};
}

void TokenTable::lengths(std::int32_t* out) const {
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        std::int64_t row = 0;
        for (const TokenChunk& chunk : columns_[column]) {
            for (std::int64_t i = 0; i < chunk.rows; ++i, ++row) {
                const std::int64_t length = chunk.offsets[i + 1] - chunk.offsets[i];
                require_range("token table: length of a row", length, 0, std::numeric_limits<std::int32_t>::max());
                out[row * columns() + static_cast<std::int64_t>(column)] = static_cast<std::int32_t>(length);
            }
        }
    }
}

}  // namespace pit
