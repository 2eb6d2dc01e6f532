"""Classical: videos -> cameras, depth and Gaussians, and for each clip whether it can be judged at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldr1.config import MICRO_CAMERA
from worldr1.datatypes import Reconstruction
from worldr1.evaluation.classical.bundle import Scene, adjust, normalise, residuals
from worldr1.evaluation.classical.dense import sweep
from worldr1.evaluation.classical.start import MIN_POINTS, starts, turning
from worldr1.evaluation.classical.tracks import Tracks, follow
from worldr1.evaluation.recovered import FAILED, MOVING, STILL, TURNING, Recovered
from worldr1.rewards.judges.micro_geo import pixel_gaussians

NOISE = 0.0025
"""Scale of the error of a track, in widths of the frame: a sixth of a pixel at 64."""
SMALLEST = 48
"""Shorter side, pixels, below which no clip is judged: at 32, 8 of 18 clips of the micro world got wrong cameras."""
_STILL = 0.004  # of the width: the median point moves less in every frame
_EVIDENCE = 2.2  # nats that a path must gain for each parameter that it has more than turning alone
_UNTOLD = 1.8  # times: with less evidence, a path that fits so much better in the median is no turn either
_FLAT = 0.5
"""Relief (see _relief) below which a path is not told from a zoom: zooms show .17 to .32, rooms 1.5 and more."""
_CUT = 0.2  # of the points survive from one frame to the next
_LOOSE = 0.012  # of the width: largest median error of a rigid scene
_RIGID = 0.5  # of the points must lie within three times the noise, in the median frame
_ADJUSTED = 13  # frames of a long clip that are adjusted together


class Classical:
    """A reconstructor of the evaluation that has learned nothing.

    Args:
      device: Where the results go; the work is done on the CPU.
      focal_ratio: Focal length in widths of the frame; None: that of the micro world's lens, .8. It is taken as
        known: a wrong one bends the scene and the path (docs/evaluation_classical.md says by how much).
    """

    def __init__(self, *, device: torch.device | str = "cpu", focal_ratio: float | None = None) -> None:
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            raise ValueError("the classical reconstructor needs OpenCV: pip install 'worldr1[evaluate]'") from error
        focal_ratio = MICRO_CAMERA.focal_ratio if focal_ratio is None else focal_ratio
        if not 0 < focal_ratio < math.inf:
            raise ValueError(f"Classical: focal_ratio must be a finite number > 0, got {focal_ratio}")
        self.device, self.focal_ratio = torch.device(device), focal_ratio

    def infer(self, video: Tensor) -> Reconstruction:
        """As `recover`, without the states."""
        return self.recover(video).reconstruction

    def recover(self, video: Tensor) -> Recovered:
        """Cameras, depth and Gaussians of N clips, each judged by itself.

        Args:
          video: Shape [N, F, 3, H, W] in [0, 1], F >= 3.
        Returns:
          Recovered. Scale: the median depth of a moving clip's points is 1. Gaussians: one a pixel of every frame.
        Raises:
          ValueError: another shape.
        """
        if video.ndim != 5 or video.shape[1] < 3 or video.shape[2] != 3:
            raise ValueError(f"Classical.recover: video must have shape [N, F >= 3, 3, H, W], got {list(video.shape)}")
        num, frames, _, height, width = video.shape
        focal = self.focal_ratio * width
        K = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
        found = [self._clip(clip, K) for clip in video.cpu()]
        viewmats = torch.from_numpy(np.stack([c.viewmats for c in found])).float().to(self.device)
        depth = torch.stack([c.depth for c in found]).to(self.device)
        confidence = torch.stack([c.confidence for c in found]).to(self.device)
        lens = torch.from_numpy(K).float().to(self.device)
        gaussians = pixel_gaussians(video.float().to(self.device), depth, confidence, viewmats=viewmats, K=lens)
        scene = Reconstruction(depth, confidence, viewmats, lens.expand(num, frames, 3, 3), gaussians)
        return Recovered(scene, tuple(c.state for c in found), tuple(c.reason for c in found))

    def _clip(self, clip: Tensor, K: np.ndarray) -> _Found:
        frames, _, height, width = clip.shape
        if not bool(clip.isfinite().all()):
            return _nothing(FAILED, "the clip is not finite", frames, height, width)
        if min(height, width) < SMALLEST:
            return _nothing(FAILED, f"frames must be {SMALLEST} pixels or more on either side", frames, height, width)
        pixels = (clip.permute(0, 2, 3, 1).clamp(0, 1) * 255.0).round().byte().numpy()
        cameras, state, reason = solve(follow(pixels), K, width=width)
        out = _nothing(state, reason, frames, height, width)
        if cameras is not None:
            out.viewmats = cameras.scene.viewmats()
            if state == MOVING:
                out.depth, out.confidence = sweep(clip.float(), cameras.scene, cameras.tracks, K)
        return out


@dataclass
class _Found:
    state: str
    reason: str
    viewmats: np.ndarray
    depth: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Solved:
    """Cameras and the tracks that they were found from."""

    scene: Scene
    tracks: Tracks


def _nothing(state: str, reason: str, frames: int, height: int, width: int) -> _Found:
    plain = torch.ones(frames, height, width)
    return _Found(state, reason, np.tile(np.eye(4), (frames, 1, 1)), plain, plain)


def solve(tracks: Tracks, K: np.ndarray, *, width: int) -> tuple[Solved | None, str, str]:
    """Cameras from tracks: (what was found, state, reason); None with a failure.

    Args:
      tracks: Of one clip.
      K: Intrinsics [3, 3], pixels.
      width: Of the frames, pixels.
    """
    noise = NOISE * width
    failure = _unusable(tracks)
    if failure:
        return None, FAILED, failure
    if _travel(tracks) < _STILL * width:
        return _at_rest(tracks)
    turned, _ = turning(tracks, K, width=noise)
    best = _with_path(tracks, K, turned, noise=noise)
    moves = best is not None and (
        _evidence(turned, best, tracks, K, noise=noise, more=3 * tracks.seen.shape[1]) > _EVIDENCE
    )
    chosen = best if moves and best is not None else turned
    error = float(np.median(_errors(chosen, tracks, K)))
    if error > _LOOSE * width:
        return None, FAILED, f"no rigid scene explains the tracks: they are off by {error:.1f} pixels"
    if not moves or best is None:
        if best is not None and error > _UNTOLD * float(np.median(_errors(best, tracks, K))):
            return None, FAILED, "the points are seen too briefly to tell a path from a turn"
        if _largest_turn(turned) * K[0, 0] < 2.0 * _STILL * width:  # noise has moved the points, not the camera
            return _at_rest(tracks)
        return Solved(turned, tracks), TURNING, "the camera only turns: no depth can be seen"
    share = _rigid_share(best, tracks, K, limit=6.0 * noise)
    if share < _RIGID:
        return None, FAILED, f"{1 - share:.0%} of the points do not move with one rigid scene"
    if _ahead(best) and _relief(best, tracks) < _FLAT:
        return None, FAILED, "the lens zooms, or the scene is a flat wall: the images do not tell which"
    normalise(best, tracks)
    return Solved(best, tracks), MOVING, ""


def _at_rest(tracks: Tracks) -> tuple[Solved, str, str]:
    frames = tracks.seen.shape[1]
    rest = Scene(np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3)), np.zeros(len(tracks.anchor)))
    return Solved(rest, tracks), STILL, "the camera is at rest: no depth can be seen"


def _largest_turn(scene: Scene) -> float:
    """Of the cameras against that of frame 0, radians."""
    cosine = (np.trace(scene.rotation, axis1=1, axis2=2) - 1.0) / 2.0
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)).max())


def _unusable(tracks: Tracks) -> str:
    if len(tracks.anchor) < MIN_POINTS:
        return f"{len(tracks.anchor)} points could be followed, {MIN_POINTS} are needed: there is no texture"
    survived = tracks.survived
    if survived.min() < _CUT:
        where = int(survived.argmin())
        return (
            f"the clip is cut or torn between frames {where} and {where + 1}: {survived.min():.0%} of the points go on"
        )
    seen = tracks.seen.sum(0)
    if seen.min() < MIN_POINTS:
        return f"frame {int(seen.argmin())} shows {int(seen.min())} of the points, {MIN_POINTS} are needed"
    return ""


def _travel(tracks: Tracks) -> float:
    """The largest over frames of the median way of the points from their anchor, pixels."""
    home = tracks.at[np.arange(len(tracks.anchor)), tracks.anchor]
    way = np.linalg.norm(tracks.at - home[:, None], axis=-1)
    return max(float(np.median(way[tracks.seen[:, f], f])) for f in range(way.shape[1]))


def _errors(scene: Scene, tracks: Tracks, K: np.ndarray) -> np.ndarray:
    """Image errors in pixels of all observations but the anchors', [M]."""
    seen = tracks.seen.copy()
    seen[np.arange(len(tracks.anchor)), tracks.anchor] = False
    return np.linalg.norm(residuals(scene, tracks, K), axis=-1)[seen]


