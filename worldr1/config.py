"""Every setting of a run, as documented frozen dataclasses; a preset is a function that returns a `TrainConfig`.

The string under a field is its documentation: `torchrun worldr1/train.py --help` shows it. A default lives here and
nowhere else. `config_checks.validate` reports what is wrong before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Fixed, Suppress

from worldr1.ranges import Real, Whole

EMBEDDED = Path(__file__).parent / "assets"
"""The weights and prompts that ship with the package."""
Keep = Literal["nothing", "attention", "products"]
"""What a checkpointed block keeps beside its input."""


@dataclass(frozen=True)
class CameraConfig:
    """How far the camera goes for one motion word of magnitude 1, and the lens; lengths in scene units."""

    push: Annotated[float, Real("[0, 1e6]")] = 600.0
    """Travel of push_in and pull_out along the optical axis."""
    move: Annotated[float, Real("[0, 1e6]")] = 220.0
    """Travel of move_left, move_right, move_up and move_down."""
    pan_deg: Annotated[float, Real("[0, 180]")] = 14.0
    """Turn of pan_left, pan_right, tilt_up and tilt_down, in degrees."""
    orbit_deg: Annotated[float, Real("[0, 360]")] = 24.0
    """Arc of orbit_left and orbit_right about a point `orbit_radius` in front of the camera, in degrees."""
    orbit_radius: Annotated[float, Real("(0, 1e6]")] = 600.0
    """Distance from the camera to the centre of an orbit."""
    pull_back: Annotated[float, Real("[0, 1e6]")] = 150.0
    """Backward travel of pull_left and pull_right."""
    pull_side: Annotated[float, Real("[0, 1e6]")] = 80.0
    """Sideways travel of pull_left and pull_right."""
    pull_deg: Annotated[float, Real("[0, 180]")] = 8.0
    """Turn of pull_left and pull_right, in degrees."""
    roll_deg: Annotated[float, Real("[0, 180]")] = 10.0
    """Turn of roll_left and roll_right about the optical axis, in degrees."""
    depth: Annotated[float, Real("(0, 1e6]")] = 1000.0
    """Distance of the front-parallel plane that stands for the scene when the flow is computed."""
    focal_ratio: Annotated[float, Real("(0, 100]")] = 1.2
    """Focal length as a multiple of the image width."""
    ease: Annotated[float, Real("[0, 1)")] = 0.15
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
    lora_rank: Annotated[int, Whole("[1, 4096]")] = 16
    """Rank of the LoRA on the attention projections."""
    lora_alpha: Annotated[int, Whole("[1, 65536]")] = 32
    """LoRA scaling numerator: the update is alpha / rank * B A."""
    lora_ffn: bool = False
    """Also adapt the feed-forward layers."""
    adapter_sigma_min: Annotated[float, Real("[0, 1]")] = 0.0
    """Acts only where sigma >= this (a high-noise expert), in training, generation and export; 0: always."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant): less memory, one more forward."""
    checkpoint_keep: Keep = "nothing"
    """What gradient checkpointing keeps, to do less of that forward: the results of `attention` (3 times the memory of
    `nothing`) or of all frozen matrix `products` (16 times)."""
    compile: bool = False
    """torch.compile the transformer for deterministic steps. Stochastic steps and the update stay eager, both alike, so
    that every log_prob is the training path's."""
    merge_lora: bool = False
    """Merge the adapter into the weights for deterministic steps: spares its products there, and rounds the sum to the
    base's precision (micro world: velocities move by 4e-7 in float32, by .8 % in bfloat16, where the adapter itself
    moves them by 4 %). Stochastic steps and the update keep it apart, both alike."""
    attention: Literal["auto", "native", "cudnn", "flash", "efficient", "math"] = "auto"
    """Attention kernel of rollout and update alike; auto: diffusers' default. One that does not run here is refused."""
    tf32: bool = False
    """Allow TF32 in the process's float32 matrix products on CUDA: those of the adapter are the slow part of a bfloat16
    pass, and the judges' float32 ones follow. Rollout and update change alike."""


@dataclass(frozen=True)
class VideoConfig:
    """What is generated."""

    height: Annotated[int, Whole("[8, 8192]")] = 32
    """Frame height in pixels."""
    width: Annotated[int, Whole("[8, 8192]")] = 32
    """Frame width in pixels."""
    num_frames: Annotated[int, Whole("[5, 4097]")] = 9
    """Frames per video; 4 k + 1 for Wan's temporal compression."""
    fps: Annotated[int, Whole("[1, 240]")] = 8
    """Frame rate of written files."""


