// Shared helpers of the bindings: arrays, which are checked and never converted; views; states as bytes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pit/curriculum/curriculum.hpp"
#include "pit/support/error.hpp"

namespace pit_python {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

constexpr py::ssize_t kAny = -1;

inline std::string describe(const Shape& shape) {
    std::string text = "(";
    for (const py::ssize_t size : shape) {
        text += (size == kAny ? std::string("any") : std::to_string(size)) + ", ";
    }
    return text + ")";
}

template <typename T>
std::string dtype_name() {
    return py::cast<std::string>(py::str(py::dtype::of<T>()));
}

// The argument as a C-contiguous array of exactly T; Error otherwise, because a silent copy would hide a mistake.
template <typename T>
py::array_t<T> require_array(const py::handle& value, const std::string& name) {
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(value)) {
        std::string found = "a " + py::cast<std::string>(py::type::handle_of(value).attr("__name__"));
        if (py::isinstance<py::array>(value)) {
            found = "an array of " + py::cast<std::string>(py::str(value.attr("dtype"))) +
                    (py::cast<bool>(value.attr("flags").attr("c_contiguous")) ? "" : " that is not C-contiguous");
        }
        throw pit::Error(name + " is " + found + "; give a C-contiguous NumPy array of " + dtype_name<T>());
    }
    return py::reinterpret_borrow<py::array_t<T>>(value);
}

template <typename T>
py::array_t<T> require_shape(const py::handle& value, const std::string& name, const Shape& shape) {
    py::array_t<T> array = require_array<T>(value, name);
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    for (std::size_t i = 0; same && i < shape.size(); ++i) {
        same = shape[i] == kAny || array.shape(static_cast<py::ssize_t>(i)) == shape[i];
    }
    if (!same) {
        throw pit::Error(name + " has shape " + describe(Shape(array.shape(), array.shape() + array.ndim())) +
                         "; give shape " + describe(shape));
    }
    return array;
}

template <typename T>
T* require_output(const py::object& batch, const char* field, const Shape& shape) {
    py::array_t<T> array = require_shape<T>(batch.attr(field), std::string("out.") + field, shape);
    if (!array.writeable()) {
        throw pit::Error(std::string("out.") + field + " is read-only; give a writable array");
    }
    return array.mutable_data();
}

// A read-only view of a vector that `owner` keeps alive.
template <typename T>
py::array_t<T> view(const std::vector<T>& values, const py::object& owner) {
    py::array_t<T> out({static_cast<py::ssize_t>(values.size())}, {static_cast<py::ssize_t>(sizeof(T))}, values.data(),
                       owner);
    out.attr("setflags")(py::arg("write") = false);
    return out;
}

using PythonStages = std::vector<std::pair<std::int64_t, std::array<std::uint32_t, pit::kSources>>>;

inline std::vector<pit::Stage> to_stages(const PythonStages& stages) {
    std::vector<pit::Stage> out;
    for (const auto& [first_step, weight] : stages) {
        out.push_back({first_step, weight});
    }
    return out;
}

// Python does not move the memory of `bytes` while it is held, so it may be read without the GIL.
template <typename T>
void restore(T& self, const py::bytes& bytes) {
    const std::string_view text = bytes;
    const py::gil_scoped_release release;
    self.restore(text);
}

template <typename T>
py::bytes state(const T& self) {
    std::string text;
    {
        const py::gil_scoped_release release;
        text = self.state();
    }
    return py::bytes(text);
}

// Each part adds its classes and functions to the module.
void bind_random(py::module_& m);
void bind_curriculum(py::module_& m);
void bind_plan(py::module_& m);
void bind_tokens(py::module_& m);

}  // namespace pit_python
