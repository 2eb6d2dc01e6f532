"""Launcher of the C++ rasterizer: contiguous float32 pointers in, forward pass only."""

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels.rasterize.arguments import Inputs, Settings

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def rasterize_native(inputs: Inputs, settings: Settings, *, level: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Renders float32 CPU tensors on `torch.get_num_threads()` threads; the result does not depend on their number.

    Args:
      inputs: Float32 tensors on the CPU, any strides.
      settings: Scalars.
      level: Instruction set, "x86-64-v2", "-v3" or "-v4"; "" takes the best this processor has.
    Returns:
      (render_colors [B, C, H, W, X], render_alphas [B, C, H, W, 1], num_invalid [B, C] int64).
    Raises:
      RuntimeError: the module is not built, or the processor lacks `level`.
    """
    module = _native.cpu()
    # Held in a list until the call returns: only addresses cross.
    held = [None if t is None else t.contiguous() for t in inputs]
    means, colors, viewmats = inputs.means, inputs.colors, inputs.viewmats
    num_scenes, num_views, channels = means.shape[0], viewmats.shape[1], settings.channels(colors)
    image = (num_scenes, num_views, settings.height, settings.width)
    render_colors, render_alphas = means.new_empty(*image, channels), means.new_empty(*image, 1)
    num_invalid = torch.zeros(num_scenes, num_views, dtype=torch.int64)
    addresses = {
        name: 0 if tensor is None else tensor.data_ptr() for name, tensor in zip(Inputs._fields, held, strict=True)
    }
    scalars = settings._replace(far_plane=min(settings.far_plane, LARGEST_FLOAT32))._asdict()
    module.rasterize_forward(
        **addresses,
        **scalars,
        render_colors=render_colors.data_ptr(),
        render_alphas=render_alphas.data_ptr(),
        num_invalid=num_invalid.data_ptr(),
        num_scenes=num_scenes,
        num_views=num_views,
        num_gaussians=means.shape[1],
        color_size=0 if colors is None else colors.shape[3:].numel(),
        channels=channels,
        colors_per_view=colors is not None and colors.shape[1] != 1,
        num_threads=torch.get_num_threads(),
        level=level,
    )
    return render_colors, render_alphas, num_invalid
