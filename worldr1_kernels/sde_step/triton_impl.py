"""Launcher of the Triton kernels: float32 arithmetic, sums in float64, in an order fixed by the sample's size alone."""

import contextlib
import math

import torch
import triton
from torch import Tensor

from worldr1_kernels.sde_step import triton_kernels as kernels
from worldr1_kernels.sde_step.arguments import Draw, Score
from worldr1_kernels.sde_step.coefficients import StepConstants, step_constants

# 8 elements a thread: one 128-bit load of bfloat16, two of float32.
LARGEST_BLOCK = 1024
NUM_WARPS = 4
_FINISH_WIDTH = 1024


def _block(num_elements: int) -> int:
    return max(16, min(LARGEST_BLOCK, triton.next_power_of_2(num_elements)))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _constants(given: Draw | Score, num_elements: int) -> StepConstants:
    return step_constants(given.guidance_scale, given.coef_sample, given.coef_velocity, given.std, num_elements)


class _Grid:
    """How [N, D] is cut into programs, and the partial sums they leave."""

    def __init__(self, given: Draw | Score) -> None:
        sample = given.sample
        self.num_samples, self.num_elements = sample.shape[0], math.prod(sample.shape[1:])
        self.block = _block(self.num_elements)
        self.num_blocks = triton.cdiv(self.num_elements, self.block)
        self.programs = (self.num_samples * self.num_blocks,)
        self.residuals = sample.new_empty(self.programs, dtype=torch.float64)
        self.differences = None if given.velocity_ref is None else torch.empty_like(self.residuals)

    def finish(self, given: Draw | Score) -> tuple[Tensor, Tensor]:
        """(log_prob [N], kl [N] or [0])."""
        log_prob = given.sample.new_empty(self.num_samples, dtype=torch.float32)
        kl = log_prob.new_empty(0 if self.differences is None else self.num_samples)
        constants = _constants(given, self.num_elements)
        kernels.finish_kernel[(self.num_samples,)](
            self.residuals, self.differences, log_prob, None if self.differences is None else kl,
            self.num_elements, self.num_blocks, constants.log_prob_scale, constants.log_prob_shift,
            constants.kl_scale, WIDTH=min(_FINISH_WIDTH, triton.next_power_of_2(self.num_blocks)),
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        return log_prob, kl


# The three functions return what their namesakes in reference.py do.


def sample_step(given: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws prev_sample: (prev_sample, mean, log_prob [N], kl [N] or [0]), float32."""
    sample, grid = given.sample, _Grid(given)
    prev_sample = sample.new_empty(sample.shape, dtype=torch.float32)
    mean = torch.empty_like(prev_sample)
    if grid.num_samples == 0:
        return prev_sample, mean, prev_sample.new_empty(0), prev_sample.new_empty(0)
    with _device(sample):
        kernels.draw_kernel[grid.programs](
            given.velocity.contiguous(), _contiguous(given.velocity_uncond), _contiguous(given.velocity_ref),
            sample.contiguous(), _contiguous(given.noise), _contiguous(given.sample_ids), prev_sample, mean,
            grid.residuals, grid.differences, grid.num_elements, grid.num_blocks, given.guidance_scale,
            given.coef_sample, given.coef_velocity, given.std, given.seed, given.step,
            BLOCK=grid.block, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        return prev_sample, mean, *grid.finish(given)


def log_prob(given: Score) -> tuple[Tensor, Tensor, Tensor]:
    """Density of a given prev_sample: (mean, log_prob [N], kl [N] or [0]), float32."""
    sample, grid = given.sample, _Grid(given)
    mean = sample.new_empty(sample.shape, dtype=torch.float32)
    if grid.num_samples == 0:
        return mean, mean.new_empty(0), mean.new_empty(0)
    with _device(sample):
        kernels.score_kernel[grid.programs](
            given.velocity.contiguous(), _contiguous(given.velocity_uncond), _contiguous(given.velocity_ref),
            sample.contiguous(), given.prev_sample.contiguous(), mean, grid.residuals, grid.differences,
            grid.num_elements, grid.num_blocks, given.guidance_scale, given.coef_sample, given.coef_velocity,
            BLOCK=grid.block, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
        return mean, *grid.finish(given)


def log_prob_backward(
    grad_mean: Tensor | None, grad_log_prob: Tensor | None, grad_kl: Tensor | None, given: Score
) -> tuple[Tensor, Tensor]:
    """Gradients of (velocity, velocity_uncond) in their dtypes; the second is [0] without guidance."""
    velocity, velocity_uncond, velocity_ref = given.velocity, given.velocity_uncond, given.velocity_ref
    grad = velocity.new_empty(velocity.shape)
    grad_uncond = grad.new_empty(0) if velocity_uncond is None else velocity_uncond.new_empty(velocity.shape)
    num_samples, num_elements = velocity.shape[0], math.prod(velocity.shape[1:])
    if num_samples == 0:
        return grad, grad_uncond
    block = _block(num_elements)
    num_blocks = triton.cdiv(num_elements, block)
    constants = _constants(given, num_elements)
    # Without a reference kl is an empty tensor, and its gradient is nobody's.
    grad_kl = None if velocity_ref is None else _contiguous(grad_kl)
    with _device(velocity):
        kernels.backward_kernel[(num_samples * num_blocks,)](
            _contiguous(grad_mean), _contiguous(grad_log_prob), grad_kl, velocity.contiguous(),
            _contiguous(velocity_uncond), _contiguous(velocity_ref), given.sample.contiguous(),
            given.prev_sample.contiguous(), grad, None if velocity_uncond is None else grad_uncond, num_elements,
            num_blocks, constants.guidance_scale, 1.0 - constants.guidance_scale, constants.coef_sample,
            constants.coef_velocity, constants.grad_log_prob_scale, constants.grad_kl_scale,
            BLOCK=block, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return grad, grad_uncond