def _evidence(plain: Scene, rich: Scene, tracks: Tracks, K: np.ndarray, *, noise: float, more: int) -> float:
    """Log-likelihood that the richer scene gains, nats for each parameter: a depth for each point that is seen in two
    frames, and `more`."""
    gain = 0.0
    for scene, sign in ((plain, 1.0), (rich, -1.0)):
        gain += sign * float(np.log1p((_errors(scene, tracks, K) / noise) ** 2).sum())
    return gain / (int((tracks.seen.sum(1) > 1).sum()) + more)


def _ahead(scene: Scene) -> bool:
    """Whether the camera's largest way from frame 0 is along its axis rather than across, as a zoom would have it."""
    centre = -np.einsum("fji,fj->fi", scene.rotation, scene.translation)
    far = centre[np.linalg.norm(centre, axis=1).argmax()]
    return bool(abs(far[2]) > np.hypot(far[0], far[1]))


def _relief(scene: Scene, tracks: Tracks) -> float:
    """How deep a scene is seen from frame 0: (largest - smallest) / median inverse depth, of its middle nine tenths."""
    inverse = scene.inverse_depth[(tracks.anchor == 0) & (tracks.seen.sum(1) > 2)]
    if not len(inverse):
        return 0.0
    low, middle, high = np.quantile(inverse, [0.05, 0.5, 0.95])
    return float((high - low) / max(abs(middle), 1e-9))


