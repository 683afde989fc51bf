#include "pit/packing/materialise.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "pit/support/clones.hpp"
#include "pit/support/error.hpp"
#include "pit/support/parts.hpp"

namespace pit {

namespace {

constexpr std::size_t kAhead = 4;           // pieces
constexpr std::int64_t kPrefetchLines = 8;  // of 64 bytes, per segment

// The five arrays of a batch with one entry per token, from some token on.
struct Tokens {
    std::int32_t *token, *position, *visible_until, *previous;
    float* loss_weight;
};

Tokens tokens_from(const BatchArrays& out, std::int64_t place) {
    return {out.token + place, out.position + place, out.visible_until + place, out.previous + place,
            out.loss_weight + place};
}

// The regular part of a segment: position and previous count up, the others are constant.
struct Run {
    std::int32_t position, visible_until, previous;
    float loss_weight;
};

// Writes all but the tokens of a run. Separate parameters let the compiler know that the arrays do not overlap.
PIT_CLONES void write_run(std::int32_t* __restrict position, std::int32_t* __restrict visible_until,
                          std::int32_t* __restrict previous, float* __restrict loss_weight, std::int32_t count,
                          const Run& run) {
    const Run local = run;
    for (std::int32_t i = 0; i < count; ++i) {
        position[i] = local.position + i;
        visible_until[i] = local.visible_until;
        previous[i] = local.previous + i;
        loss_weight[i] = local.loss_weight;
    }
}

// Writes padding from index `first` of its row.
PIT_CLONES void write_padding(std::int32_t* __restrict token, std::int32_t* __restrict position,
                              std::int32_t* __restrict visible_until, std::int32_t* __restrict previous,
                              float* __restrict loss_weight, std::int32_t count, std::int32_t first, std::int32_t pad) {
    for (std::int32_t i = 0; i < count; ++i) {
        token[i] = pad;
        position[i] = 0;
        visible_until[i] = 0;
        previous[i] = first + i;
        loss_weight[i] = 0.0f;
    }
}

struct SegmentPlace {
    TokenSpan content;
    std::int64_t start;     // index in the row of its first token
    std::int64_t last;      // index of its last token, the last closing one
    std::int64_t end;       // end of its subtree in this piece
    std::int64_t position;  // of its first token
};

// Layout of a piece that is about to be written: the places of the segments of its mask.
struct Layout {
    std::int64_t piece;
    std::int64_t row;  // of the batch
    std::array<SegmentPlace, kMaxSegments> place;
};

// Prefetches the start of a segment's tokens; after a few lines in order the hardware prefetches the rest.
void prefetch(const TokenSpan& content) {
    constexpr std::int64_t kLine = 64 / sizeof(std::int32_t);
    const std::int64_t count = std::min<std::int64_t>(content.size, kPrefetchLines * kLine);
    for (std::int64_t i = 0; i < count; i += kLine) {
        __builtin_prefetch(content.data + i);
    }
}

// Writes the rows [first, last) of a batch, counted from its first group on. Rows do not overlap, so writers of
// different rows may run at the same time. Rows of a token table are read in random order and miss the cache: pieces
// are laid out a few ahead of the one that is written, so their tokens are prefetched meanwhile.
class Writer {
  public:
    Writer(const Plan& plan, std::int64_t first_group, const TokenTable& table, std::int32_t pad,
           const BatchArrays& out)
        : plan_(plan), first_group_(first_group), table_(table), pad_(pad), out_(out) {
        const Topology& topology = plan.topology;
        for (int s = 0; s < topology.segments(); ++s) {
            first_of_column_[s] = 0;
            while (topology.column(first_of_column_[s]) != topology.column(s)) {
                ++first_of_column_[s];
            }
        }
    }

    void write_rows(std::int64_t first, std::int64_t last);

  private:
    // First row of the piece's group in the batch.
    std::int64_t group_row(std::int64_t group) const { return (group - first_group_) * plan_.sizes.rows_per_group; }
    void write_pieces(const std::vector<std::int64_t>& pieces, std::int64_t group_begin);
    void lay_out(std::int64_t piece, std::int64_t row, Layout& layout) const;
    void place_subtrees(SegmentMask mask, Layout& layout) const;
    void write_piece(const Layout& layout) const;
    void write_segment(const Layout& layout, int segment) const;
    void write_leaf(const Layout& layout, int segment) const;
    void pad_row(std::int64_t row, std::int64_t filled) const;

