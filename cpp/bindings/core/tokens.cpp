// Token tables and the writing of batches.
#include <memory>
#include <tuple>

#include "convert.hpp"
#include "pit/curriculum/edit_distance.hpp"
#include "pit/packing/materialise.hpp"
#include "pit/store/arrow.hpp"
#include "pit/store/token_table.hpp"

namespace pit_python {

namespace {

// Name, map, stream, buffer sizes in bytes i64[batches, columns, 2] (offsets, values) and checksums u32[batches].
using PythonArrowFile = std::tuple<std::string, py::buffer, py::object, py::object, py::object>;

// The stream that a capsule of the Arrow PyCapsule interface owns; it lives as long as the capsule.
ArrowArrayStream* stream_of(const py::object& capsule) {
    auto* stream = static_cast<ArrowArrayStream*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array_stream"));
    if (stream == nullptr) {
        throw py::error_already_set();
    }
    return stream;
}

// A token table and the owners of the memory that it borrows.
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

    PythonTokenTable(const std::vector<PythonArrowFile>& files, const std::vector<std::string>& columns,
                     std::int64_t vocab_size) {
        std::vector<pit::TokenBatch> batches;
        for (const PythonArrowFile& file : files) {
            borrow_file(file, columns, batches);
        }
        const py::gil_scoped_release release;
        table_ = std::make_unique<pit::TokenTable>(std::move(batches), columns, vocab_size);
    }

    const pit::TokenTable& table() const { return *table_; }

  private:
    pit::TokenChunk borrow(const py::object& values, const py::object& offsets, const std::string& name) {
        const auto value_array = require_shape<std::int32_t>(values, name + ", values", {kAny});
        const auto offset_array = require_shape<std::int64_t>(offsets, name + ", offsets", {kAny});
        if (offset_array.size() == 0) {
            throw pit::Error(name + ": offsets is empty; give rows + 1 offsets");
        }
        owners_.push_back(value_array);
        owners_.push_back(offset_array);
        return {value_array.data(), value_array.size(), offset_array.data(), offset_array.size() - 1};
    }

    void borrow_file(const PythonArrowFile& file, const std::vector<std::string>& columns,
                     std::vector<pit::TokenBatch>& batches) {
        const auto& [name, buffer, source, python_sizes, checksums] = file;
        const auto width = static_cast<py::ssize_t>(columns.size());
        maps_.push_back(buffer.request());
        const pit::MappedBytes map{maps_.back().ptr, maps_.back().size * maps_.back().itemsize};
        const py::object capsule = source.attr("__arrow_c_stream__")();
        const pit::ArrowBatches& arrow = arrays_.emplace_back(stream_of(capsule), name, columns);
        const auto count = static_cast<py::ssize_t>(arrow.size());
        const auto sizes = require_shape<std::int64_t>(python_sizes, name + ": sizes", {count, width, 2});
        const auto crc32 = require_shape<std::uint32_t>(checksums, name + ": checksums", {count});
        for (py::ssize_t i = 0; i < count; ++i) {
            std::vector<pit::BufferSizes> of_batch;
            for (py::ssize_t column = 0; column < width; ++column) {
                of_batch.push_back({sizes.at(i, column, 0), sizes.at(i, column, 1)});
            }
            batches.push_back(arrow.tokens(static_cast<std::size_t>(i), of_batch, map, crc32.at(i)));
        }
    }

    std::vector<py::object> owners_;
    std::vector<py::buffer_info> maps_;
    std::vector<pit::ArrowBatches> arrays_;
    std::unique_ptr<pit::TokenTable> table_;
};

// Views of a row's tokens, one per column, which keep the table alive.
py::list table_row(const py::object& self, std::int64_t row) {
    const pit::TokenTable& table = py::cast<const PythonTokenTable&>(self).table();
    if (row < 0 || row >= table.rows()) {
        throw py::index_error("the token table has " + std::to_string(table.rows()) + " rows, there is no row " +
                              std::to_string(row));
    }
    std::vector<pit::TokenSpan> spans;
    {
        const py::gil_scoped_release release;
        for (std::int64_t column = 0; column < table.columns(); ++column) {
            spans.push_back(table.at(column, row));
        }
    }
    py::list out;
    for (const pit::TokenSpan& span : spans) {
        py::array_t<std::int32_t> tokens(Shape{span.size}, Shape{sizeof(std::int32_t)}, span.data, self);
        tokens.attr("setflags")(py::arg("write") = false);
        out.append(tokens);
    }
    return out;
}

// Edit distance of each row of column a to the same row of column b.
py::array_t<std::int32_t> table_edit_distances(const PythonTokenTable& self, std::int64_t a, std::int64_t b) {
    const pit::TokenTable& table = self.table();
    pit::require_range("token table: column a", a, 0, table.columns() - 1);
    pit::require_range("token table: column b", b, 0, table.columns() - 1);
    py::array_t<std::int32_t> out(static_cast<py::ssize_t>(table.rows()));
    std::int32_t* distance = out.mutable_data();
    const py::gil_scoped_release release;
    for (std::int64_t row = 0; row < table.rows(); ++row) {
        distance[row] = static_cast<std::int32_t>(pit::edit_distance(table.at(a, row), table.at(b, row)));
    }
    return out;
}

void table_verify(const PythonTokenTable& self) {
    const py::gil_scoped_release release;
    self.table().verify();
}

py::array_t<std::int32_t> table_lengths(const PythonTokenTable& self) {
    py::array_t<std::int32_t> out(Shape{self.table().rows(), self.table().columns()});
    std::int32_t* data = out.mutable_data();
    const py::gil_scoped_release release;
    self.table().lengths(data);
    return out;
}

void materialise(const pit::Plan& plan, std::int64_t first_group, std::int64_t last_group,
                 const PythonTokenTable& table, std::int32_t pad, int threads, const py::object& out) {
    // Sizes are computed from the range, so the range is checked first.
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
    pit::materialise(plan, first_group, last_group, table.table(), pad, arrays, threads);
}

}  // namespace

void bind_tokens(py::module_& m) {
    py::class_<PythonTokenTable>(m, "TokenTable", py::is_final())
        .def(py::init<std::vector<std::vector<std::pair<py::object, py::object>>>>(), py::arg("columns"))
        .def_property_readonly("rows", [](const PythonTokenTable& self) { return self.table().rows(); })
        .def_property_readonly("columns", [](const PythonTokenTable& self) { return self.table().columns(); })
        .def_static(
            "from_arrow",
            [](const std::vector<PythonArrowFile>& files, const std::vector<std::string>& columns,
               std::int64_t vocab_size) { return std::make_unique<PythonTokenTable>(files, columns, vocab_size); },
            py::arg("files"), py::arg("columns"), py::arg("vocab_size"))
        .def("lengths", &table_lengths)
        .def("row", &table_row, py::arg("row"))
        .def("verify", &table_verify)
        .def("edit_distances", &table_edit_distances, py::arg("a"), py::arg("b"));
    m.def("materialise", &materialise, py::arg("plan"), py::arg("first_group"), py::arg("last_group"), py::arg("table"),
          py::kw_only(), py::arg("pad"), py::arg("threads") = 1, py::arg("out"));
}

}  // namespace pit_python
