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


def test_larger_frames_show_the_same_scene():
    captions = [make_caption("orbit_left", 3), make_caption("pan_right", 9)]
    small = render_clips(captions, [5, 6])
    large = render_clips(captions, [5, 6], height=64, width=64, num_frames=17)
    assert large.video.shape == (2, 17, 3, 64, 64) and large.K.tolist() == (2 * small.K[:2]).tolist() + [[0, 0, 1]]
    torch.testing.assert_close(large.viewmats[:, ::2], small.viewmats, rtol=0, atol=1e-5)
    pooled = torch.nn.functional.avg_pool2d(large.video[:, ::2].flatten(0, 2), 2).view_as(small.video)
    assert (pooled - small.video).abs().mean() < 0.01
    corner = torch.nn.functional.avg_pool2d(large.depth[:, ::2].flatten(0, 1), 2).view_as(small.depth)
    assert ((corner - small.depth).abs() < 0.05 * small.depth).float().mean() > 0.95
    wide = render_clips(captions[:1], [5], height=32, width=64)
    torch.testing.assert_close(wide.video[0], large.video[0, ::2, :, 16:48], rtol=0, atol=1e-4)


def test_frames_rendered_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch):
    captions = [make_caption("push_in", 3, dynamic="bouncing"), make_caption("orbit_right", 9)]
    whole = render_clips(captions, [5, 6], detail=0.1)
    monkeypatch.setattr("worldr1.microworld.scene._RAYS_PER_CALL", 4 * HEIGHT * WIDTH * 2)
    parts = render_clips(captions, [5, 6], detail=0.1)
    torch.testing.assert_close(parts.video, whole.video, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.depth, whole.depth, rtol=0, atol=1e-5)


def test_detail_is_fine_texture_that_stays_on_the_surfaces():
    """A point of frame 0 keeps its colour in a later frame, and neighbours differ more than without detail."""
    caption = make_caption("move_right", 3)
    size = {"height": 96, "width": 96, "num_frames": 5}
    plain, rich = (render_clips([caption], [11], detail=d, **size) for d in (0.0, 0.1))
    assert torch.equal(plain.depth, rich.depth) and torch.equal(plain.viewmats, rich.viewmats)
    steps = [(c.video[..., 1:] - c.video[..., :-1]).abs().mean() for c in (plain, rich)]
    assert steps[1] > 2 * steps[0]
    texture = (rich.video - plain.video).mean(2)[0]  # [F, H, W]
    K, depth, view = rich.K, rich.depth[0, 0], rich.viewmats[0, 4]
    ys, xs = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    camera = torch.stack([(xs - 48) / K[0, 0] * depth, (ys - 48) / K[1, 1] * depth, depth], -1)
    moved = (camera @ view[:3, :3].T + view[:3, 3]) @ K.T
    grid = torch.stack([moved[..., 0] / moved[..., 2], moved[..., 1] / moved[..., 2]], -1) / 48 - 1
    there = torch.nn.functional.grid_sample(texture[4][None, None], grid[None], align_corners=False)[0, 0]
    inside = (grid.abs() < 0.98).all(-1)
    pairs = torch.stack([texture[0][inside], there[inside]])
    at_rest = torch.stack([texture[0][inside], texture[4][inside]])
    assert torch.corrcoef(pairs)[0, 1] > 0.8 > 0.4 > torch.corrcoef(at_rest)[0, 1]
