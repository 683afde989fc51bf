// Topologies, plans and the planner.
#include "convert.hpp"
#include "pit/packing/packing.hpp"
#include "pit/packing/planner.hpp"
#include "pit/packing/topology.hpp"

namespace pit_python {

namespace {

template <typename T, std::vector<T> pit::Plan::* member>
py::array_t<T> plan_view(const py::object& self) {
    return view(self.cast<pit::Plan&>().*member, self);
}

struct Lengths {
    std::vector<std::int32_t> values;
    std::int64_t columns;
};

Lengths copy_lengths(const py::object& lengths) {
    const py::array_t<std::int32_t> array = require_shape<std::int32_t>(lengths, "lengths", {kAny, kAny});
    return {std::vector<std::int32_t>(array.data(), array.data() + array.size()), array.shape(1)};
}

pit::Planner* make_planner(const py::object& lengths, const pit::Topology& topology, std::int64_t row_length,
                           std::int64_t rows_per_group, std::int64_t groups_per_step, std::int64_t trees_per_group,
                           std::int64_t window, std::uint64_t seed, std::uint64_t config_hash, std::uint64_t data_hash,
                           const PythonStages& stages) {
    Lengths copy = copy_lengths(lengths);
    pit::PlannerSettings settings{{row_length, rows_per_group, trees_per_group},
                                  groups_per_step,
                                  window,
                                  seed,
                                  config_hash,
                                  data_hash,
                                  to_stages(stages)};
    const py::gil_scoped_release release;
    return new pit::Planner(std::move(copy.values), copy.columns, topology, std::move(settings));
}

pit::Plan plan_trees(const py::object& lengths, const pit::Topology& topology, std::int64_t row_length,
                     std::int64_t rows_per_group, std::int64_t trees_per_group) {
    Lengths copy = copy_lengths(lengths);
    const py::gil_scoped_release release;
    return pit::plan_trees(std::move(copy.values), copy.columns, topology,
                           {row_length, rows_per_group, trees_per_group});
}

}  // namespace

void bind_plan(py::module_& m) {
    py::class_<pit::Topology>(m, "Topology", py::is_final())
        .def(py::init<std::vector<std::int32_t>, std::vector<std::int32_t>, std::vector<std::vector<std::int32_t>>,
                      std::vector<bool>, std::vector<std::int32_t>>(),
             py::arg("parents"), py::arg("columns"), py::arg("closings"), py::arg("loss"), py::arg("leaf_slots"))
        .def("__len__", &pit::Topology::segments)
        .def_property_readonly("leaves", &pit::Topology::leaves);
    py::class_<pit::Plan>(m, "Plan", py::is_final())
        .def_readonly("step", &pit::Plan::step)
        .def_readonly("groups", &pit::Plan::groups)
        .def_readonly("topology", &pit::Plan::topology)
        .def_property_readonly("row_length", [](const pit::Plan& p) { return p.sizes.row_length; })
        .def_property_readonly("rows_per_group", [](const pit::Plan& p) { return p.sizes.rows_per_group; })
        .def_property_readonly("trees_per_group", [](const pit::Plan& p) { return p.sizes.trees_per_group; })
        .def_property_readonly("tree_example", &plan_view<std::int64_t, &pit::Plan::tree_example>)
        .def_property_readonly("tree_source", &plan_view<std::uint8_t, &pit::Plan::tree_source>)
        .def_property_readonly("tree_group", &plan_view<std::int32_t, &pit::Plan::tree_group>)
        .def_property_readonly("piece_tree", &plan_view<std::int32_t, &pit::Plan::piece_tree>)
        .def_property_readonly("piece_row", &plan_view<std::int32_t, &pit::Plan::piece_row>)
        .def_property_readonly("piece_start", &plan_view<std::int32_t, &pit::Plan::piece_start>)
        .def_property_readonly("piece_length", &plan_view<std::int32_t, &pit::Plan::piece_length>)
        .def_property_readonly("piece_segments", &plan_view<std::uint64_t, &pit::Plan::piece_segments>)
        .def_property_readonly("piece_owned", &plan_view<std::uint64_t, &pit::Plan::piece_owned>);
    const py::call_guard<py::gil_scoped_release> no_gil;
    py::class_<pit::Planner>(m, "Planner", py::is_final())
        .def(py::init(&make_planner), py::arg("lengths"), py::arg("topology"), py::kw_only(), py::arg("row_length"),
             py::arg("rows_per_group"), py::arg("groups_per_step"), py::arg("trees_per_group"), py::arg("window"),
             py::arg("seed"), py::arg("config_hash"), py::arg("data_hash"), py::arg("stages"))
        .def("next_step", &pit::Planner::next_step, no_gil)
        .def_property_readonly("step", py::cpp_function(&pit::Planner::step, no_gil))
        .def_property_readonly("draws", py::cpp_function(&pit::Planner::draws, no_gil))
        .def("state", &state<pit::Planner>)
        .def("restore", &restore<pit::Planner>, py::arg("state"));
    m.def("plan_trees", &plan_trees, py::arg("lengths"), py::arg("topology"), py::kw_only(), py::arg("row_length"),
          py::arg("rows_per_group"), py::arg("trees_per_group"));
}

}  // namespace pit_python
