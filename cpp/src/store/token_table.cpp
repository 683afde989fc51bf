#include "pit/store/token_table.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "pit/store/crc32.hpp"
#include "pit/support/error.hpp"

namespace pit {

namespace {

std::string hex(std::uint32_t value) {
    std::string text = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) {
        text += "0123456789abcdef"[(value >> shift) & 0xFu];
    }
    return text;
}

// A store's memory can change at any time; volatile makes the checked value the one that is used.
std::int64_t read_once(const std::int64_t* place) {
    return *static_cast<const volatile std::int64_t*>(place);
}

void check_chunk(const TokenChunk& chunk, const std::string& name) {
    std::int64_t least = 0;
    for (std::int64_t row = 0; row <= chunk.rows; ++row) {
        const std::int64_t offset = chunk.offsets[row];
        if (offset < least || offset > chunk.value_count) {
            throw Error(name + ": offset " + std::to_string(row) + " is " + std::to_string(offset) + ", outside [" +
                        std::to_string(least) + ", " + std::to_string(chunk.value_count) +
                        "] (the preceding offset and the number of values); build the store again");
        }
        least = offset;
    }
}

// The rows of a store start at the first value and end at the last, so every value belongs to a row.
void check_span(const TokenChunk& chunk, const std::string& name) {
    const std::int64_t first = read_once(chunk.offsets);
    const std::int64_t last = read_once(chunk.offsets + chunk.rows);
    if (first != 0 || last != chunk.value_count) {
        throw Error(name + ": offsets run from " + std::to_string(first) + " to " + std::to_string(last) +
                    ", its values from 0 to " + std::to_string(chunk.value_count) + "; build the store again");
    }
}

}  // namespace

TokenTable::TokenTable(std::vector<std::vector<TokenChunk>> columns) : columns_(std::move(columns)) {
    add_columns();
}

TokenTable::TokenTable(std::vector<TokenBatch> batches, std::vector<std::string> columns, std::int64_t vocab_size)
    : columns_(columns.size()), names_(std::move(columns)), vocab_size_(vocab_size) {
    require_range("token table: vocab_size", vocab_size, 1, std::int64_t{1} << 31);
    for (TokenBatch& batch : batches) {
        if (batch.columns.size() != names_.size()) {
            throw Error(batch.name + ": has " + std::to_string(batch.columns.size()) + " columns instead of " +
                        std::to_string(names_.size()) + "; build the store again");
        }
        for (std::size_t column = 0; column < names_.size(); ++column) {
            if (batch.columns[column].rows != batch.columns[0].rows) {
                throw Error(batch.name + ", column '" + names_[column] + "': has " +
                            std::to_string(batch.columns[column].rows) + " rows, column '" + names_[0] + "' has " +
                            std::to_string(batch.columns[0].rows) + "; build the store again");
            }
            columns_[column].push_back(batch.columns[column]);
        }
        checks_.push_back({std::move(batch.name), batch.crc32});
    }
    add_columns();
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        for (std::size_t chunk = 0; chunk < checks_.size(); ++chunk) {
            check_span(columns_[column][chunk], chunk_name(column, chunk));
        }
    }
    verified_ = std::make_unique<std::atomic<bool>[]>(checks_.size());
}

std::string TokenTable::chunk_name(std::size_t column, std::size_t chunk) const {
    if (names_.empty()) {
        return "token table: column " + std::to_string(column) + ", chunk " + std::to_string(chunk);
    }
    return checks_[chunk].name + ", column '" + names_[column] + "'";
}

void TokenTable::add_columns() {
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
                        " rows, column 0 has " + std::to_string(rows_) + "; give columns of equal length");
        }
        rows_ = rows;
        first_row_.push_back(std::move(first));
    }
}

TokenSpan TokenTable::at(std::int64_t column, std::int64_t row) const {
    // The last chunk that starts at or before the row; empty chunks before it start there too.
    const std::vector<std::int64_t>& first = first_row_[column];
    const std::size_t index = std::upper_bound(first.begin(), first.end(), row) - first.begin() - 1;
    if (verified_ && !verified_[index].load(std::memory_order_acquire)) {
        verify_batch(index);
    }
    const TokenChunk& chunk = columns_[column][index];
    const std::int64_t* offset = chunk.offsets + (row - first[index]);
    const std::int64_t begin = read_once(offset);
    const std::int64_t end = read_once(offset + 1);
    if (begin < 0 || end < begin || end > chunk.value_count) {
        throw Error(chunk_name(column, index) + ", row " + std::to_string(row - first[index]) + ": its offsets " +
                    std::to_string(begin) + " and " + std::to_string(end) + " leave its " +
                    std::to_string(chunk.value_count) +
                    " values; they changed after they were checked, so open the store again");
    }
    return {chunk.values + begin, end - begin};
}

void TokenTable::lengths(std::int32_t* out) const {
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        std::int64_t row = 0;
        for (const TokenChunk& chunk : columns_[column]) {
            for (std::int64_t i = 0; i < chunk.rows; ++i, ++row) {
                const std::int64_t length = chunk.offsets[i + 1] - chunk.offsets[i];
                if (length < 0 || length > std::numeric_limits<std::int32_t>::max()) {
                    require_range("token table: length of a row", length, 0, std::numeric_limits<std::int32_t>::max());
                }
                out[row * columns() + static_cast<std::int64_t>(column)] = static_cast<std::int32_t>(length);
            }
        }
    }
}

void TokenTable::verify() const {
    for (std::size_t index = 0; index < checks_.size(); ++index) {
        verify_batch(index);
    }
}

void TokenTable::verify_batch(std::size_t index) const {
    std::uint32_t crc = 0;
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        // Before the checksum, because this error names the place.
        require_tokens(column, index);
        const TokenChunk& chunk = columns_[column][index];
        crc = crc32(crc, chunk.offsets, static_cast<std::size_t>(chunk.rows + 1) * sizeof(std::int64_t));
        crc = crc32(crc, chunk.values, static_cast<std::size_t>(chunk.value_count) * sizeof(std::int32_t));
    }
    if (crc != checks_[index].crc32) {
        throw Error(checks_[index].name + " is damaged: checksum " + hex(crc) + ", its manifest says " +
                    hex(checks_[index].crc32) + "; build the store again");
    }
    verified_[index].store(true, std::memory_order_release);
}

void TokenTable::require_tokens(std::size_t column, std::size_t index) const {
    const TokenChunk& chunk = columns_[column][index];
    // Negative tokens are large unsigned ones; a maximum needs no branch, so the loop runs as vector instructions.
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < chunk.value_count; ++i) {
        largest = std::max(largest, static_cast<std::uint32_t>(chunk.values[i]));
    }
    if (largest < static_cast<std::uint64_t>(vocab_size_)) {
        return;
    }
    const std::int32_t* end = chunk.values + chunk.value_count;
    const std::int32_t* found = std::find_if(chunk.values, end, [&](std::int32_t token) {
        return static_cast<std::uint32_t>(token) >= static_cast<std::uint64_t>(vocab_size_);
    });
    const std::int64_t* offsets_end = chunk.offsets + chunk.rows + 1;
    const std::int64_t row = std::upper_bound(chunk.offsets, offsets_end, found - chunk.values) - chunk.offsets - 1;
    throw Error(chunk_name(column, index) + ", row " + std::to_string(row) + ": token " +
                (found == end ? "(changed while it was read)" : std::to_string(*found)) +
                " is outside the vocabulary 0.." + std::to_string(vocab_size_ - 1) +
                "; the store is damaged, build it again");
}

}  // namespace pit
