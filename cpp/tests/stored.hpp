// A small stored record batch and its Arrow stream; a test may corrupt any part of them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pit/store/arrow.hpp"
#include "pit/store/crc32.hpp"
#include "pit/store/token_table.hpp"

namespace pit_test {

// One column of one batch, in memory of its own.
struct Column {
    std::vector<std::int32_t> values;
    std::vector<std::int64_t> offsets;

    pit::TokenChunk chunk() const {
        return {values.data(), static_cast<std::int64_t>(values.size()), offsets.data(),
                static_cast<std::int64_t>(offsets.size()) - 1};
    }
};

inline const std::vector<std::string> kNames{"prompt", "better"};

struct Batch {
    std::vector<Column> columns{{{1, 2, 3}, {0, 2, 3}}, {{4}, {0, 0, 1}}};

    std::uint32_t crc32() const {
        std::uint32_t crc = 0;
        for (const Column& column : columns) {
            crc = pit::crc32(crc, column.offsets.data(), column.offsets.size() * sizeof(std::int64_t));
            crc = pit::crc32(crc, column.values.data(), column.values.size() * sizeof(std::int32_t));
        }
        return crc;
    }

    pit::TokenBatch tokens(std::uint32_t crc) const {
        pit::TokenBatch batch{"f.arrow: record batch 0", {}, crc};
        for (const Column& column : columns) {
            batch.columns.push_back(column.chunk());
        }
        return batch;
    }

    pit::TokenTable table(std::int64_t vocab_size = 10) const { return {{tokens(crc32())}, kNames, vocab_size}; }
};

// A stream of the C interface over one batch; a test may corrupt any part. It counts the released structs.
struct Stream {
    explicit Stream(const Batch& source) : batch(source) {
        const auto rows = static_cast<std::int64_t>(batch.columns[0].offsets.size()) - 1;
        for (std::size_t c = 0; c < 2; ++c) {
            const Column& column = batch.columns[c];
            value_schema[c] = {"i", "item", nullptr, 0, 0, nullptr, nullptr, nullptr, nullptr};
            value_schemas[c] = &value_schema[c];
            list_schema[c] = {"+L", kNames[c].c_str(), nullptr, 0, 1, &value_schemas[c], nullptr, nullptr, nullptr};
            list_schemas[c] = &list_schema[c];
            value_buffers[c][1] = column.values.data();
            list_buffers[c][1] = column.offsets.data();
            value_array[c] = {static_cast<std::int64_t>(column.values.size()),
                              0,
                              0,
                              2,
                              0,
                              value_buffers[c],
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr};
            value_arrays[c] = &value_array[c];
            list_array[c] = {rows, 0, 0, 2, 1, list_buffers[c], &value_arrays[c], nullptr, nullptr, nullptr};
            list_arrays[c] = &list_array[c];
            sizes.push_back({static_cast<std::int64_t>(column.offsets.size() * sizeof(std::int64_t)),
                             static_cast<std::int64_t>(column.values.size() * sizeof(std::int32_t))});
        }
        schema = {"+s", "", nullptr, 0, 2, list_schemas, nullptr, &release<ArrowSchema>, this};
        array = {rows, 0, 0, 1, 2, struct_buffers, list_arrays, nullptr, &release<ArrowArray>, this};
        stream = {&get_schema, &get_next, &get_last_error, &release<ArrowArrayStream>, this};
    }

    template <typename T>
    static void release(T* self) {
        ++static_cast<Stream*>(self->private_data)->released;
        self->release = nullptr;
    }
    static int get_schema(ArrowArrayStream* self, ArrowSchema* out) {
        *out = static_cast<Stream*>(self->private_data)->schema;
        return 0;
    }
    static int get_next(ArrowArrayStream* self, ArrowArray* out) {
        auto* own = static_cast<Stream*>(self->private_data);
        if (own->given == 1) {
            *out = {};
            return own->status;
        }
        ++own->given;
        *out = own->array;
        return 0;
    }
    static const char* get_last_error(ArrowArrayStream*) { return "the wire is cut"; }

    // Returns the tokens of the batch; afterwards everything must have been released.
    pit::TokenBatch read() {
        const pit::ArrowBatches batches(&stream, "f.arrow", kNames);
        return batches.tokens(0, sizes, map, 0);
    }

    Batch batch;
    // All addresses count as mapped unless a test changes this.
    pit::MappedBytes map{nullptr, INT64_MAX};
    std::vector<pit::BufferSizes> sizes;
    ArrowSchema schema{}, list_schema[2], value_schema[2];
    ArrowSchema *list_schemas[2], *value_schemas[2];
    ArrowArray array{}, list_array[2], value_array[2];
    ArrowArray *list_arrays[2], *value_arrays[2];
    const void* struct_buffers[1] = {nullptr};
    const void* list_buffers[2][2] = {};
    const void* value_buffers[2][2] = {};
    ArrowArrayStream stream{};
    int given = 0, status = 0, released = 0;
};

}  // namespace pit_test
