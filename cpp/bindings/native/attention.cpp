// The attention of the core as calls of XLA's foreign function interface: the extension module pit_kernels._native.
#include "pit/attention/attention.hpp"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace py = pybind11;
using pit::attention::Element;
using pit::attention::Executor;
using pit::attention::Inputs;

namespace {

// A call's tasks. Threads of the pool that come late find nothing left, so they hold this and nothing of the call.
struct Tasks {
    Tasks(std::int64_t how_many, std::function<void(std::int64_t)> one) : count(how_many), task(std::move(one)) {}

    const std::int64_t count;
    const std::function<void(std::int64_t)> task;
    std::atomic<std::int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    std::int64_t done = 0;
    std::exception_ptr error;

    void work() {
        for (std::int64_t n = next++; n < count; n = next++) {
            std::exception_ptr raised;
            try {
                task(n);
            } catch (...) {
                raised = std::current_exception();
            }
            const std::lock_guard<std::mutex> lock(mutex);
            error = raised ? raised : error;
            if (++done == count) {
                all_done.notify_all();
            }
        }
    }
};

// Tasks on XLA's pool and on the calling thread, which works too: nothing waits for a pool that is busy.
Executor on(ffi::ThreadPool pool) {
    return [pool](std::int64_t count, const std::function<void(std::int64_t)>& task) mutable {
        const auto tasks = std::make_shared<Tasks>(count, task);
        for (std::int64_t n = 1; n < std::min(count, pool.num_threads()); ++n) {
            pool.Schedule([tasks] { tasks->work(); });
        }
        tasks->work();
        std::unique_lock<std::mutex> lock(tasks->mutex);
        tasks->all_done.wait(lock, [&] { return tasks->done == tasks->count; });
        if (tasks->error) {
            std::rethrow_exception(tasks->error);
        }
    };
}

Element element_of(ffi::AnyBuffer x) {
    return x.element_type() == ffi::DataType::BF16 ? Element::kBfloat16 : Element::kFloat32;
}

Inputs inputs_of(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer visible_until,
                 ffi::AnyBuffer position, float scale, float soft_cap, std::int64_t window) {
    const auto of_q = q.dimensions();
    return {{of_q[0], of_q[1], of_q[2], k.dimensions()[2], of_q[3]},
            {scale, soft_cap, window},
            element_of(q),
            q.untyped_data(),
            k.untyped_data(),
            v.untyped_data(),
            visible_until.typed_data<std::int32_t>(),
            position.typed_data<std::int32_t>()};
}

template <typename Function>
ffi::Error checked(const Function& function) {
    try {
        function();
        return ffi::Error::Success();
    } catch (const std::exception& error) {
        return ffi::Error::Internal(std::string("attention on CPUs: ") + error.what());
    }
}

// As many parameters as the call has arrays and settings.
ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                   ffi::AnyBuffer visible_until, ffi::AnyBuffer position, ffi::Result<ffi::AnyBuffer> out,
                   ffi::Result<ffi::AnyBuffer> lse, float scale, float soft_cap, std::int64_t window) {
    return checked([&] {
        pit::attention::forward(inputs_of(q, k, v, visible_until, position, scale, soft_cap, window), on(pool),
                                out->untyped_data(), lse->typed_data<float>());
    });
}

ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                    ffi::AnyBuffer visible_until, ffi::AnyBuffer position, ffi::AnyBuffer lse, ffi::AnyBuffer delta,
                    ffi::AnyBuffer d_out, ffi::Result<ffi::AnyBuffer> d_q, ffi::Result<ffi::AnyBuffer> d_k,
                    ffi::Result<ffi::AnyBuffer> d_v, float scale, float soft_cap, std::int64_t window) {
    return checked([&] {
        pit::attention::backward(inputs_of(q, k, v, visible_until, position, scale, soft_cap, window),
                                 lse.typed_data<float>(), delta.typed_data<float>(), d_out.untyped_data(), on(pool),
                                 d_q->untyped_data(), d_k->untyped_data(), d_v->untyped_data());
    });
}

// `first` has no element where every query sees all entries.
ffi::Error cached(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer start,
                  ffi::AnyBuffer length, ffi::AnyBuffer first, ffi::Result<ffi::AnyBuffer> weighted,
                  ffi::Result<ffi::AnyBuffer> peak, ffi::Result<ffi::AnyBuffer> total, float scale, float soft_cap) {
    return checked([&] {
        const auto of_q = q.dimensions();
        pit::attention::cached({{of_q[0], of_q[1], of_q[2], k.dimensions()[2], of_q[3]},
                                {scale, soft_cap, 0},
                                element_of(q),
                                q.untyped_data(),
                                k.untyped_data(),
                                v.untyped_data(),
                                start.typed_data<std::int32_t>(),
                                length.typed_data<std::int32_t>(),
                                first.element_count() == 0 ? nullptr : first.typed_data<std::int32_t>()},
                               on(pool), weighted->typed_data<float>(), peak->typed_data<float>(),
                               total->typed_data<float>());
    });
}

XLA_FFI_DEFINE_HANDLER(kForward, forward,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("scale")
                           .Attr<float>("soft_cap")
                           .Attr<std::int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(kBackward, backward,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("scale")
                           .Attr<float>("soft_cap")
                           .Attr<std::int64_t>("window"));

XLA_FFI_DEFINE_HANDLER(kCached, cached,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("scale")
                           .Attr<float>("soft_cap"));

py::capsule capsule(XLA_FFI_Handler* handler) {
    return py::capsule(reinterpret_cast<void*>(handler));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Attention on CPUs in C++, as handlers of XLA's foreign function interface.";
    m.def("forward", [] { return capsule(kForward); });
    m.def("backward", [] { return capsule(kBackward); });
    m.def("cached", [] { return capsule(kCached); });
    m.def("instructions", &pit::attention::instructions, "The instructions that the kernels of this machine use.");
}
