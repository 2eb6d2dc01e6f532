"""Draws the pictures of docs/camera.md: for each motion its flow, its path, and the noise that follows it.

python docs/make_gallery.py --out docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from worldr1.camera.flow import camera_flow
from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory, intrinsics
from worldr1.config import CameraConfig
from worldr1_kernels.noise_transport import noise_transport, plan_transport

CAMERA = CameraConfig()
NUM_FRAMES, HEIGHT, WIDTH, SCALE = 81, 30, 52, 4  # noise of half Wan's latent size, moved on a grid 4 times finer
SHOWN = (0, 27, 54, 80)
PAGES = {  # file -> prompts, one a row
    "push": ["push in", "pull out"],
    "move": ["move left", "move right", "move up", "move down"],
    "pan": ["pan left", "pan right", "tilt up", "tilt down"],
    "orbit": ["orbit left", "orbit right"],
    "pull": ["pull left", "pull right"],
    "roll": ["roll left", "roll right"],
    "composite": ["push in, then pan left", "orbit left, transitioning to pull out"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, prompts in PAGES.items():
        figure = Figure(figsize=(12.5, 0.35 + 1.35 * len(prompts)), dpi=80, layout="constrained")
        rows = figure.subplots(len(prompts), 3 + len(SHOWN), squeeze=False, width_ratios=[1.5, 1.0, 1, 1, 1, 1, 1.2])
        for i, prompt in enumerate(prompts):
            draw_row(rows[i], prompt, titled=i == 0)
        path = out / f"gallery_{name}.png"
        figure.savefig(path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def draw_row(axes: Any, prompt: str, *, titled: bool) -> None:
    """One motion: flow of its middle step, path, noise at SHOWN frames, and a slice of the noise through time."""
    viewmats = build_trajectory(parse_motion(prompt), NUM_FRAMES, CAMERA)
    flow = flow_of(viewmats, HEIGHT, WIDTH)
    draw_flow(axes[0], flow[NUM_FRAMES // 2 if "," not in prompt else NUM_FRAMES // 4])
    axes[0].set_ylabel(prompt.replace(", ", ",\n"), fontsize=8)
    is_vertical = float(flow[:, 1].abs().mean()) > float(flow[:, 0].abs().mean())
    draw_path(axes[1], viewmats, is_vertical or "roll" in prompt)

    fine = torch.randn(1, 1, HEIGHT * SCALE, WIDTH * SCALE, generator=torch.Generator().manual_seed(3))
    # The grid is coarse so that this takes seconds; the dither keeps the speed that a finer one has.
    plan = plan_transport(flow_of(viewmats, HEIGHT * SCALE, WIDTH * SCALE), dither=True)
    noise = noise_transport(fine, plan, seed=3, reduce=SCALE)[0, 0]  # [F, h, w]
    point = torch.tensor([WIDTH / 2 + 0.5, HEIGHT / 2 + 0.5]) + torch.tensor([8.0, -5.0])
    for frame in range(NUM_FRAMES):
        if frame in SHOWN:
            ax = axes[2 + SHOWN.index(frame)]
            draw_noise(ax, noise[frame], title=f"noise, frame {frame}" if titled else "")
            if 0 < point[0] < WIDTH and 0 < point[1] < HEIGHT:
                ax.plot(*(point - 0.5).tolist(), "o", color="C1", fillstyle="none", markersize=9, markeredgewidth=1.5)
        if frame < NUM_FRAMES - 1:
            point = point + at_point(flow[frame], point)
    through_time = noise[:, :, WIDTH // 4].T if is_vertical else noise[:, HEIGHT // 4].T  # time to the right
    draw_noise(axes[-1], through_time, title="a row or column through time" if titled else "")
    axes[-1].set_ylabel("y" if is_vertical else "x", fontsize=7, labelpad=1)
    if titled:
        axes[0].set_title("flow", fontsize=8)
        axes[1].set_title("path", fontsize=8)


def flow_of(viewmats: Tensor, height: int, width: int) -> Tensor:
    return camera_flow(viewmats, intrinsics(height, width, CAMERA), depth=CAMERA.depth, height=height, width=width)


def at_point(field: Tensor, point: Tensor) -> Tensor:
    """Flow [2, h, w] at a point in pixels, bilinear."""
    place = 2 * point.double() / torch.tensor([WIDTH, HEIGHT]) - 1
    sampled = torch.nn.functional.grid_sample(
        field[None], place.reshape(1, 1, 1, 2), padding_mode="border", align_corners=False
    )
    return sampled.flatten().float()


def draw_flow(ax: Any, field: Tensor) -> None:
    """Arrows as long as the steps that the label says: the longest is 4 pixels."""
    y, x = torch.meshgrid(torch.arange(2, HEIGHT, 5), torch.arange(3, WIDTH, 6), indexing="ij")
    steps = 4.0 / float(field.norm(dim=0).max())
    dx, dy = (steps * field[k][y, x] for k in (0, 1))
    ax.set_xlabel(f"{steps:.0f} steps", fontsize=7, labelpad=1)
    ax.quiver(
        x, y, dx, dy, angles="xy", scale_units="xy", scale=1.0, color="C0", width=0.008, minlength=0.1, headwidth=4
    )
    ax.set(xlim=(-1, WIDTH), ylim=(HEIGHT, -1), aspect="equal", xticks=[], yticks=[])


def draw_path(ax: Any, viewmats: Tensor, is_vertical: bool) -> None:
    """Seen from above (x, z), from the right (z, y) or, for a roll, from behind (x, y): arrows look or point up."""
    poses = torch.linalg.inv(viewmats)
    centre = poses[:, :3, 3].numpy()
    turns = bool((poses[:, 2, 2] < 1 - 1e-9).any() or abs(centre).max() > 1e-6)
    h, v = ((2, 1) if is_vertical else (0, 2)) if turns else (0, 1)
    arrow = (poses[:, :3, 2] if turns else -poses[:, :3, 1]).numpy()
    size = max(float(abs(centre).max()), 100.0)
    ax.plot(centre[:, h], centre[:, v], color="0.6", linewidth=1)
    for i in range(0, NUM_FRAMES, 16):
        tip = centre[i] + 0.7 * size * arrow[i]
        style = {"arrowstyle": "->", "color": "C2", "alpha": 0.25 + 0.75 * i / 80}
        ax.annotate("", tip[[h, v]], centre[i][[h, v]], arrowprops=style)
    low, high = centre.min(0) - 0.8 * size, centre.max(0) + 0.8 * size
    ax.set(xlim=(low[h], high[h]), ylim=(low[v], high[v]), aspect="equal")
    if v == 1:
        ax.invert_yaxis()
    ax.set_xlabel("xyz"[h], fontsize=7, labelpad=0)
    ax.set_ylabel("xyz"[v], fontsize=7, labelpad=1)
    ax.tick_params(labelsize=5, length=2, pad=1)


def draw_noise(ax: Any, noise: Tensor, *, title: str) -> None:
    levels = (noise.clamp(-2.4, 2.4) * 2.5).round()  # 13 greys: noise does not compress, and nobody sees more
    ax.imshow(levels, cmap="gray", vmin=-6, vmax=6, interpolation="nearest", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=8)


if __name__ == "__main__":
    main()
