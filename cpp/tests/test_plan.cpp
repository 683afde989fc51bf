// Planning and writing over many random settings (under sanitizers), resuming, and damaged states.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "check.hpp"
#include "pit/packing/materialise.hpp"
#include "pit/packing/planner.hpp"
#include "settings.hpp"

namespace {

using pit_test::Dice;
using pit_test::gap_topology;
using pit_test::kColumns;
using pit_test::random_setting;
using pit_test::Rows;
using pit_test::Setting;
using pit_test::Tokens;

constexpr std::int32_t kPad = -1;

bool same(const pit::Plan& a, const pit::Plan& b) {
    return a.tree_example == b.tree_example && a.tree_source == b.tree_source && a.tree_group == b.tree_group &&
           a.piece_tree == b.piece_tree && a.piece_row == b.piece_row && a.piece_start == b.piece_start &&
           a.piece_segments == b.piece_segments && a.piece_owned == b.piece_owned;
}

void check_rows(const pit::Plan& plan, Rows& rows) {
    const std::int64_t length = plan.sizes.row_length;
    std::int64_t alive = 0;
    for (std::size_t i = 0; i < rows.token.size(); ++i) {
        const std::int64_t place = static_cast<std::int64_t>(i) % length;
        const bool is_alive = rows.visible_until[i] > place;
        alive += is_alive;
        CHECK(rows.visible_until[i] <= length);
        CHECK(rows.previous[i] >= 0 && rows.previous[i] <= place);
        CHECK(is_alive || (rows.token[i] == -1 && rows.loss_weight[i] == 0.0f && rows.previous[i] == place));
        const std::size_t before = i - static_cast<std::size_t>(place - rows.previous[i]);
        CHECK(before == i ? rows.position[i] == 0 : rows.position[i] == rows.position[before] + 1);
    }
    CHECK(alive == std::accumulate(plan.piece_length.begin(), plan.piece_length.end(), std::int64_t{0}));
}

void test_random_settings() {
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        Dice dice(seed);
        const Setting setting = random_setting(dice);
        pit::Planner planner(setting.lengths, kColumns, gap_topology(), setting.planner);
        pit::Planner resumed(setting.lengths, kColumns, gap_topology(), setting.planner);
        const Tokens tokens(setting.lengths);
        const pit::TokenTable table = tokens.table();
        for (int step = 0; step < 4; ++step) {
            resumed.restore(planner.state());
            CHECK(resumed.state() == planner.state());
            const pit::Plan plan = planner.next_step();
            CHECK(same(plan, resumed.next_step()));
            Rows rows(plan, plan.groups);
            pit::materialise(plan, 0, plan.groups, table, kPad, rows.arrays());
            check_rows(plan, rows);
            Rows last(plan, 1);
            pit::materialise(plan, plan.groups - 1, plan.groups, table, kPad, last.arrays());
            CHECK(std::equal(last.token.begin(), last.token.end(),
                             rows.token.end() - static_cast<std::ptrdiff_t>(last.token.size())));
        }
    }
}

void test_plan_trees() {
    for (std::uint64_t seed = 0; seed < 100; ++seed) {
        Dice dice(seed);
        const Setting setting = random_setting(dice);
        const pit::Plan plan = pit::plan_trees(setting.lengths, kColumns, gap_topology(), setting.planner.sizes);
        std::vector<std::int64_t> examples = plan.tree_example;
        std::sort(examples.begin(), examples.end());
        CHECK(examples.size() == setting.lengths.size() / kColumns);
        for (std::size_t i = 0; i < examples.size(); ++i) {
            CHECK(examples[i] == static_cast<std::int64_t>(i));
        }
    }
    CHECK(pit::plan_trees({}, kColumns, gap_topology(), {1, 1, 1}).groups == 0);
}

// Every changed bit and every truncation raises an Error and leaves the planner unchanged.
void test_damaged_states() {
    Dice dice(5);
    const Setting setting = random_setting(dice);
    pit::Planner planner(setting.lengths, kColumns, gap_topology(), setting.planner);
    planner.next_step();
    const std::string state = planner.state();
    for (std::size_t place = 0; place < state.size(); ++place) {
        for (int bit = 0; bit < 8; ++bit) {
            std::string damaged = state;
            damaged[place] = static_cast<char>(damaged[place] ^ (1 << bit));
            CHECK_THROWS(planner.restore(damaged), "planner: the ");
        }
        CHECK_THROWS(planner.restore(state.substr(0, place)), "planner: the ");
    }
    CHECK(planner.state() == state);
}

void test_refusals() {
    const pit::Topology topology({-1, 0}, {0, 1}, {{-2}, {-4}}, {false, true}, {-1, 0});
    CHECK_THROWS(pit::plan_trees({3, 3}, 2, topology, {7, 1, 1}),
                 "example 0: the path from the root to segment 1 has 8");
    CHECK_THROWS(pit::plan_trees({INT32_MAX, INT32_MAX}, 2, topology, {7, 1, 1}), "has 4294967296 tokens");
    CHECK_THROWS(pit::plan_trees({3, -1}, 2, topology, {7, 1, 1}), "column 1 has length -1");
    const std::vector<std::int32_t> values{1, 2};
    const std::vector<std::int64_t> offsets{0, 3};
    CHECK_THROWS(pit::TokenTable({{{values.data(), 2, offsets.data(), 1}}}), "offset 1 is 3, outside [0, 2]");
}

}  // namespace

int main() {
    test_random_settings();
    test_plan_trees();
    test_damaged_states();
    test_refusals();
    return pit_test::failures() != 0;
}
