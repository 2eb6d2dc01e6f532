"""Bundle adjustment of cameras and inverse depths, with known intrinsics.

A point has one number, the inverse depth rho in its anchor frame a, along the ray x_a of its image point there. Seen
from frame f it lies in the direction

    q = R_f R_a^T (x_a - rho t_a) + rho t_f,    X_camera = R X_world + t

which is also right for points at infinity, rho = 0. Levenberg-Marquardt on f (q_x / q_z, q_y / q_z) - observed, pixels,
with Cauchy weights; the inverse depths are eliminated by their Schur complement, which is a diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldr1.evaluation.classical.tracks import Tracks

_MIN_Z = 1e-6
"""Of q in units of its ray: what lies behind a camera has no image point."""


@dataclass
class Scene:
    """Cameras of F frames and inverse depths of T points.

    Fields: rotation [F, 3, 3] and translation [F, 3], world-to-camera; inverse_depth [T], in the anchor frame's units.
    """

    rotation: np.ndarray
    translation: np.ndarray
    inverse_depth: np.ndarray

    def copy(self) -> Scene:
        return Scene(self.rotation.copy(), self.translation.copy(), self.inverse_depth.copy())

    def viewmats(self) -> np.ndarray:
        """World-to-camera [F, 4, 4]."""
        out = np.tile(np.eye(4), (len(self.rotation), 1, 1))
        out[:, :3, :3], out[:, :3, 3] = self.rotation, self.translation
        return out


def rays_of(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Image points [..., 2] in pixels -> rays [..., 3] with z = 1."""
    focal, centre = np.array([K[0, 0], K[1, 1]]), K[:2, 2]
    xy = (points - centre) / focal
    return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)


def exp_so3(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: [..., 3] radians -> [..., 3, 3]."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    cross = skew(vector)
    a = np.where(angle < 1e-8, 1.0, np.sin(angle) / np.maximum(angle, 1e-12))
    b = np.where(angle < 1e-8, 0.5, (1.0 - np.cos(angle)) / np.maximum(angle, 1e-12) ** 2)
    return np.eye(3) + a * cross + b * (cross @ cross)


def skew(vector: np.ndarray) -> np.ndarray:
    """[..., 3] -> the matrix of the cross product, [..., 3, 3]."""
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)


def directions(scene: Scene, rays: np.ndarray, anchor: np.ndarray, frame: int) -> np.ndarray:
    """q of every point [T, 3] in one frame; rays [T, 3] are those of the anchor frames."""
    rho = scene.inverse_depth[:, None]
    y = rays - rho * scene.translation[anchor]
    world = np.einsum("tji,tj->ti", scene.rotation[anchor], y)
    return world @ scene.rotation[frame].T + rho * scene.translation[frame]


def residuals(scene: Scene, tracks: Tracks, K: np.ndarray) -> np.ndarray:
    """Predicted minus observed image points, pixels, [T, F, 2]; 0 where a point is not seen."""
    rays, out = anchor_rays(tracks, K), np.zeros(tracks.at.shape)
    for f in np.nonzero(tracks.seen.any(0))[0].tolist():
        out[:, f] = _project(directions(scene, rays, tracks.anchor, f), K) - tracks.at[:, f]
    return np.where(tracks.seen[..., None], out, 0.0)


def anchor_rays(tracks: Tracks, K: np.ndarray) -> np.ndarray:
    """The ray of each point in its anchor frame, [T, 3]."""
    return rays_of(tracks.at[np.arange(len(tracks.anchor)), tracks.anchor], K)


def _project(q: np.ndarray, K: np.ndarray) -> np.ndarray:
    z = q[..., 2:]
    safe = np.where(z > _MIN_Z, z, _MIN_Z)
    return q[..., :2] / safe * np.array([K[0, 0], K[1, 1]]) + K[:2, 2]


def cost_of(error: np.ndarray, seen: np.ndarray, width: float) -> float:
    """Mean Cauchy cost of residuals [T, F, 2] with scale `width` (pixels) over what is seen."""
    square = (error**2).sum(-1)[seen]
    return float(np.log1p(square / width**2).mean()) if square.size else 0.0


