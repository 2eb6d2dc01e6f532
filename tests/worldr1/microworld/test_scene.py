"""The renderer against its own geometry: one world point has one colour and one depth from every camera."""

import pytest
import torch

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.microworld.captions import EVENTS, MOTIONS, all_captions, make_caption
from worldr1.microworld.scene import (
    EVALUATION_SEEDS,
    HEIGHT,
    HELD_OUT_SEEDS,
    NUM_FRAMES,
    TRAIN_SEEDS,
    WIDTH,
    intrinsics,
    render_clips,
    trajectory_of,
)


def _unproject(depth: torch.Tensor, viewmat: torch.Tensor) -> torch.Tensor:
    """World points [H, W, 3] of a z-depth map."""
    K = intrinsics()
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rays = torch.stack([(xs - K[0, 2]) / K[0, 0], (ys - K[1, 2]) / K[1, 1], torch.ones_like(xs)], dim=-1)
    camera = torch.cat([rays * depth[..., None], torch.ones(HEIGHT, WIDTH, 1)], dim=-1)
    return (camera @ torch.linalg.inv(viewmat).T)[..., :3]


def test_shapes_ranges_and_labels():
    captions = [make_caption(m, 3 * i % 16) for i, m in enumerate(MOTIONS)]
    clips = render_clips(captions, range(9))
    assert clips.video.shape == (9, NUM_FRAMES, 3, HEIGHT, WIDTH) and clips.depth.shape == (
        9,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
    )
    assert clips.video.min() >= 0.0 and clips.video.max() <= 1.0 and clips.video.isfinite().all()
    assert clips.depth.min() > 0.2 and clips.depth.max() < 14.0  # the room is closed
    assert clips.motion.tolist() == list(range(9))
    assert clips.content.tolist() == [3 * i % 16 for i in range(9)]
    assert clips.dynamic.tolist() == [-1] * 9


def test_a_clip_does_not_depend_on_its_batch_and_depends_on_its_seed():
    captions = [make_caption("orbit_left", 0), make_caption("pan_right", 6), make_caption("fixed", 9)]
    together = render_clips(captions, [5, 6, 7])
    alone = render_clips(captions[1:2], [6])
    torch.testing.assert_close(together.video[1], alone.video[0], rtol=0, atol=1e-6)
    other = render_clips(captions[1:2], [8])
    assert (alone.video - other.video).abs().mean() > 0.02


def test_the_camera_moves_as_the_trainer_requests():
    for caption in all_captions()[::16]:
        requested = build_trajectory(parse_motion(caption.text), NUM_FRAMES, MICRO_CAMERA).float()
        clips = render_clips([caption], [0])
        assert torch.equal(clips.viewmats[0], requested)
        assert torch.equal(trajectory_of(caption), requested)
        assert torch.equal(clips.viewmats[0, 0], torch.eye(4))


@pytest.mark.parametrize("motion", MOTIONS)
def test_depth_and_poses_explain_every_frame(motion: str):
    """Points of frame 0, moved into a later camera, are at the depth rendered there unless something hides them."""
    clips = render_clips([make_caption(motion, 1), make_caption(motion, 6)], [11, 12])
    K = clips.K
    for n in range(2):
        world = _unproject(clips.depth[n, 0], clips.viewmats[n, 0])
        for frame in (4, 8):
            view = clips.viewmats[n, frame]
            camera = world @ view[:3, :3].T + view[:3, 3]
            z = camera[..., 2]
            x = (camera[..., 0] / z * K[0, 0] + K[0, 2]).floor().long()
            y = (camera[..., 1] / z * K[1, 1] + K[1, 2]).floor().long()
            seen = (z > 0.1) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
            assert seen.float().mean() > 0.25
            nearest = -torch.nn.functional.max_pool2d(-clips.depth[n, frame][None, None], 3, 1, 1)[0, 0]
            rows, columns = y.clamp(0, HEIGHT - 1), x.clamp(0, WIDTH - 1)
            relative = ((clips.depth[n, frame][rows, columns] - z) / z)[seen]
            # The rest is hidden by the object, which comes near in push_in.
            assert (relative.abs() < 0.12).float().mean() > 0.6
            # No point is seen through: at an edge one of the neighbouring pixels is no farther than the point.
            assert (((nearest[rows, columns] - z) / z)[seen] > 0.1).float().mean() < 0.005


def test_floor_depth_is_the_plane():
    """The lowest row of a level camera sees the floor: z = height / tan."""
    clips = render_clips([make_caption("fixed", 0)] * 8, range(8))
    points = torch.stack([_unproject(d[0], torch.eye(4)) for d in clips.depth])
    heights = points[:, -1, :, 1]  # [8, W], y of the world at the lowest row
    assert (heights.std(dim=1) < 1e-4).all() and heights.min() > 0.9 and heights.max() < 1.15


def test_static_clips_of_a_resting_camera_do_not_change_and_events_do():
    still = render_clips([make_caption("fixed", 4)], [3]).video[0]
    assert torch.equal(still[0], still[8])
    for i, event in enumerate(EVENTS):
        clips = render_clips([make_caption("fixed", 4, dynamic=event)], [3])
        assert clips.dynamic.tolist() == [i]
        assert (clips.video[0, 1:] - clips.video[0, :1]).abs().amax(dim=(1, 2, 3)).max() > 0.1


def test_seed_ranges_do_not_meet():
    ranges = [TRAIN_SEEDS, HELD_OUT_SEEDS, EVALUATION_SEEDS]
    assert all(a.stop <= b.start for a, b in zip(ranges[:-1], ranges[1:], strict=True))


def test_a_seed_for_each_caption():
    with pytest.raises(ValueError, match="captions and seeds must be equally many, got 1 and 2"):
        render_clips([make_caption("fixed", 0)], [1, 2])
