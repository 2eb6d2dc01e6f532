// Python functions of noise transport on the device, the same for the device and for the interpreter that runs its kernels in
// tests.
#pragma once

#include "../common/noise_transport_bindings.h"
#include "noise_transport.h"

namespace worldr1 {
namespace {

// Defines the functions. `Runner` has transport(args, stream), which raises where it fails.
template <class Runner>
void bind_device_transport(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("noise_transport_fits", &transport_fits);
  m.def(
      "noise_transport_device",
      [](uintptr_t noise, uintptr_t out, uintptr_t state, uintptr_t sample_ids, const ListAddresses& lists, uintptr_t slots,
         uintptr_t offsets, int64_t num_slots, int64_t plan_stride, int64_t batch, int64_t channels, int64_t height,
         int64_t width, int64_t num_frames, int64_t capture, int reduce, uint64_t seed, uintptr_t stream) {
        const TransportCudaArgs args = {pointer<const float>(noise), pointer<float>(out), pointer<Quad<float>>(state),
                                        pointer<const int64_t>(sample_ids), lists_of(lists), pointer<const int32_t>(slots),
                                        pointer<const int64_t>(offsets), num_slots, plan_stride, batch, channels, height,
                                        width, num_frames, capture, reduce, seed};
        Runner::transport(args, pointer<void>(stream));
      },
      py::kw_only(), py::arg("noise"), py::arg("out"), py::arg("state"), py::arg("sample_ids"), py::arg("lists"),
      py::arg("slots"), py::arg("offsets"), py::arg("num_slots"), py::arg("plan_stride"), py::arg("batch"),
      py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("num_frames"), py::arg("capture"), py::arg("reduce"),
      py::arg("seed"), py::arg("stream"));
}

}  // namespace
}  // namespace worldr1
