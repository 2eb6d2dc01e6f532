// The CUDA noise transport on the CPU, for tests: its own sources, compiled by the C++ compiler and run by the interpreter of
// common/simt_host.h.
#include "../common/simt.h"

// clang-format off: the kernels need the interpreter's names first
#include "../cuda/noise_transport.cu"
// clang-format on
#include "../cuda/noise_transport_python.h"
#include "bindings.h"

namespace worldr1 {
namespace {

// The stream is the seed of the order in which threads run.
struct Emulator {
  static void transport(const TransportCudaArgs& args, void* stream) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(stream);
    launch_noise_transport(args, nullptr);
  }
};

}  // namespace

void bind_noise_transport_emulated(pybind11::module_& m) {
  bind_device_transport<Emulator>(m);
  m.def("divide", [](uint32_t n, int64_t by) { return divide(n, divider(by)); });
}

}  // namespace worldr1
