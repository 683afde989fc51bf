// The weight table against running sums, feedback against its rules over random runs, and damaged states.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "check.hpp"
#include "dice.hpp"
#include "pit/curriculum/edit_distance.hpp"
#include "pit/curriculum/feedback.hpp"
#include "pit/curriculum/weight_table.hpp"

namespace {

using pit_test::Dice;

// The entry at a place, found by adding up weights.
std::int64_t find_slowly(const std::vector<std::uint32_t>& weights, std::uint64_t place) {
    std::size_t entry = 0;
    while (place >= weights[entry]) {
        place -= weights[entry];
        ++entry;
    }
    return static_cast<std::int64_t>(entry);
}

void check_table(const pit::WeightTable& table, const std::vector<std::uint32_t>& weights, Dice& dice) {
    const std::uint64_t total = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0});
    CHECK(table.total() == total);
    if (total == 0) {
        return;
    }
    std::vector<std::uint64_t> places{0, total - 1};
    for (int i = 0; i < 70; ++i) {
        places.push_back(static_cast<std::uint64_t>(dice.roll(0, static_cast<std::int64_t>(total - 1))));
    }
    std::vector<std::int64_t> found(places.size());
    table.find(places.data(), static_cast<std::int64_t>(places.size()), found.data());
    for (std::size_t i = 0; i < places.size(); ++i) {
        CHECK(found[i] == find_slowly(weights, places[i]));
    }
}

void test_weight_table() {
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        Dice dice(seed);
        const std::int64_t sizes[] = {1, 15, 16, 17, 127, 128, 129, 1023, 1024, 1025, dice.roll(2, 3000)};
        const std::int64_t size = sizes[seed % 11];
        std::vector<std::uint32_t> weights(static_cast<std::size_t>(size));
        for (std::uint32_t& weight : weights) {
            weight = static_cast<std::uint32_t>(dice.roll(0, 3) ? dice.roll(0, 9) : dice.roll(0, UINT32_MAX));
        }
        pit::WeightTable table(size);
        CHECK(table.total() == 0);
        table.assign(weights.data());
        check_table(table, weights, dice);
        std::vector<std::int64_t> entries;
        std::vector<std::uint32_t> changed;
        for (int i = 0; i < 40; ++i) {
            entries.push_back(dice.roll(0, size - 1));
            changed.push_back(static_cast<std::uint32_t>(dice.roll(0, UINT32_MAX)));
            weights[static_cast<std::size_t>(entries.back())] = changed.back();
        }
        table.set(entries.data(), changed.data(), 40);
        check_table(table, weights, dice);
    }
    pit::WeightTable table(3);
    const std::int64_t outside[] = {0, 3};
    const std::uint32_t ones[] = {1, 1};
    CHECK_THROWS(table.set(outside, ones, 2), "entry=3 is outside [0, 3)");
    CHECK(table.total() == 0 && table.weight(0) == 0);
    const std::uint64_t place = 0;
    std::int64_t found = 0;
    CHECK_THROWS(table.find(&place, 1, &found), "place=0 is not below the total weight 0");
    CHECK_THROWS(pit::WeightTable(0), "size=0 is outside [1, ");
}

pit::FeedbackSettings settings(Dice& dice) {
    std::vector<std::uint8_t> sources;
    for (std::uint8_t source = 0; source < pit::kSources; ++source) {
        if (source == 1 || dice.roll(0, 1)) {
            sources.push_back(source);
        }
    }
    return {static_cast<std::uint64_t>(dice.roll(0, INT64_MAX - 1)),
            dice.roll(1, 40),
            sources,
            dice.roll(1, 4),
            static_cast<std::uint32_t>(dice.roll(2, 9)),
            1,
            2};
}

void draw_step(pit::FeedbackCurriculum& curriculum, Dice& dice, bool answer) {
    curriculum.advance();
    const std::vector<std::uint32_t> ones(static_cast<std::size_t>(curriculum.entries()), 1);
    curriculum.weights().assign(ones.data());
    std::vector<pit::Outcome> outcomes;
    for (const pit::Draw& draw : curriculum.draw(dice.roll(0, 5))) {
        const std::int32_t sample = static_cast<std::int32_t>(outcomes.size());
        outcomes.push_back({draw.example, draw.source, sample, static_cast<float>(dice.roll(-3, 3))});
    }
    if (answer) {
        curriculum.update(curriculum.update_step(), outcomes);
    }
}

// A restored table continues like the saved one, whatever was drawn ahead.
void test_states() {
    for (std::uint64_t seed = 0; seed < 100; ++seed) {
        Dice dice(seed);
        const pit::FeedbackSettings setting = settings(dice);
        pit::FeedbackCurriculum curriculum(setting);
        for (int step = 0; step < 5; ++step) {
            draw_step(curriculum, dice, true);
        }
        const std::string state = curriculum.state(5, {0.5});
        pit::FeedbackCurriculum resumed(setting);
        CHECK(resumed.restore(state) == std::vector<double>{0.5});
        CHECK(resumed.state(5, {0.5}) == state);
        Dice same = dice;
        for (std::int64_t ahead = 1; ahead < setting.lag; ++ahead) {
            draw_step(curriculum, dice, false);
            draw_step(resumed, same, false);
            CHECK(curriculum.state(5, {0.5}) == state);
            CHECK(curriculum.state(5 + ahead, {}) == resumed.state(5 + ahead, {}));
        }
    }
}

void test_damaged_states() {
    Dice dice(5);
    const pit::FeedbackSettings setting = settings(dice);
    pit::FeedbackCurriculum curriculum(setting);
    draw_step(curriculum, dice, true);
    draw_step(curriculum, dice, true);
    const std::string state = curriculum.state(2, {1.0});
    for (std::size_t place = 0; place < state.size(); ++place) {
        std::string damaged = state;
        damaged[place] = static_cast<char>(damaged[place] ^ (1 << (place % 8)));
        CHECK_THROWS(curriculum.restore(damaged), "curriculum: the ");
        CHECK_THROWS(curriculum.restore(state.substr(0, place)), "curriculum: the ");
    }
    CHECK(curriculum.state(2, {1.0}) == state);
}

std::int64_t distance_slowly(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
    std::vector<std::int64_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::int64_t diagonal = row[0];
        row[0] = static_cast<std::int64_t>(i);
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::int64_t best = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row.back();
}

void test_edit_distance() {
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
        Dice dice(seed);
        std::vector<std::int32_t> text[2];
        for (std::vector<std::int32_t>& tokens : text) {
            const std::int64_t lengths[] = {0, 1, 63, 64, 65, 128, 129, dice.roll(0, 200)};
            tokens.resize(static_cast<std::size_t>(lengths[dice.roll(0, 7)]));
            for (std::int32_t& token : tokens) {
                token = static_cast<std::int32_t>(dice.roll(-2, 2));
            }
        }
        const auto span = [](const std::vector<std::int32_t>& tokens) {
            return pit::TokenSpan{tokens.data(), static_cast<std::int64_t>(tokens.size())};
        };
        CHECK(pit::edit_distance(span(text[0]), span(text[1])) == distance_slowly(text[0], text[1]));
    }
}

}  // namespace

int main() {
    test_weight_table();
    test_states();
    test_damaged_states();
    test_edit_distance();
    return pit_test::failures() != 0;
}
