"""MicroGeo, the feed-forward reconstructor of the rewards: frames -> depth, confidence, relative poses, Gaussians.

It has the interface of Depth Anything 3 in the small. All frames of a clip enter one 2D network as channels, so that
motion between frames is seen by the first convolution; one pass over 32 clips costs some 5 GFLOP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.rewards.judges.folder import FolderNetwork, Residual, check_video


class MicroGeo(FolderNetwork):
    """Depth, confidence and poses of a clip of fixed size, all in the metric units of the micro world.

    Args:
      num_frames: F, frames of a clip.
      size: Height and width in pixels.
      width: Channels at half resolution.
      deep: Channels at a quarter of the resolution.
      focal_ratio: Focal length as a multiple of the image width (the lens is known).
      key_frames: The frames whose pixels become Gaussians; the others are then seen by no one but their own poses, so
        rendering them is a test of consistency and not a copy.
      splat_px: Standard deviation of a Gaussian, in pixels of the frame it comes from.
      half_opacity_confidence: Confidence at which a Gaussian is half opaque.
    """

    role = "reconstructor"

    def __init__(
        self,
        *,
        num_frames: int = 9,
        size: int = 32,
        width: int = 64,
        deep: int = 96,
        focal_ratio: float = 0.8,
        key_frames: Sequence[int] = (0, 3, 5, 8),
        splat_px: float = 0.3,
        half_opacity_confidence: float = 2.0,
    ) -> None:
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.num_frames, self.size, self.focal_ratio = num_frames, size, focal_ratio
        self.key_frames, self.splat_px = list(key_frames), splat_px
        self.half_opacity_confidence = half_opacity_confidence
        self.stem = nn.Conv2d(12 * num_frames + 2, width, 3, padding=1)
        self.fine = Residual(width)
        self.down = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(Residual(deep), Residual(deep))
        self.squeeze = nn.Conv2d(deep, 16, 1)
        self.pose = nn.Sequential(
            nn.Linear(16 * (size // 4) ** 2, 128), nn.SiLU(), nn.Linear(128, 6 * (num_frames - 1))
        )
        self.lift = nn.Conv2d(deep, width, 1)
        self.merge = nn.Conv2d(2 * width, width, 3, padding=1)
        self.dense = nn.Conv2d(width, 8 * num_frames, 1)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The raw outputs, for training.

        Args:
          video: Shape [N, F, 3, H, W], in [0, 1].
        Returns:
          log_depth [N, F, H, W]; log_error [N, F, H, W], the log of the expected |error of log_depth|;
          poses [N, F - 1, 6], camera-to-world of frames 1..F-1 relative to frame 0: rotation vector (radians), centre.
        """
        check_video("MicroGeo", video, num_frames=self.num_frames, size=self.size)
        x = nn.functional.pixel_unshuffle(4.0 * (video.flatten(1, 2) - 0.5), 2)  # [N, 12 F, H/2, W/2]
        x = self.stem(torch.cat([x, _position(x)], dim=1))
        fine = self.fine(x)  # [N, width, H/2, W/2]
        coarse = self.coarse(self.down(nn.functional.silu(fine)))  # [N, deep, H/4, W/4]
        coarse = nn.functional.silu(coarse)
        poses = self.pose(self.squeeze(coarse).flatten(1)).unflatten(1, (self.num_frames - 1, 6))
        up = nn.functional.interpolate(self.lift(coarse), scale_factor=2.0, mode="nearest")
        merged = self.merge(torch.cat([nn.functional.silu(fine), up], dim=1))
        dense = nn.functional.pixel_shuffle(self.dense(nn.functional.silu(merged)), 2)  # [N, 2 F, H, W]
        log_depth, log_error = dense.unflatten(1, (2, self.num_frames)).unbind(1)
        return 1.6 + log_depth, log_error.clamp(-5.0, 1.0) - 2.0, poses

    @torch.no_grad()
    def infer(self, video: Tensor) -> Reconstruction:
        """Lift videos to 3D.

        Args:
          video: Shape [N, F, 3, H, W], float32 in [0, 1].
        Returns:
          Reconstruction; one Gaussian per pixel of each key frame, in the frame of the first camera.
        Raises:
          ValueError: another number of frames or another size than the network's.
        """
        log_depth, log_error, poses = self(video)
        depth, confidence = log_depth.exp(), (-log_error).exp()
        viewmats = poses_to_viewmats(poses)
        K = pinhole(self.size, self.focal_ratio).to(video)
        keys = self.key_frames
        gaussians = pixel_gaussians(
            video[:, keys],
            depth[:, keys],
            confidence[:, keys],
            viewmats=viewmats[:, keys],
            K=K,
            splat_px=self.splat_px,
            half_opacity_confidence=self.half_opacity_confidence,
        )
        Ks = K.expand(*video.shape[:2], 3, 3)
        return Reconstruction(depth=depth, confidence=confidence, viewmats=viewmats, Ks=Ks, gaussians=gaussians)


