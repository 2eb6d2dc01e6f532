"""MicroEvaluator: the independent judge of the before/after study, which no reward ever sees.

It answers the same questions as MicroGeo and also names the motion and the content of a clip, by another network:
patches of 4 x 4 pixels in time are the tokens of a bottleneck ResNet that stays at a quarter of the resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldr1.datatypes import Reconstruction
from worldr1.rewards.judges.folder import FolderNetwork, check_video
from worldr1.rewards.judges.micro_geo import pinhole, pixel_gaussians, poses_to_viewmats


class _Bottleneck(nn.Module):
    """Residual block: 1x1 down, 3x3, 1x1 up, with ReLU before each (He et al., 2016)."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, narrow, 1)
        self.mix = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.up = nn.Conv2d(narrow, channels, 1)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.up(self.mix(self.down(x.relu()).relu()).relu())


class MicroEvaluator(FolderNetwork):
    """Depth, poses, motion class and content of a clip of fixed size.

    Args:
      num_frames: F, frames of a clip.
      size: Height and width in pixels.
      width: Channels of a token.
      narrow: Channels inside a block.
      num_blocks: Blocks.
      num_motions: Classes of camera motion.
      contents: Content head -> number of its classes.
      focal_ratio: Focal length as a multiple of the image width.
    """

    def __init__(
        self,
        *,
        num_frames: int = 9,
        size: int = 32,
        width: int = 144,
        narrow: int = 96,
        num_blocks: int = 4,
        num_motions: int = 9,
        contents: dict[str, int] | None = None,
        focal_ratio: float = 0.8,
    ) -> None:
        contents = contents or {"colour": 4, "shape": 2, "floor": 2}
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.num_frames, self.size, self.focal_ratio = num_frames, size, focal_ratio
        side = size // 4
        self.stem = nn.Conv2d(48 * num_frames, width, 1)
        self.place = nn.Parameter(torch.zeros(width, side, side))
        self.blocks = nn.Sequential(*[_Bottleneck(width, narrow) for _ in range(num_blocks)])
        self.squeeze = nn.Conv2d(width, 12, 1)
        self.clip = nn.Sequential(nn.Linear(12 * side * side, 160), nn.ReLU())
        self.pose = nn.Linear(160, 6 * (num_frames - 1))
        self.motion = nn.Linear(160, num_motions)
        self.content = nn.ModuleDict({name: nn.Linear(2 * width, count) for name, count in contents.items()})
        self.dense = nn.Conv2d(width, 32 * num_frames, 1)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The raw outputs, for training.

        Args:
          video: Shape [N, F, 3, H, W], in [0, 1].
        Returns:
          log_depth [N, F, H, W]; log_error [N, F, H, W]; poses [N, F - 1, 6] (see MicroGeo);
          motion logits [N, num_motions]; content logits by head [N, k].
        """
        check_video("MicroEvaluator", video, num_frames=self.num_frames, size=self.size)
        patches = nn.functional.pixel_unshuffle(3.0 * (video.flatten(1, 2) - 0.5), 4)  # [N, 48 F, H/4, W/4]
        x = self.blocks(self.stem(patches) + self.place).relu()  # [N, width, H/4, W/4]
        clip = self.clip(self.squeeze(x).flatten(1))  # [N, 160]
        poses = self.pose(clip).unflatten(1, (self.num_frames - 1, 6))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)  # [N, 2 width]
        contents = {name: head(pooled) for name, head in self.content.items()}
        dense = nn.functional.pixel_shuffle(self.dense(x), 4).unflatten(1, (2, self.num_frames))  # [N, 2, F, H, W]
        log_depth, log_error = dense.unbind(1)
        return 1.6 + log_depth, log_error.clamp(-5.0, 1.0) - 2.0, poses, self.motion(clip), contents

    @torch.no_grad()
    def infer(self, video: Tensor) -> Reconstruction:
        """Lift videos to 3D; one Gaussian per pixel of every frame. Each clip is also looked at in the mirror.

        Args:
          video: Shape [N, F, 3, H, W], float32 in [0, 1].
        Returns:
          Reconstruction, in the frame of the first camera.
        Raises:
          ValueError: another number of frames or another size than the network's.
        """
        log_depth, log_error, poses = self(video)[:3]
        seen_depth, seen_error, seen_poses = self(video.flip(-1))[:3]
        # In the mirror x changes its sign: rotations about y and z and the way to the right are reversed.
        seen_poses = seen_poses * torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0]).to(poses)
        log_depth, log_error = 0.5 * (log_depth + seen_depth.flip(-1)), 0.5 * (log_error + seen_error.flip(-1))
        poses = 0.5 * (poses + seen_poses)
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
