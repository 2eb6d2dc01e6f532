"""Every setting of a run, as documented frozen dataclasses; a preset is a function that returns a `TrainConfig`.

The string under a field is its documentation: `torchrun worldr1/train.py --help` shows it. A default lives here and
nowhere else. `validate` reports what is wrong before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Fixed, Suppress

EMBEDDED = Path(__file__).parent / "assets"
"""The weights and prompts that ship with the package."""
Keep = Literal["nothing", "attention", "products"]
"""What a checkpointed block keeps beside its input."""


@dataclass(frozen=True)
class CameraConfig:
    """How far the camera goes for one motion word of magnitude 1, and the lens; lengths in scene units."""

    push: float = 600.0
    """Travel of push_in and pull_out along the optical axis."""
    move: float = 220.0
    """Travel of move_left, move_right, move_up and move_down."""
    pan_deg: float = 14.0
    """Turn of pan_left, pan_right, tilt_up and tilt_down, in degrees."""
    orbit_deg: float = 24.0
    """Arc of orbit_left and orbit_right about a point `orbit_radius` in front of the camera, in degrees."""
    orbit_radius: float = 600.0
    """Distance from the camera to the centre of an orbit."""
    pull_back: float = 150.0
    """Backward travel of pull_left and pull_right."""
    pull_side: float = 80.0
    """Sideways travel of pull_left and pull_right."""
    pull_deg: float = 8.0
    """Turn of pull_left and pull_right, in degrees."""
    roll_deg: float = 10.0
    """Turn of roll_left and roll_right about the optical axis, in degrees."""
    depth: float = 1000.0
    """Distance of the front-parallel plane that stands for the scene when the flow is computed."""
    focal_ratio: float = 1.2
    """Focal length as a multiple of the image width."""
    ease: float = 0.15
    """Share of each motion spent speeding up, and again slowing down; 0 is constant speed."""


MICRO_CAMERA = CameraConfig(
    push=2.0, move=2.0, pan_deg=28.0, orbit_deg=60.0, orbit_radius=4.0, pull_back=1.2, pull_side=0.8, pull_deg=14.0,
    depth=4.0, focal_ratio=0.8, ease=0.0,
)  # fmt: skip
"""The camera of the embedded micro world (9 frames at 32x32, objects about 4 units away)."""


@dataclass(frozen=True)
class ModelConfig:
    """The text-to-video policy and its adapter."""

    path: Path = EMBEDDED / "microwan"
    """A diffusers `WanPipeline` folder. The default is the embedded micro world; Wan2.1 is a folder of that form."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen base; the adapter and all policy-gradient arithmetic stay in float32."""
    lora_rank: int = 16
    """Rank of the LoRA on the attention projections."""
    lora_alpha: int = 32
    """LoRA scaling numerator: the update is alpha / rank * B A."""
    lora_ffn: bool = False
    """Also adapt the feed-forward layers."""
    adapter_sigma_min: float = 0.0
    """Acts only where sigma >= this (a high-noise expert), in training, generation and export; 0: always."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant): less memory, one more forward."""
    checkpoint_keep: Keep = "nothing"
    """What gradient checkpointing keeps, to do less of that forward: the results of `attention` (3 times the memory of
    `nothing`) or of all frozen matrix `products` (16 times)."""
    compile: bool = False
    """torch.compile the transformer for deterministic steps. Stochastic steps and the update stay eager, both alike, so
    that every log_prob is the training path's."""


@dataclass(frozen=True)
class VideoConfig:
    """What is generated."""

    height: int = 32
    """Frame height in pixels."""
    width: int = 32
    """Frame width in pixels."""
    num_frames: int = 9
    """Frames per video; 4 k + 1 for Wan's temporal compression."""
    fps: int = 8
    """Frame rate of written files."""


