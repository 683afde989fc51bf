#include "pit/curriculum/curriculum.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "pit/random/philox.hpp"
#include "pit/support/error.hpp"
#include "pit/support/state.hpp"

namespace pit {

namespace {

constexpr std::string_view kMagic = "PITDRAW1";
constexpr std::uint32_t kVersion = 2;  // version 1 used another permutation

std::uint64_t total_weight(const Stage& stage) {
    return std::accumulate(stage.weight.begin(), stage.weight.end(), std::uint64_t{0});
}

void check(const std::vector<Stage>& stages) {
    if (stages.empty() || stages.front().first_step != 0) {
        throw Error("curriculum: the first stage must start at step 0; give stages [(0, weights), ...]");
    }
    for (std::size_t i = 0; i < stages.size(); ++i) {
        const std::string name = "curriculum: stage " + std::to_string(i);
        if (i > 0 && stages[i].first_step <= stages[i - 1].first_step) {
            throw Error(name + " starts at step " + std::to_string(stages[i].first_step) +
                        ", not after the stage before it (step " + std::to_string(stages[i - 1].first_step) +
                        "); give stages in increasing order");
        }
        if (total_weight(stages[i]) == 0) {
            throw Error(name + " has only zero weights, so no source can be drawn; give a source a positive weight");
        }
    }
}

}  // namespace

StagedCurriculum::StagedCurriculum(std::uint64_t seed, std::int64_t examples, std::vector<Stage> stages)
    : seed_(seed), examples_(examples), stages_(std::move(stages)), permutation_(0, 0) {
    require_range("curriculum: examples", examples, 1, Permutation::kMaxSize);
    check(stages_);
    permutation_ = permutation_of(0);
}

Permutation StagedCurriculum::permutation_of(std::uint64_t epoch) const {
    return Permutation(examples_, random_bits(seed_, static_cast<std::uint32_t>(Stream::kEpochKey), epoch));
}

void StagedCurriculum::look_ahead() {
    const std::uint64_t n = static_cast<std::uint64_t>(examples_);
    if (draws_ / n != epoch_) {
        epoch_ = draws_ / n;
        permutation_ = permutation_of(epoch_);
    }
    const auto place = static_cast<std::int64_t>(draws_ % n);
    const std::int64_t count = std::min(kAhead, examples_ - place);
    std::iota(ahead_.begin(), ahead_.begin() + count, place);
    permutation_.apply(ahead_.data(), count, ahead_.data());
    ahead_first_ = draws_;
    ahead_count_ = static_cast<std::uint64_t>(count);
}

Draw StagedCurriculum::next(std::int64_t step) {
    require_range("curriculum: step", step, 0, INT64_MAX);
    if (draws_ < ahead_first_ || draws_ - ahead_first_ >= ahead_count_) {
        look_ahead();
    }
    const auto after = std::upper_bound(stages_.begin(), stages_.end(), step,
                                        [](std::int64_t s, const Stage& stage) { return s < stage.first_step; });
    const Stage& stage = *(after - 1);
    std::uint64_t place =
        uniform_below(seed_, static_cast<std::uint32_t>(Stream::kSource), draws_, total_weight(stage));
    std::uint8_t source = 0;
    while (place >= stage.weight[source]) {
        place -= stage.weight[source];
        ++source;
    }
    const std::int64_t example = ahead_[draws_ - ahead_first_];
    seek(draws_ + 1);
    return {example, source};
}

void StagedCurriculum::seek(std::uint64_t draws) {
    if (draws > kMaxDraws) {
        throw Error("curriculum: draws=" + std::to_string(draws) + " is beyond 2^62; restore from another checkpoint");
    }
    draws_ = draws;
}

std::uint64_t StagedCurriculum::fingerprint() const {
    Fingerprint out;
    out.number(seed_).number(static_cast<std::uint64_t>(examples_)).number(stages_.size());
    for (const Stage& stage : stages_) {
        out.number(static_cast<std::uint64_t>(stage.first_step));
        for (const std::uint32_t weight : stage.weight) {
            out.number(weight);
        }
    }
    return out.value();
}

std::string StagedCurriculum::state() const {
    StateWriter out(kMagic, kVersion);
    out.number(fingerprint());
    out.number(draws_);
    return out.finish();
}

void StagedCurriculum::restore(std::string_view bytes) {
    StateReader in(bytes, kMagic, kVersion, "curriculum");
    in.expect(fingerprint(), "settings (seed, number of examples, stages)", "restore with the settings of that run");
    const std::uint64_t draws = in.number();
    in.finish();
    seek(draws);
}

}  // namespace pit