def adjust(
    scene: Scene,
    tracks: Tracks,
    K: np.ndarray,
    *,
    frames: np.ndarray | None = None,
    width: float = 0.5,
    num_steps: int = 30,
    poses: bool = True,
    points: bool = True,
    translations: bool = True,
) -> float:
    """Move cameras and inverse depths, in place, to where the Cauchy cost is smallest; frame 0 stays.

    Scale is free, and left alone by the damping; `normalise` fixes it afterwards.

    Args:
      scene: Where to begin.
      tracks: T points in F frames.
      K: Intrinsics [3, 3], pixels of the clip.
      frames: Which frames count, [F] bool; None: all. The others' cameras stay.
      width: Scale of the Cauchy cost, pixels.
      num_steps: At most.
      poses, points, translations: What may move; without translations the cameras only turn.
    Returns:
      The cost, a mean over observations.
    """
    frames = np.ones(tracks.at.shape[1], bool) if frames is None else frames
    seen = tracks.seen & frames
    seen[np.arange(len(tracks.anchor)), tracks.anchor] = False  # exact by definition
    view = Tracks(tracks.at, seen, tracks.anchor, tracks.survived)
    rays = anchor_rays(tracks, K)
    free = np.zeros((len(scene.rotation), 6), bool)
    if poses:
        free[frames] = True
        free[0] = False
    if not translations:
        free[:, 3:] = False
    damping = 1e-3
    cost = cost_of(residuals(scene, view, K), seen, width)
    for _ in range(num_steps):
        system = _normal_equations(scene, view, rays, K, width)
        better = False
        for _ in range(6):
            step = _solve(*system, free=free.ravel(), points=points, damping=damping)
            if step is None:
                damping *= 10.0
                continue
            trial = _moved(scene, *step)
            new = cost_of(residuals(trial, view, K), seen, width)
            if new < cost:
                better = True
                break
            damping *= 10.0
        if not better:
            break
        gain, cost = cost - new, new
        scene.rotation, scene.translation = trial.rotation, trial.translation
        scene.inverse_depth = trial.inverse_depth
        damping = max(damping * 0.2, 1e-9)
        if gain < 1e-7 * max(cost, 1e-9):
            break
    return cost


def _moved(scene: Scene, pose: np.ndarray, depth: np.ndarray) -> Scene:
    """The scene after a step: pose [F, 6] (rotation vector from the left, translation), depth [T]."""
    turn = exp_so3(pose[:, :3])
    return Scene(turn @ scene.rotation, scene.translation + pose[:, 3:], scene.inverse_depth + depth)


