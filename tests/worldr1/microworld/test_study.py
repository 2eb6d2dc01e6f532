"""The study of arms: its plan, what is run and what is not, and what the page says."""

import json
import math
from pathlib import Path

import pytest

from worldr1.cli import main as train_main
from worldr1.microworld import study as study_module
from worldr1.microworld.study import ARMS, StudyConfig, is_done, main, plan_runs, share_of_prompts, study
from worldr1.microworld.study_page import collect, over_runs, verdicts


def _write_result(folder: Path, *, obedience: float, psnr: float, stderr: float = 0.01) -> None:
    (folder / "evaluation").mkdir(parents=True)
    metrics = {
        "obedience": {"gain": obedience, "stderr": stderr},
        "psnr_requested": {"gain": psnr, "stderr": stderr},
        "contrast": {"gain": None, "stderr": None},
        "broken": {"gain": 0.02, "after": 0.02, "stderr": None},
    }
    (folder / "evaluation" / "study.json").write_text(json.dumps({"metrics": metrics}), encoding="utf-8")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are not trained: the names of those that would be, and a result of each."""
    names: list[str] = []

    def fake(run, folder: Path) -> str:
        names.append(run.name)
        if run.arm == "no_gen":
            return "exit code 1: RuntimeError: the judge is gone"
        _write_result(folder, obedience=0.3, psnr=-0.5 if run.arm == "no_3d" else 1.0 + 0.01 * run.seed)
        return ""

    monkeypatch.setattr(study_module, "train_run", fake)
    return names


def test_every_arm_by_both_estimators_over_all_seeds_and_every_flag_is_known(monkeypatch: pytest.MonkeyPatch):
    runs = plan_runs(StudyConfig())
    assert len(runs) == 3 * len(ARMS) * 2 and len({run.name for run in runs}) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs), "seed by seed"
    seen = []
    for run in plan_runs(StudyConfig(seeds=(0,), arms=tuple(a.name for a in ARMS if a.share == 1))):
        assert train_main(lambda config: seen.append(config) or _Ended(), list(run.flags)) == 0, run.flags
    configs = {run.name: config for run, config in zip(plan_runs(StudyConfig(seeds=(0,))), seen, strict=False)}
    assert configs["forward_full_0"].update.estimator == "forward"
    assert configs["score_no_traj_0"].reward.weight_traj == 0 and configs["score_no_traj_0"].reward.weight_meta > 0
    assert configs["score_no_dynamic_0"].phase.dynamic_iterations == 0


class _Ended:
    interrupted = False


def test_parts_of_the_prompts_are_nested_and_of_every_motion():
    third, two, whole = (share_of_prompts(share) for share in (1 / 3, 2 / 3, 1.0))
    assert set(third) < set(two) < set(whole)
    assert [len(third), len(two)] == pytest.approx([len(whole) / 3, 2 * len(whole) / 3], rel=0.1)
    assert len({prompt.split(".")[0] for prompt in third}) == 9


def test_what_is_done_is_not_run_again_and_a_failure_loses_nothing(tmp_path: Path, trained: list[str]):
    config = StudyConfig(output_dir=tmp_path, seeds=(0,), arms=("full", "no_gen", "no_3d"), jobs=1)
    with pytest.raises(RuntimeError, match=r"2 run\(s\) failed, the first: .*the judge is gone"):
        study(config)
    assert len(trained) == 6 and is_done(tmp_path / "score_full_0") and not is_done(tmp_path / "score_no_gen_0")
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "everything | 1 | +0.300 ± 0.010 | +1.00 ± 0.01 |" in page and "without R_gen" not in page
    assert "- **agrees**: forward, without R_3D" in page and (tmp_path / "study.png").stat().st_size > 1000
    del trained[:]
    with pytest.raises(RuntimeError):
        study(config)
    assert trained == ["score_no_gen_0", "forward_no_gen_0"]


def test_a_plan_that_was_made_stands(tmp_path: Path, trained: list[str]):
    study(StudyConfig(output_dir=tmp_path, seeds=(0,), arms=("full",), iterations=5, jobs=1))
    with pytest.raises(ValueError, match="was made for other settings of score_full_0"):
        study(StudyConfig(output_dir=tmp_path, seeds=(0,), arms=("full",), iterations=6))
    study(StudyConfig(output_dir=tmp_path, seeds=(0, 1), arms=("full", "no_3d"), iterations=5, jobs=1))
    assert len(json.loads((tmp_path / "plan.json").read_text())) == 8


def test_what_contradicts_the_article_comes_first(tmp_path: Path, trained: list[str]):
    study(StudyConfig(output_dir=tmp_path, seeds=(0, 1), arms=("full", "no_3d", "no_dynamic"), jobs=1))
    for seed in (0, 1):
        file = tmp_path / f"score_no_3d_{seed}" / "evaluation" / "study.json"
        file.write_text(file.read_text().replace("-0.5", "3.5"), encoding="utf-8")
    found = verdicts(collect(tmp_path))
    assert [verdict for verdict, _ in found] == ["CONTRADICTS", "not told apart", "not told apart", "agrees"]
    assert found[0][1].startswith("score, without R_3D") and "18.93" in found[0][1]


def test_means_over_runs():
    value = over_runs([(1.0, 0.1), (3.0, 0.1), (math.nan, 0.1)])
    assert value.mean == 2.0 and value.runs == 2 and value.stderr == pytest.approx(1.0)  # sd 1.414 / sqrt 2
    assert over_runs([(1.0, 0.3), (1.0, 0.4)]).stderr == pytest.approx(0.25)  # the runs agree by chance
    assert over_runs([]).runs == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "no_such"], "arms must be among full, permuted"),
        (["--seeds", "1", "1"], "seeds must be one or more, each once"),
        (["--no-run"], "must hold a run that has ended"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
