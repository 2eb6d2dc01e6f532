"""MicroEvaluator: the independent judge of the before/after study, which no reward ever sees.

It answers the same questions as MicroGeo and also names the motion and the content of a clip, by another route: every
frame is compared with the first one by shared weights, and the frames exchange features by temporal shifts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldr1.datatypes import Reconstruction
from worldr1.microworld.networks.folder import FolderNetwork, check_video
from worldr1.microworld.networks.geo import pinhole, pixel_gaussians, poses_to_viewmats


class _Shifted(nn.Module):
    """Residual block of two 3x3 convolutions, a quarter of whose input channels come from the frames around.

    Of the first channels, an eighth are those of the frame before and an eighth those of the frame after (Lin et al.,
    TSM, 2019); at the ends they are zero.
    """

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames, self.fold = frames, channels // 8
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N F, C, h, w]."""
        clips, k = x.relu().unflatten(0, (-1, self.frames)), self.fold  # [N, F, C, h, w]
        edge = torch.zeros_like(clips[:, :1, :k])
        before = torch.cat([edge, clips[:, :-1, :k]], dim=1)
        after = torch.cat([clips[:, 1:, k : 2 * k], edge], dim=1)
        h = torch.cat([before, after, clips[:, :, 2 * k :]], dim=2).flatten(0, 1)
        return x + self.gain * self.second(self.first(h).relu())


class MicroEvaluator(FolderNetwork):
    """Depth, poses, motion class and content of a clip of fixed size.

    Args:
      num_frames: F, frames of a clip.
      size: Height and width in pixels.
      width: Channels at half resolution.
      deep: Channels at a quarter of the resolution.
      num_blocks: Blocks with a temporal shift.
      num_motions: Classes of camera motion.
      contents: Content head -> number of its classes.
      focal_ratio: Focal length as a multiple of the image width.
    """

    def __init__(
        self,
        *,
        num_frames: int = 9,
        size: int = 32,
        width: int = 32,
        deep: int = 96,
        num_blocks: int = 2,
        num_motions: int = 9,
        contents: dict[str, int] | None = None,
        focal_ratio: float = 0.8,
    ) -> None:
        contents = contents or {"colour": 4, "shape": 2, "floor": 2}
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.num_frames, self.size, self.focal_ratio = num_frames, size, focal_ratio
        self.stem = nn.Conv2d(96, deep, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, deep, size // 4, size // 4))
        self.blocks = nn.ModuleList([_Shifted(deep, num_frames) for _ in range(num_blocks)])
        self.squeeze = nn.Conv2d(deep, 8, 1)
        token = 8 * (size // 4) ** 2
        self.frame_token = nn.Linear(token, 96)
        self.clip_token = nn.Linear(96 * num_frames, 160)
        self.pose = nn.Sequential(nn.ReLU(), nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 6))
        self.motion = nn.Sequential(nn.ReLU(), nn.Linear(160, num_motions))
        self.content = nn.ModuleDict({name: nn.Linear(2 * deep, count) for name, count in contents.items()})
        self.up = nn.ConvTranspose2d(deep, width, 2, stride=2)
        self.detail = nn.Conv2d(12, width, 3, padding=1)
        self.dense = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 1))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The raw outputs, for training.

        Args:
          video: Shape [N, F, 3, H, W], in [0, 1].
        Returns:
          log_depth [N, F, H, W]; log_error [N, F, H, W]; poses [N, F - 1, 6] (see MicroGeo);
          motion logits [N, num_motions]; content logits by head [N, k].
        """
        check_video("MicroEvaluator", video, num_frames=self.num_frames, size=self.size)
        num = video.shape[0]
        frames = 3.0 * (video - 0.5)
        pairs = torch.cat([frames, frames[:, :1].expand_as(frames)], dim=2).flatten(0, 1)  # [N F, 6, H, W]
        x = self.stem(nn.functional.pixel_unshuffle(pairs, 4)) + self.place  # [N F, deep, H/4, W/4]
        for block in self.blocks:
            x = block(x)
        x = x.relu()
        per_frame = self.frame_token(self.squeeze(x).flatten(1)).unflatten(0, (num, self.num_frames))  # [N, F, 96]
        clip = self.clip_token(per_frame.flatten(1).relu())  # [N, 160]
        both = torch.cat([per_frame[:, 1:], clip[:, None].expand(-1, self.num_frames - 1, -1)], dim=-1)
        poses = self.pose(both)  # [N, F - 1, 6]
        flat = x.unflatten(0, (num, self.num_frames))
        pooled = torch.cat([flat.mean((1, 3, 4)), flat.amax((1, 3, 4))], dim=-1)  # [N, 2 deep]
        contents = {name: head(pooled) for name, head in self.content.items()}
        detail = self.detail(nn.functional.pixel_unshuffle(frames.flatten(0, 1), 2))  # [N F, width, H/2, W/2]
        dense = self.dense(self.up(x) + detail)
        dense = nn.functional.pixel_shuffle(dense, 2).unflatten(0, (num, self.num_frames))  # [N, F, 2, H, W]
        log_depth, log_error = dense.unbind(2)
        return 1.6 + log_depth, log_error.clamp(-5.0, 1.0) - 2.0, poses, self.motion(clip), contents

    @torch.no_grad()
    def infer(self, video: Tensor) -> Reconstruction:
        """Lift videos to 3D; one Gaussian per pixel of every frame.

        Args:
          video: Shape [N, F, 3, H, W], float32 in [0, 1].
        Returns:
          Reconstruction, in the frame of the first camera.
        Raises:
          ValueError: another number of frames or another size than the network's.
        """
        log_depth, log_error, poses = self(video)[:3]
        depth, confidence, viewmats = log_depth.exp(), (-log_error).exp(), poses_to_viewmats(poses)
        K = pinhole(self.size, self.focal_ratio).to(video)
        gaussians = pixel_gaussians(video, depth, confidence, viewmats=viewmats, K=K)
        Ks = K.expand(*video.shape[:2], 3, 3)
        return Reconstruction(depth=depth, confidence=confidence, viewmats=viewmats, Ks=Ks, gaussians=gaussians)

    @torch.no_grad()
    def classify(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Name the motion and the content.

        Args:
          video: Shape [N, F, 3, H, W], float32 in [0, 1].
        Returns:
          motion_logits [N, num_motions], in the order of captions.MOTIONS; content logits by head: "colour" [N, 4],
          "shape" [N, 2], "floor" [N, 2], in the order of captions.COLOURS, SHAPES and FLOORS.
        """
        _, _, _, motion, contents = self(video)
        return motion, contents
