#include "bindings.h"
#include "noise_transport_python.h"

namespace worldr1 {
namespace {

struct Device {
  static void transport(const TransportCudaArgs& args, void* stream) {
    check_cuda("noise_transport", launch_noise_transport(args, stream));
  }
  static void plan_begin(const planning::Args& args, int32_t* slots, double* density, void* stream) {
    check_cuda("plan_transport", planning::begin(args, slots, density, stream));
  }
  static void plan_add(const planning::Args& args, const planning::Field& field, void* stream) {
    check_cuda("plan_transport", planning::add(args, field, stream));
  }
};

}  // namespace

void bind_noise_transport(pybind11::module_& m) { bind_device_transport<Device>(m); }

}  // namespace worldr1
