#include "pit/curriculum/feedback.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "pit/random/philox.hpp"
#include "pit/support/error.hpp"
#include "pit/support/state.hpp"

namespace pit {

namespace {

constexpr std::string_view kMagic = "PITFEED1";
constexpr std::uint32_t kVersion = 1;
constexpr std::int64_t kMaxLag = 1 << 20;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;

auto order(const Outcome& outcome) {
    return std::make_tuple(outcome.example, outcome.source, outcome.sample);
}

std::string name_of(const Outcome& outcome) {
    return "example " + std::to_string(outcome.example) + ", source " + std::to_string(outcome.source) + ", sample " +
           std::to_string(outcome.sample);
}

std::int64_t checked_entries(const FeedbackSettings& settings) {
    require_range("curriculum: examples", settings.examples, 1, WeightTable::kMaxSize / kSources);
    require_range("curriculum: sources", static_cast<long long>(settings.sources.size()), 1, kSources);
    require_range("curriculum: lag", settings.lag, 1, kMaxLag);
    require_range("curriculum: memory", settings.memory, 2, UINT16_MAX);
    return settings.examples * static_cast<std::int64_t>(settings.sources.size());
}

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(std::uint64_t bits) {
    const std::uint32_t low = static_cast<std::uint32_t>(bits);
    float value;
    std::memcpy(&value, &low, sizeof value);
    return value;
}

void write_notes(StateWriter& out, const std::vector<double>& notes) {
    out.number(notes.size());
    for (const double note : notes) {
        std::uint64_t bits;
        std::memcpy(&bits, &note, sizeof bits);
        out.number(bits);
    }
}

std::vector<double> read_notes(StateReader& in) {
    std::vector<double> notes(in.count(8));
    for (double& note : notes) {
        const std::uint64_t bits = in.number();
        std::memcpy(&note, &bits, sizeof note);
    }
    return notes;
}

void write_stats(StateWriter& out, const std::vector<EntryStats>& all) {
    for (const EntryStats& entry : all) {
        out.number(std::uint64_t{entry.trials} | std::uint64_t{entry.wins} << 16 |
                   std::uint64_t{bits_of(entry.gap)} << 32);
    }
}

std::vector<EntryStats> read_stats(StateReader& in, std::size_t entries) {
    std::vector<EntryStats> all;
    all.reserve(entries);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::uint64_t packed = in.number();
        const EntryStats entry{static_cast<std::uint16_t>(packed), static_cast<std::uint16_t>(packed >> 16),
                               float_of(packed >> 32)};
        if (entry.wins > entry.trials || !std::isfinite(entry.gap)) {
            throw Error("curriculum: the state holds " + std::to_string(entry.wins) + " wins in " +
                        std::to_string(entry.trials) + " trials and gap " + std::to_string(entry.gap) + " for entry " +
                        std::to_string(i) + "; restore from another checkpoint");
        }
        all.push_back(entry);
    }
    return all;
}

void write_outcomes(StateWriter& out, const std::vector<Outcome>& outcomes) {
    out.number(outcomes.size());
    for (const Outcome& outcome : outcomes) {
        out.number(static_cast<std::uint64_t>(outcome.example));
        out.byte(outcome.source);
        out.number(static_cast<std::uint64_t>(std::uint32_t(outcome.sample)) | std::uint64_t{bits_of(outcome.gap)}
                                                                                   << 32);
    }
}

std::vector<Outcome> read_outcomes(StateReader& in) {
    std::vector<Outcome> outcomes(in.count(17));
    for (Outcome& outcome : outcomes) {
        outcome.example = static_cast<std::int64_t>(in.number());
        outcome.source = in.byte();
        const std::uint64_t packed = in.number();
        outcome.sample = static_cast<std::int32_t>(static_cast<std::uint32_t>(packed));
        outcome.gap = float_of(packed >> 32);
    }
    return outcomes;
}

}  // namespace

FeedbackCurriculum::FeedbackCurriculum(FeedbackSettings settings)
    : settings_(std::move(settings)),
      stats_(static_cast<std::size_t>(checked_entries(settings_)), EntryStats{0, 0, 0.0f}),
      weights_(static_cast<std::int64_t>(stats_.size())) {
    rank_.fill(-1);
    std::int64_t last = -1;
    for (std::size_t i = 0; i < settings_.sources.size(); ++i) {
        require_range("curriculum: a source", settings_.sources[i], last + 1, kSources - 1);
        last = settings_.sources[i];
        rank_[settings_.sources[i]] = static_cast<std::int64_t>(i);
    }
}

