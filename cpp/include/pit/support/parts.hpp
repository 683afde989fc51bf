// One call cut into parts that run at the same time.
#pragma once

#include <exception>
#include <thread>
#include <vector>

namespace pit {

// Calls function(part) for every part in [0, parts), part 0 on the calling thread and each other on a thread of its own
// (some 10 us each), and returns when all have ended. What the lowest part that failed threw is thrown again.
template <typename Function>
void run_parts(int parts, const Function& function) {
    std::vector<std::exception_ptr> error(static_cast<std::size_t>(parts));
    const auto run = [&](int part) {
        try {
            function(part);
        } catch (...) {
            error[static_cast<std::size_t>(part)] = std::current_exception();
        }
    };
    {
        // Joins what has started, also where the system refuses a thread and std::thread throws.
        struct Threads {
            ~Threads() {
                for (std::thread& thread : started) {
                    thread.join();
                }
            }
            std::vector<std::thread> started;
        } threads;
        threads.started.reserve(static_cast<std::size_t>(parts));
        for (int part = 1; part < parts; ++part) {
            threads.started.emplace_back(run, part);
        }
        run(0);
    }
    for (const std::exception_ptr& one : error) {
        if (one) {
            std::rethrow_exception(one);
        }
    }
}

}  // namespace pit
