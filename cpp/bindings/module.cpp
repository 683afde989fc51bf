// pit.data._core: checks what Python hands over, releases the GIL, calls the core. The typed face is _core.pyi.
#include "convert.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The C++ core: random numbers, permutations, the curriculum, planning and writing of packed trees.";
    pybind11::register_exception<pit::Error>(m, "CoreError", PyExc_ValueError);
    pit_python::bind_random(m);
    pit_python::bind_curriculum(m);
    pit_python::bind_plan(m);
    pit_python::bind_tokens(m);
}