std::int64_t FeedbackCurriculum::entry_of(const Outcome& outcome) const {
    return outcome.example * static_cast<std::int64_t>(settings_.sources.size()) + rank_[outcome.source];
}

// Sorts outcomes and raises an Error for one that cannot be.
void FeedbackCurriculum::check(std::vector<Outcome>& outcomes) const {
    std::sort(outcomes.begin(), outcomes.end(), [](const Outcome& a, const Outcome& b) { return order(a) < order(b); });
    const Outcome* previous = nullptr;
    for (const Outcome& outcome : outcomes) {
        if (outcome.example < 0 || outcome.example >= settings_.examples || outcome.source >= kSources ||
            rank_[outcome.source] < 0) {
            throw Error("curriculum: feedback for " + name_of(outcome) + ", which cannot be drawn; there are " +
                        std::to_string(settings_.examples) + " examples and " +
                        std::to_string(settings_.sources.size()) + " sources; send back the draws of draw()");
        }
        if (!std::isfinite(outcome.gap)) {
            throw Error("curriculum: the gap of " + name_of(outcome) + " is " + std::to_string(outcome.gap) +
                        "; a gap must be finite: check the reward model");
        }
        if (previous != nullptr && order(*previous) == order(outcome)) {
            throw Error("curriculum: feedback for " + name_of(outcome) +
                        " is given twice; number the samples of an entry within a step from 0");
        }
        previous = &outcome;
    }
}

void FeedbackCurriculum::update(std::int64_t step, std::vector<Outcome> outcomes) {
    if (step != update_step() || step >= step_) {
        const std::string rule =
            step >= step_ ? "that step has not been drawn" : "send feedback once per step, in order";
        throw Error("curriculum: feedback for step " + std::to_string(step) + ", but step " +
                    std::to_string(update_step()) + " is expected and step " + std::to_string(step_) +
                    " is drawn next; " + rule);
    }
    check(outcomes);
    waiting_.push_back(std::move(outcomes));
}

// Counts the outcomes of each entry; full counts are halved, so old trials lose weight.
void FeedbackCurriculum::apply(Applied& update) {
    const std::vector<Outcome>& outcomes = update.outcomes;
    for (std::size_t first = 0; first < outcomes.size();) {
        const std::int64_t entry = entry_of(outcomes[first]);
        EntryStats& stats = stats_[static_cast<std::size_t>(entry)];
        update.entries.push_back(entry);
        update.before.push_back(stats);
        double sum = 0.0;
        std::size_t next = first;
        for (; next < outcomes.size() && entry_of(outcomes[next]) == entry; ++next) {
            if (stats.trials >= settings_.memory) {
                stats.trials = static_cast<std::uint16_t>(stats.trials / 2);
                stats.wins = static_cast<std::uint16_t>(stats.wins / 2);
            }
            ++stats.trials;
            stats.wins = static_cast<std::uint16_t>(stats.wins + (outcomes[next].gap > 0.0f));
            sum += outcomes[next].gap;
        }
        stats.gap = static_cast<float>(sum / static_cast<double>(next - first));
        first = next;
    }
}

std::vector<std::int64_t> FeedbackCurriculum::advance() {
    const std::int64_t wanted = std::max<std::int64_t>(step_ - settings_.lag + 1, 0);
    if (update_step() < wanted) {
        throw Error("curriculum: step " + std::to_string(step_) + " sees feedback up to step " +
                    std::to_string(wanted - 1) + ", but that of step " + std::to_string(update_step()) +
                    " has not arrived; send it first, or raise lag=" + std::to_string(settings_.lag));
    }
    std::vector<std::int64_t> changed;
    while (applied_ < wanted) {
        log_.push_back({step_, std::move(waiting_.front()), {}, {}});
        waiting_.pop_front();
        apply(log_.back());
        ++applied_;
        changed.insert(changed.end(), log_.back().entries.begin(), log_.back().entries.end());
    }
    advanced_ = true;
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    return changed;
}

// Drops updates from the log that no state can need any more.
void FeedbackCurriculum::forget() {
    while (static_cast<std::int64_t>(draws_before_.size()) > settings_.lag) {
        draws_before_.pop_front();
    }
    const std::int64_t oldest = step_ - static_cast<std::int64_t>(draws_before_.size());
    while (!log_.empty() && log_.front().at < oldest) {
        log_.pop_front();
    }
}

