// A minimal test library: CHECK counts failures and continues; CHECK_THROWS expects a pit::Error with given words.
#pragma once

#include <cstdio>
#include <string>

#include "pit/support/error.hpp"

namespace pit_test {

inline int& failures() {
    static int count = 0;
    return count;
}

inline void check(bool passed, const char* expression, const char* file, int line) {
    if (!passed) {
        std::fprintf(stderr, "%s:%d: %s does not hold\n", file, line, expression);
        ++failures();
    }
}

template <typename Function>
void check_throws(Function function, const std::string& words, const char* file, int line) {
    std::string found = "no error";
    try {
        function();
    } catch (const pit::Error& error) {
        found = error.what();
    }
    if (found.find(words) == std::string::npos) {
        std::fprintf(stderr, "%s:%d: \"%s\" is not in \"%s\"\n", file, line, words.c_str(), found.c_str());
        ++failures();
    }
}

}  // namespace pit_test

#define CHECK(expression) pit_test::check((expression), #expression, __FILE__, __LINE__)
#define CHECK_THROWS(expression, words) pit_test::check_throws([&] { (void)(expression); }, words, __FILE__, __LINE__)
