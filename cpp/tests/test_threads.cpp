// Several threads on one plan, one table, one planner: the result is that of one thread, and the thread sanitizer
// checks every access.
#include <atomic>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "pit/support/parts.hpp"
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

bool same(const Rows& a, const Rows& b) {
    return a.token == b.token && a.position == b.position && a.visible_until == b.visible_until &&
           a.previous == b.previous && a.loss_weight == b.loss_weight && a.leaf == b.leaf &&
           a.example_id == b.example_id && a.source == b.source;
}

// The first step of a random setting, and its rows as one thread writes them.
struct Case {
    Setting setting;
    Tokens tokens;
    pit::Plan plan;
    Rows alone;

    explicit Case(Dice dice)
        : setting(random_setting(dice)),
          tokens(setting.lengths),
          plan(pit::Planner(setting.lengths, kColumns, gap_topology(), setting.planner).next_step()),
          alone(plan, plan.groups) {
        pit::materialise(plan, 0, plan.groups, tokens.table(), kPad, alone.arrays());
    }
};

void test_parts() {
    for (int parts = 1; parts <= 9; ++parts) {
        std::vector<int> calls(static_cast<std::size_t>(parts), 0);
        pit::run_parts(parts, [&](int part) { ++calls[static_cast<std::size_t>(part)]; });
        CHECK(calls == std::vector<int>(static_cast<std::size_t>(parts), 1));
    }
}

// All parts end before the exception of the lowest one that failed is rethrown, whatever its type.
void test_a_failing_part() {
    std::atomic<int> ended{0};
    std::string found;
    try {
        pit::run_parts(5, [&](int part) {
            ++ended;
            if (part >= 3) {
                throw std::runtime_error("part " + std::to_string(part));
            }
        });
    } catch (const std::runtime_error& error) {
        found = error.what();
    }
    CHECK(found == "part 3");
    CHECK(ended == 5);
}

void test_shared_rows() {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const Case one{Dice(seed)};
        const pit::TokenTable table = one.tokens.table();
        for (const int threads : {2, 3, 5, pit::kMaxThreads}) {
            Rows shared(one.plan, one.plan.groups);
            pit::materialise(one.plan, 0, one.plan.groups, table, kPad, shared.arrays(), threads);
            CHECK(same(one.alone, shared));
        }
    }
}

// Several callers on threads of their own, each of which starts threads.
void test_callers_at_once() {
    const Case one{Dice(3)};
    const pit::TokenTable table = one.tokens.table();
    std::vector<Rows> rows(4, Rows(one.plan, one.plan.groups));
    std::vector<std::thread> callers;
    for (Rows& mine : rows) {
        callers.emplace_back([&] {
            for (int i = 0; i < 20; ++i) {
                pit::materialise(one.plan, 0, one.plan.groups, table, kPad, mine.arrays(), 1 + i % 3);
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    for (const Rows& mine : rows) {
        CHECK(same(one.alone, mine));
    }
}

// A store's batch is verified at its first touch, here by whichever threads come first.
void test_a_stored_table() {
    const Case one{Dice(4)};
    Rows shared(one.plan, one.plan.groups);
    for (int i = 0; i < 20; ++i) {
        const pit::TokenTable table({one.tokens.batch()}, {"x", "y", "z"}, 1000);
        shared = Rows(one.plan, one.plan.groups);
        pit::materialise(one.plan, 0, one.plan.groups, table, kPad, shared.arrays(), 4);
        CHECK(same(one.alone, shared));
    }
    pit::TokenBatch damaged = one.tokens.batch();
    damaged.crc32 ^= 1u;
    const pit::TokenTable table({damaged}, {"x", "y", "z"}, 1000);
    CHECK_THROWS(pit::materialise(one.plan, 0, one.plan.groups, table, kPad, shared.arrays(), 4),
                 "damaged: checksum 0x");
}

// Two threads that draw from one planner get each of its steps once, while a third reads its state.
void test_one_planner() {
    Dice dice(8);
    const Setting setting = random_setting(dice);
    pit::Planner shared(setting.lengths, kColumns, gap_topology(), setting.planner);
    pit::Planner alone(setting.lengths, kColumns, gap_topology(), setting.planner);
    constexpr int kSteps = 50;
    std::vector<std::vector<pit::Plan>> plans(2);
    std::vector<std::thread> drawers;
    for (std::vector<pit::Plan>& mine : plans) {
        drawers.emplace_back([&] {
            for (int i = 0; i < kSteps; ++i) {
                mine.push_back(shared.next_step());
            }
        });
    }
    drawers.emplace_back([&] {
        for (int i = 0; i < kSteps; ++i) {
            pit::Planner other(setting.lengths, kColumns, gap_topology(), setting.planner);
            other.restore(shared.state());
            CHECK(other.step() <= shared.step() && other.draws() <= shared.draws());
        }
    });
    for (std::thread& drawer : drawers) {
        drawer.join();
    }
    std::map<std::int64_t, const pit::Plan*> by_step;
    for (const std::vector<pit::Plan>& mine : plans) {
        for (const pit::Plan& plan : mine) {
            by_step[plan.step] = &plan;
        }
    }
    CHECK(by_step.size() == 2 * kSteps);
    for (std::int64_t step = 0; step < 2 * kSteps; ++step) {
        const pit::Plan expected = alone.next_step();
        CHECK(by_step[step]->tree_example == expected.tree_example && by_step[step]->piece_row == expected.piece_row);
    }
}

void test_refusals() {
    const pit::Topology topology({-1, 0}, {0, 1}, {{-2}, {-4}}, {false, true}, {-1, 0});
    const pit::Plan plan = pit::plan_trees({1, 1, 0, 1, 2, 2, 1, 1, 0}, kColumns, topology, {6, 3, 9});
    const Tokens other({1, 1, 0, 1, 2, 2, 1, 2, 0});
    Rows rows(plan, plan.groups);
    for (const int threads : {1, 2, 3}) {
        CHECK_THROWS(pit::materialise(plan, 0, plan.groups, other.table(), kPad, rows.arrays(), threads),
                     "materialise: example 2 was planned with 4 tokens in a row, but the token table gives 5");
    }
    CHECK_THROWS(pit::materialise(plan, 0, plan.groups, other.table(), kPad, rows.arrays(), 0),
                 "materialise: threads=0 is outside [1, 256]");
}

}  // namespace

int main() {
    test_parts();
    test_a_failing_part();
    test_shared_rows();
    test_callers_at_once();
    test_a_stored_table();
    test_one_planner();
    test_refusals();
    return pit_test::failures() != 0;
}
