// Checksums against known answers and the definition; tables of stored batches; Arrow streams made by hand.
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "pit/random/philox.hpp"
#include "pit/store/arrow.hpp"
#include "pit/store/crc32.hpp"
#include "stored.hpp"

namespace {

using pit_test::Batch;
using pit_test::kNames;
using pit_test::Stream;

// The definition, a bit at a time.
std::uint32_t slow_crc32(const std::string& bytes) {
    std::uint32_t crc = 0xFFFFFFFFu;
    for (const char byte : bytes) {
        crc ^= static_cast<unsigned char>(byte);
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xEDB88320u : 0u);
        }
    }
    return ~crc;
}

std::string random_bytes(std::size_t size, std::uint64_t key) {
    std::string bytes;
    for (std::size_t i = 0; i < size; ++i) {
        bytes += static_cast<char>(pit::uniform_below(key, 7, i, 256));
    }
    return bytes;
}

void test_crc32() {
    CHECK(pit::crc32(0, "", 0) == 0);
    CHECK(pit::crc32(0, "a", 1) == 0xE8B7BE43u);
    CHECK(pit::crc32(0, "123456789", 9) == 0xCBF43926u);
    CHECK(pit::crc32(0, "The quick brown fox jumps over the lazy dog", 43) == 0x414FA339u);
    CHECK(pit::crc32(0, std::string(32, '\0').data(), 32) == 0x190A55ADu);
    CHECK(pit::crc32(0, std::string(32, '\xFF').data(), 32) == 0xFF6CAB0Bu);
    // Every size and start around a step of sixteen bytes, and any cut into two.
    const std::string bytes = random_bytes(200, 3);
    for (std::size_t start = 0; start < 17; ++start) {
        for (std::size_t size = 0; size + start <= 100; ++size) {
            const std::uint32_t whole = pit::crc32(0, bytes.data() + start, size);
            CHECK(whole == slow_crc32(bytes.substr(start, size)));
            const std::size_t cut = size / 3;
            const std::uint32_t part = pit::crc32(0, bytes.data() + start, cut);
            CHECK(whole == pit::crc32(part, bytes.data() + start + cut, size - cut));
        }
    }
}

void test_stored_batches() {
    Batch batch;
    const pit::TokenTable table = batch.table();
    CHECK(table.rows() == 2 && table.columns() == 2);
    CHECK(table.at(0, 0).size == 2 && table.at(0, 0).data[1] == 2 && table.at(1, 0).size == 0);
    table.verify();
    // A batch is verified at its first touch, and again only when asked.
    batch.columns[0].values[0] = 5;
    CHECK(table.at(0, 0).data[0] == 5);
    CHECK_THROWS(table.verify(), "f.arrow: record batch 0 is damaged: checksum 0x");
    const pit::TokenTable other({batch.tokens(batch.crc32() ^ 1u)}, kNames, 10);
    CHECK_THROWS(other.at(1, 1), "is damaged: checksum 0x");
    CHECK_THROWS(other.at(1, 1), "is damaged: checksum 0x");
    CHECK_THROWS(batch.table(5).at(1, 0),
                 "record batch 0, column 'prompt', row 0: token 5 is outside the vocabulary 0..4");
    batch.columns[1].values[0] = -1;
    CHECK_THROWS(batch.table().at(0, 0), "record batch 0, column 'better', row 1: token -1 is outside the vocabulary");
    CHECK(pit::TokenTable({}, kNames, 10).rows() == 0);
}

void test_stored_batches_that_are_refused() {
    Batch batch;
    pit::TokenBatch narrow = batch.tokens(0);
    narrow.columns.pop_back();
    CHECK_THROWS(pit::TokenTable({narrow}, kNames, 10), "record batch 0: has 1 columns instead of 2");
    CHECK_THROWS(batch.table(0), "vocab_size=0 is outside [1, 2147483648]");
    batch.columns[1] = {{4}, {0, 1}};
    CHECK_THROWS(batch.table(), "column 'better': has 1 rows, column 'prompt' has 2");
    batch.columns[1] = {{4}, {0, 2, 1}};
    CHECK_THROWS(batch.table(), "column 'better': offset 1 is 2, outside [0, 1]");
    batch.columns[1] = {{4, 4}, {0, 1, 1}};
    CHECK_THROWS(batch.table(), "column 'better': offsets run from 0 to 1, its values from 0 to 2");
}

// A map can change after all checks. The sanitizers watch that nothing outside is read.
void test_offsets_that_change() {
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{4}, INT64_MAX, INT64_MIN}) {
        Batch batch;
        const pit::TokenTable table = batch.table();
        table.verify();
        batch.columns[0].offsets[1] = wrong;
        CHECK_THROWS(table.at(0, 0), "column 'prompt', row 0: its offsets 0 and ");
        CHECK_THROWS(table.at(0, 1), "column 'prompt', row 1: its offsets ");
        CHECK_THROWS(batch.table(), "column 'prompt': offset 1 is ");
        std::vector<std::int32_t> lengths(4);
        if (wrong != 4) {
            CHECK_THROWS(table.lengths(lengths.data()), "length of a row");
        }
    }
}