@dataclass(frozen=True)
class NoiseConfig:
    """How the initial latent is drawn."""

    mode: Literal["transport", "plain"] = "transport"
    """`transport` moves Gaussian noise along the camera's optical flow; `plain` ignores the camera."""
    flow_scale: Annotated[int, Whole("[1, 64]")] = 8
    """Transport runs on a grid this many times finer than the latent, then is reduced with unit variance."""
    degradation: Annotated[float, Real("[0, 1]")] = 0.6
    """Share of fresh noise mixed into the transported noise (variance preserving); 1 is plain noise."""
    dither: bool = False
    """Move every field by an offset within half a pixel before it is rounded: keeps slow motion over many frames."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The flow-matching grid and which of its steps are stochastic."""

    num_steps: Annotated[int, Whole("[2, 1000]")] = 8
    """Steps of the Euler grid from sigma 1 to 0."""
    shift: Annotated[float, Real("(0, 100]")] = 2.0
    """Timestep shift: sigma = shift s / (1 + (shift - 1) s)."""
    sde_type: Literal["flow", "linear", "dance", "cps"] = "flow"
    """The stochastic step; see worldr1_kernels.sde_step."""
    noise_level: Annotated[float, Real("(0, 10)")] = 0.7
    """eta of `flow`, `dance` and `cps`; `linear` does not use it."""
    window_size: Annotated[int, Whole("[1, 1000]")] = 1
    """Stochastic (trained) steps per rollout, contiguous, shared by the whole group and all ranks."""
    window_range: tuple[int, int] = (0, 3)
    """The window lies in [first, last) step indices; the last step of the grid is never trained."""
    window_mode: Literal["random", "sliding"] = "random"
    """`random`: a fresh uniform draw each iteration; `sliding`: from the noise on, one step later each interval."""
    window_interval: Annotated[int, Whole("[1, 1e9]")] = 25
    """Iterations between two moves of the `sliding` window; past its range it starts again."""
    compat: Suppress[Fixed[bool]] = False
    """The official release's sampler, for comparison only: a deterministic UniPC rollout, scored by a Gaussian that
    never drew it. Biased; no flag but `--preset compat` sets it."""


@dataclass(frozen=True)
class RolloutConfig:
    """How many videos an iteration makes."""

    group_size: Annotated[int, Whole("[2, 4096]")] = 8
    """Samples per prompt (G). Advantages are relative to the group; less than 4 needs --rollout.allow-small-group."""
    prompts_per_iteration: Annotated[int, Whole("[1, 1e6]")] = 8
    """Prompts (groups) per iteration over all ranks. Its samples are dealt to the ranks: a group may be split."""
    guidance_scale: Annotated[float, Real("[1, 100]")] = 1.0
    """Classifier-free guidance; 1 runs no unconditional pass."""
    micro_batch: Annotated[int, Whole("[1, 1e6]")] = 32
    """Samples per transformer call, in rollout and training alike, so that log-probs agree exactly."""
    memory_budget_gib: Annotated[float, Real("[0, 1e6]")] = 0.0
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

    weight_traj: Annotated[float, Real("[0, 1e6]")] = 1.0
    """S_traj: recovered against requested camera path, in [0, 1]."""
    metric_paths: bool = False
    """The reconstructor measures in the unit of the requested paths, as the embedded one does: lengths count too."""
    weight_recon: Annotated[float, Real("[0, 1e6]")] = 1.0
    """S_recon: 1 - perceptual distance of the re-rendered Gaussians, in [0, 1]."""
    weight_meta: Annotated[float, Real("[0, 1e6]")] = 1.0
    """S_meta: the critic's score of a novel view, in [0, 1]."""
    weight_gen: Annotated[float, Real("[0, 1e6]")] = 1.0
    """R_gen: aesthetic score, in [-1, 1] (lambda of the article)."""
    control: Literal["none", "permuted", "random", "zero"] = "none"
    """A control experiment: rewards shuffled inside each group, replaced by noise or by 0. The gain must vanish."""
    reconstructor: str = str(EMBEDDED / "microgeo")
    """Who lifts a video to 3D: a folder (embedded, or Depth Anything 3), or `module:name` of your own. A judge whose
    terms have no weight is neither asked for nor loaded."""
    critic: str = str(EMBEDDED / "microcritic")
    """Who grades the novel view: a folder (embedded, or Qwen3-VL), the http(s) address of an OpenAI-compatible server,
    or `module:name`."""
    aesthetic: str = str(EMBEDDED / "microaesthetic")
    """Who rates frames: a folder (embedded, or HPSv3), or `module:name`."""
    perceptual: str = str(EMBEDDED / "microperceptual")
    """Distance of two images: a folder (embedded, or LPIPS), or `module:name`."""
    extra: tuple[str, ...] = ()
    """Terms of your own, `module:function=weight` each: function(videos [N, F, 3, H, W] in [0, 1], prompts) -> [N]."""
    device: str = ""
    """Where the judges run: `cpu`, or `cuda:K` for the first rank of a machine, the next device for the next; empty:
    beside the policy."""
    offload: bool = False
    """Keep the judges in host memory but while they judge: frees their weights' memory during rollout and update."""
    reconstructor_size: Annotated[int, Whole("[14, 8192]")] = 504
    """Longest side, in pixels, of what Depth Anything 3 sees; its published setting. Less is faster and coarser."""
    gaussian_rotations: Literal["package", "corrected"] = "package"
    """Depth Anything 3 composes rotations as xyzw and reads them as wxyz; `corrected` reorders them."""
    screen_blur: Annotated[float, Real("[0, 1]")] = 0.1
    """Variance added to a Gaussian on the screen, square pixels, where S_recon and S_meta render. Less of it forgives
    softness less: with LPIPS, .03 puts the truth above what is blurred by a pixel, .1 only from two pixels on."""
    critic_model: str = ""
    """Name of the critic's model on a server; empty: the only one that it serves."""
    critic_timeout: Annotated[float, Real("(0, 86400]")] = 60.0
    """Seconds for one answer of a server, its second try included; then the sample has no reward."""
    num_aesthetic_frames: Annotated[int, Whole("[1, 4097]")] = 8
    """K: R_gen is the mean over K frames of a clip."""
    aesthetic_frames: Literal["first", "spread"] = "first"
    """Which K frames: the first of the clip, as in the article, or evenly over it, its first and last among them."""
    max_invalid_fraction: Annotated[float, Real("[0, 1]")] = 0.5
    """Stop with an error when a larger share of an iteration's samples, of all ranks, has no valid reward."""


