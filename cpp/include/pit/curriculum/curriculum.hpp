// Which example comes next, and where its reference comes from: a fresh permutation of the examples each epoch, and
// reference sources drawn from integer weights that change at given steps.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pit/random/permutation.hpp"

namespace pit {

// Reference sources are numbered as in the Python package: none, worse, better, policy.
constexpr int kSources = 4;

// From `first_step` on, source i is drawn with probability weight[i] / sum(weight).
struct Stage {
    std::int64_t first_step;
    std::array<std::uint32_t, kSources> weight;
};

struct Draw {
    std::int64_t example;
    std::uint8_t source;
};

// Draw k takes the example at place k mod n of the permutation of epoch k div n; its source is a function of
// (seed, k, the weights of the step at which it is drawn). The number of draws is its whole state.
class StagedCurriculum {
  public:
    // examples >= 1; stages start at step 0, in increasing order, each with a positive weight.
    StagedCurriculum(std::uint64_t seed, std::int64_t examples, std::vector<Stage> stages);

    Draw next(std::int64_t step);

    std::int64_t examples() const { return examples_; }
    std::uint64_t draws() const { return draws_; }
    // Moves to the position after `draws` draws; at most kMaxDraws.
    void seek(std::uint64_t draws);
    // A hash of seed, number of examples and stages.
    std::uint64_t fingerprint() const;

    std::string state() const;
    void restore(std::string_view bytes);

    static constexpr std::uint64_t kMaxDraws = std::uint64_t{1} << 62;

  private:
    Permutation permutation_of(std::uint64_t epoch) const;
    void look_ahead();

    static constexpr std::int64_t kAhead = 256;

    std::uint64_t seed_;
    std::int64_t examples_;
    std::vector<Stage> stages_;
    std::uint64_t draws_ = 0;
    std::uint64_t epoch_ = 0;
    Permutation permutation_;
    // Examples of the draws [ahead_first_, ahead_first_ + ahead_count_): permuting a block is far cheaper than
    // permuting its indices one by one.
    std::array<std::int64_t, kAhead> ahead_{};
    std::uint64_t ahead_first_ = 0;
    std::uint64_t ahead_count_ = 0;
};

}  // namespace pit
