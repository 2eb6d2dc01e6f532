"""The error budget of a kernel: no worse than twice plain torch in the same dtype, against an fp64 reference."""

import torch

TIGHT = 1e-5  # of a rendered pixel: what rounding alone does to most
BORDERLINE = 1 / 255 + 1e-3  # and what one splat at the threshold of alpha does, per unit of its feature


def _max_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    return float((value.detach().double() - reference.detach().double()).abs().max())


def two_errors(kernel: torch.Tensor, plain: torch.Tensor, reference_fp64: torch.Tensor) -> tuple[float, float]:
    """Returns (e_k, e_t): the largest absolute error of the kernel and of plain torch against the fp64 reference."""
    return _max_error(kernel, reference_fp64), _max_error(plain, reference_fp64)


def why_not_close(
    kernel: torch.Tensor,
    plain: torch.Tensor,
    reference_fp64: torch.Tensor,
    *,
    factor: float = 2.0,
    eps: float | None = None,
) -> str:
    """The rule e_k <= factor * e_t + eps, where e_k and e_t are the errors of the kernel and of plain torch.

    Args:
      kernel: Result of the implementation under test, any floating dtype.
      plain: Result of plain torch in the SAME dtype as the kernel's arithmetic, same shape.
      reference_fp64: Result of the reference in float64, same shape.
      factor: Slack over plain torch.
      eps: Absolute floor. Default: four units in the last place of the kernel's dtype at the largest reference value,
        because plain torch may by luck round to the reference exactly.
    Returns:
      "" where the rule holds; else what is off: a shape or dtype, NaN in the kernel where the reference has none, or
      the budget.
    """
    if reference_fp64.dtype != torch.float64:
        return f"the reference must be float64, got {reference_fp64.dtype}"
    if not kernel.shape == plain.shape == reference_fp64.shape:
        return (
            f"shapes differ: kernel {tuple(kernel.shape)}, plain {tuple(plain.shape)}, "
            f"reference {tuple(reference_fp64.shape)}"
        )
    if kernel.numel() == 0:
        return ""
    if not bool(torch.isfinite(reference_fp64).all()):
        return "the reference is not finite"
    if not bool(torch.isfinite(kernel.detach()).all()):
        return "the kernel's result is not finite"
    if eps is None:
        scale = max(1.0, float(reference_fp64.detach().abs().max()))
        eps = 4.0 * torch.finfo(kernel.dtype).eps * scale
    e_k, e_t = two_errors(kernel, plain, reference_fp64)
    if e_k <= factor * e_t + eps:
        return ""
    return f"kernel error {e_k:.3e} > {factor} * {e_t:.3e} (plain torch) + {eps:.1e}"


def assert_close_two_errors(
    kernel: torch.Tensor,
    plain: torch.Tensor,
    reference_fp64: torch.Tensor,
    *,
    name: str = "output",
    factor: float = 2.0,
    eps: float | None = None,
) -> None:
    """Raises AssertionError, with the `name` of what is compared, where `why_not_close` finds a reason; also under
    `python -O`."""
    why = why_not_close(kernel, plain, reference_fp64, factor=factor, eps=eps)
    if why:
        raise AssertionError(f"{name}: {why}")


def assert_images_two_errors(
    kernel: torch.Tensor,
    plain: torch.Tensor,
    reference_fp64: torch.Tensor,
    *,
    name: str = "image",
    scale: float = 1.0,
) -> None:
    """Asserts of rendered images what `assert_close_two_errors` does of other results.

    A splat may cross the threshold of alpha, or end a pixel, by a rounding: so a few pixels differ by much. How many
    depends on the order of roundings, fused multiply-adds among them; hence the limit on their number is relative too.
    With e the largest error of a pixel's channels over `scale`: the median of e_k is at most twice that of e_t + 1e-6;
    pixels of e_k > 1e-5 are at most twice those of e_t > 1e-5, plus 1 in 10,000 (one at least); and no e_k exceeds
    what one borderline splat changes, or twice the largest e_t.

    Args:
      kernel: Images [..., X] of the implementation under test, float32.
      plain: Those of another implementation in float32, torch or C++.
      reference_fp64: Those of the reference in float64.
      name: What is compared, for the message.
      scale: Size of the features: 1 for colours in [0, 1], the depth of the scene where depth is rendered.
    Raises:
      AssertionError: a shape or dtype is off, the kernel holds NaN, or the budget is exceeded.
    """
    assert reference_fp64.dtype == torch.float64, f"{name}: the reference must be float64, got {reference_fp64.dtype}"
    assert kernel.shape == plain.shape == reference_fp64.shape, f"{name}: shapes differ"
    if kernel.numel() == 0:
        return
    assert bool(kernel.isfinite().all()), f"{name}: the kernel's image is not finite"
    e_k, e_t = ((image.double() - reference_fp64).abs().amax(-1) / scale for image in (kernel, plain))
    medians = float(e_k.median()), float(e_t.median())
    assert medians[0] <= 2 * medians[1] + 1e-6, f"{name}: median error {medians[0]:.1e} against {medians[1]:.1e}"
    outside = int((e_k > TIGHT).sum()), int((e_t > TIGHT).sum())
    slack = max(1, e_k.numel() // 10_000)
    assert outside[0] <= 2 * outside[1] + slack, (
        f"{name}: {outside[0]} of {e_k.numel()} pixels differ by more than {TIGHT}, {outside[1]} of plain torch's"
    )
    largest = float(e_k.max())
    assert largest <= max(BORDERLINE, 2 * float(e_t.max())), f"{name}: a pixel differs by {largest:.1e}"