def jacobians(
    scene: Scene, rays: np.ndarray, anchor: np.ndarray, frame: int, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image points in one frame and their derivatives.

    Returns:
      (image [T, 2]; by the frame's pose [T, 2, 6]; by the anchor's pose [T, 2, 6]; by the inverse depth [T, 2]).
    """
    rho = scene.inverse_depth
    back = np.swapaxes(scene.rotation[anchor], 1, 2)  # [T, 3, 3]
    y = rays - rho[:, None] * scene.translation[anchor]
    there = scene.rotation[frame] @ back  # R_f R_a^T
    seen = np.einsum("tij,tj->ti", there, y)  # R_f z
    q = seen + rho[:, None] * scene.translation[frame]
    z = np.maximum(q[:, 2], _MIN_Z)
    fx, fy = K[0, 0], K[1, 1]
    zero = np.zeros_like(z)
    along = np.stack(
        [
            np.stack([fx / z, zero, -fx * q[:, 0] / z**2], -1),
            np.stack([zero, fy / z, -fy * q[:, 1] / z**2], -1),
        ],
        axis=1,
    )  # d image / d q [T, 2, 3]
    scaled = rho[:, None, None] * np.eye(3)
    by_frame = np.concatenate([-skew(seen), scaled], axis=2)  # [T, 3, 6]
    by_anchor = np.concatenate([there @ skew(y), -rho[:, None, None] * there], axis=2)
    by_depth = scene.translation[frame] - np.einsum("tij,tj->ti", there, scene.translation[anchor])
    return _project(q, K), along @ by_frame, along @ by_anchor, np.einsum("tij,tj->ti", along, by_depth)


def _normal_equations(
    scene: Scene, tracks: Tracks, rays: np.ndarray, K: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(H_poses [6F, 6F], H_mixed [6F, T], H_depths [T], g_poses [6F], g_depths [T])."""
    num, frames = tracks.seen.shape
    poses, mixed = np.zeros((6 * frames, 6 * frames)), np.zeros((6 * frames, num))
    depths, g_poses, g_depths = np.zeros(num), np.zeros(6 * frames), np.zeros(num)
    for f in range(frames):
        rows = np.nonzero(tracks.seen[:, f])[0]
        if not len(rows):
            continue
        part = Scene(scene.rotation, scene.translation, scene.inverse_depth[rows])
        image, by_frame, by_anchor, by_depth = jacobians(part, rays[rows], tracks.anchor[rows], f, K)
        error = image - tracks.at[rows, f]
        weight = 1.0 / (1.0 + (error**2).sum(1) / width**2)
        depths[rows] += weight * (by_depth**2).sum(1)
        g_depths[rows] += weight * (by_depth * error).sum(1)
        here = slice(6 * f, 6 * f + 6)
        blocks = [(here, np.arange(len(rows)), by_frame)]
        for a in np.unique(tracks.anchor[rows]):
            of_anchor = np.nonzero(tracks.anchor[rows] == a)[0]
            blocks.append((slice(6 * a, 6 * a + 6), of_anchor, by_anchor[of_anchor]))
        for i, (place, which, block) in enumerate(blocks):
            w = weight[which, None, None] * block
            g_poses[place] += np.einsum("tij,ti->j", w, error[which])
            mixed[place, rows[which]] += np.einsum("tij,ti->jt", w, by_depth[which])
            poses[place, place] += np.einsum("tij,tik->jk", w, block)
            if i:  # frame against anchor
                cross = np.einsum("tij,tik->jk", w, by_frame[which])
                poses[place, here] += cross
                poses[here, place] += cross.T
    return poses, mixed, depths, g_poses, g_depths


def _solve(
    poses: np.ndarray,
    mixed: np.ndarray,
    depths: np.ndarray,
    g_poses: np.ndarray,
    g_depths: np.ndarray,
    *,
    free: np.ndarray,
    points: bool,
    damping: float,
) -> tuple[np.ndarray, np.ndarray] | None:
    """One damped step (pose [F, 6], depth [T]); None where the system is singular."""
    depth_step = np.zeros(len(depths))
    pose_step = np.zeros(len(g_poses))
    damped = depths * (1.0 + damping) + 1e-9
    A = poses[np.ix_(free, free)]
    A = A + damping * np.diag(np.diag(A)) + 1e-9 * np.eye(len(A))
    b, B = -g_poses[free], mixed[free]
    try:
        if points:
            A = A - (B / damped) @ B.T
            b = b + B @ (g_depths / damped)
        if len(b):
            pose_step[free] = np.linalg.solve(A, b)
    except np.linalg.LinAlgError:
        return None
    if points:
        depth_step = -(g_depths + B.T @ pose_step[free]) / damped
    if not (np.isfinite(pose_step).all() and np.isfinite(depth_step).all()):
        return None
    return pose_step.reshape(-1, 6), depth_step


def normalise(scene: Scene, tracks: Tracks) -> None:
    """Fix the scale in place: the median inverse depth over all points is 1.

    The image does not tell a scene from the one behind the cameras with the path reversed: the sign is fixed here, too.
    """
    scale = float(np.median(scene.inverse_depth)) if len(scene.inverse_depth) else 1.0
    if abs(scale) > 1e-9:
        scene.translation *= scale
        scene.inverse_depth /= scale
