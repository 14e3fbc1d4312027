// Python's view of csrc/transport: the module parasample.runtime.transports._host. No torch headers; memory is
// handed out by the buffer protocol, and a buffer keeps its segment mapped.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <system_error>

#include "transport/segment.h"

namespace py = pybind11;
using parasample::ChannelSize;
using parasample::Segment;
using parasample::State;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Shared-memory rings between the ranks of one host.";

  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::system_error& error) {
      const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });

  py::class_<ChannelSize>(m, "ChannelSize")
      .def(py::init([](uint64_t bytes, uint32_t keep, uint32_t slots, uint32_t readers) {
             return ChannelSize{bytes, keep, slots, readers};
           }),
           py::arg("bytes"), py::arg("keep"), py::arg("slots"), py::arg("readers"));

  py::enum_<State>(m, "State")
      .value("OPEN", State::kOpen)
      .value("CLOSED", State::kClosed)
      .value("ABORTED", State::kAborted);

  using released = py::call_guard<py::gil_scoped_release>;
  py::class_<Segment>(m, "Segment", py::buffer_protocol())
      .def_static("create", &Segment::create, py::arg("rank"), py::arg("channels"), released())
      .def_static("map", &Segment::map, py::arg("name"), py::arg("rank"), py::arg("channels"), released())
      .def_buffer([](Segment& segment) {
        return py::buffer_info(segment.data(), py::ssize_t(segment.bytes()));
      })
      .def_property_readonly("name", &Segment::name)
      .def_property_readonly("bytes", &Segment::bytes)
      .def_property("state", &Segment::state, &Segment::set_state)
      .def("unlink", &Segment::unlink)
      .def("slot_offset", &Segment::slot_offset, py::arg("channel"), py::arg("slot"))
      .def("reserve", &Segment::reserve, py::arg("channel"), py::arg("wait_s"), released())
      .def("publish", &Segment::publish, py::arg("channel"))
      .def("receive", &Segment::receive, py::arg("channel"), py::arg("reader"), py::arg("wait_s"), released())
      .def("wake", &Segment::wake)
      .def("alive", &Segment::alive);
}
