// Distance between two answers: the fewest insertions, deletions and replacements of a token that turn one into the
// other.
#pragma once

#include <cstdint>

#include "pit/store/token_table.hpp"

namespace pit {

// Levenshtein distance in O(ceil(shorter / 64) * longer), by the bit-parallel algorithm of Myers ("A Fast Bit-Vector
// Algorithm for Approximate String Matching", JACM 1999) in Hyyro's form for whole strings.
std::int64_t edit_distance(TokenSpan a, TokenSpan b);

}  // namespace pit
