// Token tables and the writing of batches.
#include <memory>

#include "convert.hpp"
#include "pit/materialise.hpp"
#include "pit/token_table.hpp"

namespace pit_python {

namespace {

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
                 int threads, const py::object& out) {
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
    pit::materialise(plan, first_group, last_group, table.table(), {closing, pad}, arrays, threads);
}

}  // namespace

void bind_tokens(py::module_& m) {
    py::class_<PythonTokenTable>(m, "TokenTable", py::is_final())
        .def(py::init<std::vector<std::vector<std::pair<py::object, py::object>>>>(), py::arg("columns"))
        .def_property_readonly("rows", [](const PythonTokenTable& self) { return self.table().rows(); })
        .def_property_readonly("columns", [](const PythonTokenTable& self) { return self.table().columns(); })
        .def("lengths", &table_lengths);
    m.def("materialise", &materialise, py::arg("plan"), py::arg("first_group"), py::arg("last_group"), py::arg("table"),
          py::kw_only(), py::arg("closing"), py::arg("pad"), py::arg("threads") = 1, py::arg("out"));
}

}  // namespace pit_python