@dataclass(frozen=True)
class AdvantageConfig:
    """Group-relative advantages."""

    std: Literal["global", "group"] = "global"
    """Divide by the standard deviation inside the groups, of the whole iteration's together or of each group's own."""
    clip: Annotated[float, Real("(0, 1e6]")] = 5.0
    """Advantages are clipped to +- this."""
    normalize_each: bool = True
    """Normalise each reward term before adding them, so that none dominates by its variance."""
    min_group_std: Annotated[float, Real("[0, 1e6]")] = 1e-3
    """Alarm below this spread of a group's reward; a group below 1e-6 is dropped."""


@dataclass(frozen=True)
class UpdateConfig:
    """The policy gradient step."""

    estimator: Literal["score", "forward"] = "score"
    """`score`: Flow-GRPO's, from the density of stochastic steps; `forward`: DiffusionNFT's, from the flow-matching
    loss of noised samples (group `forward`): its rollouts draw nothing after the initial noise."""
    learning_rate: Annotated[float, Real("(0, 1]")] = 6e-4
    """AdamW learning rate of the LoRA."""
    warmup_iterations: Annotated[int, Whole("[0, 1e9]")] = 0
    """The rate rises linearly over so many iterations: AdamW's first steps have unit size whatever the gradient."""
    final_lr_fraction: Annotated[float, Real("[0, 1]")] = 0.3
    """The rate decays linearly to this fraction at the last iteration."""
    updates_per_rollout: Annotated[int, Whole("[1, 1000]")] = 2
    """Optimizer steps per rollout; with 1 the ratio is always 1 and the clip never acts."""
    clip_range: Annotated[float, Real("(0, 1)")] = 2e-3
    """PPO clip of the ratio. The log-ratio is centred and in units of the step's std, so that one value serves every
    size: where each element of a draw moved by rho standard deviations, the ratio is exp(N(0, rho^2))."""
    surrogate: Literal["clip", "guard"] = "clip"
    """`guard` (GRPO-Guard) multiplies the log-ratio by the step's std and divides the loss by |dt|; its clip_range is
    about 1e-3."""
    deferred: bool = False
    """Backward pass inside the rollout, one gradient per sample, weighted when the rewards arrive: the first update of
    a rollout then needs no forward of its own."""
    kl_beta: Annotated[float, Real("[0, 1e9]")] = 2.0
    """Weight of the KL to the adapter-off reference, in nats an element; 0 skips the reference forward."""
    max_grad_ratio: Annotated[float, Real("(0, 1e9]")] = 5.0
    """A gradient is cut to this many times the running norm of those before it (the root of AdamW's second moment)."""
    weight_decay: Annotated[float, Real("[0, 1e3]")] = 0.0
    """AdamW weight decay."""
    ema_decay: Annotated[float, Real("[0, 1)")] = 0.9
    """Exponential moving average of the adapter, stepped once per optimizer step; evaluation uses it."""


