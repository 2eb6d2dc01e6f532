#include "../common/noise_transport_bindings.h"

#include <string>

#include "bindings.h"
#include "noise_transport.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

std::unique_ptr<PlanBuilder> make_builder(int64_t fields, int64_t height, int64_t width, int64_t stride, uintptr_t slots,
                                          uintptr_t density, uintptr_t offsets, const std::string& level) {
  const PlanArgs args = {fields, height, width, stride, pointer<int32_t>(slots), pointer<double>(density),
                         pointer<int64_t>(offsets)};
  return plan_builder(args, level.c_str());
}

bool add_field(PlanBuilder& builder, uintptr_t field, bool is_double) {
  py::gil_scoped_release release;
  return builder.add(pointer<const void>(field), is_double);
}

// The list as bytes that Python may copy from while `lists` lives.
template <class T>
py::memoryview view(std::vector<T>& list) {
  return py::memoryview::from_memory(list.data(), (py::ssize_t)(list.size() * sizeof(T)));
}

void run_transport(uintptr_t noise, uintptr_t out, uintptr_t sample_ids, const ListAddresses& lists,
                   uintptr_t slots, uintptr_t offsets, int64_t num_slots, int64_t plan_stride, int64_t batch,
                   int64_t channels, int64_t height, int64_t width, int64_t num_frames, int64_t capture, int reduce,
                   uint64_t seed, int num_threads, bool is_double, bool scalar, const std::string& level) {
  const TransportArgs args = {pointer<const void>(noise), pointer<void>(out), pointer<const int64_t>(sample_ids),
                              lists_of(lists), pointer<const int32_t>(slots), pointer<const int64_t>(offsets), num_slots,
                              plan_stride, batch, channels, height, width, num_frames, capture, reduce, seed, num_threads};
  py::gil_scoped_release release;
  if (is_double) {
    transport_scalar<double>(args);
  } else if (scalar) {
    transport_scalar<float>(args);
  } else {
    transport(args, level.c_str());
  }
}

}  // namespace

void bind_noise_transport(py::module_& m) {
  py::class_<PlanLists>(m, "TransportPlanLists")
      .def_readonly("num_slots", &PlanLists::num_slots)
      .def("fresh_pixel", [](PlanLists& l) { return view(l.fresh_pixel); })
      .def("fresh_slot", [](PlanLists& l) { return view(l.fresh_slot); })
      .def("group_slot", [](PlanLists& l) { return view(l.group_slot); })
      .def("group_start", [](PlanLists& l) { return view(l.group_start); })
      .def("member_pixel", [](PlanLists& l) { return view(l.member_pixel); })
      .def("member_is_target", [](PlanLists& l) { return view(l.member_is_target); })
      .def("member_slot", [](PlanLists& l) { return view(l.member_slot); })
      .def("merge_slot", [](PlanLists& l) { return view(l.merge_slot); })
      .def("merge_start", [](PlanLists& l) { return view(l.merge_start); })
      .def("hit_slot", [](PlanLists& l) { return view(l.hit_slot); })
      .def("hit_weight", [](PlanLists& l) { return view(l.hit_weight); });
  py::class_<PlanBuilder>(m, "TransportPlanBuilder")
      .def(py::init(&make_builder), py::kw_only(), py::arg("fields"), py::arg("height"), py::arg("width"), py::arg("stride"),
           py::arg("slots"), py::arg("density"), py::arg("offsets"), py::arg("level"))
      .def("add", &add_field, py::arg("field"), py::arg("is_double"))
      .def("finish", &PlanBuilder::finish);
  m.def("noise_transport", &run_transport, py::kw_only(), py::arg("noise"), py::arg("out"), py::arg("sample_ids"),
        py::arg("lists"), py::arg("slots"), py::arg("offsets"), py::arg("num_slots"), py::arg("plan_stride"),
        py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("num_frames"),
        py::arg("capture"), py::arg("reduce"), py::arg("seed"), py::arg("num_threads"), py::arg("is_double"),
        py::arg("scalar"), py::arg("level"));
}

}  // namespace worldr1
