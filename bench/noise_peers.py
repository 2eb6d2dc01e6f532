"""The peer of noise transport: grouping by value, as Go-with-the-Flow describes it, in plain torch."""

import torch
from torch import Tensor


def _moved(flow: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """(is inside, index) of where each pixel goes (+1) or comes from (-1), [H W], by a flow [2, H, W]."""
    height, width = flow.shape[1:]
    shift = sign * torch.round(flow).long()
    x = torch.arange(width, device=flow.device) + shift[0]
    y = torch.arange(height, device=flow.device)[:, None] + shift[1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return inside.flatten(), (y * width + x).flatten()


def value_keyed_step(noise: Tensor, density: Tensor, flow: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One frame, Burgert et al. 2025: noise [C, H W] and density [H W] along a flow [2, H, W].

    Pixels that came from one source are recognised by an equal value in channel 0 (torch.unique, a sort of all values);
    every pixel draws a normal; several arrivals are added by index_add and renormalised by their densities.
    """
    channels, pixels = noise.shape
    forward_inside, forward = _moved(flow, 1)
    backward_inside, backward = _moved(flow, -1)
    reached = torch.zeros(pixels, dtype=torch.bool, device=noise.device)
    reached[forward[forward_inside]] = True
    stretched = ~reached & backward_inside
    source = torch.cat([forward_inside.nonzero()[:, 0], backward[stretched]])
    target = torch.cat([forward[forward_inside], stretched.nonzero()[:, 0]])
    values = noise[:, source]
    _, group, counts = torch.unique(values[0], return_inverse=True, return_counts=True)
    size = counts[group]
    drawn = torch.randn(values.shape, generator=generator, device=noise.device)
    mean = torch.zeros(channels, len(counts), device=noise.device).index_add_(1, group, drawn) / counts
    values = values / size.sqrt() + (drawn - mean[:, group])
    weight = density[source] / size
    arrived = torch.zeros_like(noise).index_add_(1, target, values * weight)
    squares = torch.zeros_like(density).index_add_(0, target, weight.square())
    density = torch.zeros_like(density).index_add_(0, target, weight)
    empty = squares == 0
    noise = torch.where(empty, torch.randn(noise.shape, generator=generator, device=noise.device), arrived)
    noise = noise / torch.where(empty, 1.0, squares.sqrt())
    density = torch.where(empty, 1.0, density)
    return noise, (density / density.mean() + 1e-5) ** 0.9999


def value_keyed(noise: Tensor, flow: Tensor, *, capture: int, reduce: int) -> Tensor:
    """Noise [B, C, H, W] along a flow [F-1, 2, H, W]; every `capture`-th frame, reduced, [B, C, F', H/r, W/r]."""
    height, width = noise.shape[2:]
    generator = torch.Generator(noise.device).manual_seed(0)
    videos = []
    for image in noise:
        state, density = image.flatten(1), torch.ones(height * width, device=noise.device)
        frames = []
        for frame in range(len(flow) + 1):
            if frame > 0:
                state, density = value_keyed_step(state, density, flow[frame - 1], generator)
            if frame % capture == 0:
                blocks = state.view(-1, height // reduce, reduce, width // reduce, reduce)
                frames.append(blocks.sum((2, 4)) / reduce)
        videos.append(torch.stack(frames, 1))
    return torch.stack(videos)