    const Plan& plan_;
    const std::int64_t first_group_;
    const TokenTable& table_;
    const std::int32_t pad_;
    const BatchArrays& out_;
    std::array<int, kMaxSegments> first_of_column_;  // for each segment, the first segment with its column
    std::array<Layout, kAhead + 1> layout_;          // ring of the current piece and the next ones
};

void Writer::lay_out(std::int64_t piece, std::int64_t row, Layout& layout) const {
    const Topology& topology = plan_.topology;
    const std::int64_t example = plan_.tree_example[plan_.piece_tree[piece]];
    if (example >= table_.rows()) {
        throw Error("materialise: the plan names example " + std::to_string(example) + ", but the token table has " +
                    std::to_string(table_.rows()) + " rows; plan with the lengths() of this table");
    }
    layout.piece = piece;
    layout.row = row;
    const SegmentMask mask = plan_.piece_segments[piece];
    std::int64_t at = plan_.piece_start[piece];
    std::array<TokenSpan, kMaxSegments> content;
    for (int s = 0; s < topology.segments(); ++s) {
        if (contains(mask, s)) {
            // A tree often repeats a column; its tokens are looked up once.
            const int first = first_of_column_[s];
            if (first < s && contains(mask, first)) {
                content[s] = content[first];
            } else {
                content[s] = table_.at(topology.column(s), example);
                prefetch(content[s]);
            }
            const SegmentPlace* parent = s == 0 ? nullptr : &layout.place[topology.parent(s)];
            const std::int64_t position = s == 0 ? 0 : parent->position + parent->last - parent->start + 1;
            const std::int64_t end = at + content[s].size + topology.closing_size(s);
            layout.place[s] = {content[s], at, end - 1, end, position};
            at = end;
        }
    }
    const std::int64_t length = at - plan_.piece_start[piece];
    if (length != plan_.piece_length[piece]) {
        throw Error("materialise: example " + std::to_string(example) + " was planned with " +
                    std::to_string(plan_.piece_length[piece]) + " tokens in a row, but the token table gives " +
                    std::to_string(length) + "; plan with the lengths() of this table");
    }
    place_subtrees(mask, layout);
}

// Children follow their parents, so going backwards a subtree's end is known when its root is reached.
void Writer::place_subtrees(SegmentMask mask, Layout& layout) const {
    for (int s = plan_.topology.segments() - 1; s > 0; --s) {
        if (contains(mask, s)) {
            SegmentPlace& parent = layout.place[plan_.topology.parent(s)];
            parent.end = std::max(parent.end, layout.place[s].end);
        }
    }
}

void Writer::write_segment(const Layout& layout, int segment) const {
    const Topology& topology = plan_.topology;
    const SegmentPlace& place = layout.place[segment];
    const bool root = segment == 0;
    const bool owned = contains(plan_.piece_owned[layout.piece], segment);
    const Tokens out = tokens_from(out_, layout.row * plan_.sizes.row_length + place.start);
    const auto size = static_cast<std::int32_t>(place.content.size);
    const Run run{static_cast<std::int32_t>(place.position), static_cast<std::int32_t>(place.end),
                  static_cast<std::int32_t>(place.start) - 1, owned && topology.loss(segment) ? 1.0f : 0.0f};
    const std::vector<std::int32_t>& closing = topology.closing(segment);
    const auto closed = size + static_cast<std::int32_t>(closing.size());
    write_run(out.position, out.visible_until, out.previous, out.loss_weight, closed, run);
    if (size > 0) {
        std::memcpy(out.token, place.content.data, static_cast<std::size_t>(size) * sizeof(std::int32_t));
    }
    std::copy(closing.begin(), closing.end(), out.token + size);
    // The first closing token ends the content; the rest is the format's and not the model's to write.
    std::fill(out.loss_weight + size + 1, out.loss_weight + closed, 0.0f);
    out.previous[0] = static_cast<std::int32_t>(root ? place.start : layout.place[topology.parent(segment)].last);
    if (root) {
        // Nothing comes before the first token of a tree, so nothing predicts it.
        out.loss_weight[0] = 0.0f;
    }
    if (owned && topology.leaf(segment) >= 0) {
        write_leaf(layout, segment);
    }
}

void Writer::write_leaf(const Layout& layout, int segment) const {
    const std::int64_t tree = plan_.piece_tree[layout.piece];
    const std::int64_t group = plan_.tree_group[tree];
    const std::int64_t slot = (group - first_group_) * plan_.sizes.trees_per_group + tree - plan_.group_tree[group];
    const Topology& topology = plan_.topology;
    std::int32_t* leaf = out_.leaf + 2 * (slot * topology.leaves() + topology.leaf(segment));
    leaf[0] = static_cast<std::int32_t>(layout.row);
    leaf[1] = static_cast<std::int32_t>(layout.place[segment].last);
}

void Writer::write_piece(const Layout& layout) const {
    for (int segment = 0; segment < plan_.topology.segments(); ++segment) {
        if (contains(plan_.piece_segments[layout.piece], segment)) {
            write_segment(layout, segment);
        }
    }
}

void Writer::write_pieces(const std::vector<std::int64_t>& pieces, std::int64_t group_begin) {
    const std::size_t count = pieces.size();
    for (std::size_t next = 0; next < count + kAhead; ++next) {
        if (next < count) {
            lay_out(pieces[next], group_begin + plan_.piece_row[pieces[next]], layout_[next % layout_.size()]);
        }
        if (next >= kAhead) {
            write_piece(layout_[(next - kAhead) % layout_.size()]);
        }
    }
}

void Writer::pad_row(std::int64_t row, std::int64_t filled) const {
    const Tokens out = tokens_from(out_, row * plan_.sizes.row_length + filled);
    const auto count = static_cast<std::int32_t>(plan_.sizes.row_length - filled);
    write_padding(out.token, out.position, out.visible_until, out.previous, out.loss_weight, count,
                  static_cast<std::int32_t>(filled), pad_);
}

void Writer::write_rows(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> pieces, filled;  // of the rows of one group
    for (std::int64_t row = first; row < last;) {
        const std::int64_t group = first_group_ + row / plan_.sizes.rows_per_group;
        const std::int64_t group_begin = group_row(group);
        const std::int64_t end = std::min(last, group_begin + plan_.sizes.rows_per_group);
        pieces.clear();
        filled.assign(static_cast<std::size_t>(end - row), 0);
        for (std::int64_t piece = plan_.group_piece[group]; piece < plan_.group_piece[group + 1]; ++piece) {
            const std::int64_t piece_row = group_begin + plan_.piece_row[piece];
            if (piece_row >= row && piece_row < end) {
                pieces.push_back(piece);
                filled[piece_row - row] = plan_.piece_start[piece] + plan_.piece_length[piece];
            }
        }
        write_pieces(pieces, group_begin);
        for (std::size_t i = 0; i < filled.size(); ++i, ++row) {
            pad_row(row, filled[i]);
        }
    }
}

// Writes the arrays with one entry per tree; leaves are absent until their rows are written.
void write_trees(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const BatchArrays& out) {
    const std::int64_t slots = plan.sizes.trees_per_group;
    const std::int64_t trees = (last_group - first_group) * slots;
    std::fill_n(out.leaf, trees * plan.topology.leaves() * 2, -1);
    for (std::int64_t group = first_group; group < last_group; ++group) {
        const std::int64_t first = plan.group_tree[group], count = plan.group_tree[group + 1] - first;
        const std::int64_t slot = (group - first_group) * slots;
        std::copy_n(plan.tree_example.begin() + first, count, out.example_id + slot);
        std::fill_n(out.example_id + slot + count, slots - count, -1);
        std::copy_n(plan.tree_source.begin() + first, count, out.source + slot);
        std::fill_n(out.source + slot + count, slots - count, std::uint8_t{0});
    }
}

}  // namespace

void check_groups(const Plan& plan, std::int64_t first_group, std::int64_t last_group) {
    if (first_group < 0 || last_group < first_group || last_group > plan.groups) {
        throw Error("materialise: groups [" + std::to_string(first_group) + ", " + std::to_string(last_group) +
                    ") are outside the plan's [0, " + std::to_string(plan.groups) + "); give a range inside it");
    }
}

void materialise(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const TokenTable& table,
                 std::int32_t pad, const BatchArrays& out, int threads) {
    check_groups(plan, first_group, last_group);
    require_range("materialise: threads", threads, 1, kMaxThreads);
    if (table.columns() < plan.topology.columns()) {
        throw Error("materialise: the token table has " + std::to_string(table.columns()) +
                    " columns, but the topology names column " + std::to_string(plan.topology.columns() - 1) +
                    "; give a table with all columns of the topology");
    }
    write_trees(plan, first_group, last_group, out);
    const std::int64_t rows = (last_group - first_group) * plan.sizes.rows_per_group;
    const auto parts = static_cast<int>(std::min<std::int64_t>(threads, std::max<std::int64_t>(rows, 1)));
    run_parts(parts, [&](int part) {
        Writer(plan, first_group, table, pad, out).write_rows(rows * part / parts, rows * (part + 1) / parts);
    });
}

}  // namespace pit
