"""Pictures and their gradients: every depth, harmonics, colours of each view; few splats and lists of many blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels.testing import gaussian_scene, normal
from worldr1_kernels.testing.compare import BORDERLINE, TIGHT
from worldr1_kernels.verify.target import Check
from worldr1_kernels.verify.trial import Rule, Trial, same_bits, two_errors

IMAGE = ("render_colors", "render_alphas", "num_invalid")
INPUTS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "backgrounds")


def image(scale: float = 1.0, *, outside: float = 1e-4) -> Rule:
    """float32 cannot tell on which side of 1/255 a splat is: a share `outside` of the pixels (one at least), and twice
    those of the CPU, may be off by one such splat; the others by 1e-5. Relative to `scale`, the largest feature."""

    def rule(got: Tensor, plain: Tensor, exact: Tensor) -> str:
        if got.numel() == 0:
            return ""
        if not bool(torch.isfinite(got).all()):
            return f"{int((~torch.isfinite(got)).sum())} of {got.numel()} values are not finite"
        mine, theirs = ((t.double() - exact).abs().amax(-1) / scale for t in (got, plain))
        off = mine > TIGHT
        allowed = 2 * int((theirs > TIGHT).sum()) + max(1, int(outside * off.numel()))
        largest, limit = float(mine.max()), max(BORDERLINE, 2 * float(theirs.max()))
        at = [int(i) for i in (mine == mine.max()).nonzero()[0]]
        count = int(off.sum())
        if count > allowed:
            return f"{count} of {off.numel()} pixels are off by more than {TIGHT:.0e}, {allowed} may; most at {at}"
        return f"the pixel {at} is off by {largest:.3e}, more than {limit:.3e}" if not largest <= limit else ""

    return rule


def gradient(got: Tensor, plain: Tensor, exact: Tensor) -> str:
    """Relative to the whole gradient, and to its largest element: twice the CPU's error and what a splat at the
    threshold can do."""
    if got.numel() == 0:
        return ""
    if not bool(torch.isfinite(got).all()):
        return f"{int((~torch.isfinite(got)).sum())} of {got.numel()} values are not finite"
    mine, theirs = got.double() - exact, plain.double() - exact
    for name, measure, floor in (("norm", torch.Tensor.norm, 1e-3), ("largest element", _largest, 1e-2)):
        error, whole = float(measure(mine)), float(measure(exact))
        limit = 2 * float(measure(theirs)) + floor * whole
        if not error <= limit:
            return f"the {name} of the error is {error:.3e}, more than {limit:.3e}; of the gradient {whole:.3e}"
    return ""


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def rendered(width: int, height: int, **options: Any) -> Any:
    """A body: the picture of a scene, of tensors in the order of INPUTS."""

    def body(function, *scene: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
        *positional, backgrounds = scene
        out = function(*positional, width, height, backgrounds=backgrounds, **options)
        return [out.render_colors, out.render_alphas, out.meta["num_invalid"]]

    return body


def differentiated(width: int, height: int, **options: Any) -> Any:
    """A body: the gradients in the order of INPUTS, of a weighted sum of the picture."""
    picture = rendered(width, height, **options)

    def body(function, *scene: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
        leaves = [t.requires_grad_() for t in scene]
        colors, alphas, _ = picture(function, *leaves)
        total = sum(
            (torch.cos(torch.arange(t.numel(), dtype=torch.float64) + k).reshape(t.shape).to(t) * t).sum()
            for k, t in enumerate((colors, alphas))
        )
        return list(torch.autograd.grad(total, leaves))

    return body


def scene(num: int, width: int, height: int, views: int, **options: Any) -> list[Tensor]:
    """The tensors of INPUTS."""
    made = gaussian_scene(num, width, height, num_views=views, **options)
    return [*made, torch.linspace(0.1, 0.9, views * made.colors.shape[-1]).reshape(views, -1)]


def pictures(trial: Trial) -> None:
    for num, width, height, views in ((0, 20, 18, 2), (1, 1, 1, 1), (800, 77, 51, 2), (2000, 130, 94, 5)):
        for mode in ("RGB", "RGB+D", "RGB+ED", "RGB+MD"):
            rules = [image(1.0 if mode == "RGB" else 12.0), image(), same_bits]
            label = f"N{num}-C{views}-H{height}-W{width} {mode}"
            body, given = rendered(width, height, render_mode=mode), scene(num, width, height, views)
            if num > 1:
                given[0][-1, 0] = float("nan")  # one that is to be left out, and counted
            trial.compare(label, "rasterize", body, *given, names=IMAGE, rules=rules)


def features(trial: Trial) -> None:
    for channels in (1, 4, 9):
        given = scene(300, 40, 33, 2, num_channels=channels)
        body = rendered(40, 33, rasterize_mode="antialiased")
        trial.compare(f"D{channels}", "rasterize", body, *given, names=IMAGE, rules=[image(), image(), same_bits])
    for degree in (0, 2, 4):
        for views in ((), (3,)):  # shared by the views, and one set for each
            given = scene(300, 65, 40, 3)
            given[4] = 0.3 * normal((*views, 300, 25, 3), degree)
            body = rendered(65, 40, sh_degree=degree)
            label = f"degree {degree}, sets {list(views)}"
            trial.compare(label, "rasterize", body, *given, names=IMAGE, rules=[image(3.0), image(), same_bits])


def many_splats(trial: Trial) -> None:
    """Sorts and sums of many blocks, each of which looks back at those before; several batches in a tile's list."""
    given = scene(150_000, 480, 320, 2, sigma_px=(0.5, 2.0))
    # No float64 beside it: the C++ compiled with fused multiplications and without differs in 7 of 100,000 pixels.
    rules = [image(6.0, outside=1e-3), image(outside=1e-3), same_bits]
    body = rendered(480, 320, render_mode="RGB+D")
    trial.compare("N150000-C2-H320-W480", "rasterize", body, *given, names=IMAGE, rules=rules, in_float64=False)


