#include "pit/materialise.hpp"

#include <algorithm>
#include <string>

#include "pit/error.hpp"

namespace pit {

namespace {

struct SegmentPlace {
    TokenSpan content;
    std::int64_t start;  // index in the row of its first token
    std::int64_t last;   // and of its last, the closing token
    std::int64_t end;    // where its subtree ends in this piece
};

class Writer {
  public:
    Writer(const Plan& plan, std::int64_t first_group, const TokenTable& table, const TokenIds& ids,
           const BatchArrays& out)
        : plan_(plan), first_group_(first_group), table_(table), ids_(ids), out_(out) {}

    void clear_rows(std::int64_t rows) const;
    void clear_trees(std::int64_t trees) const;
    void write_tree(std::int64_t tree) const;
    void write_piece(std::int64_t piece);

  private:
    std::int64_t slot(std::int64_t tree) const {
        const std::int64_t group = plan_.tree_group[tree];
        return (group - first_group_) * plan_.sizes.trees_per_group + (tree - plan_.group_tree[group]);
    }
    void lay_out(std::int64_t piece);
    void write_segment(std::int64_t piece, int segment) const;

    const Plan& plan_;
    const std::int64_t first_group_;
    const TokenTable& table_;
    const TokenIds& ids_;
    const BatchArrays& out_;
    std::array<SegmentPlace, kMaxSegments> place_;  // of the segments of the piece that is being written
};

void Writer::clear_rows(std::int64_t rows) const {
    const std::int64_t length = plan_.sizes.row_length;
    std::fill_n(out_.token, rows * length, ids_.pad);
    std::fill_n(out_.position, rows * length, 0);
    std::fill_n(out_.visible_until, rows * length, 0);
    std::fill_n(out_.loss_weight, rows * length, 0.0f);
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < length; ++i) {
            out_.previous[row * length + i] = static_cast<std::int32_t>(i);
        }
    }
}

void Writer::clear_trees(std::int64_t trees) const {
    std::fill_n(out_.leaf, trees * plan_.topology.leaves() * 2, -1);
    std::fill_n(out_.example_id, trees, -1);
    std::fill_n(out_.source, trees, 0);
}

void Writer::write_tree(std::int64_t tree) const {
    out_.example_id[slot(tree)] = plan_.tree_example[tree];
    out_.source[slot(tree)] = plan_.tree_source[tree];
}

// Finds where each segment of the piece starts and where its subtree ends.
void Writer::lay_out(std::int64_t piece) {
    const Topology& topology = plan_.topology;
    const std::int64_t example = plan_.tree_example[plan_.piece_tree[piece]];
    if (example >= table_.rows()) {
        throw Error("materialise: the plan names example " + std::to_string(example) + ", the token table has " +
                    std::to_string(table_.rows()) + " rows; plan with the lengths() of this table");
    }
    const SegmentMask mask = plan_.piece_segments[piece];
    std::int64_t at = plan_.piece_start[piece];
    for (int s = 0; s < topology.segments(); ++s) {
        if (contains(mask, s)) {
            const TokenSpan content = table_.at(topology.column(s), example);
            place_[s] = {content, at, at + content.size, at + content.size + 1};
            at += content.size + 1;
        }
    }
    const std::int64_t length = at - plan_.piece_start[piece];
    if (length != plan_.piece_length[piece]) {
        throw Error("materialise: example " + std::to_string(example) + " was planned with " +
                    std::to_string(plan_.piece_length[piece]) + " tokens in a row, the token table gives " +
                    std::to_string(length) + "; plan with the lengths() of this table");
    }
    for (int s = topology.segments() - 1; s > 0; --s) {
        if (contains(mask, s)) {
            SegmentPlace& parent = place_[topology.parent(s)];
            parent.end = std::max(parent.end, place_[s].end);
        }
    }
}

void Writer::write_segment(std::int64_t piece, int segment) const {
    const Topology& topology = plan_.topology;
    const SegmentPlace& place = place_[segment];
    const std::int64_t tree = plan_.piece_tree[piece];
    const std::int64_t local_row =
        (plan_.tree_group[tree] - first_group_) * plan_.sizes.rows_per_group + plan_.piece_row[piece];
    const std::int64_t base = local_row * plan_.sizes.row_length;
    const bool root = segment == 0;
    const bool owned = contains(plan_.piece_owned[piece], segment);
    const float weight = owned && topology.loss(segment) ? 1.0f : 0.0f;
    const std::int64_t before = root ? place.start : place_[topology.parent(segment)].last;
    std::int32_t position = root ? 0 : out_.position[base + before] + 1;
    for (std::int64_t i = place.start; i <= place.last; ++i, ++position) {
        const bool first = i == place.start;
        out_.token[base + i] =
            i == place.last ? ids_.closing[topology.kind(segment)] : place.content.data[i - place.start];
        out_.position[base + i] = position;
        out_.visible_until[base + i] = static_cast<std::int32_t>(place.end);
        out_.previous[base + i] = static_cast<std::int32_t>(first ? before : i - 1);
        // Nothing comes before the first token of a tree, so nothing predicts it.
        out_.loss_weight[base + i] = root && first ? 0.0f : weight;
    }
    if (owned && topology.leaf(segment) >= 0) {
        std::int32_t* leaf = out_.leaf + 2 * (slot(tree) * topology.leaves() + topology.leaf(segment));
        leaf[0] = plan_.piece_row[piece];
        leaf[1] = static_cast<std::int32_t>(place.last);
    }
}

void Writer::write_piece(std::int64_t piece) {
    lay_out(piece);
    for (int segment = 0; segment < plan_.topology.segments(); ++segment) {
        if (contains(plan_.piece_segments[piece], segment)) {
            write_segment(piece, segment);
        }
    }
}

}  // namespace

void check_groups(const Plan& plan, std::int64_t first_group, std::int64_t last_group) {
    if (first_group < 0 || last_group < first_group || last_group > plan.groups) {
        throw Error("materialise: groups [" + std::to_string(first_group) + ", " + std::to_string(last_group) +
                    ") are not in the plan's [0, " + std::to_string(plan.groups) + "); give a range of that");
    }
}

void materialise(const Plan& plan, std::int64_t first_group, std::int64_t last_group, const TokenTable& table,
                 const TokenIds& ids, const BatchArrays& out) {
    check_groups(plan, first_group, last_group);
    if (table.columns() < plan.topology.columns()) {
        throw Error("materialise: the token table has " + std::to_string(table.columns()) +
                    " columns, but the topology names column " + std::to_string(plan.topology.columns() - 1) +
                    "; give a table with every column it names");
    }
    const std::int64_t groups = last_group - first_group;
    Writer writer(plan, first_group, table, ids, out);
    writer.clear_rows(groups * plan.sizes.rows_per_group);
    writer.clear_trees(groups * plan.sizes.trees_per_group);
    for (std::int64_t tree = plan.group_tree[first_group]; tree < plan.group_tree[last_group]; ++tree) {
        writer.write_tree(tree);
    }
    for (std::int64_t piece = plan.group_piece[first_group]; piece < plan.group_piece[last_group]; ++piece) {
        writer.write_piece(piece);
    }
}

}  // namespace pit