@dataclass(frozen=True)
class NoiseConfig:
    """How the initial latent is drawn."""

    mode: Literal["transport", "plain"] = "transport"
    """`transport` moves Gaussian noise along the camera's optical flow; `plain` ignores the camera."""
    flow_scale: int = 8
    """Transport runs on a grid this many times finer than the latent, then is reduced with unit variance."""
    degradation: float = 0.6
    """Share of fresh noise mixed into the transported noise (variance preserving); 1 is plain noise."""
    dither: bool = False
    """Move every field by an offset within half a pixel before it is rounded: keeps slow motion over many frames."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The flow-matching grid and which of its steps are stochastic."""

    num_steps: int = 8
    """Steps of the Euler grid from sigma 1 to 0."""
    shift: float = 2.0
    """Timestep shift: sigma = shift s / (1 + (shift - 1) s)."""
    sde_type: Literal["flow", "linear", "dance", "cps"] = "flow"
    """The stochastic step; see worldr1_kernels.sde_step."""
    noise_level: float = 0.7
    """eta of `flow`, `dance` and `cps`; `linear` does not use it."""
    window_size: int = 1
    """Stochastic (trained) steps per rollout, contiguous, shared by the whole group and all ranks."""
    window_range: tuple[int, int] = (0, 3)
    """The window lies in [first, last) step indices; the last step of the grid is never trained."""
    window_mode: Literal["random", "sliding"] = "random"
    """`random`: a fresh uniform draw each iteration; `sliding`: from the noise on, one step later each interval."""
    window_interval: int = 25
    """Iterations between two moves of the `sliding` window; past its range it starts again."""
    compat: Suppress[Fixed[bool]] = False
    """The official release's sampler, for comparison only: a deterministic UniPC rollout, scored by a Gaussian that
    never drew it. Biased; no flag but `--preset compat` sets it."""


@dataclass(frozen=True)
class RolloutConfig:
    """How many videos an iteration makes."""

    group_size: int = 8
    """Samples per prompt (G). Advantages are relative to the group; less than 4 needs --rollout.allow-small-group."""
    prompts_per_iteration: int = 8
    """Prompts (groups) per iteration over all ranks."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 runs no unconditional pass."""
    micro_batch: int = 32
    """Samples per transformer call, in rollout and training alike, so that log-probs agree exactly."""
    memory_budget_gib: float = 0.0
    """Choose micro_batch in its place: the largest whose passes and decoding are measured to take no more than this,
    beside the model, the judges and what an iteration keeps; 0: off."""
    share_initial_noise: bool = False
    """One initial latent per group: the deterministic prefix before the window is then computed once."""
    share_first_step: bool = False
    """With share_initial_noise: a group's samples enter the first stochastic step with the same latent, so that one
    pass serves them all there, in the rollout, the reference and each update; micro_batch then counts latents."""
    solver: Literal["euler", "multistep"] = "euler"
    """Of the deterministic steps after the window; `multistep` is of second order at the same number of forwards."""
    allow_small_group: bool = False
    """Accept a group size below 4 (with 2, a per-group std makes every advantage +-1)."""


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the terms, and the frozen judges."""

    weight_traj: float = 1.0
    """S_traj: recovered against requested camera path, in [0, 1]."""
    metric_paths: bool = False
    """The reconstructor measures in the unit of the requested paths, as the embedded one does: lengths count too."""
    weight_recon: float = 1.0
    """S_recon: 1 - perceptual distance of the re-rendered Gaussians, in [0, 1]."""
    weight_meta: float = 1.0
    """S_meta: the critic's score of a novel view, in [0, 1]."""
    weight_gen: float = 1.0
    """R_gen: aesthetic score, in [-1, 1] (lambda of the article)."""
    control: Literal["none", "permuted", "random"] = "none"
    """A control experiment: rewards shuffled inside each group, or replaced by noise. The gain must vanish."""
    reconstructor: Path = EMBEDDED / "microgeo"
    """Folder of the reconstructor."""
    critic: Path = EMBEDDED / "microcritic"
    """Folder of the critic (embedded, or a Qwen3-VL folder)."""
    aesthetic: Path = EMBEDDED / "microaesthetic"
    """Folder of the aesthetic judge."""
    perceptual: Path = EMBEDDED / "microperceptual"
    """Folder of the perceptual distance."""
    num_aesthetic_frames: int = 8
    """R_gen is the mean over the first K frames."""
    max_invalid_fraction: float = 0.5
    """Stop with an error when a larger share of an iteration's samples has no valid reward."""


