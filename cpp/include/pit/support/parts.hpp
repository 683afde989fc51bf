// Runs the parts of a call at the same time.
#pragma once

#include <exception>
#include <thread>
#include <vector>

namespace pit {

// Calls function(part) for every part in [0, parts), part 0 on the calling thread and every other part on a thread of
// its own (about 10 us each), and returns when all have ended. Rethrows the exception of the lowest part that failed.
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
        // Joins the started threads, also if the system refuses one and std::thread throws.
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
