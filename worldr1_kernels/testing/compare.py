"""The error budget of a kernel: no worse than twice plain torch in the same dtype, against an fp64 reference."""

import torch


def _max_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    return float((value.detach().double() - reference.detach().double()).abs().max())


def two_errors(kernel: torch.Tensor, plain: torch.Tensor, reference_fp64: torch.Tensor) -> tuple[float, float]:
    """Returns (e_k, e_t): the largest absolute error of the kernel and of plain torch against the fp64 reference."""
    return _max_error(kernel, reference_fp64), _max_error(plain, reference_fp64)


def assert_close_two_errors(
    kernel: torch.Tensor,
    plain: torch.Tensor,
    reference_fp64: torch.Tensor,
    *,
    name: str = "output",
    factor: float = 2.0,
    eps: float | None = None,
) -> None:
    """Asserts e_k <= factor * e_t + eps, where e_k and e_t are the errors of the kernel and of plain torch.

    Args:
      kernel: Result of the implementation under test, any floating dtype.
      plain: Result of plain torch in the SAME dtype as the kernel's arithmetic, same shape.
      reference_fp64: Result of the reference in float64, same shape.
      name: What is compared, for the message.
      factor: Slack over plain torch.
      eps: Absolute floor. Default: four units in the last place of the kernel's dtype at the largest reference value,
        because plain torch may by luck round to the reference exactly.
    Raises:
      AssertionError: shapes or dtypes are off, the kernel holds NaN where the reference does not, or the budget is
        exceeded.
    """
    assert reference_fp64.dtype == torch.float64, f"{name}: the reference must be float64, got {reference_fp64.dtype}"
    assert kernel.shape == plain.shape == reference_fp64.shape, (
        f"{name}: shapes differ: kernel {tuple(kernel.shape)}, plain {tuple(plain.shape)}, "
        f"reference {tuple(reference_fp64.shape)}"
    )
    if kernel.numel() == 0:
        return
    assert bool(torch.isfinite(reference_fp64).all()), f"{name}: the reference is not finite"
    assert bool(torch.isfinite(kernel.detach()).all()), f"{name}: the kernel's result is not finite"
    if eps is None:
        scale = max(1.0, float(reference_fp64.detach().abs().max()))
        eps = 4.0 * torch.finfo(kernel.dtype).eps * scale
    e_k, e_t = two_errors(kernel, plain, reference_fp64)
    assert e_k <= factor * e_t + eps, f"{name}: kernel error {e_k:.3e} > {factor} * {e_t:.3e} (plain torch) + {eps:.1e}"
