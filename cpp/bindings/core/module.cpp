// pit.data._core: checks the arguments, releases the GIL and calls the core. _core.pyi holds its types and docs.
#include "convert.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The C++ core: random numbers, permutations, curricula, token tables, packing and writing of trees.";
    pybind11::register_exception<pit::Error>(m, "CoreError", PyExc_ValueError);
    pit_python::bind_random(m);
    pit_python::bind_curriculum(m);
    pit_python::bind_plan(m);
    pit_python::bind_tokens(m);
}
