import ast
import dataclasses
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

from worldr1 import config as config_module
from worldr1.config import (
    CameraConfig,
    EvaluationConfig,
    ForwardConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    ScheduleConfig,
    TrainConfig,
    UpdateConfig,
    to_json,
)
from worldr1.config_checks import JUDGE_ROLES, judges_asked, validate
from worldr1.learn.update import check_window
from worldr1.presets import PRESETS, REQUIRED, preset
from worldr1.rollout.schedule import rollout_sigmas


@pytest.fixture
def good(tmp_path):
    """A configuration whose folders exist."""
    default = TrainConfig()
    return replace(
        default,
        model=replace(default.model, path=tmp_path),
        reward=replace(
            default.reward, reconstructor=tmp_path, critic=tmp_path, aesthetic=tmp_path, perceptual=tmp_path
        ),
        evaluation=replace(default.evaluation, evaluator=tmp_path),
    )


def test_defaults_are_valid(good):
    assert validate(good) is None  # it raises or says nothing
    validate(good, world_size=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_iterations": -1}, "max_iterations must be in .0, 1e9., got -1"),
        ({"rollout": RolloutConfig(group_size=2)}, "group_size must be >= 4, got 2; --rollout.allow-small-group"),
        ({"rollout": RolloutConfig(micro_batch=5)}, "micro_batch must divide the 64 samples of a rank, got 5"),
        ({"schedule": ScheduleConfig(window_range=(0, 8))}, "window_range must satisfy .*got \\(0, 8\\)"),
        ({"schedule": ScheduleConfig(window_size=9)}, "window_size must be in \\[1, 3\\]"),
        ({"schedule": ScheduleConfig(noise_level=float("nan"))}, "noise_level must be in"),
        ({"schedule": ScheduleConfig(window_interval=0)}, "window_interval must be in .1, 1e9., got 0"),
        ({"update": UpdateConfig(clip_range=0.0)}, r"clip_range must be in \(0, 1\)"),
        ({"validate_every": -1}, "validate_every must be in .0, 1e9., got -1"),
        ({"camera": CameraConfig(depth=4.0)}, "camera.depth must exceed .* the 9 frames, 132, .* got 4"),
        ({"camera": CameraConfig(ease=1.0)}, r"camera.ease must be in \[0, 1\), got 1.0"),
        ({"checkpoint_minutes": -0.5}, "checkpoint_minutes must be in .0, 1e6., got -0.5"),
        ({"evaluation": EvaluationConfig(num_frames=6)}, "evaluation.num_frames must be 0 or .*, got 6"),
        ({"evaluation": EvaluationConfig(width=4)}, "evaluation.width must be 0 or .*, got 4"),
        ({"evaluation": EvaluationConfig(num_validation=0)}, "evaluation.num_validation must be in .1, 1e4., got 0"),
        ({"rollout": RolloutConfig(share_first_step=True)}, "share_first_step needs rollout.share_initial_noise"),
        (
            {
                "rollout": RolloutConfig(share_initial_noise=True, share_first_step=True),
                "update": UpdateConfig(deferred=True),
            },
            "share_first_step needs .* update.deferred off",
        ),
        (
            {"update": UpdateConfig(deferred=True), "model": ModelConfig(checkpoint_keep="attention")},
            "checkpoint_keep must be nothing with update.deferred and a KL",
        ),
        (
            {"update": UpdateConfig(deferred=True, updates_per_rollout=1, surrogate="guard")},
            "update.deferred must be off with the guard surrogate",
        ),
        ({"update": UpdateConfig(ema_decay=1.0)}, "ema_decay must be in"),
        ({"reward": RewardConfig(num_aesthetic_frames=0)}, "num_aesthetic_frames must be in .1, 4097., got 0"),
        ({"reward": RewardConfig(reconstructor="/nowhere")}, "reward.reconstructor must be .*, got /nowhere .no such"),
        (
            {"reward": RewardConfig(aesthetic="http://host:8000/v1")},
            "reward.aesthetic must be .* folder or module:name",
        ),
        (
            {"reward": RewardConfig(extra=("mine:calm",))},
            "reward.extra must be module:function=weight, .* got mine:calm",
        ),
        ({"reward": RewardConfig(extra=("mine:calm=nan",))}, "weight > 0, got mine:calm=nan"),
        ({"reward": RewardConfig(device="gpu")}, "reward.device must be empty, cpu or cuda:K, got gpu"),
        ({"reward": RewardConfig(critic_timeout=0.0)}, "critic_timeout must be in .0, 86400."),
        ({"reward": RewardConfig(reconstructor_size=8)}, "reconstructor_size must be in .14, 8192., got 8"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_values_say_what_must_hold(good, changes, message):
    with pytest.raises(ValueError, match=message):
        validate(replace(good, **changes))


def test_all_findings_at_once(good):
    with pytest.raises(ValueError) as caught:
        validate(replace(good, max_iterations=-1, seed=-2), world_size=3)
    assert str(caught.value).count("\n  - ") == 2  # numbers out of range first: what follows computes with them
    with pytest.raises(ValueError) as caught:
        validate(
            replace(good, rollout=replace(good.rollout, micro_batch=5), model=ModelConfig(path=Path("/no"))),
            world_size=3,
        )
    assert str(caught.value).count("\n  - ") == 3


def test_missing_folders_are_named(good):
    with pytest.raises(ValueError, match="model.path must be a diffusers WanPipeline folder, got /nowhere"):
        validate(replace(good, model=replace(good.model, path=Path("/nowhere"))))


def test_a_judge_is_demanded_only_where_its_term_has_a_weight(good):
    nowhere = replace(good.reward, critic="/nowhere", weight_meta=0.0)
    validate(replace(good, reward=nowhere))
    with pytest.raises(ValueError, match="reward.critic must be a model folder, a server or module:name"):
        validate(replace(good, reward=replace(nowhere, weight_meta=1.0)))
    assert judges_asked(good) == JUDGE_ROLES
    only_gen = replace(good.reward, weight_traj=0.0, weight_recon=0.0, weight_meta=0.0)
    assert judges_asked(replace(good, reward=only_gen)) == ("aesthetic",)
    no_gen = replace(good, reward=replace(good.reward, weight_gen=0.0))
    assert "aesthetic" in judges_asked(no_gen)  # the dynamic phase asks it
    assert "aesthetic" not in judges_asked(replace(no_gen, phase=replace(good.phase, dynamic_iterations=0)))
    for source in ("http://host:8000/v1", "mine.judges:Critic"):
        validate(replace(good, reward=replace(good.reward, critic=source)))


def test_each_estimator_refuses_the_others_settings_by_name(good):
    forward = replace(
        good, rollout=replace(good.rollout, share_initial_noise=False, share_first_step=False),
        update=replace(good.update, estimator="forward"),
    )  # fmt: skip
    validate(forward)
    validate(replace(forward, forward=ForwardConfig(kl=0.5, share_draw=False)))
    validate(preset("micro-forward"))

    def refused(config):
        with pytest.raises(ValueError) as caught:
            validate(config)
        return str(caught.value)

    shared = refused(replace(forward, rollout=good.rollout))
    assert "rollout.share_initial_noise must be off with update.estimator forward" in shared
    assert "rollout.share_first_step must be off with update.estimator forward" in shared
    deferred = refused(replace(forward, update=replace(forward.update, deferred=True, surrogate="guard")))
    assert "update.deferred must be off with update.estimator forward" in deferred
    assert "update.surrogate must be left at clip with update.estimator forward, got guard" in deferred
    compat = refused(replace(forward, schedule=replace(forward.schedule, compat=True)))
    assert "schedule.compat must be off with update.estimator forward" in compat
    for name, value in (("prox", 2.0), ("kl", 0.5), ("mean", 0.0), ("mean_decay", 0.5), ("share_draw", False)):
        said = refused(replace(good, forward=ForwardConfig(**{name: value})))
        assert f"forward.{name} must be " in said and f"unless update.estimator is forward, got {value}" in said


def test_more_threads_than_cores_are_refused(good):
    with pytest.raises(ValueError, match="num_threads must be at most the .* cores, got 1000; 0 shares them"):
        validate(replace(good, num_threads=1000))


def test_every_field_is_documented():
    """--help shows the string under a field; a field without one would be shown bare."""
    tree = ast.parse(inspect.getsource(config_module))
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(getattr(config_module, node.name))):
            continue
        assert ast.get_docstring(node), node.name
        for item, below in zip(node.body, [*node.body[1:], None], strict=True):
            # A field that is itself a group of settings shows that class's docstring.
            is_field = isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).endswith("Config")
            if is_field:
                documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(item.target)} has no documentation"