def gradients(trial: Trial) -> None:
    names = [f"gradient of {name}" for name in INPUTS]
    for num, width, height, views in ((1, 1, 1, 1), (300, 65, 40, 2)):
        for mode in ("RGB", "RGB+D", "RGB+ED"):
            body, given = differentiated(width, height, render_mode=mode), scene(num, width, height, views)
            label = f"N{num}-C{views}-H{height}-W{width} {mode}"
            trial.compare(label, "rasterize", body, *given, names=names, rules=[gradient])
    given = scene(200, 48, 40, 3)
    given[4] = 0.3 * normal((3, 200, 9, 3), 1)
    body = differentiated(48, 40, sh_degree=2, render_mode="RGB+D")
    trial.compare("degree 2, a set for each view", "rasterize", body, *given, names=names, rules=[gradient])


def many_gradients(trial: Trial) -> None:
    names = [f"gradient of {name}" for name in INPUTS]
    body, given = differentiated(320, 240, render_mode="RGB+D"), scene(20_000, 320, 240, 4)
    trial.compare("N20000-C4-H240-W320", "rasterize", body, *given, names=names, rules=[gradient], in_float64=False)


def empty(trial: Trial) -> None:
    names = [f"gradient of {name}" for name in INPUTS[:5]]

    def body(function, *scene: Tensor) -> Sequence[Tensor]:  # type: ignore[no-untyped-def]
        return differentiated(20, 18)(function, *scene)[:5]

    trial.compare("N0", "rasterize", body, *scene(0, 20, 18, 2), names=names, rules=[two_errors()])


CHECKS = (
    Check("pictures", pictures),
    Check("features", features),
    Check("many splats", many_splats),
    Check("gradients", gradients),
    Check("gradients of many splats", many_gradients),
    Check("no splat", empty, is_empty=True),
)
