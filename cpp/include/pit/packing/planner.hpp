// Plans training steps in order: draws trees from the curriculum and packs their lengths. Draw position and look-ahead
// window are its whole state, so a restored planner continues as if it had never stopped.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "pit/curriculum/curriculum.hpp"
#include "pit/packing/packing.hpp"
#include "pit/packing/topology.hpp"

namespace pit {

struct PlannerSettings {
    PackingSizes sizes;
    std::int64_t groups_per_step;
    std::int64_t window;  // look-ahead: trees that wait while a row is filled
    std::uint64_t seed;
    std::uint64_t config_hash;  // of all other settings that decide a step; checked by restore
    std::uint64_t data_hash;    // of the examples
    std::vector<Stage> stages;
};

// Calls are serialised by a mutex, so a planner may be shared by threads.
class Planner {
  public:
    Planner(std::vector<std::int32_t> lengths, std::int64_t columns, const Topology& topology,
            PlannerSettings settings);

    // Returns the plan of step() and increments step(). Trees are drawn with the weights of the step that draws them,
    // which may place them in a later one.
    Plan next_step();

    std::int64_t step() const;
    std::uint64_t draws() const;

    std::string state() const;
    // Error for damaged bytes and for a state of another configuration or other data; the planner is then unchanged.
    void restore(std::string_view bytes);

  private:
    std::uint64_t fingerprint() const;
    void refill();
    PendingTree pending(std::int64_t example, std::uint8_t source) const;

    mutable std::mutex mutex_;
    PlannerSettings settings_;
    Topology topology_;
    TreeLengths lengths_;
    StagedCurriculum curriculum_;
    Window window_;
    std::int64_t step_ = 0;
};

}  // namespace pit
