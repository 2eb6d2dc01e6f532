"""Memory of an iteration before it is run: what each stage holds on the device and on the host, on one rank.

Passes are run on the meta device, where nothing is computed, and their tensors counted while they live; the rest is
arithmetic. Not counted: what kernels and libraries take inside (cuDNN's and cuBLAS's workspaces, the allocator's
unused blocks, the CUDA context, a GB or two together) and the activations of the judges.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldr1.config import ModelConfig, TrainConfig
from worldr1.cost.budget import peak_bytes
from worldr1.cost.flops import NUM_TEXT_TOKENS
from worldr1.models.wan import WanPolicy
from worldr1.prompts.sampler import rank_share
from worldr1.rollout.schedule import forward_steps, rollout_sigmas
from worldr1.rollout.videos import videos_per_call

WAN_VAE: dict[str, Any] = {}
"""Arguments of diffusers' AutoencoderKLWan: its defaults are the published vae/config.json of Wan2.1."""
NUM_TEXT_ENCODER = 5_680_910_336
"""Parameters of UMT5-XXL's encoder, as Wan2.1 ships it: embedding of 256,384 x 4,096 and 24 layers of width 4,096,
64 heads of 64, feed-forward 10,240 with a gate, relative positions in each (huggingface.co/google/umt5-xxl)."""
JUDGES: dict[str, tuple[float, int]] = {
    "Depth Anything 3 Giant": (1.356e9, 4),  # with its Gaussian head, github.com/ByteDance-Seed/Depth-Anything-3
    "Qwen3-VL-8B": (8.77e9, 2),  # huggingface.co/Qwen/Qwen3-VL-8B-Instruct
    "HPSv3": (7.75e9, 2),  # huggingface.co/MizzenAI/HPSv3
    "LPIPS": (2.5e6, 4),  # AlexNet's features, github.com/richzhang/PerceptualSimilarity
}
"""The published recipe's judges: parameters, and bytes of each as they are loaded."""
PLAN_BYTES = 4
"""Of a transport plan for each flow pixel, every fourth frame kept: 460 MB for 80 fields of 960x1664, measured."""


class Stage(NamedTuple):
    """Bytes of one rank in one stage."""

    name: str
    resident: int  # on the device before the stage and after it
    passing: int  # what the stage takes beside, at most
    host: int  # of the iteration's data, in the host's memory

    @property
    def device(self) -> int:
        """Most that is on the device at a time."""
        return self.resident + self.passing


class MetaPolicy(WanPolicy):
    """A `WanPolicy` on the meta device: sizes without values. A prompt has all of its tokens."""

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N, L, D]."""
        size = len(prompts), self.max_sequence_length, self.transformer.config.text_dim
        return torch.empty(size, dtype=self.transformer.dtype, device="meta")

    def num_bytes(self) -> tuple[int, int, int]:
        """Frozen transformer, adapter, decoder."""
        adapter = sum(p.nbytes for p in self.adapter_parameters())
        return _nbytes(self.transformer) - adapter, adapter, _nbytes(self.vae)


def meta_policy(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    model: ModelConfig,
    *,
    num_text_tokens: int = NUM_TEXT_TOKENS,
) -> MetaPolicy:
    """A policy of these sizes that takes no memory.

    Args:
      transformer, vae: Arguments of WanTransformer3DModel and AutoencoderKLWan.
      model: Precision, LoRA, gradient checkpointing.
      num_text_tokens: L, to which a prompt is padded.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    with torch.device("meta"):
        net: Any = WanTransformer3DModel(**transformer)
        decoder: Any = AutoencoderKLWan(**vae)
    if model.dtype == "bfloat16":
        for name, parameter in net.named_parameters():
            # These diffusers reads in float32 whatever is asked for.
            if not any(part in name.split(".") for part in net._keep_in_fp32_modules or ()):
                parameter.data = parameter.data.to(torch.bfloat16)
    return MetaPolicy(
        tokenizer=SimpleNamespace(model_max_length=num_text_tokens), read_text_encoder=nn.Identity, transformer=net,
        vae=decoder.requires_grad_(False), model=model, device="meta",
    )  # fmt: skip


def rollout_bytes(policy: MetaPolicy, config: TrainConfig, *, rows: int) -> int:
    """Of a pass without a graph of so many latents, with guidance of both, one after the other."""
    latent, texts = _inputs(policy, config, rows)

    def run() -> None:
        with torch.no_grad():
            _guided(policy, latent, texts, config)

    return _counted(run)


def update_bytes(policy: MetaPolicy, config: TrainConfig, *, rows: int) -> int:
    """Of a stochastic step's forward and backward pass of so many latents; the gradients are counted as residents."""
    latent, texts = _inputs(policy, config, rows)

    def run() -> None:
        (_guided(policy, latent, texts, config) - latent).square().mean().backward()

    for p in policy.adapter_parameters():
        p.grad = torch.empty_like(p)
    return _counted(run)


def decode_bytes(policy: MetaPolicy, config: TrainConfig, *, rows: int) -> int:
    """Of so many latents' way to videos in float32."""
    latent, _ = _inputs(policy, config, rows)
    return _counted(lambda: policy.decode(latent))