@dataclass(frozen=True)
class ForwardConfig:
    """The loss of update.estimator forward; see learn/forward.py. The score estimator's clip, KL and window rest."""

    prox: Annotated[float, Real("(0, 1e6]")] = 1.0
    """Weight of the squared distance to the velocity that sampled."""
    kl: Annotated[float, Real("[0, 1e6]")] = 0.02
    """Weight of the squared distance to the adapter-off velocity."""
    mean: Annotated[float, Real("[0, 1e6]")] = 0.3
    """Weight of the squared mean distance to it, over samples, at each sigma: what all samples drift by in common.
    With `kl` 0, too, no reference pass is run."""
    mean_decay: Annotated[float, Real("[0, 1)")] = 0.7
    """Of the running mean that stands for it."""
    share_draw: bool = True
    """One sigma and one noise for the samples of a group in each update; else each its own."""


@dataclass(frozen=True)
class PhaseConfig:
    """The periodic decoupled phase: R_gen alone on dynamic prompts, so that the model does not freeze."""

    main_iterations: Annotated[int, Whole("[1, 1e9]")] = 50
    """Iterations with the full reward before each dynamic phase."""
    dynamic_iterations: Annotated[int, Whole("[0, 1e9]")] = 3
    """Iterations of the dynamic phase; 0 turns it off."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The before/after study at the end of a run, by an evaluator that no reward has seen."""

    num_samples: Annotated[int, Whole("[0, 1e6]")] = 384
    """Held-out samples, paired by seed before and after; 0 skips the study."""
    solver: Literal["euler", "multistep", "unipc"] = "euler"
    """Sampler of the study; `unipc` on its own grid is what Wan's pipeline uses."""
    num_steps: Annotated[int, Whole("[0, 1000]")] = 0
    """Steps of the study's sampler; 0 takes schedule.num_steps."""
    evaluator: str = str(EMBEDDED / "microeval")
    """The independent evaluator: a folder; without labels any reconstructor, a folder or `module:name`."""
    labels: bool = True
    """Also measure obedience and content, which the embedded prompts name and the embedded evaluator can name."""
    height: Annotated[int, Whole("[0, 8192]")] = 0
    """Frame height of the study and of validation; 0, as the two below: as in training."""
    width: Annotated[int, Whole("[0, 8192]")] = 0
    """Their frame width."""
    num_frames: Annotated[int, Whole("[0, 4097]")] = 0
    """Their frames, 4 k + 1."""
    num_validation: Annotated[int, Whole("[1, 1e4]")] = 4
    """Prompts of a validation (validate_every): of the held-out ones the first of each camera motion, then the rest."""
    num_looks: Annotated[int, Whole("[0, 1e4]")] = 4
    """Times that obedience is measured while training, evenly over the run, on up to 40 held-out samples; 0: never."""
    num_sheet_rows: Annotated[int, Whole("[0, 1e4]")] = 9
    """Rows of the before/after contact sheet in the report."""


@dataclass(frozen=True)
class TrainConfig:
    """World-R1 training. With no arguments: the embedded micro world on this machine, through the production path."""

    max_iterations: Annotated[int, Whole("[0, 1e9]")] = 200
    """Training iterations."""
    seed: Annotated[int, Whole("[0, 2^63)")] = 0
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
    checkpoint_every: Annotated[int, Whole("[1, 1e9]")] = 20
    """Iterations between checkpoints; one is also written at the end and on Ctrl-C."""
    checkpoint_minutes: Annotated[float, Real("[0, 1e6]")] = 0.0
    """Also write one at the end of the iteration in which so many minutes have passed since the last; 0: off."""
    keep_checkpoints: Annotated[int, Whole("[1, 1e6]")] = 2
    """Older checkpoints are removed."""
    validate_every: Annotated[int, Whole("[0, 1e9]")] = 0
    """Iterations between validations, clips of held-out prompts by the base and the averaged adapter; 0: off."""
    self_test: bool = True
    """Check the policy gradient's identities before the first update; a failure stops the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy runs."""
    num_threads: Annotated[int, Whole("[0, 1024]")] = 0
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
    forward: ForwardConfig = field(default_factory=ForwardConfig)
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
