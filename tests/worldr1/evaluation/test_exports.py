"""Exports: the layouts that benchmarks read, and that what was asked for scores above half of it, and that above none.

With WORLDR1_WBENCH=FOLDER (a checkout of github.com/meituan-longcat/WBench) its own files are run on the export, too.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_world import ARMS, FPS, FRAMES, PROMPTS, SIZE, evaluation_of_renders, paths_of
from scipy.spatial.transform import Rotation

from worldr1 import export as command
from worldr1.evaluation.exports import vbench, wbench
from worldr1.evaluation.exports.worldscore import cameras_interp
from worldr1.run.video import num_frames_of

WBENCH = os.environ.get("WORLDR1_WBENCH", "")
DIRECTION = {"W": (0, 0, 1), "S": (0, 0, -1), "A": (-1, 0, 0), "D": (1, 0, 0)}
SAMPLES = 20
TURN = {"left": (0, -1, 0), "right": (0, 1, 0), "up": (1, 0, 0), "down": (-1, 0, 0)}  # axes, by the right hand


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return evaluation_of_renders(tmp_path_factory.mktemp("rendered") / "evaluation", wrong_depth=True)


@pytest.fixture(scope="module")
def exported(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert command.main(["--evaluation", str(rendered), "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture()
def evaluation(rendered: Path, tmp_path: Path) -> Path:
    """One to spoil: the three arms of the first prompt, and the second's."""
    shutil.copytree(rendered, tmp_path / "e")
    lines = (tmp_path / "e" / "clips.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "e" / "clips.jsonl").write_text("".join(line for line in lines if '"arm": "wrong"' not in line))
    return tmp_path / "e"


def only_first_prompt(evaluation: Path) -> None:
    lines = (evaluation / "clips.jsonl").read_text().splitlines(keepends=True)
    (evaluation / "clips.jsonl").write_text("".join(line for line in lines if '"clip": "0000"' in line))


def accuracy(poses: np.ndarray, actions: list[str]) -> float:
    """WBench's navigation accuracy: 1 - (nATE_t + nATE_r) / 2, the ideal of each turn as long as what was done.

    A turn that stands still is held against 1 unit or 30 degrees; both errors are over the whole path (at least .5
    units, 10 degrees) and at most 1; means over 20 samples of each turn, by length, or by frames for a turn in place.
    """
    share = len(poses) // len(actions)
    heading, centre = poses[0, :3, :3], poses[0, :3, 3]
    shift, turned = [], []
    for k, action in enumerate(actions):
        own = poses[k * share : (k + 1) * share]
        steps = np.linspace(0, 1, share)
        if action in DIRECTION:
            travelled = np.linalg.norm(own[-1, :3, 3] - own[0, :3, 3])
            ideal = centre + np.outer(steps, heading @ DIRECTION[action]) * (travelled if travelled > 0.1 else 1.0)
            at = np.linspace(0, 1, SAMPLES)
            ideal = np.stack([np.interp(at, steps, x) for x in ideal.T], axis=1)
            arcs = np.append(0, np.cumsum(np.linalg.norm(np.diff(own[:, :3, 3], axis=0), axis=1)))
            if arcs[-1] > 1e-8:  # by length: how fast is no matter
                own_centres = np.stack([np.interp(at * arcs[-1], arcs, x) for x in own[:, :3, 3].T], axis=1)
            else:
                own_centres = own[np.linspace(0, share - 1, SAMPLES).astype(int), :3, 3]
            shift += list(np.linalg.norm(own_centres - ideal, axis=1))
            turned += [np.mean([angle(heading.T @ pose[:3, :3]) for pose in own])] * SAMPLES
            centre = ideal[-1]
        else:
            done = sum(angle(a[:3, :3].T @ b[:3, :3]) for a, b in zip(own, own[1:], strict=False))
            ideal_turn = Rotation.from_rotvec(np.outer(steps * np.radians(max(done, 30.0)), TURN[action])).as_matrix()
            errors = [angle((own[0, :3, :3] @ r).T @ p[:3, :3]) for r, p in zip(ideal_turn, own, strict=True)]
            turned += [errors[j] for j in np.linspace(0, share - 1, SAMPLES).astype(int)]
            shift += [0.0] * SAMPLES
            heading = own[0, :3, :3] @ ideal_turn[-1]
    path = np.linalg.norm(np.diff(poses[: share * len(actions), :3, 3], axis=0), axis=1).sum()
    turns = sum(angle(a[:3, :3].T @ b[:3, :3]) for a, b in zip(poses, poses[1 : share * len(actions)], strict=False))
    errors = np.mean(shift) / max(path, 0.5), np.mean(turned) / max(turns, 10.0)
    return 1 - (min(errors[0], 1) + min(errors[1], 1)) / 2


def angle(rotation: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def geometry(cache: Path) -> float:
    """WBench's geometric consistency: every frame's points in every other, 1 / (1 + mean over frames of the median
    relative error of depth); a pixel's number is its place, and the nearest pixel is looked up."""
    depth, extrinsics, intrinsics = (np.load(cache / f"{n}.npy") for n in ("depth", "extrinsics", "intrinsics"))
    count, height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    world = []
    for d, E, K in zip(depth, extrinsics, intrinsics, strict=True):
        world.append(E[:, :3].T @ (d.reshape(-1) * (np.linalg.inv(K) @ pixels) - E[:, 3:]))
    errors = []
    for i in range(count):
        points = np.concatenate([w for j, w in enumerate(world) if j != i], axis=1)
        seen = extrinsics[i, :, :3] @ points + extrinsics[i, :, 3:]
        seen = seen[:, seen[2] > 1e-6]
        u, v, w = intrinsics[i] @ seen
        u, v = u / w, v / w
        inside = (u >= 0) & (u < width - 1) & (v >= 0) & (v < height - 1)
        there = depth[i][np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
        errors.append(np.median(np.abs(seen[2][inside] - there) / there))
    return float(1 / (1 + np.mean(errors)))


def test_the_layout_of_wbench(exported: Path) -> None:
    """Keys, shapes and conventions of MegaSAM's poses and of Depth Anything 3's cache, at WBench's rates."""
    model = exported / "wbench" / "work_dirs" / "truth"
    poses = np.load(model / "megasam" / "case_0000_combined.npz")
    assert poses["cam_c2w"].shape == (FRAMES, 4, 4) and poses["camera_centers"].shape == (FRAMES, 3)
    assert int(poses["stride"]) == 1 and float(poses["effective_fps"]) == FPS
    assert poses["cam_c2w"][8, 2, 3] > 0.1  # pushed in: along +z, in median depths
    cache = {p.stem: np.load(p) for p in (model / "da3_cache" / "case_0000").glob("*.npy")}
    assert cache["depth"].shape == (4, SIZE, SIZE) and cache["depth"].dtype == np.float32
    assert cache["extrinsics"].shape == (4, 3, 4) and cache["intrinsics"].shape == (4, 3, 3)
    frames = [0, 5, 10, 15]  # 16 frames a second, at about 3
    np.testing.assert_array_equal(wbench.depth_frames(FRAMES, FPS), frames)
    np.testing.assert_allclose(cache["c2w"], poses["cam_c2w"][frames], atol=1e-6)
    np.testing.assert_allclose(np.linalg.inv(cache["c2w"])[:, :3], cache["extrinsics"], atol=1e-6)
    assert abs(np.median(cache["depth"]) - 1) < 0.2  # lengths are in median depths
    case = json.loads((exported / "wbench" / "data" / "cases" / "case_0000.json").read_text())
    assert case["id"] == "0000" and [t["action"] for t in case["interactions"]] == ["W", "S"]
    turns = json.loads((model / "turns.json").read_text())
    assert turns["cases"]["0001"]["turn_frames"] == [0, 8, FRAMES] and turns["fps"] == FPS
    assert num_frames_of(model / "videos" / "case_0001_combined.mp4") == FRAMES


def test_truth_is_above_half_and_half_above_frozen(exported: Path) -> None:
    for i in range(len(PROMPTS)):
        case = json.loads((exported / "wbench" / "data" / "cases" / f"case_{i:04d}.json").read_text())
        actions = [turn["action"] for turn in case["interactions"]]
        found = {}
        for arm in ARMS:
            npz = np.load(exported / "wbench" / "work_dirs" / arm / "megasam" / f"case_{i:04d}_combined.npz")
            found[arm] = accuracy(npz["cam_c2w"], actions)
        assert found["truth"] > found["half"] + 0.1 > found["frozen"] + 0.2, found
        assert found["frozen"] == pytest.approx(0.5)


def test_exact_depth_is_consistent_and_wrong_depth_is_not(exported: Path) -> None:
    """The frozen clip is the most consistent of all: it has to be read beside the motion."""
    found = {
        arm: geometry(exported / "wbench" / "work_dirs" / arm / "da3_cache" / "case_0000") for arm in (*ARMS, "wrong")
    }
    assert found["truth"] > 0.99 and found["half"] > 0.99 and found["wrong"] < 0.8
    assert found["frozen"] == pytest.approx(1.0, abs=1e-6)


RUN_WBENCH = """
import json, sys, torch
from src.evaluate import evaluate_navigation
from src.metrics.consistency.reconstruction_consistency import compute_case
torch.manual_seed(0)
out = {}
for arm in ("truth", "half", "frozen", "wrong"):
    for case in ("case_0000", "case_0001"):
        model = f"{sys.argv[1]}/work_dirs/{arm}"
        about = json.load(open(f"{sys.argv[1]}/data/cases/{case}.json"))
        nav = evaluate_navigation(f"{model}/megasam/{case}_combined.npz", about)
        rec = compute_case(f"{model}/videos/{case}_combined.mp4", f"{model}/da3_cache/{case}", device="cpu")
        out[f"{arm} {case}"] = [nav["accuracy"], rec["score"], rec["error"]]
print(json.dumps(out))
"""


@pytest.mark.skipif(not WBENCH, reason="WORLDR1_WBENCH: a checkout of WBench")
def test_wbench_own_files_run_on_the_export(exported: Path) -> None:
    """In a process of their own: their package is called src."""
    env = {**os.environ, "PYTHONPATH": WBENCH}
    done = subprocess.run(
        [sys.executable, "-c", RUN_WBENCH, str(exported / "wbench")],
        capture_output=True,
        text=True,
        env=env,
        cwd=WBENCH,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for i in range(len(PROMPTS)):
        case = f"case_{i:04d}"
        theirs = {arm: found[f"{arm} {case}"] for arm in (*ARMS, "wrong")}
        assert all(error is None for _, _, error in theirs.values())
        assert theirs["truth"][0] > theirs["half"][0] + 0.1 > theirs["frozen"][0] + 0.2
        assert theirs["truth"][1] > 0.99 > 0.8 > theirs["wrong"][1]
        actions = [
            t["action"] for t in json.loads((exported / f"wbench/data/cases/{case}.json").read_text())["interactions"]
        ]
        for arm in ARMS:
            model = exported / "wbench" / "work_dirs" / arm
            ours = accuracy(np.load(model / "megasam" / f"{case}_combined.npz")["cam_c2w"], actions)
            assert ours == pytest.approx(theirs[arm][0], abs=0.03)
            assert geometry(model / "da3_cache" / case) == pytest.approx(theirs[arm][1], abs=2e-3)


@pytest.mark.parametrize(
    "kinds, actions, perspective",
    [
        (["push_in", "pull_out"], ["W", "S"], "first_person"),
        (["move_left", "move_right"], ["A", "D"], "first_person"),
        (["pan_left", "tilt_up"], ["left", "up"], "first_person"), (["orbit_left"], ["right"], "third_person"),
        (["roll_left"], [], "first_person"), (["orbit_left", "push_in"], [], "first_person"), ([], [], "first_person"),
    ],
)  # fmt: skip
def test_motions_as_actions(kinds: list[str], actions: list[str], perspective: str) -> None:
    assert wbench.actions(kinds) == (actions, perspective)


def test_mvcs_holds_all_frames_under_the_names_of_depth_anything(exported: Path) -> None:
    found = np.load(exported / "mvcs" / "half" / "0001" / "exports" / "mini_npz" / "results.npz")
    assert sorted(found) == ["depth", "extrinsics", "intrinsics"] and found["depth"].shape == (FRAMES, SIZE, SIZE)
    np.testing.assert_allclose(found["extrinsics"], paths_of(PROMPTS[1])["half"][:, :3], atol=1e-5)


def test_clips_and_scores(exported: Path) -> None:
    cameras = np.load(exported / "clips" / "half" / "0000.npz")
    assert sorted(cameras) == ["K", "recovered_cam_c2w", "requested_cam_c2w"]
    assert abs(cameras["requested_cam_c2w"] - cameras["recovered_cam_c2w"])[-1].max() > 0.1
    lines = [json.loads(line) for line in (exported / "scores.jsonl").read_text().splitlines()]
    assert (
        len(lines) == len(PROMPTS) * 4
        and lines[0]["seed"] == 0
        and lines[0]["motions"] == ["push_in x1", "pull_out x1"]
    )
    assert lines[0]["scores"]["mvcs"] == {"value": 1.0, "valid": True, "reason": ""}
    assert lines[0]["scores"]["lpips"] == {"value": None, "valid": False, "reason": "no weights"}


def test_worldscore_walks_its_folders(tmp_path: Path) -> None:
    """visual style / scene type / category / instance, and cameras as its metric turns DROID-SLAM's."""
    evaluation_of_renders(tmp_path / "e", prompts=("The camera orbits left. A box.",))
    args = ["--evaluation", str(tmp_path / "e"), "--output-dir", str(tmp_path / "o"), "--format", "worldscore"]
    assert command.main(args) == 0
    (own,) = (tmp_path / "o" / "worldscore" / "half" / "worldscore_output" / "static").glob("*/*/*/*")
    frames = sorted(p.name for p in (own / "frames").iterdir())
    assert frames[0] == "000.png" and len(frames) == FRAMES and (own / "input_image.png").is_file()
    image = json.loads((own / "image_data.json").read_text())
    assert image["camera_path"] == ["orbit_left"] and image["total_frames"] == FRAMES and image["num_scenes"] == 1
    cameras = np.array(json.loads((own / "camera_data.json").read_text())["cameras_interp"])
    c2w = np.linalg.inv(paths_of("The camera orbits left. A box.")["truth"].double().numpy())  # asked for, not done
    # What its camera metric makes of a trajectory: A c2w, then B on the world-to-camera side.
    A, B = np.diag([-1.0, 1, 1, 1]), np.diag([1.0, 1, -1, 1])
    np.testing.assert_allclose(cameras, np.linalg.inv(B @ np.linalg.inv(A @ c2w)), atol=1e-6)
    np.testing.assert_allclose(cameras_interp(np.eye(4)[None])[0], np.diag([-1.0, 1, -1, 1]))
    assert np.allclose(np.linalg.det(cameras), 1)


def test_names_of_vbench_are_different_and_say_the_prompt() -> None:
    names = vbench.file_names(["a ball", "A/B", "a ball", "A Ball", "x" * 300, "x" * 299 + "y", "é" * 100, ""])
    assert names[:4] == ["a ball-0.mp4", "A_B-0.mp4", "a ball-1.mp4", "A Ball-2.mp4"]
    assert len({n.lower() for n in names}) == len(names) and max(len(n.encode()) for n in names) < 200


FAKE = """#!{python}
import json, os, sys
runner, videos, prompts, results, result, device, *dimensions = sys.argv[1:]
assert runner.endswith("vbench_runner.py"), runner
names = sorted(json.load(open(prompts)))
assert names == sorted(os.listdir(videos)), (names, os.listdir(videos))
print("loading")
if {fail}:
    sys.exit("ModuleNotFoundError: No module named 'clip'")
score = {{d: 0.5 + 0.1 * i for i, d in enumerate(dimensions)}}
found = {{}}
for d in dimensions:
    scale = 100 if d == "imaging_quality" else 1
    found[d] = [score[d], [dict(video_path=f"{{videos}}/{{n}}", video_results=scale * score[d]) for n in names]]
json.dump(found, open(result, "w"))
"""


def fake_python(folder: Path, *, fail: bool) -> Path:
    path = folder / "python"
    path.write_text(FAKE.format(python=sys.executable, fail=fail))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_vbench_is_run_in_its_own_environment(evaluation: Path, tmp_path: Path, capsys) -> None:
    only_first_prompt(evaluation)
    old = {"measures": {"psnr": {}}, "arms": {"truth": {"psnr": {"mean": 1.0}}, "half": {}, "frozen": {}}}
    (tmp_path / "e" / "summary.json").write_text(json.dumps(old))
    args = ["--evaluation", str(tmp_path / "e"), "--output-dir", str(tmp_path / "o"), "--format", "vbench"]
    assert command.main([*args, "--run-vbench", str(fake_python(tmp_path, fail=False))]) == 0
    assert "average 70.00 %" in capsys.readouterr().out
    found = json.loads((tmp_path / "e" / "vbench.json").read_text())["arms"]["half"]
    assert found["imaging_quality"]["clips"] == {"0000": pytest.approx(0.9)}
    assert found["average"] == pytest.approx(np.mean([0.5, 0.6, 0.7, 0.8, 0.9]))  # dynamic degree, 1.0, is beside it
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["arms"]["truth"]["psnr"] == {"mean": 1.0}
    assert summary["arms"]["half"]["vbench_average"]["mean"] == pytest.approx(70.0)
    assert summary["arms"]["half"]["vbench_dynamic_degree"]["count"] == 1
    assert summary["measures"]["vbench_imaging_quality"]["unit"] == "%"
    assert command.main([*args, "--run-vbench", str(fake_python(tmp_path, fail=True))]) == 1
    said = capsys.readouterr().err
    assert "No module named 'clip'" in said and "its last lines" in said
    info = json.loads((tmp_path / "o" / "vbench" / "half" / "full_info.json").read_text())
    assert info[0]["prompt_en"] == PROMPTS[0] and Path(info[0]["video_list"][0]).is_file()
    assert set(vbench.DIMENSIONS) < set(info[0]["dimension"])


NOTING = """
import json

class VBench:
    def __init__(self, device, full_info, output):
        self.device, self.output = str(device), output

    def evaluate(self, **given):
        with open(f"{self.output}/{given['name']}_eval_results.json", "w") as file:
            json.dump({**given, "device": self.device}, file)
"""


def test_the_runner_calls_vbench_with_custom_input(tmp_path: Path) -> None:
    """Against a package of that name that notes what it was given."""
    (tmp_path / "vbench.py").write_text(NOTING)
    (tmp_path / "prompts.json").write_text('{"a-0.mp4": "a"}')
    args = [
        str(tmp_path),
        str(tmp_path / "prompts.json"),
        str(tmp_path),
        str(tmp_path / "r.json"),
        "cpu",
        "motion_smoothness",
    ]
    subprocess.run(
        [sys.executable, str(vbench._RUNNER), *args], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    given = json.loads((tmp_path / "r.json").read_text())
    assert given["mode"] == "custom_input" and given["prompt_list"] == {"a-0.mp4": "a"} and given["device"] == "cpu"
    assert given["dimension_list"] == ["motion_smoothness"]


def test_what_cannot_be_read_is_left_out_by_name(evaluation: Path, tmp_path: Path, capsys) -> None:
    """Unreadable, of one frame, absent, cameras of another length; black goes through."""
    import torch

    from worldr1.run.video import write_video

    folder = evaluation
    videos = folder / "videos"
    (videos / "truth" / "0000.mp4").write_bytes(b"no video")
    write_video(torch.rand(1, 3, 16, 16), videos / "half" / "0000.mp4", fps=4)
    (videos / "frozen" / "0000.mp4").unlink()
    write_video(torch.rand(9, 3, 16, 16), videos / "truth" / "0001.mp4", fps=4)
    write_video(torch.zeros(FRAMES, 3, 16, 16), videos / "half" / "0001.mp4", fps=4)
    args = ["--evaluation", str(folder), "--output-dir", str(tmp_path / "o"), "--format", "mvcs"]
    assert command.main(args) == 0
    report = json.loads((tmp_path / "o" / "export.json").read_text())
    left = {(row["arm"], row["clip"]): row["reason"] for row in report["left_out"]}
    assert report["clips"] == 2 and len(left) == 4 and report["finished"]
    assert "1 frame" in left["half", "0000"] and "fit the 9 frames" in left["truth", "0001"]
    assert "must be a video file" in left["truth", "0000"] and "frozen/0000.mp4" in left["frozen", "0000"]
    assert "4 things left out" in capsys.readouterr().out
    assert command.main(args) == 0  # again into its own folder
    for path in videos.rglob("*.mp4"):
        path.unlink()
    assert command.main(args) == 2 and "must hold a clip" in capsys.readouterr().err


def test_a_still_clip_has_poses_and_no_depth(evaluation: Path, tmp_path: Path) -> None:
    """The evaluation's depth is a placeholder there: a benchmark would find it perfect."""
    folder = evaluation
    only_first_prompt(folder)
    text = (folder / "clips.jsonl").read_text().replace('"state": "moving"', '"state": "still"')
    (folder / "clips.jsonl").write_text(text)
    args = ["--evaluation", str(folder), "--output-dir", str(tmp_path / "o"), "--format", "wbench"]
    moving = text.replace('"state": "still"', '"state": "moving"')
    (folder / "clips.jsonl").write_text(moving)
    assert command.main(args) == 0  # an export that had depth before leaves none of it
    (folder / "clips.jsonl").write_text(text)
    assert command.main(args) == 0
    model = tmp_path / "o" / "wbench" / "work_dirs" / "frozen"
    assert (model / "megasam" / "case_0000_combined.npz").is_file() and not list((model / "da3_cache").iterdir())
    reasons = [row["reason"] for row in json.loads((tmp_path / "o" / "export.json").read_text())["left_out"]]
    assert reasons == ["no depth: the clip is still"] * 3


def test_folders_that_are_none(tmp_path: Path, capsys) -> None:
    out = ["--output-dir", str(tmp_path / "o")]
    assert command.main(["--evaluation", str(tmp_path), *out]) == 2
    assert "must be the folder of `python -m worldr1.evaluate`" in capsys.readouterr().err
    folder = tmp_path / "e"
    folder.mkdir()
    (folder / "evaluation.json").write_text('{"schema": 2}')
    (folder / "clips.jsonl").write_text("")
    assert command.main(["--evaluation", str(folder), *out]) == 2 and "schema 1, got 2" in capsys.readouterr().err
    (folder / "evaluation.json").write_text('{"schema": 1}')
    assert command.main(["--evaluation", str(folder), *out]) == 2 and "must hold clips" in capsys.readouterr().err
    for name in ("../0", "..", "", "a/b"):
        (folder / "clips.jsonl").write_text(
            json.dumps({"clip": name, "arm": "a", "prompt": "p", "measures": {}}) + "\n"
        )
        assert command.main(["--evaluation", str(folder), *out]) == 2 and "line 1" in capsys.readouterr().err
    (tmp_path / "o").mkdir(exist_ok=True)
    (tmp_path / "o" / "mine.txt").write_text("")
    assert command.main(["--evaluation", str(folder), *out]) == 2 and "must be empty" in capsys.readouterr().err
    (tmp_path / "o" / "export.json").write_text('{"evaluation": "/another"}')
    assert command.main(["--evaluation", str(folder), *out]) == 2 and "one of /another" in capsys.readouterr().err
    more = ["--format", "mvcs", "--run-vbench", "/no/python"]
    assert command.main(["--evaluation", str(folder), *out, *more]) == 2
    assert "needs --format vbench" in capsys.readouterr().err
    assert command.main(["--evaluation", str(folder), *out, "--run-vbench", "/no/python"]) == 2
    assert "got /no/python" in capsys.readouterr().err