@dataclass(frozen=True)
class AdvantageConfig:
    """Group-relative advantages."""

    std: Literal["global", "group"] = "global"
    """Divide by the standard deviation over the iteration, or over each group."""
    clip: float = 5.0
    """Advantages are clipped to +- this."""
    normalize_each: bool = True
    """Normalise each reward term before adding them, so that none dominates by its variance."""
    min_group_std: float = 1e-3
    """Alarm below this spread of a group's reward; a group below 1e-6 is dropped."""


@dataclass(frozen=True)
class UpdateConfig:
    """The policy gradient step."""

    learning_rate: float = 6e-4
    """AdamW learning rate of the LoRA."""
    warmup_iterations: int = 0
    """The rate rises linearly over so many iterations: AdamW's first steps have unit size whatever the gradient."""
    final_lr_fraction: float = 0.3
    """The rate decays linearly to this fraction at the last iteration."""
    updates_per_rollout: int = 2
    """Optimizer steps per rollout; with 1 the ratio is always 1 and the clip never acts."""
    clip_range: float = 5e-4
    """PPO clip of the ratio; small because log_prob is a mean over elements."""
    surrogate: Literal["clip", "guard"] = "clip"
    """`guard` (GRPO-Guard) centres the log-ratio, scales it by the step's std and divides the loss by |dt|; its
    clip_range is about 2e-6."""
    deferred: bool = False
    """Backward pass inside the rollout, one gradient per sample, weighted when the rewards arrive: the first update of
    a rollout then needs no forward of its own."""
    kl_beta: float = 0.04
    """Weight of the KL to the adapter-off reference; 0 skips the reference forward."""
    max_grad_norm: float = 1.0
    """Gradient norm clip."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    ema_decay: float = 0.9
    """Exponential moving average of the adapter, stepped once per optimizer step; evaluation uses it."""


@dataclass(frozen=True)
class PhaseConfig:
    """The periodic decoupled phase: R_gen alone on dynamic prompts, so that the model does not freeze."""

    main_iterations: int = 50
    """Iterations with the full reward before each dynamic phase."""
    dynamic_iterations: int = 3
    """Iterations of the dynamic phase; 0 turns it off."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The before/after study at the end of a run, by an evaluator that no reward has seen."""

    num_samples: int = 384
    """Held-out samples, paired by seed before and after; 0 skips the study."""
    solver: Literal["euler", "multistep", "unipc"] = "euler"
    """Sampler of the study; `unipc` on its own grid is what Wan's pipeline uses."""
    num_steps: int = 0
    """Steps of the study's sampler; 0 takes schedule.num_steps."""
    evaluator: Path = EMBEDDED / "microeval"
    """Folder of the independent evaluator."""
    labels: bool = True
    """Also measure obedience and content, which the embedded prompts name and the embedded evaluator can name."""
    height: int = 0
    """Frame height of the study and of validation; 0, as the two below: as in training."""
    width: int = 0
    """Their frame width."""
    num_frames: int = 0
    """Their frames, 4 k + 1."""
    num_validation: int = 4
    """Prompts of a validation (validate_every): of the held-out ones the first of each camera motion, then the rest."""
    num_sheet_rows: int = 9
    """Rows of the before/after contact sheet in the report."""


