// The only exception of the core. The core never prints or aborts: bad input raises an Error whose message gives name,
// value, rule and remedy.
#pragma once

#include <stdexcept>
#include <string>

namespace pit {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Throws unless low <= value <= high.
inline void require_range(const char* name, long long value, long long low, long long high) {
    if (value < low || value > high) {
        throw Error(std::string(name) + "=" + std::to_string(value) + " is outside [" + std::to_string(low) + ", " +
                    std::to_string(high) + "]; give a value in that range");
    }
}

}  // namespace pit
