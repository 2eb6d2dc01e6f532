#include <stdexcept>
#include <string>
#include <utility>

#include "bindings.h"
#include "sde_step.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

// (address, whether it is bfloat16)
using Tensor = std::pair<uintptr_t, bool>;

SdeTensor tensor(const Tensor& t) { return {pointer<void>(t.first), t.second}; }

void sde_step_form(const std::string& form, const Tensor& velocity, const Tensor& velocity_uncond,
                   const Tensor& velocity_ref, uintptr_t sample, uintptr_t noise, uintptr_t sample_ids,
                   uintptr_t prev_sample, uintptr_t mean, uintptr_t log_prob, uintptr_t kl, uintptr_t grad_mean,
                   uintptr_t grad_log_prob, uintptr_t grad_kl, const Tensor& grad_velocity,
                   const Tensor& grad_velocity_uncond, int64_t num_samples, int64_t num_elements, double guidance_scale,
                   double coef_sample, double coef_velocity, double std, double log_prob_scale, double log_prob_shift,
                   double kl_scale, double grad_log_prob_scale, double grad_kl_scale, uint64_t seed, uint32_t step,
                   int num_threads, const std::string& level) {
  SdeStepArgs args{};
  args.velocity = tensor(velocity);
  args.velocity_uncond = tensor(velocity_uncond);
  args.velocity_ref = tensor(velocity_ref);
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
  args.grad_velocity = tensor(grad_velocity);
  args.grad_velocity_uncond = tensor(grad_velocity_uncond);
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
  py::gil_scoped_release release;
  if (form == "draw") return sde_step(SdeForm::kDraw, args, level.c_str());
  if (form == "score") return sde_step(SdeForm::kScore, args, level.c_str());
  if (form == "backward") return sde_step(SdeForm::kBackward, args, level.c_str());
  throw std::invalid_argument("sde_step_form: unknown form " + form);
}

}  // namespace

void bind_sde_step(py::module_& m) {
  const auto none = Tensor{0, false};
  m.def("sde_step_form", &sde_step_form, py::arg("form"), py::kw_only(), py::arg("velocity"),
        py::arg("velocity_uncond") = none, py::arg("velocity_ref") = none, py::arg("sample"), py::arg("noise") = 0,
        py::arg("sample_ids") = 0, py::arg("prev_sample"), py::arg("mean") = 0, py::arg("log_prob") = 0,
        py::arg("kl") = 0, py::arg("grad_mean") = 0, py::arg("grad_log_prob") = 0, py::arg("grad_kl") = 0,
        py::arg("grad_velocity") = none, py::arg("grad_velocity_uncond") = none, py::arg("num_samples"),
        py::arg("num_elements"), py::arg("guidance_scale"), py::arg("coef_sample"), py::arg("coef_velocity"),
        py::arg("std"), py::arg("log_prob_scale"), py::arg("log_prob_shift"), py::arg("kl_scale"),
        py::arg("grad_log_prob_scale"), py::arg("grad_kl_scale"), py::arg("seed") = 0, py::arg("step") = 0,
        py::arg("num_threads"), py::arg("level"));
}

}  // namespace worldr1