def _rigid_share(scene: Scene, tracks: Tracks, K: np.ndarray, *, limit: float) -> float:
    errors = _errors(scene, tracks, K)
    return float((errors < limit).mean()) if errors.size else 0.0


def _with_path(tracks: Tracks, K: np.ndarray, turned: Scene, *, noise: float) -> Scene | None:
    """The best scene with a path, from every start; long clips by some of their frames first."""
    frames = tracks.seen.shape[1]
    chosen = np.zeros(frames, bool)
    chosen[np.unique(np.linspace(0, frames - 1, min(frames, _ADJUSTED)).round().astype(int))] = True
    chosen[np.unique(tracks.anchor)] = True
    sparse = Tracks(tracks.at[:, chosen], tracks.seen[:, chosen], np.cumsum(chosen)[tracks.anchor] - 1, tracks.survived)
    part = Scene(turned.rotation[chosen], turned.translation[chosen], turned.inverse_depth)
    best, lowest = None, np.inf
    for scene in starts(sparse, K, part, width=noise):
        cost = adjust(scene, sparse, K, width=2.0 * noise, num_steps=6)
        if cost < lowest:
            best, lowest = scene, cost
    if best is None:
        return None
    adjust(best, sparse, K, width=noise, num_steps=15)
    adjust(best, sparse, K, width=noise / 6.0, num_steps=20)  # the best tracks decide: a third less error of rotation
    if chosen.all():
        return best
    # The frames between: from their neighbours' cameras, to the points that are known by now.
    index = np.nonzero(chosen)[0]
    whole = Scene(turned.rotation.copy(), np.zeros((frames, 3)), best.inverse_depth)
    whole.rotation[index], whole.translation[index] = best.rotation, best.translation
    for f in np.nonzero(~chosen)[0]:
        whole.rotation[f], whole.translation[f] = whole.rotation[f - 1], whole.translation[f - 1]
        one = np.zeros(frames, bool)
        one[f] = True
        adjust(whole, tracks, K, frames=one, width=2.0 * noise, num_steps=10, points=False)
    return whole
