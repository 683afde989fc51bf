// Token columns out of an Arrow C stream, without a copy and without the Arrow library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pit/store/token_table.hpp"

// The ABI of Arrow's C data and C stream interfaces, word for word as they are specified:
// https://arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html.
extern "C" {

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

struct ArrowSchema {
    const char* format;
    const char* name;
    const char* metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema** children;
    struct ArrowSchema* dictionary;
    void (*release)(struct ArrowSchema*);
    void* private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void** buffers;
    struct ArrowArray** children;
    struct ArrowArray* dictionary;
    void (*release)(struct ArrowArray*);
    void* private_data;
};

#endif  // ARROW_C_DATA_INTERFACE

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream*, struct ArrowSchema* out);
    int (*get_next)(struct ArrowArrayStream*, struct ArrowArray* out);
    const char* (*get_last_error)(struct ArrowArrayStream*);
    void (*release)(struct ArrowArrayStream*);
    void* private_data;
};

#endif  // ARROW_C_STREAM_INTERFACE

}  // extern "C"

namespace pit {

// Sizes in bytes of the buffers of a column of a record batch; the C interface carries their addresses only.
struct BufferSizes {
    std::int64_t offsets;
    std::int64_t values;
};

// The memory map of the file that a stream was read from.
struct MappedBytes {
    const void* data;
    std::int64_t size;
};

struct ReleaseArray {
    void operator()(ArrowArray* array) const;
};

// The record batches of one stream, kept until destruction. Chunks borrowed from them must not outlive them.
class ArrowBatches {
  public:
    // Takes the stream over, reads it to its end and releases it. Error if it fails, or if its batches are not structs
    // of the named columns, each a large list of int32.
    ArrowBatches(ArrowArrayStream* stream, std::string file, const std::vector<std::string>& columns);

    std::size_t size() const { return arrays_.size(); }

    // Chunks of batch `index`, sizes[c] being those of column c. Error for nulls, misplaced rows, or a buffer that is
    // too small, misaligned or outside the mapped file (as the decompressed copy of a compressed body is).
    TokenBatch tokens(std::size_t index, const std::vector<BufferSizes>& sizes, const MappedBytes& map,
                      std::uint32_t crc32) const;

  private:
    std::string file_;
    std::vector<std::string> columns_;
    std::vector<std::unique_ptr<ArrowArray, ReleaseArray>> arrays_;
};

}  // namespace pit