def stages(
    policy: MetaPolicy,
    config: TrainConfig,
    *,
    num_ranks: int,
    judges: int | None = None,
    num_text_encoder: int = NUM_TEXT_ENCODER,
) -> list[Stage]:
    """Memory of one rank through an iteration.

    Args:
      policy: From `meta_policy`, with config.model.
      config: The run's settings; rollout.micro_batch counts.
      num_ranks: Among which the samples are dealt.
      judges: Bytes of their weights; None: those of JUDGES, the published recipe's. With reward.device they are not on
        the device that is counted.
      num_text_encoder: Parameters of the text encoder.
    Raises:
      ValueError: the samples do not divide among the ranks.
    """
    r, v, s = config.rollout, config.video, config.schedule
    num, _ = rank_share(r, num_ranks)
    rows = min(r.micro_batch, num)
    shape = policy.latent_shape(v)
    latent = 4 * math.prod(shape)
    element = policy.transformer.dtype.itemsize
    base, adapter, decoder = policy.num_bytes()
    video = v.num_frames * 3 * v.height * v.width
    if judges is None:
        judges = sum(round(params * size) for params, size in JUDGES.values())
    if config.reward.device:  # not the policy's
        judges = 0
    # Off the device but while they judge; the bytes of all videos then wait for them on the host.
    judges, judges_passing, waiting = (0, judges, num * video) if config.reward.offload else (judges, 0, 0)

    model = base + adapter + decoder
    lasting = model + 3 * adapter + judges  # the moving average, and AdamW's two moments
    text = policy.max_sequence_length * policy.transformer.config.text_dim * element
    texts = (num + (r.guidance_scale != 1.0)) * text
    kept = texts + num * latent * (1 if config.update.estimator == "forward" else 2 * s.window_size)
    if config.update.deferred:
        kept += num * adapter * (2 if config.update.kl_beta > 0 else 1)
    if config.update.estimator == "forward":
        references = adapter  # the one that sampled; velocities live no longer than their micro-batch
        if config.forward.mean > 0:
            lasting += latent * len(forward_steps(rollout_sigmas(s), config.model.adapter_sigma_min))  # running means
    else:
        # Of each stochastic step: the base's velocity for the KL, the sampling policy's mean for the ratio.
        each = (config.update.kl_beta > 0) + (config.update.updates_per_rollout > 1)
        references = s.window_size * num * latent * each
    drawn, planned = _noise_bytes(config, shape)
    together = min(rows, videos_per_call(shape))
    during = lasting + kept + num * latent  # the rollout and the rewards, which judge what is decoded
    return [
        Stage("text encoder", model + judges, num_text_encoder * element, judges_passing),
        Stage("noise", lasting + num * latent, drawn + planned, judges_passing),
        Stage("rollout", during, rollout_bytes(policy, config, rows=rows), judges_passing + waiting),
        Stage("decode", during, decode_bytes(policy, config, rows=together), judges_passing + waiting),
        Stage("rewards", during, judges_passing + (together + 4) * video, waiting),
        Stage(
            "update", lasting + adapter + kept + num * latent + references, update_bytes(policy, config, rows=rows),
            judges_passing,
        ),
    ]  # fmt: skip


def table(found: Sequence[Stage], policy: MetaPolicy) -> str:
    """The stages in GB, the fullest one marked."""
    base, adapter, decoder = policy.num_bytes()
    peak = max(found, key=lambda stage: stage.device)
    judges = ", ".join(f"{name} {params * size / 1e9:.2g}" for name, (params, size) in JUDGES.items())
    lines = [
        f"GB of a rank: transformer {base / 1e9:.3g}, adapter {adapter / 1e9:.2g} (5 times with its average, moments "
        f"and gradient), decoder {decoder / 1e9:.2g}; judges without what they compute: {judges}",
        f"{'stage':16} {'resident':>9} {'passing':>9} {'device':>9} {'host':>9}",
    ]
    for stage in found:
        figures = " ".join(f"{n / 1e9:9.2f}" for n in (stage.resident, stage.passing, stage.device, stage.host))
        lines.append(f"{stage.name:16} {figures}{'  <- peak' if stage is peak else ''}")
    return "\n".join(lines)


def _nbytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _inputs(policy: MetaPolicy, config: TrainConfig, rows: int) -> tuple[Tensor, list[Tensor]]:
    latent = torch.empty(rows, *policy.latent_shape(config.video), device="meta")
    texts = [policy.encode_prompts([""]).expand(rows, -1, -1)]
    return latent, texts * (1 if config.rollout.guidance_scale == 1.0 else 2)


def _guided(policy: MetaPolicy, latent: Tensor, texts: Sequence[Tensor], config: TrainConfig) -> Tensor:
    velocities = [policy.velocity(latent, 1.0, text) for text in texts]
    if len(velocities) == 1:
        return velocities[0].float()
    return velocities[1].float() + config.rollout.guidance_scale * (velocities[0].float() - velocities[1].float())


def _noise_bytes(config: TrainConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    """What one group's draw takes, and its plan: fine noise, its slots in groups of four channels, three latents."""
    c, _, h, w = shape
    draws = 1 if config.rollout.share_initial_noise else config.rollout.group_size
    latents = 3 * draws * 4 * math.prod(shape)
    if config.noise.mode == "plain":
        return latents, 0
    pixels = h * w * config.noise.flow_scale**2
    fine = 4 * pixels * (c + 4 * math.ceil(c / 4))
    return latents + draws * fine, PLAN_BYTES * pixels * (config.video.num_frames - 1)


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as fused kernels keep it. On the meta device torch would spell it out, with its matrix of T x T.

    A mode that catches the function would be off while a backward pass recomputes the forward one.
    """
    functional: Any = nn.functional
    own = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, **options: Any) -> Tensor:
        del options  # no mask, no dropout in Wan
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return kernel(query, key, value, scale=scale)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def _counted(run: Callable[[], object]) -> int:
    with _fused_attention():
        return peak_bytes(run, torch.device("meta"))
