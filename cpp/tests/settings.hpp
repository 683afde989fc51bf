// Random data sets with settings that fit them, their tokens, and memory for their batches.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "dice.hpp"
#include "pit/packing/materialise.hpp"
#include "pit/packing/planner.hpp"
#include "pit/store/crc32.hpp"

namespace pit_test {

inline pit::Topology gap_topology() {
    const std::vector<std::int32_t> input{-2, -3}, reference{-4, -5, -6}, output{-7};
    return pit::Topology({-1, 0, 1, 1, 0, 4, 4}, {0, 1, 1, 2, 2, 1, 2},
                         {input, reference, output, output, reference, output, output},
                         {true, false, true, true, false, true, true}, {-1, -1, 0, 1, -1, 2, 3});
}

constexpr std::int64_t kColumns = 3;

// Token columns of one chunk each; the values encode column and row.
struct Tokens {
    explicit Tokens(const std::vector<std::int32_t>& lengths) {
        const std::size_t rows = lengths.size() / kColumns;
        for (std::size_t column = 0; column < kColumns; ++column) {
            std::vector<std::int64_t> offset{0};
            std::vector<std::int32_t> value;
            for (std::size_t row = 0; row < rows; ++row) {
                const std::int32_t length = lengths[row * kColumns + column];
                value.insert(value.end(), static_cast<std::size_t>(length),
                             static_cast<std::int32_t>(100 + 10 * row + column));
                offset.push_back(static_cast<std::int64_t>(value.size()));
            }
            values.push_back(std::move(value));
            offsets.push_back(std::move(offset));
        }
    }

    pit::TokenTable table() const {
        std::vector<std::vector<pit::TokenChunk>> columns;
        for (std::size_t c = 0; c < kColumns; ++c) {
            columns.push_back({{values[c].data(), static_cast<std::int64_t>(values[c].size()), offsets[c].data(),
                                static_cast<std::int64_t>(offsets[c].size()) - 1}});
        }
        return pit::TokenTable(std::move(columns));
    }

    // The same as a store's record batch.
    pit::TokenBatch batch() const {
        pit::TokenBatch out{"batch", {}, 0};
        for (std::size_t c = 0; c < kColumns; ++c) {
            out.columns.push_back({values[c].data(), static_cast<std::int64_t>(values[c].size()), offsets[c].data(),
                                   static_cast<std::int64_t>(offsets[c].size()) - 1});
            out.crc32 = pit::crc32(out.crc32, offsets[c].data(), offsets[c].size() * sizeof(std::int64_t));
            out.crc32 = pit::crc32(out.crc32, values[c].data(), values[c].size() * sizeof(std::int32_t));
        }
        return out;
    }

    std::vector<std::vector<std::int32_t>> values;
    std::vector<std::vector<std::int64_t>> offsets;
};

// Exactly the memory a batch needs, so that a sanitizer sees any write outside it.
struct Rows {
    Rows(const pit::Plan& plan, std::int64_t groups) {
        const auto cells = static_cast<std::size_t>(groups * plan.sizes.rows_per_group * plan.sizes.row_length);
        const auto trees = static_cast<std::size_t>(groups * plan.sizes.trees_per_group);
        token.resize(cells);
        position.resize(cells);
        visible_until.resize(cells);
        previous.resize(cells);
        loss_weight.resize(cells);
        leaf.resize(trees * static_cast<std::size_t>(plan.topology.leaves()) * 2);
        example_id.resize(trees);
        source.resize(trees);
    }

    pit::BatchArrays arrays() {
        return {token.data(),       position.data(), visible_until.data(), previous.data(),
                loss_weight.data(), leaf.data(),     example_id.data(),    source.data()};
    }

    std::vector<std::int32_t> token, position, visible_until, previous, leaf;
    std::vector<float> loss_weight;
    std::vector<std::int64_t> example_id;
    std::vector<std::uint8_t> source;
};

struct Setting {
    std::vector<std::int32_t> lengths;
    pit::PlannerSettings planner;
};

inline Setting random_setting(Dice& dice) {
    const std::int64_t longest = dice.roll(0, 9);
    std::vector<std::int32_t> lengths;
    for (std::int64_t i = 0; i < kColumns * dice.roll(1, 20); ++i) {
        lengths.push_back(static_cast<std::int32_t>(dice.roll(0, longest)));
    }
    lengths.resize((lengths.size() + kColumns - 1) / kColumns * kColumns, 0);
    const std::int64_t path = 3 * longest + 6;  // closing tokens included
    return {std::move(lengths),
            {{dice.roll(path, 3 * path), dice.roll(4, 6), dice.roll(1, 9)},
             dice.roll(1, 3),
             dice.roll(1, 9),
             static_cast<std::uint64_t>(dice.roll(0, INT64_MAX - 1)),
             1,
             2,
             {{0, {0, 1, 1, 0}}, {2, {1, 0, 0, 5}}}}};
}

}  // namespace pit_test
