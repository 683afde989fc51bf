// A curriculum over (example, reference source) entries that learns from the gaps measured in training: statistics of
// each entry, weights that a strategy computes from them, and weighted draws. Step s draws after the feedback of every
// step <= s - lag was applied, and of no later step. Draws depend on the seed, the settings and that feedback alone,
// however far ahead of training they are made.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "pit/curriculum/curriculum.hpp"
#include "pit/curriculum/weight_table.hpp"

namespace pit {

struct FeedbackSettings {
    std::uint64_t seed;
    std::int64_t examples;
    std::vector<std::uint8_t> sources;  // the reference sources that can be drawn, increasing
    std::int64_t lag;                   // >= 1
    std::uint32_t memory;               // trials of an entry at which its counts are halved, in [2, 65535]
    std::uint64_t config_hash;          // of all other settings that decide the draws; checked by restore
    std::uint64_t data_hash;            // of the examples
};

// Statistics of an entry. `gap` is the mean over the last step that drew it; 0 before any feedback.
struct EntryStats {
    std::uint16_t trials;
    std::uint16_t wins;  // trials whose gap was > 0
    float gap;
};

// The gap of one sample of one draw.
struct Outcome {
    std::int64_t example;
    std::uint8_t source;
    std::int32_t sample;
    float gap;
};

// Not safe for concurrent calls. Steps follow one another: advance(0), draw, advance(1), draw, ...; update(s) once for
// each step s, in order, after it was drawn and before step s + lag is.
class FeedbackCurriculum {
  public:
    // 12.6 bytes an entry. Weights are 0 until assigned.
    explicit FeedbackCurriculum(FeedbackSettings settings);

    // Entry of (example, source): example * sources.size() + rank of the source.
    std::int64_t entries() const { return static_cast<std::int64_t>(stats_.size()); }
    std::int64_t examples() const { return settings_.examples; }
    const std::vector<std::uint8_t>& sources() const { return settings_.sources; }
    const std::vector<EntryStats>& stats() const { return stats_; }
    WeightTable& weights() { return weights_; }
    // The step that is drawn next, and the one whose feedback is expected next.
    std::int64_t step() const { return step_; }
    std::int64_t update_step() const { return applied_ + static_cast<std::int64_t>(waiting_.size()); }

    // Accepts the outcomes of a drawn step, in any order. Error, and no change, for a step that was skipped, sent twice
    // or not drawn yet, an example or source that cannot be drawn, a gap that is not finite, or a repeated sample.
    void update(std::int64_t step, std::vector<Outcome> outcomes);

    // Applies the feedback that step() may see, in (step, example, source, sample) order, and returns the entries that
    // changed, increasing. Error, and no change, if some of that feedback has not arrived. Idempotent until step() is
    // drawn.
    std::vector<std::int64_t> advance();

    // Draws for step() with the current weights, with replacement, and increments step(). O(count log entries).
    // Error, and no change, before advance() or if all weights are 0.
    std::vector<Draw> draw(std::int64_t count);

    // The state in which only the steps < `step` were drawn, without later draws and the feedback they saw: what a
    // checkpoint at `step` needs while later steps are prefetched. `notes` are numbers of the strategy. Error for a
    // step after step(), or more than lag before it.
    std::string state(std::int64_t step, const std::vector<double>& notes) const;
    // Restores a state and returns its notes; weights are 0 until assigned. Error, and no change, for damaged bytes
    // and for a state of other settings or other data.
    std::vector<double> restore(std::string_view bytes);

  private:
    // One applied update, and the statistics that it overwrote.
    struct Applied {
        std::int64_t at;  // the step that first saw it
        std::vector<Outcome> outcomes;
        std::vector<std::int64_t> entries;
        std::vector<EntryStats> before;
    };

    std::int64_t entry_of(const Outcome& outcome) const;
    void check(std::vector<Outcome>& outcomes) const;
    void apply(Applied& update);
    void forget();
    std::uint64_t fingerprint() const;

    FeedbackSettings settings_;
    std::array<std::int64_t, kSources> rank_;  // of each source in settings_.sources, -1 if absent
    std::vector<EntryStats> stats_;
    WeightTable weights_;
    std::int64_t step_ = 0;
    bool advanced_ = false;
    std::uint64_t draws_ = 0;
    std::deque<std::uint64_t> draws_before_;  // at the beginning of each recent step, step_ - 1 at the back
    std::int64_t applied_ = 0;                // number of applied updates
    std::deque<Applied> log_;                 // the last of them
    std::deque<std::vector<Outcome>> waiting_;
};

}  // namespace pit
