// Damaged states of the planner, the staged curriculum and the feedback table.
#include <string>
#include <vector>

#include "fuzz.hpp"
#include "pit/curriculum/feedback.hpp"
#include "pit/packing/planner.hpp"
#include "pit/support/error.hpp"
#include "pit/support/state.hpp"

namespace {

using pit_fuzz::Dice;
using pit_fuzz::Tally;

constexpr std::size_t kHeader = 16;    // magic and version
constexpr std::size_t kSettings = 40;  // and three hashes

// Gives damaged bytes a valid checksum.
std::string sealed(std::string bytes) {
    const std::uint64_t checksum = pit::Fingerprint().bytes(bytes).value();
    bytes.resize(bytes.size() + 8);
    pit_fuzz::write_number(bytes, bytes.size() - 8, checksum);
    return bytes;
}

// Whether bytes have the magic, the version and a checksum as `valid` has.
bool passes_header(const std::string& bytes, const std::string& valid) {
    const auto version = static_cast<std::uint32_t>(static_cast<unsigned char>(valid[8]));
    try {
        pit::StateReader(bytes, valid.substr(0, 8), version, "fuzz");
        return true;
    } catch (const pit::Error&) {
        return false;
    }
}

// Damages a valid state: one in five keeps its invalid checksum; half of the others are damaged only after the hashes
// of the settings.
std::string damaged(const std::string& state, Dice& dice) {
    std::string body = state.substr(0, state.size() - 8);
    const std::size_t first = dice.roll(0, 1) ? kSettings : kHeader;
    for (std::int64_t i = dice.roll(1, 3); i > 0; --i) {
        pit_fuzz::damage(body, first, dice);
    }
    return dice.roll(0, 4) ? sealed(body) : body + state.substr(state.size() - 8);
}

// Restores damaged bytes. If they are accepted, the next state must be accepted too, and draws must continue.
template <typename Owner, typename GoOn>
void fuzz(Owner& owner, const std::string& state, std::int64_t inputs, Dice& dice, Tally& tally, const GoOn& go_on) {
    for (std::int64_t i = 0; i < inputs; ++i) {
        const std::string bytes = damaged(state, dice);
        ++tally.inputs;
        tally.passed_header += passes_header(bytes, state);
        try {
            owner.restore(bytes);
            ++tally.accepted;
            go_on(owner);
        } catch (const pit::Error&) {
            continue;
        }
    }
}

pit::Planner make_planner() {
    const pit::Topology topology({-1, 0, 1, 1}, {0, 1, 1, 2}, {{-2}, {-3}, {-4}, {-4}}, {false, false, true, true},
                                 {-1, -1, 0, 1});
    return pit::Planner({3, 4, 5, 9, 9, 9, 0, 1, 0, 7, 2, 2, 1, 1, 1}, 3, topology,
                        {{32, 4, 3}, 2, 4, 7, 1, 2, {{0, {0, 1, 1, 0}}, {2, {1, 0, 0, 5}}}});
}

void fuzz_planner(std::int64_t inputs, Tally& tally) {
    Dice dice(1);
    pit::Planner planner = make_planner();
    planner.next_step();
    const std::string state = planner.state();
    fuzz(planner, state, inputs, dice, tally, [](pit::Planner& accepted) {
        pit::Planner again = make_planner();
        again.restore(accepted.state());
        again.next_step();
    });
}

void fuzz_staged(std::int64_t inputs, Tally& tally) {
    Dice dice(2);
    pit::StagedCurriculum curriculum(5, 12, {{0, {0, 1, 1, 0}}});
    curriculum.next(0);
    const std::string state = curriculum.state();
    fuzz(curriculum, state, inputs, dice, tally, [](pit::StagedCurriculum& accepted) { accepted.next(0); });
}

void fuzz_feedback(std::int64_t inputs, Tally& tally) {
    Dice dice(3);
    const pit::FeedbackSettings settings{9, 6, {1, 2}, 2, 8, 1, 2};
    const std::vector<std::uint32_t> ones(12, 1);
    pit::FeedbackCurriculum curriculum(settings);
    for (std::int64_t step = 0; step < 3; ++step) {
        curriculum.advance();
        curriculum.weights().assign(ones.data());
        const pit::Draw draw = curriculum.draw(1).front();
        curriculum.update(step, {{draw.example, draw.source, 0, 0.5f}});
    }
    const std::string state = curriculum.state(3, {0.25});
    fuzz(curriculum, state, inputs, dice, tally, [&](pit::FeedbackCurriculum& accepted) {
        pit::FeedbackCurriculum again(settings);
        again.restore(accepted.state(accepted.step(), {}));
        again.advance();
        again.weights().assign(ones.data());
        again.draw(3);
    });
}

}  // namespace

int main(int count, char** words) {
    const std::int64_t inputs = pit_fuzz::inputs(count, words);
    Tally tally;
    fuzz_planner(inputs / 3, tally);
    fuzz_staged(inputs / 3, tally);
    fuzz_feedback(inputs - inputs / 3 * 2, tally);
    return tally.report("states");
}
