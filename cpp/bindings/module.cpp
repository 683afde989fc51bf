// pit.data._core: checks what Python hands over, releases the GIL, calls the core. The typed face is _core.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pit/curriculum.hpp"
#include "pit/error.hpp"
#include "pit/materialise.hpp"
#include "pit/packing.hpp"
#include "pit/permutation.hpp"
#include "pit/philox.hpp"
#include "pit/planner.hpp"
#include "pit/topology.hpp"

namespace py = pybind11;

namespace {

using Shape = std::vector<py::ssize_t>;

constexpr py::ssize_t kAny = -1;

std::string describe(const Shape& shape) {
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

// The argument as a C-contiguous array of exactly T; Error otherwise, for a silent copy would hide a mistake.
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
        throw pit::Error(std::string("out.") + field + " is read-only; give an array that can be written");
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

template <typename T, std::vector<T> pit::Plan::* member>
py::array_t<T> plan_view(const py::object& self) {
    return view(self.cast<pit::Plan&>().*member, self);
}

py::array_t<std::int64_t> map_indices(const pit::Permutation& permutation, const py::object& index,
                                      std::int64_t (pit::Permutation::*function)(std::int64_t) const) {
    const py::array_t<std::int64_t> in = require_array<std::int64_t>(index, "index");
    py::array_t<std::int64_t> out(Shape(in.shape(), in.shape() + in.ndim()));
    const std::int64_t* from = in.data();
    std::int64_t* to = out.mutable_data();
    const py::ssize_t size = in.size();
    const py::gil_scoped_release release;
    for (py::ssize_t i = 0; i < size; ++i) {
        to[i] = (permutation.*function)(from[i]);
    }
    return out;
}

using PythonStages = std::vector<std::pair<std::int64_t, std::array<std::uint32_t, pit::kSources>>>;

std::vector<pit::Stage> to_stages(const PythonStages& stages) {
    std::vector<pit::Stage> out;
    for (const auto& [first_step, weight] : stages) {
        out.push_back({first_step, weight});
    }
    return out;
}

struct Lengths {
    std::vector<std::int32_t> values;
    std::int64_t columns;
};

Lengths copy_lengths(const py::object& lengths) {
    const py::array_t<std::int32_t> array = require_shape<std::int32_t>(lengths, "lengths", {kAny, kAny});
    return {std::vector<std::int32_t>(array.data(), array.data() + array.size()), array.shape(1)};
}

// A token table and the arrays it borrows from.
class PythonTokenTable {
  public:
    explicit PythonTokenTable(const std::vector<std::vector<std::pair<py::object, py::object>>>& columns) {
        std::vector<std::vector<pit::TokenChunk>> chunks;
        for (std::size_t column = 0; column < columns.size(); ++column) {
            chunks.emplace_back();
            for (std::size_t i = 0; i < columns[column].size(); ++i) {
                const std::string name =
                    "token table: column " + std::to_string(column) + ", chunk " + std::to_string(i);
                chunks.back().push_back(borrow(columns[column][i].first, columns[column][i].second, name));
            }
        }
        const py::gil_scoped_release release;
        table_ = std::make_unique<pit::TokenTable>(std::move(chunks));
    }

    const pit::TokenTable& table() const { return *table_; }

  private:
    pit::TokenChunk borrow(const py::object& values, const py::object& offsets, const std::string& name) {
        const auto value_array = require_shape<std::int32_t>(values, name + ", values", {kAny});
        const auto offset_array = require_shape<std::int64_t>(offsets, name + ", offsets", {kAny});
        if (offset_array.size() == 0) {
            throw pit::Error(name + ": offsets is empty; give one offset more than there are rows");
        }
        owners_.push_back(value_array);
        owners_.push_back(offset_array);
        return {value_array.data(), value_array.size(), offset_array.data(), offset_array.size() - 1};
    }

    std::vector<py::object> owners_;
    std::unique_ptr<pit::TokenTable> table_;
};

py::array_t<std::int32_t> table_lengths(const PythonTokenTable& self) {
    py::array_t<std::int32_t> out(Shape{self.table().rows(), self.table().columns()});
    std::int32_t* data = out.mutable_data();
    const py::gil_scoped_release release;
    self.table().lengths(data);
    return out;
}

void materialise(const pit::Plan& plan, std::int64_t first_group, std::int64_t last_group,
                 const PythonTokenTable& table, const std::array<std::int32_t, pit::kKinds>& closing, std::int32_t pad,
                 const py::object& out) {
    // Sizes are computed from the range, so it is checked before them.
    pit::check_groups(plan, first_group, last_group);
    const py::ssize_t groups = last_group - first_group;
    const py::ssize_t rows = groups * plan.sizes.rows_per_group;
    const py::ssize_t trees = groups * plan.sizes.trees_per_group;
    const Shape row_shape{rows, plan.sizes.row_length};
    const pit::BatchArrays arrays{
        require_output<std::int32_t>(out, "token", row_shape),
        require_output<std::int32_t>(out, "position", row_shape),
        require_output<std::int32_t>(out, "visible_until", row_shape),
        require_output<std::int32_t>(out, "previous", row_shape),
        require_output<float>(out, "loss_weight", row_shape),
        require_output<std::int32_t>(out, "leaf", {trees, plan.topology.leaves(), 2}),
        require_output<std::int64_t>(out, "example_id", {trees}),
        require_output<std::uint8_t>(out, "source", {trees}),
    };
    const py::gil_scoped_release release;
    pit::materialise(plan, first_group, last_group, table.table(), {closing, pad}, arrays);
}

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

// The bytes' memory is Python's and is not moved while `bytes` is held, so it may be read without the GIL.
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

void bind_random(py::module_& m) {
    m.def("philox4x32", &pit::philox4x32, py::arg("counter"), py::arg("key"));
    m.def("uniform_below", &pit::uniform_below, py::arg("key"), py::arg("stream"), py::arg("index"), py::arg("n"));
    py::class_<pit::Permutation>(m, "Permutation", py::is_final())
        .def(py::init<std::int64_t, std::uint64_t>(), py::arg("n"), py::arg("key"))
        .def("__len__", &pit::Permutation::size)
        .def(
            "apply",
            [](const pit::Permutation& self, const py::object& index) {
                return map_indices(self, index, &pit::Permutation::apply);
            },
            py::arg("index"))
        .def(
            "invert",
            [](const pit::Permutation& self, const py::object& index) {
                return map_indices(self, index, &pit::Permutation::invert);
            },
            py::arg("index"));
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

void bind_plan(py::module_& m) {
    py::class_<pit::Topology>(m, "Topology", py::is_final())
        .def(py::init<std::vector<std::int32_t>, std::vector<std::int32_t>, std::vector<std::int32_t>,
                      std::vector<bool>, std::vector<std::int32_t>>(),
             py::arg("parents"), py::arg("columns"), py::arg("kinds"), py::arg("loss"), py::arg("leaf_slots"))
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

void bind_tokens(py::module_& m) {
    py::class_<PythonTokenTable>(m, "TokenTable", py::is_final())
        .def(py::init<std::vector<std::vector<std::pair<py::object, py::object>>>>(), py::arg("columns"))
        .def_property_readonly("rows", [](const PythonTokenTable& self) { return self.table().rows(); })
        .def_property_readonly("columns", [](const PythonTokenTable& self) { return self.table().columns(); })
        .def("lengths", &table_lengths);
    m.def("materialise", &materialise, py::arg("plan"), py::arg("first_group"), py::arg("last_group"), py::arg("table"),
          py::kw_only(), py::arg("closing"), py::arg("pad"), py::arg("out"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The C++ core: random numbers, permutations, the curriculum, planning and writing of packed trees.";
    py::register_exception<pit::Error>(m, "CoreError", PyExc_ValueError);
    bind_random(m);
    bind_plan(m);
    bind_tokens(m);
}
