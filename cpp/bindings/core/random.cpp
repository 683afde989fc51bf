// Random numbers and permutations.
#include "convert.hpp"
#include "pit/random/permutation.hpp"
#include "pit/random/philox.hpp"

namespace pit_python {

namespace {

using MapIndices = void (pit::Permutation::*)(const std::int64_t*, std::int64_t, std::int64_t*) const;

template <MapIndices function>
py::array_t<std::int64_t> map_indices(const pit::Permutation& permutation, const py::object& index) {
    const py::array_t<std::int64_t> in = require_array<std::int64_t>(index, "index");
    py::array_t<std::int64_t> out(Shape(in.shape(), in.shape() + in.ndim()));
    const std::int64_t* from = in.data();
    std::int64_t* to = out.mutable_data();
    const py::ssize_t size = in.size();
    const py::gil_scoped_release release;
    (permutation.*function)(from, size, to);
    return out;
}

}  // namespace

void bind_random(py::module_& m) {
    m.def("philox4x32", &pit::philox4x32, py::arg("counter"), py::arg("key"));
    m.def("uniform_below", &pit::uniform_below, py::arg("key"), py::arg("stream"), py::arg("index"), py::arg("n"));
    py::class_<pit::Permutation>(m, "Permutation", py::is_final())
        .def(py::init<std::int64_t, std::uint64_t>(), py::arg("n"), py::arg("key"))
        .def("__len__", &pit::Permutation::size)
        .def("apply", &map_indices<&pit::Permutation::apply>, py::arg("index"))
        .def("invert", &map_indices<&pit::Permutation::invert>, py::arg("index"));
}

}  // namespace pit_python
