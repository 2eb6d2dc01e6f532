// The CUDA noise transport and its plan on the CPU, for tests: their own sources, compiled by the C++ compiler and run by the
// interpreter of common/simt_host.h.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "../common/simt.h"

// clang-format off: the kernels need the interpreter's names first
#include "../cuda/noise_transport.cu"
#include "../cuda/noise_transport_plan.cu"
// clang-format on
#include "../cuda/noise_transport_python.h"
#include "bindings.h"

namespace worldr1 {
namespace {

constexpr int kPoison = 0xcd;

// The stream is the seed of the order in which threads run. The plan's workspace starts poisoned, and writes between its arrays
// are found.
struct Emulator {
  static void transport(const TransportCudaArgs& args, void* stream) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(stream);
    launch_noise_transport(args, nullptr);
  }
  static void plan_begin(const planning::Args& args, int32_t* slots, double* density, void* stream) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(stream);
    std::memset(args.workspace, kPoison, planning::workspace_bytes(args.height, args.width));
    planning::begin(args, slots, density, nullptr);
  }
  static void plan_add(const planning::Args& args, const planning::Field& field, void* stream) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(stream);
    planning::add(args, field, nullptr);
    const unsigned char* bytes = static_cast<const unsigned char*>(args.workspace);
    for (const auto& gap : planning::workspace_gaps(args.height, args.width)) {
      for (size_t i = gap.first; i < gap.second; ++i) {
        if (bytes[i] != kPoison) throw std::runtime_error("plan_transport: a kernel wrote past an array of the workspace");
      }
    }
  }
};

}  // namespace

void bind_noise_transport_emulated(pybind11::module_& m) {
  bind_device_transport<Emulator>(m);
  m.def("divide", [](uint32_t n, int64_t by) { return divide(n, divider(by)); });
}

}  // namespace worldr1
