#include "pit/store/arrow.hpp"

#include <string_view>
#include <utility>

#include "pit/support/error.hpp"

namespace pit {

namespace {

constexpr std::int64_t kMaxRows = std::int64_t{1} << 48;

// A struct of the C interface that is released exactly once, on every path.
template <typename T>
struct Released {
    T value{};
    ~Released() {
        if (value.release != nullptr) {
            value.release(&value);
        }
    }
};

void require_success(int status, Released<ArrowArrayStream>& stream, const std::string& file) {
    if (status != 0) {
        const char* reason = stream.value.get_last_error(&stream.value);
        throw Error(file + ": not a readable Arrow stream (" + (reason == nullptr ? "no reason given" : reason) +
                    "); build the store again");
    }
}

void check_schema(const ArrowSchema& schema, const std::string& file, const std::vector<std::string>& columns) {
    bool same =
        std::string_view(schema.format) == "+s" && schema.n_children == static_cast<std::int64_t>(columns.size());
    for (std::size_t i = 0; same && i < columns.size(); ++i) {
        const ArrowSchema& column = *schema.children[i];
        same = column.name != nullptr && columns[i] == column.name && column.dictionary == nullptr &&
               std::string_view(column.format) == "+L" && column.n_children == 1 &&
               column.children[0]->dictionary == nullptr && std::string_view(column.children[0]->format) == "i";
    }
    if (!same) {
        std::string names;
        for (const std::string& name : columns) {
            names += " " + name;
        }
        throw Error(file + ": its columns are not large lists of int32 named" + names + "; build the store again");
    }
}

[[noreturn]] void throw_damaged(const std::string& name, const std::string& fault) {
    throw Error(name + " " + fault + "; the store is damaged, build it again");
}

// `count` elements of T from the array's data buffer of `bytes` bytes, after its offset.
template <typename T>
const T* elements(const ArrowArray& array, std::int64_t count, std::int64_t bytes, const MappedBytes& map,
                  const std::string& name) {
    const std::int64_t room = bytes / static_cast<std::int64_t>(sizeof(T));
    if (array.offset < 0 || count < 0 || array.offset > room || count > room - array.offset) {
        throw_damaged(name, "needs " + std::to_string(count) + " elements from " + std::to_string(array.offset) +
                                " on, each of " + std::to_string(sizeof(T)) + " bytes, but its buffer has " +
                                std::to_string(bytes) + " bytes");
    }
    if (count == 0) {
        return nullptr;
    }
    const auto begin = reinterpret_cast<std::uintptr_t>(array.buffers[1]);
    const auto low = reinterpret_cast<std::uintptr_t>(map.data);
    const auto map_size = static_cast<std::uintptr_t>(map.size);
    if (begin < low || begin - low > map_size || static_cast<std::uintptr_t>(bytes) > map_size - (begin - low)) {
        throw Error(name +
                    " lies outside the memory map of its file: the file is damaged, or compressed; build the "
                    "store again");
    }
    if (begin % alignof(T) != 0) {
        throw_damaged(name, "begins at byte " + std::to_string(begin - low) + " of the file, not at a multiple of " +
                                std::to_string(alignof(T)));
    }
    return static_cast<const T*>(array.buffers[1]) + array.offset;
}

void require_plain(const ArrowArray& array, std::int64_t length, std::int64_t buffers, const std::string& name) {
    if (array.length != length) {
        throw_damaged(name, "has " + std::to_string(array.length) + " elements instead of " + std::to_string(length));
    }
    if (array.null_count != 0) {
        throw_damaged(name, "has nulls (" + std::to_string(array.null_count) + ")");
    }
    if (array.n_buffers != buffers || array.dictionary != nullptr) {
        throw_damaged(name,
                      "has " + std::to_string(array.n_buffers) + " buffers instead of " + std::to_string(buffers));
    }
}

TokenChunk chunk_of(const ArrowArray& column, std::int64_t rows, const BufferSizes& sizes, const MappedBytes& map,
                    const std::string& name) {
    require_plain(column, rows, 2, name);
    if (column.n_children != 1) {
        throw_damaged(name, "has " + std::to_string(column.n_children) + " children instead of 1");
    }
    const ArrowArray& tokens = *column.children[0];
    require_plain(tokens, tokens.length, 2, name + ", tokens");
    const auto* offsets = elements<std::int64_t>(column, rows + 1, sizes.offsets, map, name + ", buffer of offsets");
    const auto* values = elements<std::int32_t>(tokens, tokens.length, sizes.values, map, name + ", buffer of values");
    return {values, tokens.length, offsets, rows};
}

}  // namespace

void ReleaseArray::operator()(ArrowArray* array) const {
    if (array->release != nullptr) {
        array->release(array);
    }
    delete array;
}

ArrowBatches::ArrowBatches(ArrowArrayStream* stream, std::string file, const std::vector<std::string>& columns)
    : file_(std::move(file)), columns_(columns) {
    if (stream->release == nullptr) {
        throw Error(file_ + ": its Arrow stream was already read; give a new stream");
    }
    Released<ArrowArrayStream> own{*stream};
    stream->release = nullptr;
    Released<ArrowSchema> schema;
    require_success(own.value.get_schema(&own.value, &schema.value), own, file_);
    check_schema(schema.value, file_, columns_);
    for (;;) {
        std::unique_ptr<ArrowArray, ReleaseArray> next(new ArrowArray{});
        require_success(own.value.get_next(&own.value, next.get()), own, file_);
        if (next->release == nullptr) {
            return;
        }
        arrays_.push_back(std::move(next));
    }
}

TokenBatch ArrowBatches::tokens(std::size_t index, const std::vector<BufferSizes>& sizes, const MappedBytes& map,
                                std::uint32_t crc32) const {
    const ArrowArray& array = *arrays_[index];
    TokenBatch batch{file_ + ": record batch " + std::to_string(index), {}, crc32};
    require_plain(array, array.length, 1, batch.name);
    if (array.length < 0 || array.length > kMaxRows || array.offset != 0 ||
        array.n_children != static_cast<std::int64_t>(columns_.size())) {
        throw_damaged(batch.name, "has length " + std::to_string(array.length) + ", offset " +
                                      std::to_string(array.offset) + " and " + std::to_string(array.n_children) +
                                      " columns");
    }
    for (std::size_t column = 0; column < columns_.size(); ++column) {
        const std::string name = batch.name + ", column '" + columns_[column] + "'";
        batch.columns.push_back(chunk_of(*array.children[column], array.length, sizes[column], map, name));
    }
    return batch;
}

}  // namespace pit
