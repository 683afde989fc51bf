#include "pit/packing/planner.hpp"

#include <utility>

#include "pit/support/error.hpp"
#include "pit/support/state.hpp"

namespace pit {

namespace {

constexpr std::string_view kMagic = "PITPLAN1";
constexpr std::uint32_t kVersion = 2;  // 1 walked another permutation
constexpr std::int64_t kMaxGroups = std::int64_t{1} << 24;
constexpr std::int64_t kMaxWindow = std::int64_t{1} << 24;

}  // namespace

Planner::Planner(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology,
                 PlannerSettings settings)
    : settings_(std::move(settings)),
      topology_(topology),
      lengths_(std::move(lengths), columns, topology, settings_.sizes),
      curriculum_(settings_.seed, lengths_.examples(), settings_.stages),
      window_(lengths_.longest_whole()) {
    require_range("groups_per_step", settings_.groups_per_step, 1, kMaxGroups);
    require_range("window", settings_.window, 1, kMaxWindow);
}

PendingTree Planner::pending(std::int64_t example, std::uint8_t source) const {
    return {example, lengths_.total(example), lengths_.rows(example), source};
}

void Planner::refill() {
    while (window_.size() < settings_.window) {
        const Draw draw = curriculum_.next(step_);
        window_.add(pending(draw.example, draw.source));
    }
}

Plan Planner::next_step() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Plan plan(topology_, settings_.sizes);
    plan.step = step_;
    for (std::int64_t group = 0; group < settings_.groups_per_step; ++group) {
        pack_group(lengths_, window_, [this] { refill(); }, plan);
    }
    ++step_;
    return plan;
}

std::int64_t Planner::step() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return step_;
}

std::uint64_t Planner::draws() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return curriculum_.draws();
}

std::uint64_t Planner::fingerprint() const {
    const PackingSizes& sizes = settings_.sizes;
    return Fingerprint()
        .number(curriculum_.fingerprint())
        .number(topology_.fingerprint())
        .number(static_cast<std::uint64_t>(sizes.row_length))
        .number(static_cast<std::uint64_t>(sizes.rows_per_group))
        .number(static_cast<std::uint64_t>(sizes.trees_per_group))
        .number(static_cast<std::uint64_t>(settings_.groups_per_step))
        .number(static_cast<std::uint64_t>(settings_.window))
        .value();
}

std::string Planner::state() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    StateWriter out(kMagic, kVersion);
    out.number(settings_.config_hash);
    out.number(settings_.data_hash);
    out.number(fingerprint());
    out.number(static_cast<std::uint64_t>(step_));
    out.number(curriculum_.draws());
    out.number(static_cast<std::uint64_t>(window_.size()));
    for (const PendingTree& tree : window_.contents()) {
        out.number(static_cast<std::uint64_t>(tree.example));
        out.byte(tree.source);
    }
    return out.finish();
}

void Planner::restore(std::string_view bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    StateReader in(bytes, kMagic, kVersion, "planner");
    in.expect(settings_.config_hash, "config_hash", "resume with the configuration that wrote the checkpoint");
    in.expect(settings_.data_hash, "data_hash", "resume with the data that the checkpoint was trained on");
    in.expect(fingerprint(), "settings (seed, stages, topology, sizes, window)",
              "resume with the settings of that run");
    const std::uint64_t step = in.number();
    const std::uint64_t draws = in.number();
    const std::uint64_t count = in.number();
    if (step > StagedCurriculum::kMaxDraws || draws > StagedCurriculum::kMaxDraws || count > draws ||
        count > static_cast<std::uint64_t>(settings_.window)) {
        throw Error("planner: the state holds step " + std::to_string(step) + ", " + std::to_string(draws) +
                    " draws and a window of " + std::to_string(count) +
                    ", which no run can reach; restore from another checkpoint");
    }
    Window window(lengths_.longest_whole());
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t example = in.number();
        const std::uint8_t source = in.byte();
        if (example >= static_cast<std::uint64_t>(lengths_.examples()) || source >= kSources) {
            throw Error("planner: the state's window holds example " + std::to_string(example) + " with source " +
                        std::to_string(source) + ", but there are " + std::to_string(lengths_.examples()) +
                        " examples and 4 sources; restore from another checkpoint");
        }
        window.add(pending(static_cast<std::int64_t>(example), source));
    }
    in.finish();
    curriculum_.seek(draws);
    window_ = std::move(window);
    step_ = static_cast<std::int64_t>(step);
}

}  // namespace pit