def test_json_is_plain_and_complete():
    plain = json.loads(json.dumps(to_json(TrainConfig())))
    assert plain["schedule"]["window_range"] == [0, 3] and plain["output_dir"] == "runs/micro"
    assert set(plain) == {f.name for f in dataclasses.fields(TrainConfig)}


def test_presets():
    assert preset("micro") == TrainConfig()
    for name in PRESETS:
        assert isinstance(preset(name), TrainConfig)
    wan = preset("wan2.1-1.3b")
    assert (wan.schedule.num_steps, wan.schedule.shift, wan.rollout.group_size) == (20, 3.0, 8)
    assert (wan.video.height, wan.video.width, wan.video.num_frames) == (480, 832, 49)
    for name in ("wan2.1-1.3b", "wan2.1-14b"):  # the adapter acts on exactly the steps that may be trained
        config = preset(name)
        sigmas, last = rollout_sigmas(config.schedule), config.schedule.window_range[1]
        assert sigmas[last - 1] >= config.model.adapter_sigma_min > sigmas[last]
        check_window(config)
    assert wan.model.path == REQUIRED and wan.model.lora_alpha == 2 * wan.model.lora_rank == 64


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="got 'wan-1.3b'; the nearest is 'wan2.1-1.3b'"):
        preset("wan-1.3b")
