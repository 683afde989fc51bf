// Damaged record batches: Arrow streams with false lengths, offsets, addresses and types, and files with false offsets,
// tokens and checksums. Every accepted batch is read completely, also after the file has changed under its map; the
// sanitizers would report a read outside the file.
#include <cstring>
#include <vector>

#include "fuzz.hpp"
#include "pit/support/error.hpp"
#include "stored.hpp"

namespace {

using pit_fuzz::Dice;
using pit_fuzz::Tally;
using pit_test::Batch;
using pit_test::Stream;

// A file with the buffers of a batch one after another, each at a multiple of 8 bytes, and nothing around them.
class File {
  public:
    explicit File(Stream& stream) {
        for (std::size_t c = 0; c < 2; ++c) {
            offsets_[c] = add(stream.batch.columns[c].offsets);
            values_[c] = add(stream.batch.columns[c].values);
        }
        for (std::size_t c = 0; c < 2; ++c) {
            stream.list_buffers[c][1] = words_.data() + offsets_[c];
            stream.value_buffers[c][1] = words_.data() + values_[c];
        }
        stream.map = {words_.data(), static_cast<std::int64_t>(words_.size() * sizeof(std::int64_t))};
    }

    void damage(Dice& dice) {
        const auto last = static_cast<std::int64_t>(words_.size()) - 1;
        auto& word = words_[static_cast<std::size_t>(dice.roll(0, last))];
        word = dice.roll(0, 1) ? static_cast<std::int64_t>(pit_fuzz::boundary(dice))
                               : static_cast<std::int64_t>(static_cast<std::uint64_t>(word) +
                                                           static_cast<std::uint64_t>(dice.roll(-2, 2)));
    }

  private:
    template <typename T>
    std::size_t add(const std::vector<T>& values) {
        const std::size_t at = words_.size();
        words_.resize(at + (values.size() * sizeof(T) + 7) / 8);
        if (!values.empty()) {
            std::memcpy(words_.data() + at, values.data(), values.size() * sizeof(T));
        }
        return at;
    }

    std::vector<std::int64_t> words_;
    std::size_t offsets_[2], values_[2];
};

Batch random_batch(Dice& dice) {
    Batch batch;
    const std::int64_t rows = dice.roll(0, 5);
    for (pit_test::Column& column : batch.columns) {
        column = {{}, {0}};
        for (std::int64_t row = 0; row < rows; ++row) {
            for (std::int64_t i = dice.roll(0, 4); i > 0; --i) {
                column.values.push_back(static_cast<std::int32_t>(dice.roll(0, 9)));
            }
            column.offsets.push_back(static_cast<std::int64_t>(column.values.size()));
        }
    }
    return batch;
}

// Falsifies one property of the batch in the stream.
void damage(Stream& stream, Dice& dice) {
    const auto c = static_cast<std::size_t>(dice.roll(0, 1));
    const auto number = static_cast<std::int64_t>(pit_fuzz::boundary(dice));
    std::int64_t* const numbers[] = {&stream.array.length,
                                     &stream.array.offset,
                                     &stream.array.n_children,
                                     &stream.list_array[c].length,
                                     &stream.list_array[c].offset,
                                     &stream.list_array[c].null_count,
                                     &stream.list_array[c].n_buffers,
                                     &stream.list_array[c].n_children,
                                     &stream.value_array[c].length,
                                     &stream.value_array[c].offset,
                                     &stream.value_array[c].null_count,
                                     &stream.sizes[c].offsets,
                                     &stream.sizes[c].values,
                                     &stream.schema.n_children};
    const std::int64_t choice = dice.roll(0, 16);
    if (choice < 14) {
        const auto near = static_cast<std::uint64_t>(*numbers[choice]) + static_cast<std::uint64_t>(dice.roll(-1, 1));
        *numbers[choice] = dice.roll(0, 1) ? number : static_cast<std::int64_t>(near);
    } else if (choice == 14) {
        const char* const formats[] = {"+l", "+L", "i", "l", "", "+s"};
        stream.list_schema[c].format = formats[dice.roll(0, 5)];
    } else {
        const void*& buffer = choice == 15 ? stream.list_buffers[c][1] : stream.value_buffers[c][1];
        buffer = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(buffer) +
                                               static_cast<std::uintptr_t>(dice.roll(0, 1) ? number : 4));
    }
}

std::uint32_t checksum(const pit::TokenBatch& batch) {
    std::uint32_t crc = 0;
    for (const pit::TokenChunk& chunk : batch.columns) {
        crc = pit::crc32(crc, chunk.offsets, static_cast<std::size_t>(chunk.rows + 1) * sizeof(std::int64_t));
        crc = pit::crc32(crc, chunk.values, static_cast<std::size_t>(chunk.value_count) * sizeof(std::int32_t));
    }
    return crc;
}

std::int64_t read_all(const pit::TokenTable& table) {
    std::int64_t sum = 0;
    for (std::int64_t row = 0; row < table.rows(); ++row) {
        for (std::int64_t column = 0; column < table.columns(); ++column) {
            const pit::TokenSpan span = table.at(column, row);
            for (std::int64_t i = 0; i < span.size; ++i) {
                sum += span.data[i];
            }
        }
    }
    return sum;
}

void one_input(Dice& dice, Tally& tally) {
    Stream stream(random_batch(dice));
    File file(stream);
    const bool lies = dice.roll(0, 2) == 0;
    for (std::int64_t i = lies ? dice.roll(1, 3) : 0; i > 0; --i) {
        damage(stream, dice);
    }
    for (std::int64_t i = dice.roll(lies ? 0 : 1, 3); i > 0; --i) {
        file.damage(dice);
    }
    ++tally.inputs;
    const pit::ArrowBatches batches(&stream.stream, "f.arrow", pit_test::kNames);
    pit::TokenBatch batch = batches.tokens(0, stream.sizes, stream.map, 0);
    ++tally.passed_header;
    batch.crc32 = checksum(batch) ^ (dice.roll(0, 4) == 0);
    const pit::TokenTable table({batch}, pit_test::kNames, 10);
    std::vector<std::int32_t> lengths(static_cast<std::size_t>(table.rows() * table.columns()));
    table.lengths(lengths.data());
    read_all(table);
    table.verify();
    ++tally.accepted;
    file.damage(dice);
    read_all(table);
}

}  // namespace

int main(int count, char** words) {
    Tally tally;
    Dice dice(11);
    for (std::int64_t left = pit_fuzz::inputs(count, words); left > 0; --left) {
        try {
            one_input(dice, tally);
        } catch (const pit::Error&) {
            continue;
        }
    }
    return tally.report("stores");
}