def pinhole(size: int, focal_ratio: float) -> Tensor:
    """Intrinsics K [3, 3] in pixels: square image, principal point at its centre."""
    f = focal_ratio * size
    return torch.tensor([[f, 0.0, size / 2], [0.0, f, size / 2], [0.0, 0.0, 1.0]])


def pixel_gaussians(
    video: Tensor,
    depth: Tensor,
    confidence: Tensor,
    *,
    viewmats: Tensor,
    K: Tensor,
    splat_px: float = 0.3,
    half_opacity_confidence: float = 2.0,
) -> GaussianScene:
    """One isotropic Gaussian per pixel: unprojected along the ray through the pixel centre.

    Args:
      video: Colours, shape [N, F, 3, H, W], in [0, 1].
      depth: z-depth, shape [N, F, H, W], scene units.
      confidence: Shape [N, F, H, W], > 0; opacity is 0.98 c / (c + half_opacity_confidence).
      viewmats: World-to-camera, shape [N, F, 4, 4].
      K: Intrinsics in pixels, shape [3, 3], or [N, F, 3, 3] where frames differ.
      splat_px: Standard deviation in pixels of its own frame.
      half_opacity_confidence: See `confidence`.
    Returns:
      GaussianScene with M = F H W, frame-major, then rows.
    """
    num, frames, _, height, width = video.shape
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([xs + 0.5, ys + 0.5, torch.ones_like(xs)]).to(depth).flatten(1)  # [3, P]
    points = (torch.linalg.inv(K) @ pixels) * depth.flatten(2)[:, :, None]  # [N, F, 3, P]
    rotation, translation = viewmats[..., :3, :3], viewmats[..., :3, 3:]
    means = (rotation.transpose(-1, -2) @ (points - translation)).transpose(-1, -2)  # [N, F, P, 3]
    scales = (splat_px / K[..., 0, :1] * depth.flatten(2)).reshape(num, -1)  # [N, M]
    c = confidence.reshape(num, -1)
    quats = torch.zeros(num, scales.shape[1], 4).to(scales)
    quats[..., 0] = 1.0
    return GaussianScene(
        means=means.reshape(num, -1, 3),
        quats=quats,
        scales=scales[..., None].repeat(1, 1, 3),
        opacities=0.98 * c / (c + half_opacity_confidence),
        colors=video.permute(0, 1, 3, 4, 2).reshape(num, -1, 3),
    )


def poses_to_viewmats(poses: Tensor) -> Tensor:
    """(rotation vector, centre), [N, F - 1, 6] -> world-to-camera [N, F, 4, 4], the identity at frame 0."""
    rotation = _rotation_from_vector(poses[..., :3])  # camera to world
    viewmats = torch.eye(4).to(poses).repeat(poses.shape[0], poses.shape[1] + 1, 1, 1)
    viewmats[:, 1:, :3, :3] = rotation.transpose(-1, -2)
    viewmats[:, 1:, :3, 3] = -(rotation.transpose(-1, -2) @ poses[..., 3:, None])[..., 0]
    return viewmats


def viewmats_to_poses(viewmats: Tensor) -> Tensor:
    """Inverse of `poses_to_viewmats` for turns below half a circle: [N, F, 4, 4] -> [N, F - 1, 6]."""
    rotation = viewmats[:, 1:, :3, :3].transpose(-1, -2)  # camera to world
    centre = -(rotation @ viewmats[:, 1:, :3, 3:])[..., 0]
    skew = rotation - rotation.transpose(-1, -2)
    axis = 0.5 * torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)  # sin(angle) * axis
    cos = 0.5 * (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0)
    sin = axis.norm(dim=-1)
    angle = torch.atan2(sin, cos)
    scale = torch.where(sin > 1e-6, angle / sin.clamp_min(1e-6), torch.ones_like(sin))
    return torch.cat([axis * scale[..., None], centre], dim=-1)


def rotation_error(a: Tensor, b: Tensor) -> Tensor:
    """Geodesic angle between the rotations of two sets of viewmats [..., 4, 4], radians, accurate near 0."""
    difference = a[..., :3, :3] - b[..., :3, :3]
    chord = difference.flatten(-2).norm(dim=-1)  # 2 sqrt(2) sin(angle / 2)
    return 2.0 * torch.asin((chord / 8.0**0.5).clamp(0.0, 1.0))


def _rotation_from_vector(vector: Tensor) -> Tensor:
    """Rodrigues' formula: [..., 3] radians -> [..., 3, 3]."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    angle = (vector.square().sum(-1) + 1e-12).sqrt()[..., None, None]
    half = 0.5 * angle
    return (
        torch.eye(3).to(vector) + (angle.sin() / angle) * cross + 0.5 * (half.sin() / half).square() * (cross @ cross)
    )


def _position(x: Tensor) -> Tensor:
    """Two channels with the pixel's place in [-1, 1]: [N, 2, h, w]."""
    num, _, height, width = x.shape
    ys = torch.linspace(-1.0, 1.0, height).to(x)[:, None].expand(height, width)
    xs = torch.linspace(-1.0, 1.0, width).to(x)[None].expand(height, width)
    return torch.stack([xs, ys]).expand(num, 2, height, width)