void test_first_touches_from_many_threads() {
    for (int round = 0; round < 20; ++round) {
        const Batch batch;
        const pit::TokenTable table = batch.table();
        std::vector<std::thread> threads;
        std::vector<int> right(4);
        for (std::size_t i = 0; i < right.size(); ++i) {
            threads.emplace_back([&, i] { right[i] = table.at(0, 1).data[0] == 3 && table.at(1, 1).data[0] == 4; });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        CHECK(right == std::vector<int>({1, 1, 1, 1}));
    }
}

template <typename Spoil>
void check_refused(Spoil spoil, const std::string& words) {
    const auto stream = std::make_unique<Stream>(Batch());
    spoil(*stream);
    CHECK_THROWS(stream->read(), words);
    CHECK(stream->stream.release == nullptr);
    CHECK(stream->released == 2 + stream->given);  // stream, schema, and the batch if it was asked for
}

void test_a_good_stream() {
    const Batch batch;
    Stream stream(batch);
    const pit::TokenBatch tokens = stream.read();
    CHECK(stream.released == 3);
    CHECK_THROWS(stream.read(), "f.arrow: its Arrow stream was already read; give a new stream");
    CHECK(tokens.name == "f.arrow: record batch 0" && tokens.columns.size() == 2);
    CHECK(tokens.columns[0].rows == 2 && tokens.columns[0].value_count == 3);
    CHECK(tokens.columns[0].values == stream.batch.columns[0].values.data());
    CHECK(tokens.columns[1].offsets == stream.batch.columns[1].offsets.data());
    // Offsets of the arrays are passed over.
    Stream sliced(batch);
    sliced.array.length = sliced.list_array[0].length = sliced.list_array[1].length = 1;
    sliced.list_array[0].offset = 1;
    CHECK(sliced.read().columns[0].offsets == sliced.batch.columns[0].offsets.data() + 1);
}

void test_streams_that_are_refused() {
    check_refused([](Stream& s) { s.status = EIO; }, "f.arrow: not a readable Arrow stream (the wire is cut)");
    const std::string columns = "f.arrow: its columns are not large lists of int32 named prompt better";
    check_refused([](Stream& s) { s.schema.n_children = 1; }, columns);
    check_refused([](Stream& s) { s.schema.format = "+L"; }, columns);
    check_refused([](Stream& s) { s.list_schema[1].name = "worse"; }, columns);
    check_refused([](Stream& s) { s.list_schema[1].name = nullptr; }, columns);
    check_refused([](Stream& s) { s.list_schema[0].format = "+l"; }, columns);
    check_refused([](Stream& s) { s.value_schema[0].format = "l"; }, columns);
    const std::string column = "f.arrow: record batch 0, column 'better'";
    check_refused([](Stream& s) { s.array.length = -1; }, "record batch 0 has length -1, offset 0 and 2 columns");
    check_refused([](Stream& s) { s.array.offset = 1; }, "record batch 0 has length 2, offset 1 and 2 columns");
    check_refused([](Stream& s) { s.array.n_children = 1; }, "record batch 0 has length 2, offset 0 and 1 columns");
    check_refused([](Stream& s) { s.list_array[1].length = 3; }, column + " has 3 elements instead of 2");
    check_refused([](Stream& s) { s.list_array[1].null_count = -1; }, column + " has nulls (-1)");
    check_refused([](Stream& s) { s.list_array[1].n_buffers = 3; }, column + " has 3 buffers instead of 2");
    check_refused([](Stream& s) { s.list_array[1].n_children = 0; }, column + " has 0 children instead of 1");
    check_refused([](Stream& s) { s.value_array[1].null_count = 1; }, column + ", tokens has nulls (1)");
    check_refused([](Stream& s) { s.value_array[1].length = -1; }, column + ", buffer of values needs -1 elements");
    check_refused([](Stream& s) { s.value_array[1].offset = -1; }, column + ", buffer of values needs 1 elements");
    check_refused([](Stream& s) { s.value_array[1].offset = INT64_MAX; }, "of 4 bytes, but its buffer has 4 bytes");
    check_refused([](Stream& s) { s.sizes[1].offsets = 23; }, column + ", buffer of offsets needs 3 elements from 0");
    check_refused([](Stream& s) { s.sizes[1].values = -8; }, column + ", buffer of values needs 1 elements from 0");
    check_refused([](Stream& s) { s.map.size = 1 << 20; },
                  "lies outside the memory map of its file: the file is damaged");
    check_refused([](Stream& s) { s.map = {s.batch.columns[0].offsets.data(), 23}; },
                  "column 'prompt', buffer of offsets lies outside the memory map");
    check_refused([](Stream& s) { s.value_buffers[0][1] = reinterpret_cast<const char*>(s.value_buffers[0][1]) + 1; },
                  "not at a multiple of 4; the store is damaged");
}

}  // namespace

int main() {
    test_crc32();
    test_stored_batches();
    test_stored_batches_that_are_refused();
    test_offsets_that_change();
    test_first_touches_from_many_threads();
    test_a_good_stream();
    test_streams_that_are_refused();
    return pit_test::failures() != 0;
}
