// The curricula: staged draws and feedback.
#include "convert.hpp"
#include "pit/curriculum/feedback.hpp"

namespace pit_python {

namespace {

// Returns `count` draws of draw(count), made without the GIL.
template <typename Function>
py::tuple to_arrays(std::int64_t count, const Function& draw) {
    pit::require_range("curriculum: count", count, 0, std::int64_t{1} << 40);
    py::array_t<std::int64_t> example(count);
    py::array_t<std::uint8_t> source(count);
    std::int64_t* example_out = example.mutable_data();
    std::uint8_t* source_out = source.mutable_data();
    {
        const py::gil_scoped_release release;
        const std::vector<pit::Draw> draws = draw();
        for (std::size_t i = 0; i < draws.size(); ++i) {
            example_out[i] = draws[i].example;
            source_out[i] = draws[i].source;
        }
    }
    return py::make_tuple(std::move(example), std::move(source));
}

py::tuple draw_staged(pit::StagedCurriculum& self, std::int64_t step, std::int64_t count) {
    return to_arrays(count, [&] {
        std::vector<pit::Draw> draws;
        for (std::int64_t i = 0; i < count; ++i) {
            draws.push_back(self.next(step));
        }
        return draws;
    });
}

py::tuple draw_weighted(pit::FeedbackCurriculum& self, std::int64_t count) {
    return to_arrays(count, [&] { return self.draw(count); });
}

void update(pit::FeedbackCurriculum& self, std::int64_t step, const py::object& example, const py::object& source,
            const py::object& sample, const py::object& gap) {
    const auto examples = require_shape<std::int64_t>(example, "example", {kAny});
    const Shape same{examples.size()};
    const auto sources = require_shape<std::uint8_t>(source, "source", same);
    const auto samples = require_shape<std::int32_t>(sample, "sample", same);
    const auto gaps = require_shape<float>(gap, "gap", same);
    const std::int64_t* ids = examples.data();
    const std::uint8_t* from = sources.data();
    const std::int32_t* numbers = samples.data();
    const float* values = gaps.data();
    const auto count = static_cast<std::size_t>(examples.size());
    const py::gil_scoped_release release;
    std::vector<pit::Outcome> outcomes;
    outcomes.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        outcomes.push_back({ids[i], from[i], numbers[i], values[i]});
    }
    self.update(step, std::move(outcomes));
}

py::array_t<std::int64_t> advance(pit::FeedbackCurriculum& self) {
    std::vector<std::int64_t> changed;
    {
        const py::gil_scoped_release release;
        changed = self.advance();
    }
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(changed.size()), changed.data());
}

void check_entry(const pit::FeedbackCurriculum& self, std::int64_t entry) {
    if (entry < 0 || entry >= self.entries()) {
        throw pit::Error("curriculum: entry=" + std::to_string(entry) + " is outside [0, " +
                         std::to_string(self.entries()) + "); give an entry of the table");
    }
}

py::tuple stats(const pit::FeedbackCurriculum& self, const py::object& entries) {
    const bool all = entries.is_none();
    const auto index = all ? py::array_t<std::int64_t>() : require_shape<std::int64_t>(entries, "entries", {kAny});
    const py::ssize_t count = all ? static_cast<py::ssize_t>(self.entries()) : index.size();
    py::array_t<std::uint16_t> trials(count);
    py::array_t<std::uint16_t> wins(count);
    py::array_t<float> gap(count);
    std::uint16_t* trials_out = trials.mutable_data();
    std::uint16_t* wins_out = wins.mutable_data();
    float* gap_out = gap.mutable_data();
    const std::int64_t* from = all ? nullptr : index.data();
    {
        const py::gil_scoped_release release;
        for (py::ssize_t i = 0; i < count; ++i) {
            const std::int64_t entry = all ? i : from[i];
            check_entry(self, entry);
            const pit::EntryStats& one = self.stats()[static_cast<std::size_t>(entry)];
            trials_out[i] = one.trials;
            wins_out[i] = one.wins;
            gap_out[i] = one.gap;
        }
    }
    return py::make_tuple(std::move(trials), std::move(wins), std::move(gap));
}

