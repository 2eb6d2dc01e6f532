// Python bindings of the trajectory functions, alike for _C_cpu and _C_cuda. `Run` has the functions error, reward, rotation
// and rigid. Threads and level count on a CPU, stream and scratch on a device.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>

#include "pointer.h"
#include "se3_args.h"

namespace worldr1 {

// (address of the flag, address of the words, tolerance); the addresses are 0 where nobody looks.
using Faults = std::tuple<uintptr_t, uintptr_t, double>;

template <class Args>
void set_place(Args& args, bool is_double, int num_threads, const std::string& level, uintptr_t stream,
               const Faults& faults) {
  args.faults = {pointer<uint64_t>(std::get<0>(faults)), pointer<uint64_t>(std::get<1>(faults)), std::get<2>(faults)};
  args.is_double = is_double;
  args.num_threads = num_threads;
  args.level = level.c_str();
  args.stream = pointer<void>(stream);
}

inline void set_trajectories(TrajectoryArgs& args, uintptr_t pred, uintptr_t target, uintptr_t depth, int64_t num,
                             int64_t frames, uintptr_t grad_pred, uintptr_t grad_target, uintptr_t scratch) {
  args.pred = pointer<void>(pred);
  args.target = pointer<void>(target);
  args.depth = pointer<void>(depth);
  args.num = num;
  args.frames = frames;
  args.grad_pred = pointer<void>(grad_pred);
  args.grad_target = pointer<void>(grad_target);
  args.scratch = pointer<double>(scratch);
}

template <class Run>
void bind_se3_functions(pybind11::module_& m) {
  namespace py = pybind11;
  using Fields = std::array<uintptr_t, kErrorFields>;

  m.def(
      "se3_error",
      [](bool backward, uintptr_t pred, uintptr_t target, uintptr_t depth, int64_t num, int64_t frames, bool relative,
         int mode, const Fields& fields, uintptr_t grad_pred, uintptr_t grad_target, uintptr_t scratch, bool is_double,
         int num_threads, const std::string& level, uintptr_t stream, const Faults& faults) {
        ErrorArgs args{};
        set_trajectories(args, pred, target, depth, num, frames, grad_pred, grad_target, scratch);
        args.relative = relative;
        args.mode = mode;
        for (int k = 0; k < kErrorFields; ++k) {
          args.outputs[k] = pointer<void>(fields[k]);
          args.grads[k] = pointer<void>(fields[k]);
        }
        set_place(args, is_double, num_threads, level, stream, faults);
        py::gil_scoped_release release;
        Run::error(args, backward);
      },
      py::kw_only(), py::arg("backward"), py::arg("pred"), py::arg("target"), py::arg("depth"), py::arg("num"),
      py::arg("frames"), py::arg("relative"), py::arg("mode"), py::arg("fields"), py::arg("grad_pred"),
      py::arg("grad_target"), py::arg("scratch"), py::arg("is_double"), py::arg("num_threads"), py::arg("level"),
      py::arg("stream"), py::arg("faults") = Faults{});

  m.def(
      "se3_reward",
      [](bool backward, uintptr_t pred, uintptr_t target, uintptr_t depth, int64_t num, int64_t frames, double k_t,
         double k_r, bool metric, uintptr_t reward, uintptr_t grad_pred, uintptr_t grad_target, uintptr_t scratch,
         bool is_double, int num_threads, const std::string& level, uintptr_t stream, const Faults& faults) {
        RewardArgs args{};
        set_trajectories(args, pred, target, depth, num, frames, grad_pred, grad_target, scratch);
        args.k_t = k_t;
        args.k_r = k_r;
        args.metric = metric;
        args.reward = pointer<void>(reward);
        args.grad = pointer<void>(reward);
        set_place(args, is_double, num_threads, level, stream, faults);
        py::gil_scoped_release release;
        Run::reward(args, backward);
      },
      py::kw_only(), py::arg("backward"), py::arg("pred"), py::arg("target"), py::arg("depth"), py::arg("num"),
      py::arg("frames"), py::arg("k_t"), py::arg("k_r"), py::arg("metric"), py::arg("reward"), py::arg("grad_pred"),
      py::arg("grad_target"), py::arg("scratch"), py::arg("is_double"), py::arg("num_threads"), py::arg("level"),
      py::arg("stream"), py::arg("faults") = Faults{});

  m.def(
      "se3_rotation",
      [](bool backward, uintptr_t a, uintptr_t b, int64_t num, uintptr_t angle, uintptr_t grad_a, uintptr_t grad_b,
         bool is_double, int num_threads, const std::string& level, uintptr_t stream, const Faults& faults) {
        RotationArgs args{};
        args.a = pointer<void>(a);
        args.b = pointer<void>(b);
        args.num = num;
        args.angle = pointer<void>(angle);
        args.grad = pointer<void>(angle);
        args.grad_a = pointer<void>(grad_a);
        args.grad_b = pointer<void>(grad_b);
        set_place(args, is_double, num_threads, level, stream, faults);
        py::gil_scoped_release release;
        Run::rotation(args, backward);
      },
      py::kw_only(), py::arg("backward"), py::arg("a"), py::arg("b"), py::arg("num"), py::arg("angle"), py::arg("grad_a"),
      py::arg("grad_b"), py::arg("is_double"), py::arg("num_threads"), py::arg("level"),
      py::arg("stream"), py::arg("faults") = Faults{});

  m.def(
      "se3_rigid",
      [](uintptr_t matrices, int64_t num, int size, double tolerance, uintptr_t bad, bool is_double, int num_threads,
         const std::string& level, uintptr_t stream, const Faults& faults) {
        RigidArgs args{};
        args.matrices = pointer<void>(matrices);
        args.num = num;
        args.size = size;
        args.tolerance = tolerance;
        args.bad = pointer<int32_t>(bad);
        set_place(args, is_double, num_threads, level, stream, faults);
        py::gil_scoped_release release;
        Run::rigid(args);
      },
      py::kw_only(), py::arg("matrices"), py::arg("num"), py::arg("size"), py::arg("tolerance"), py::arg("bad"),
      py::arg("is_double"), py::arg("num_threads"), py::arg("level"),
      py::arg("stream"), py::arg("faults") = Faults{});
}

}  // namespace worldr1