@dataclass(frozen=True)
class TrainConfig:
    """World-R1 training. With no arguments: the embedded micro world on this machine, through the production path."""

    max_iterations: int = 200
    """Training iterations."""
    seed: int = 0
    """Seed of everything; two runs with the same seed on one machine write identical metrics."""
    output_dir: Path = Path("runs/micro")
    """Where metrics, checkpoints, the adapter and report.html go."""
    resume: bool = False
    """Go on from the newest checkpoint in output_dir."""
    prompts: Path = EMBEDDED / "prompts" / "micro_train.txt"
    """UTF-8 text file, one prompt a line: the main phase."""
    dynamic_prompts: Path = EMBEDDED / "prompts" / "micro_dynamic.txt"
    """UTF-8 text file, one prompt a line: the dynamic phase."""
    eval_prompts: Path = EMBEDDED / "prompts" / "micro_heldout.txt"
    """UTF-8 text file, one prompt a line: never trained on."""
    checkpoint_every: int = 20
    """Iterations between checkpoints; one is also written at the end and on Ctrl-C."""
    checkpoint_minutes: float = 0.0
    """Also write one at the end of the iteration in which so many minutes have passed since the last; 0: off."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    validate_every: int = 0
    """Iterations between validations, clips of held-out prompts by the base and the averaged adapter; 0: off."""
    self_test: bool = True
    """Check the policy gradient's identities before the first update; a failure stops the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy runs."""
    num_threads: int = 0
    """CPU threads per rank; 0 shares the cores among the ranks."""
    text_cache: bool = False
    """Keep the embeddings of prompts on disk, in text_cache/ beside output_dir, for this run and later ones."""
    nvtx: bool = False
    """Name the stages of an iteration by NVTX ranges, for Nsight Systems."""
    open_report: bool = False
    """Open report.html in a browser at the end."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(adapter_sigma_min=0.8))
    video: VideoConfig = field(default_factory=VideoConfig)
    camera: CameraConfig = MICRO_CAMERA
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(share_initial_noise=True, share_first_step=True)
    )
    reward: RewardConfig = field(
        default_factory=lambda: RewardConfig(metric_paths=True, weight_recon=0.1, weight_meta=0.1, weight_gen=0.2)
    )
    advantage: AdvantageConfig = field(default_factory=lambda: AdvantageConfig(std="group"))
    update: UpdateConfig = field(default_factory=lambda: UpdateConfig(warmup_iterations=15))
    phase: PhaseConfig = field(default_factory=PhaseConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def to_json(config: TrainConfig) -> dict:
    """The configuration as plain JSON types (paths as strings)."""

    def plain(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def validate(config: TrainConfig, *, world_size: int = 1) -> None:
    """Check what can be checked before any model is loaded.

    Args:
      config: The run's settings.
      world_size: Number of ranks; prompts_per_iteration must divide among them.
    Raises:
      ValueError: what must hold, what was given, how to mend it; all findings at once.
    """
    c, bad = config, []

    def must(ok: bool, text: str) -> None:
        if not ok:
            bad.append(text)

    r, s, n, u, e = c.rollout, c.schedule, c.noise, c.update, c.evaluation
    for name, value, least in (
        ("max_iterations", c.max_iterations, 0), ("seed", c.seed, 0), ("num_threads", c.num_threads, 0),
        ("checkpoint_every", c.checkpoint_every, 1), ("checkpoint_minutes", c.checkpoint_minutes, 0),
        ("keep_checkpoints", c.keep_checkpoints, 1), ("validate_every", c.validate_every, 0),
        ("phase.main_iterations", c.phase.main_iterations, 1),
        ("phase.dynamic_iterations", c.phase.dynamic_iterations, 0), ("evaluation.num_samples", e.num_samples, 0),
        ("evaluation.num_steps", e.num_steps, 0), ("evaluation.num_validation", e.num_validation, 1),
        ("rollout.prompts_per_iteration", r.prompts_per_iteration, 1), ("rollout.guidance_scale", r.guidance_scale, 1),
        ("rollout.memory_budget_gib", r.memory_budget_gib, 0), ("schedule.num_steps", s.num_steps, 2),
        ("schedule.window_interval", s.window_interval, 1), ("noise.flow_scale", n.flow_scale, 1),
        ("update.warmup_iterations", u.warmup_iterations, 0), ("update.kl_beta", u.kl_beta, 0),
        ("update.updates_per_rollout", u.updates_per_rollout, 1),
    ):  # fmt: skip
        must(value >= least, f"{name} must be >= {least}, got {value}")
    v = c.video
    must(v.num_frames >= 5 and v.num_frames % 4 == 1, f"video.num_frames must be 4 k + 1 and >= 5, got {v.num_frames}")
    must(v.height >= 8 and v.width >= 8, f"video.height and video.width must be >= 8, got {v.height}x{v.width}")
    must(r.group_size >= 2, f"rollout.group_size must be >= 2, got {r.group_size}")
    must(
        r.group_size >= 4 or r.allow_small_group,
        f"rollout.group_size must be >= 4, got {r.group_size}; --rollout.allow-small-group accepts it",
    )
    must(
        r.prompts_per_iteration % world_size == 0,
        f"rollout.prompts_per_iteration must be a multiple of the {world_size} ranks, got {r.prompts_per_iteration}",
    )
    samples = r.group_size * (r.prompts_per_iteration // max(1, world_size))
    must(
        r.memory_budget_gib > 0 or r.micro_batch >= 1 and samples % min(r.micro_batch, max(1, samples)) == 0,
        f"rollout.micro_batch must divide the {samples} samples of a rank, got {r.micro_batch}",
    )
    must(s.shift > 0, f"schedule.shift must be > 0, got {s.shift}")
    must(
        not s.compat or (r.solver == "euler" and not r.share_initial_noise),
        "schedule.compat brings its own solver and has no shared prefix: leave rollout.solver and share_initial_noise",
    )
    must(
        not r.share_first_step or (r.share_initial_noise and not c.update.deferred),
        "rollout.share_first_step needs rollout.share_initial_noise (else the latents differ), and update.deferred off "
        "(it needs a pass for each sample)",
    )
    must(0 < s.noise_level < 10, f"schedule.noise_level must be in (0, 10), got {s.noise_level}")
    first, last = s.window_range
    must(
        0 <= first < last <= s.num_steps - 1,
        f"schedule.window_range must satisfy 0 <= first < last <= num_steps - 1 = {s.num_steps - 1}, "
        f"got {(first, last)}",
    )
    must(
        1 <= s.window_size <= last - first,
        f"schedule.window_size must be in [1, {last - first}] to fit window_range {(first, last)}, got {s.window_size}",
    )
    must(0 <= n.degradation <= 1, f"noise.degradation must be in [0, 1], got {n.degradation}")
    m = c.model
    must(
        m.lora_rank >= 1 and m.lora_alpha >= 1,
        f"model.lora_rank and lora_alpha must be >= 1, got {m.lora_rank}, {m.lora_alpha}",
    )
    must(0 <= m.adapter_sigma_min <= 1, f"model.adapter_sigma_min must be in [0, 1], got {m.adapter_sigma_min}")
    must(u.learning_rate > 0, f"update.learning_rate must be > 0, got {u.learning_rate}")
    must(
        not u.deferred or (u.surrogate == "clip" and not s.compat),
        "update.deferred must be off with the guard surrogate and with schedule.compat",
    )
    must(
        not (u.deferred and u.kl_beta > 0) or m.checkpoint_keep == "nothing",
        f"model.checkpoint_keep must be nothing with update.deferred and a KL (two backward passes through one graph), "
        f"got {m.checkpoint_keep}",
    )
    must(u.clip_range > 0, f"update.clip_range must be > 0, got {u.clip_range}")
    must(u.max_grad_norm > 0, f"update.max_grad_norm must be > 0, got {u.max_grad_norm}")
    must(0 <= u.ema_decay < 1, f"update.ema_decay must be in [0, 1), got {u.ema_decay}")
    w = c.reward
    weights = (w.weight_traj, w.weight_recon, w.weight_meta, w.weight_gen)
    must(min(weights) >= 0 and max(weights) > 0, f"reward weights must be >= 0 and not all 0, got {weights}")
    for name, side in (("height", e.height), ("width", e.width), ("num_frames", e.num_frames)):
        right = side == 0 or (side >= 5 and side % 4 == 1 if name == "num_frames" else side >= 8)
        must(right, f"evaluation.{name} must be 0 or what video.{name} may be, got {side}")

    must(m.path.is_dir(), f"model.path must be a diffusers WanPipeline folder, got {m.path} (no such folder)")
    judges = {
        "reconstructor": w.reconstructor, "critic": w.critic, "aesthetic": w.aesthetic, "perceptual": w.perceptual,
    }  # fmt: skip
    for name, path in judges.items():
        must(path.is_dir(), f"reward.{name} must be a model folder, got {path} (no such folder)")
    if e.num_samples:
        must(e.evaluator.is_dir(), f"evaluation.evaluator must be a model folder, got {e.evaluator} (no such folder)")
    if bad:
        raise ValueError("configuration:\n  - " + "\n  - ".join(bad))
