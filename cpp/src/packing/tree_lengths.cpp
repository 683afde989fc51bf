#include "pit/packing/tree_lengths.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "pit/support/error.hpp"

namespace pit {

namespace {

constexpr std::int64_t kMaxRowLength = std::int64_t{1} << 30;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 24;

}  // namespace

void PackingSizes::check() const {
    require_range("row_length", row_length, 1, kMaxRowLength);
    require_range("rows_per_group", rows_per_group, 1, kMaxCount);
    require_range("trees_per_group", trees_per_group, 1, kMaxCount);
}

TreeLengths::TreeLengths(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology,
                         PackingSizes sizes)
    : lengths_(std::move(lengths)), columns_(columns), topology_(topology), sizes_(sizes) {
    sizes_.check();
    if (columns_ < topology_.columns()) {
        throw Error("lengths has " + std::to_string(columns_) + " columns, but the topology names column " +
                    std::to_string(topology_.columns() - 1) + "; give a length for every column of the topology");
    }
    const std::int64_t examples = static_cast<std::int64_t>(lengths_.size()) / columns_;
    total_.reserve(static_cast<std::size_t>(examples));
    rows_.reserve(static_cast<std::size_t>(examples));
    for (std::int64_t example = 0; example < examples; ++example) {
        add_example(example);
    }
}

void TreeLengths::add_example(std::int64_t example) {
    const std::int64_t total = mask_length(example, ~SegmentMask{0});
    total_.push_back(total);
    check_example(example);
    const bool whole = total <= sizes_.row_length;
    rows_.push_back(static_cast<std::uint8_t>(whole ? 1 : split(example).size()));
    longest_whole_ = whole ? std::max(longest_whole_, total) : longest_whole_;
}

std::int64_t TreeLengths::mask_length(std::int64_t example, SegmentMask mask) const {
    const std::int32_t* length = lengths_.data() + example * columns_;
    std::int64_t sum = 0;
    for (int segment = 0; segment < topology_.segments(); ++segment) {
        sum += contains(mask, segment)
                   ? std::int64_t{length[topology_.column(segment)]} + topology_.closing_size(segment)
                   : 0;
    }
    return sum;
}

void TreeLengths::check_example(std::int64_t example) const {
    const std::string name = "example " + std::to_string(example);
    for (std::int64_t column = 0; column < columns_; ++column) {
        const std::int32_t length = lengths_[static_cast<std::size_t>(example * columns_ + column)];
        if (length < 0) {
            throw Error(name + ": column " + std::to_string(column) + " has length " + std::to_string(length) +
                        "; a length must be at least 0");
        }
    }
    if (total(example) <= sizes_.row_length) {
        return;
    }
    for (const int tip : topology_.tips()) {
        const std::int64_t length = mask_length(example, topology_.path(tip));
        if (length > sizes_.row_length) {
            throw Error(name + ": the path from the root to segment " + std::to_string(tip) + " has " +
                        std::to_string(length) + " tokens (closing tokens included), more than row_length=" +
                        std::to_string(sizes_.row_length) + "; truncate the example or raise row_length");
        }
    }
    const std::int64_t pieces = std::int64_t{split(example).size()};
    if (pieces > sizes_.rows_per_group) {
        throw Error(name + ": its tree of " + std::to_string(total(example)) + " tokens needs " +
                    std::to_string(pieces) + " rows, more than rows_per_group=" +
                    std::to_string(sizes_.rows_per_group) + "; truncate it, or raise row_length or rows_per_group");
    }
}

Pieces TreeLengths::split(std::int64_t example) const {
    Pieces pieces;
    if (total_[example] <= sizes_.row_length) {
        const SegmentMask all = ~SegmentMask{0} >> (kMaxSegments - topology_.segments());
        pieces.push_back({all, all, total_[example]});
        return pieces;
    }
    pieces.push_back({0, 0, 0});
    SegmentMask covered = 0;
    for (const int tip : topology_.tips()) {
        SegmentMask added = topology_.path(tip) & ~pieces.back().segments;
        if (pieces.back().length + mask_length(example, added) > sizes_.row_length) {
            pieces.push_back({0, 0, 0});
            added = topology_.path(tip);
        }
        Piece& piece = pieces.back();
        piece.segments |= added;
        piece.owned |= added & ~covered;
        piece.length += mask_length(example, added);
        covered |= added;
    }
    return pieces;
}

}  // namespace pit