std::vector<Draw> FeedbackCurriculum::draw(std::int64_t count) {
    require_range("curriculum: count", count, 0, kMaxCount);
    if (!advanced_) {
        throw Error("curriculum: step " + std::to_string(step_) +
                    " has not been advanced to; call advance() before draw()");
    }
    if (weights_.total() == 0) {
        throw Error("curriculum: all weights are 0, so nothing can be drawn; give an entry a positive weight");
    }
    std::vector<std::uint64_t> places(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < places.size(); ++i) {
        places[i] =
            uniform_below(settings_.seed, static_cast<std::uint32_t>(Stream::kEntry), draws_ + i, weights_.total());
    }
    std::vector<std::int64_t> found(places.size());
    weights_.find(places.data(), count, found.data());
    const std::int64_t width = static_cast<std::int64_t>(settings_.sources.size());
    std::vector<Draw> draws;
    draws.reserve(found.size());
    for (const std::int64_t entry : found) {
        draws.push_back({entry / width, settings_.sources[static_cast<std::size_t>(entry % width)]});
    }
    draws_before_.push_back(draws_);
    draws_ += static_cast<std::uint64_t>(count);
    ++step_;
    advanced_ = false;
    forget();
    return draws;
}

std::uint64_t FeedbackCurriculum::fingerprint() const {
    Fingerprint out;
    out.number(settings_.seed).number(static_cast<std::uint64_t>(settings_.examples));
    out.number(static_cast<std::uint64_t>(settings_.lag)).number(settings_.memory);
    for (const std::uint8_t source : settings_.sources) {
        out.number(source);
    }
    return out.value();
}

std::string FeedbackCurriculum::state(std::int64_t step, const std::vector<double>& notes) const {
    const std::int64_t oldest = step_ - static_cast<std::int64_t>(draws_before_.size());
    require_range("curriculum: step of the state", step, oldest, step_);
    std::vector<EntryStats> stats = stats_;
    std::vector<const std::vector<Outcome>*> pending;
    for (auto update = log_.rbegin(); update != log_.rend() && update->at >= step; ++update) {
        for (std::size_t i = 0; i < update->entries.size(); ++i) {
            stats[static_cast<std::size_t>(update->entries[i])] = update->before[i];
        }
        pending.insert(pending.begin(), &update->outcomes);
    }
    const std::int64_t applied = applied_ - static_cast<std::int64_t>(pending.size());
    for (const std::vector<Outcome>& outcomes : waiting_) {
        pending.push_back(&outcomes);
    }
    StateWriter out(kMagic, kVersion);
    out.number(settings_.config_hash);
    out.number(settings_.data_hash);
    out.number(fingerprint());
    out.number(static_cast<std::uint64_t>(step));
    out.number(step == step_ ? draws_ : draws_before_[static_cast<std::size_t>(step - oldest)]);
    out.number(static_cast<std::uint64_t>(applied));
    write_notes(out, notes);
    write_stats(out, stats);
    out.number(pending.size());
    for (const std::vector<Outcome>* outcomes : pending) {
        write_outcomes(out, *outcomes);
    }
    return out.finish();
}

std::vector<double> FeedbackCurriculum::restore(std::string_view bytes) {
    StateReader in(bytes, kMagic, kVersion, "curriculum");
    in.expect(settings_.config_hash, "config_hash", "resume with the configuration that wrote the checkpoint");
    in.expect(settings_.data_hash, "data_hash", "resume with the data that the checkpoint was trained on");
    in.expect(fingerprint(), "settings (seed, examples, sources, lag, memory)", "resume with the settings of that run");
    const std::uint64_t step = in.number();
    const std::uint64_t draws = in.number();
    const std::uint64_t applied = in.number();
    std::vector<double> notes = read_notes(in);
    std::vector<EntryStats> stats = read_stats(in, stats_.size());
    const std::uint64_t updates = in.number();
    if (step > StagedCurriculum::kMaxDraws || draws > StagedCurriculum::kMaxDraws || applied > step ||
        updates > step - applied) {
        throw Error("curriculum: the state holds step " + std::to_string(step) + ", " + std::to_string(draws) +
                    " draws and feedback of " + std::to_string(applied) + " and " + std::to_string(updates) +
                    " steps, which no run can reach; restore from another checkpoint");
    }
    std::deque<std::vector<Outcome>> waiting;
    for (std::uint64_t i = 0; i < updates; ++i) {
        waiting.push_back(read_outcomes(in));
        check(waiting.back());
    }
    in.finish();
    WeightTable zeros(entries());
    stats_ = std::move(stats);
    weights_ = std::move(zeros);
    step_ = static_cast<std::int64_t>(step);
    advanced_ = false;
    draws_ = draws;
    draws_before_.clear();
    applied_ = static_cast<std::int64_t>(applied);
    log_.clear();
    waiting_ = std::move(waiting);
    return notes;
}

}  // namespace pit