void set_weights(pit::FeedbackCurriculum& self, const py::object& entries, const py::object& weights) {
    const auto index = require_shape<std::int64_t>(entries, "entries", {kAny});
    const auto values = require_shape<std::uint32_t>(weights, "weights", {index.size()});
    const py::gil_scoped_release release;
    self.weights().set(index.data(), values.data(), index.size());
}

void assign_weights(pit::FeedbackCurriculum& self, const py::object& weights) {
    const auto values = require_shape<std::uint32_t>(weights, "weights", {static_cast<py::ssize_t>(self.entries())});
    const py::gil_scoped_release release;
    self.weights().assign(values.data());
}

py::bytes feedback_state(const pit::FeedbackCurriculum& self, std::int64_t step, const std::vector<double>& notes) {
    std::string text;
    {
        const py::gil_scoped_release release;
        text = self.state(step, notes);
    }
    return py::bytes(text);
}

std::vector<double> restore_feedback(pit::FeedbackCurriculum& self, const py::bytes& bytes) {
    const std::string_view text = bytes;
    const py::gil_scoped_release release;
    return self.restore(text);
}

pit::FeedbackCurriculum* make_feedback(std::uint64_t seed, std::int64_t examples, std::vector<std::uint8_t> sources,
                                       std::int64_t lag, std::uint32_t memory, std::uint64_t config_hash,
                                       std::uint64_t data_hash) {
    const py::gil_scoped_release release;
    return new pit::FeedbackCurriculum({seed, examples, std::move(sources), lag, memory, config_hash, data_hash});
}

void bind_feedback(py::module_& m) {
    using pit::FeedbackCurriculum;
    py::class_<FeedbackCurriculum>(m, "FeedbackCurriculum", py::is_final())
        .def(py::init(&make_feedback), py::kw_only(), py::arg("seed"), py::arg("examples"), py::arg("sources"),
             py::arg("lag"), py::arg("memory"), py::arg("config_hash"), py::arg("data_hash"))
        .def_property_readonly("entries", &FeedbackCurriculum::entries)
        .def_property_readonly("step", &FeedbackCurriculum::step)
        .def_property_readonly("update_step", &FeedbackCurriculum::update_step)
        .def_property_readonly("total", [](FeedbackCurriculum& self) { return self.weights().total(); })
        .def("update", &update, py::arg("step"), py::arg("example"), py::arg("source"), py::arg("sample"),
             py::arg("gap"))
        .def("advance", &advance)
        .def("draw", &draw_weighted, py::arg("count"))
        .def("stats", &stats, py::arg("entries") = py::none())
        .def("set_weights", &set_weights, py::arg("entries"), py::arg("weights"))
        .def("assign_weights", &assign_weights, py::arg("weights"))
        .def("state", &feedback_state, py::arg("step"), py::arg("notes"))
        .def("restore", &restore_feedback, py::arg("state"));
}

}  // namespace

void bind_curriculum(py::module_& m) {
    py::class_<pit::StagedCurriculum>(m, "StagedCurriculum", py::is_final())
        .def(py::init([](std::uint64_t seed, std::int64_t examples, const PythonStages& stages) {
                 return pit::StagedCurriculum(seed, examples, to_stages(stages));
             }),
             py::arg("seed"), py::arg("examples"), py::arg("stages"))
        .def("draw", &draw_staged, py::arg("step"), py::arg("count"))
        .def_property_readonly("draws", &pit::StagedCurriculum::draws)
        .def("state", &state<pit::StagedCurriculum>)
        .def("restore", &restore<pit::StagedCurriculum>, py::arg("state"));
    bind_feedback(m);
}

}  // namespace pit_python
