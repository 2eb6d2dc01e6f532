// Python functions of noise transport on the device, the same for the device and for the interpreter that runs its kernels in
// tests.
#pragma once

#include "../common/noise_transport_bindings.h"
#include "noise_transport.h"
#include "noise_transport_plan.h"

namespace worldr1 {
namespace {

planning::Args plan_args(int64_t height, int64_t width, const ListAddresses& lists,
                         const std::array<int64_t, planning::kLists>& room, uintptr_t offsets, uintptr_t workspace) {
  planning::Args args{height, width, {}, pointer<int64_t>(offsets), pointer<void>(workspace)};
  args.lists = {pointer<int32_t>(lists[0]), pointer<int32_t>(lists[1]), pointer<int32_t>(lists[2]), pointer<int64_t>(lists[3]),
                pointer<int32_t>(lists[4]), pointer<uint8_t>(lists[5]), pointer<int32_t>(lists[6]), pointer<int32_t>(lists[7]),
                pointer<int64_t>(lists[8]), pointer<int32_t>(lists[9]), pointer<double>(lists[10]),
                {room[0], room[1], room[2], room[3], room[4]}};
  return args;
}

// Defines the functions. `Runner` has transport(args, stream), plan_begin(args, slots, density, stream) and plan_add(args, field,
// stream), which raise where they fail.
template <class Runner>
void bind_device_transport(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("noise_transport_fits", &transport_fits);
  m.def(
      "noise_transport_device",
      [](uintptr_t noise, uintptr_t out, uintptr_t state, uintptr_t normals, int64_t most_members, uintptr_t sample_ids,
         const ListAddresses& lists, uintptr_t slots, uintptr_t offsets, int64_t num_slots, int64_t plan_stride, int64_t batch, int64_t channels, int64_t height,
         int64_t width, int64_t num_frames, int64_t capture, int reduce, uint64_t seed, uintptr_t stream) {
        const TransportCudaArgs args = {pointer<const float>(noise), pointer<float>(out), pointer<Quad<float>>(state),
                                        pointer<Quad<float>>(normals), most_members, pointer<const int64_t>(sample_ids), lists_of(lists), pointer<const int32_t>(slots),
                                        pointer<const int64_t>(offsets), num_slots, plan_stride, batch, channels, height,
                                        width, num_frames, capture, reduce, seed};
        Runner::transport(args, pointer<void>(stream));
      },
      py::kw_only(), py::arg("noise"), py::arg("out"), py::arg("state"), py::arg("normals"), py::arg("most_members"), py::arg("sample_ids"), py::arg("lists"),
      py::arg("slots"), py::arg("offsets"), py::arg("num_slots"), py::arg("plan_stride"), py::arg("batch"),
      py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("num_frames"), py::arg("capture"), py::arg("reduce"),
      py::arg("seed"), py::arg("stream"));
  m.def("noise_transport_plan_bytes", &planning::workspace_bytes);
  m.def(
      "noise_transport_plan_begin",
      [](int64_t height, int64_t width, const ListAddresses& lists, const std::array<int64_t, planning::kLists>& room,
         uintptr_t offsets, uintptr_t workspace, uintptr_t slots, uintptr_t density, uintptr_t stream) {
        Runner::plan_begin(plan_args(height, width, lists, room, offsets, workspace), pointer<int32_t>(slots),
                           pointer<double>(density), pointer<void>(stream));
      },
      py::kw_only(), py::arg("height"), py::arg("width"), py::arg("lists"), py::arg("room"), py::arg("offsets"),
      py::arg("workspace"), py::arg("slots"), py::arg("density"), py::arg("stream"));
  // `slots` and `density` 0: the frame is not kept. `check_only`: only whether the field is finite.
  m.def(
      "noise_transport_plan_add",
      [](int64_t height, int64_t width, const ListAddresses& lists, const std::array<int64_t, planning::kLists>& room,
         uintptr_t offsets, uintptr_t workspace, uintptr_t field, bool is_double, int64_t frame, bool check_only,
         uintptr_t slots, uintptr_t density, uintptr_t stream) {
        const planning::Field values = {pointer<const void>(field), is_double, frame, check_only, pointer<int32_t>(slots),
                                        pointer<double>(density)};
        Runner::plan_add(plan_args(height, width, lists, room, offsets, workspace), values, pointer<void>(stream));
      },
      py::kw_only(), py::arg("height"), py::arg("width"), py::arg("lists"), py::arg("room"), py::arg("offsets"),
      py::arg("workspace"), py::arg("field"), py::arg("is_double"), py::arg("frame"), py::arg("check_only"), py::arg("slots"),
      py::arg("density"), py::arg("stream"));
}

}  // namespace
}  // namespace worldr1
