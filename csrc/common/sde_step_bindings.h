// Python binding of the SDE step, alike for _C_cpu and _C_cuda: threads and level count on a CPU; stream, sums and arrivals on
// a device.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "pointer.h"
#include "sde_step_args.h"

namespace worldr1 {

// (address, whether it is bfloat16)
using SdeAddress = std::pair<uintptr_t, bool>;

inline SdeTensor sde_tensor(const SdeAddress& t) { return {pointer<void>(t.first), t.second}; }

inline SdeForm sde_form(const std::string& form) {
  if (form == "draw") return SdeForm::kDraw;
  if (form == "score") return SdeForm::kScore;
  if (form == "backward") return SdeForm::kBackward;
  throw std::invalid_argument("sde_step: unknown form " + form);
}

// Defines the function `name`, which fills the arguments and calls run(form, args).
template <class Run>
void bind_sde_step_form(pybind11::module_& m, const char* name, const Run& run) {
  namespace py = pybind11;
  const auto none = SdeAddress{0, false};
  m.def(
      name,
      [run](const std::string& form, const SdeAddress& velocity, const SdeAddress& velocity_uncond,
            const SdeAddress& velocity_ref, uintptr_t sample, uintptr_t noise, uintptr_t sample_ids, uintptr_t prev_sample,
            uintptr_t mean, uintptr_t log_prob, uintptr_t kl, uintptr_t grad_mean, uintptr_t grad_log_prob,
            uintptr_t grad_kl, const SdeAddress& grad_velocity, const SdeAddress& grad_velocity_uncond, int64_t num_samples,
            int64_t num_elements, double guidance_scale, double coef_sample, double coef_velocity, double std,
            double log_prob_scale, double log_prob_shift, double kl_scale, double grad_log_prob_scale, double grad_kl_scale,
            uint64_t seed, uint32_t step, int num_threads, const std::string& level, uintptr_t stream, uintptr_t sums,
            uintptr_t arrivals) {
        SdeStepArgs args{};
        args.velocity = sde_tensor(velocity);
        args.velocity_uncond = sde_tensor(velocity_uncond);
        args.velocity_ref = sde_tensor(velocity_ref);
        args.sample = pointer<const float>(sample);
        args.noise = pointer<const float>(noise);
        args.sample_ids = pointer<const int64_t>(sample_ids);
        args.prev_sample = pointer<float>(prev_sample);
        args.mean = pointer<float>(mean);
        args.log_prob = pointer<float>(log_prob);
        args.kl = pointer<float>(kl);
        args.grad_mean = pointer<const float>(grad_mean);
        args.grad_log_prob = pointer<const float>(grad_log_prob);
        args.grad_kl = pointer<const float>(grad_kl);
        args.grad_velocity = sde_tensor(grad_velocity);
        args.grad_velocity_uncond = sde_tensor(grad_velocity_uncond);
        args.num_samples = num_samples;
        args.num_elements = num_elements;
        args.guidance_scale = (float)guidance_scale;
        args.guidance_rest = (float)(1.0 - guidance_scale);
        args.coef_sample = (float)coef_sample;
        args.coef_velocity = (float)coef_velocity;
        args.std = (float)std;
        args.log_prob_scale = log_prob_scale;
        args.log_prob_shift = log_prob_shift;
        args.kl_scale = kl_scale;
        args.grad_log_prob_scale = (float)grad_log_prob_scale;
        args.grad_kl_scale = (float)grad_kl_scale;
        args.seed = seed;
        args.step = step;
        args.num_threads = num_threads;
        args.level = level.c_str();
        args.stream = pointer<void>(stream);
        args.sums = pointer<double>(sums);
        args.arrivals = pointer<uint32_t>(arrivals);
        const SdeForm asked = sde_form(form);
        py::gil_scoped_release release;
        run(asked, args);
      },
      py::arg("form"), py::kw_only(), py::arg("velocity"), py::arg("velocity_uncond") = none,
      py::arg("velocity_ref") = none, py::arg("sample"), py::arg("noise") = 0, py::arg("sample_ids") = 0,
      py::arg("prev_sample"), py::arg("mean") = 0, py::arg("log_prob") = 0, py::arg("kl") = 0, py::arg("grad_mean") = 0,
      py::arg("grad_log_prob") = 0, py::arg("grad_kl") = 0, py::arg("grad_velocity") = none,
      py::arg("grad_velocity_uncond") = none, py::arg("num_samples"), py::arg("num_elements"), py::arg("guidance_scale"),
      py::arg("coef_sample"), py::arg("coef_velocity"), py::arg("std"), py::arg("log_prob_scale"),
      py::arg("log_prob_shift"), py::arg("kl_scale"), py::arg("grad_log_prob_scale"), py::arg("grad_kl_scale"),
      py::arg("seed") = 0, py::arg("step") = 0, py::arg("num_threads") = 1, py::arg("level") = "", py::arg("stream") = 0,
      py::arg("sums") = 0, py::arg("arrivals") = 0);
}

}  // namespace worldr1
