// The curriculum's draws.
#include "convert.hpp"

namespace pit_python {

namespace {

py::tuple draw(pit::StagedCurriculum& self, std::int64_t step, std::int64_t count) {
    pit::require_range("curriculum: count", count, 0, std::int64_t{1} << 40);
    py::array_t<std::int64_t> example(count);
    py::array_t<std::uint8_t> source(count);
    for (std::int64_t i = 0; i < count; ++i) {
        const pit::Draw one = self.next(step);
        example.mutable_data()[i] = one.example;
        source.mutable_data()[i] = one.source;
    }
    return py::make_tuple(std::move(example), std::move(source));
}

}  // namespace

void bind_curriculum(py::module_& m) {
    py::class_<pit::StagedCurriculum>(m, "StagedCurriculum", py::is_final())
        .def(py::init([](std::uint64_t seed, std::int64_t examples, const PythonStages& stages) {
                 return pit::StagedCurriculum(seed, examples, to_stages(stages));
             }),
             py::arg("seed"), py::arg("examples"), py::arg("stages"))
        .def("draw", &draw, py::arg("step"), py::arg("count"))
        .def_property_readonly("draws", &pit::StagedCurriculum::draws)
        .def("state", &state<pit::StagedCurriculum>)
        .def("restore", &restore<pit::StagedCurriculum>, py::arg("state"));
}

}  // namespace pit_python
