#include "bindings.h"
#include "noise_transport_python.h"

namespace worldr1 {
namespace {

struct Device {
  static void transport(const TransportCudaArgs& args, void* stream) {
    check_cuda("noise_transport", launch_noise_transport(args, stream));
  }
};

}  // namespace

void bind_noise_transport(pybind11::module_& m) { bind_device_transport<Device>(m); }

}  // namespace worldr1
