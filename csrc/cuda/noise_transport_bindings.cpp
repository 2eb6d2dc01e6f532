#include "../common/noise_transport_bindings.h"

#include "bindings.h"
#include "noise_transport.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

void noise_transport(uintptr_t noise, uintptr_t out, uintptr_t state, uintptr_t sample_ids,
                     const ListAddresses& lists, uintptr_t slots, uintptr_t offsets, int64_t num_slots,
                     int64_t plan_stride, int64_t batch, int64_t channels, int64_t height, int64_t width,
                     int64_t num_frames, int64_t capture, int reduce, uint64_t seed, uintptr_t stream) {
  const TransportCudaArgs args = {pointer<const float>(noise), pointer<float>(out), pointer<Quad<float>>(state),
                                  pointer<const int64_t>(sample_ids), lists_of(lists), pointer<const int32_t>(slots),
                                  pointer<const int64_t>(offsets), num_slots, plan_stride, batch, channels, height, width,
                                  num_frames, capture, reduce, seed};
  check_cuda("noise_transport", launch_noise_transport(args, pointer<void>(stream)));
}

}  // namespace

void bind_noise_transport(py::module_& m) {
  m.def("noise_transport", &noise_transport, py::kw_only(), py::arg("noise"), py::arg("out"), py::arg("state"),
        py::arg("sample_ids"), py::arg("lists"), py::arg("slots"), py::arg("offsets"), py::arg("num_slots"),
        py::arg("plan_stride"), py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"),
        py::arg("num_frames"), py::arg("capture"), py::arg("reduce"), py::arg("seed"), py::arg("stream"));
}

}  // namespace worldr1
