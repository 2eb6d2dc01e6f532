"""The autoencoder of the micro world: an AutoencoderKLWan of three stages, 32x32x9 -> 8x8x3 latents of 12 channels."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldr1.microworld.dataset import CaptionedClips
from worldr1.microworld.training import Muon, cosine, load_state, save_state

LATENT_CHANNELS = 12
_LEARNING_RATE, _BATCH, _WARM_UP = 2e-3, 4, 50
_KL_WEIGHT = 1e-6
_REFINE_RATE, _REFINE_NOISE = 1e-3, 0.5


def build_vae() -> Any:
    """A fresh AutoencoderKLWan: 4x in space, 4x in time (the first frame alone), identity latent normalisation."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def encode(vae: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [N, C, f, h, w] of the posterior of `video` [N, 3, F, H, W] in [-1, 1]."""
    mean, log_variance = vae._encode(video).chunk(2, dim=1)
    return mean, log_variance


def decode_unclamped(vae: Any, latents: Tensor) -> Tensor:
    """Decode without the clamp to [-1, 1] of `AutoencoderKLWan.decode`, behind which no gradient flows.

    Args:
      vae: AutoencoderKLWan.
      latents: Not normalised, [N, C, f, h, w].
    Returns:
      [N, 3, F, H, W], about [-1, 1].
    """
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    out = []
    for i in range(hidden.shape[2]):
        vae._conv_idx = [0]
        out.append(
            vae.decoder(hidden[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        )
    vae.clear_cache()
    return torch.cat(out, dim=2)


def train_vae(
    clips: CaptionedClips,
    held_out: CaptionedClips,
    *,
    checkpoint: Path,
    num_steps: int = 1400,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Any:
    """Train the autoencoder from nothing, or go on from `checkpoint`.

        loss = |d| + 2 d^2 + 1e-6 KL(posterior || N(0, 1)),  d = decode(mean + std z) - video, means over elements

    Args:
      clips, held_out: To learn from; to print the PSNR on.
      checkpoint: File that keeps the state of training, written every 300 steps through a temporary file.
      num_steps: Optimizer steps of 4 clips.
      seed: Of the weights, batches and posterior draws.
      log: Takes progress lines.
    Returns:
      AutoencoderKLWan in float32, with the mean and deviation of its latents in its config.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    _channels_last(vae)
    optimizer = Muon(vae, learning_rate=_LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 1)
    first = load_state(checkpoint, model=vae, optimizer=optimizer, generator=generator)
    started = time.monotonic()
    for step in range(first, num_steps):
        optimizer.set_learning_rate(_LEARNING_RATE * cosine(step, num_steps, warm_up=_WARM_UP) + 1e-5)
        index = torch.randint(0, len(clips.video), (_BATCH,), generator=generator)
        video = clips.batch(index).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = encode(vae, video)
            mean, log_variance = mean.float(), log_variance.float().clamp(-20.0, 10.0)
            noise = torch.randn(mean.shape, generator=generator)
            difference = decode_unclamped(vae, mean + (0.5 * log_variance).exp() * noise).float() - video
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        loss = difference.abs().mean() + 2.0 * difference.square().mean() + _KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            log(f"vae {step + 1}/{num_steps} loss {loss.item():.4f} kl {kl.item():.2f}{_since(started)}")
        if step % 300 == 299 or step == num_steps - 1:
            save_state(checkpoint, step + 1, model=vae, optimizer=optimizer, generator=generator)
            log(f"vae {step + 1}/{num_steps} PSNR {measure_psnr(vae, held_out):.2f} dB on held-out scenes")
    return vae


def refine_decoder(
    vae: Any,
    clips: CaptionedClips,
    held_out: CaptionedClips,
    latents: Tensor,
    *,
    checkpoint: Path,
    num_steps: int = 800,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train the decoder alone, in place: the encoder and so the latents, which a base model may know already, stay.

    On the squared error, which is what PSNR counts; the joint training spends its time on both halves. Half of each
    batch decodes latents with noise of up to half their deviation: those of a base model are not exact either.

    Args:
      vae: Trained, with the latents' mean and deviation in its config.
      clips, held_out: To learn from; to print the PSNR on.
      latents: Normalised latents of `clips`, as `encode_clips` returns them.
      checkpoint: File that keeps the state of training.
      num_steps: Optimizer steps of 4 clips.
      seed: Of the batches.
      log: Takes progress lines.
    """
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    _channels_last(vae)
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    optimizer = Muon(half, learning_rate=_REFINE_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 2)
    first = load_state(checkpoint, model=half, optimizer=optimizer, generator=generator)
    started = time.monotonic()
    for step in range(first, num_steps):
        optimizer.set_learning_rate(_REFINE_RATE * cosine(step, num_steps, warm_up=_WARM_UP))
        index = torch.randint(0, len(clips.video), (_BATCH,), generator=generator)
        strength = _REFINE_NOISE * torch.rand(_BATCH, 1, 1, 1, 1, generator=generator)
        strength[: _BATCH // 2] = 0.0
        noisy = latents[index] + strength * torch.randn(latents[index].shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decode_unclamped(vae, noisy * std + mean).float()
        loss = (decoded - clips.batch(index)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(half.parameters(), 0.3)
        optimizer.step()
        if step % 100 == 99:
            log(f"decoder {step + 1}/{num_steps} loss {loss.item():.5f}{_since(started)}")
        if step % 400 == 399 or step == num_steps - 1:
            save_state(checkpoint, step + 1, model=half, optimizer=optimizer, generator=generator)
            log(f"decoder {step + 1}/{num_steps} PSNR {measure_psnr(vae, held_out):.2f} dB on held-out scenes")


@torch.no_grad()
def measure_psnr(vae: Any, clips: CaptionedClips) -> float:
    """Mean PSNR over clips in dB, decoded from the posterior mean, through the clamp."""
    values = []
    for index in torch.arange(len(clips.video)).split(32):
        video = clips.batch(index)
        decoded = vae.decode(encode(vae, video)[0], return_dict=False)[0]
        values.append(-10.0 * ((decoded - video) / 2.0).square().mean((1, 2, 3, 4)).log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def encode_clips(vae: Any, clips: CaptionedClips, *, log: Callable[[str], None] = print) -> Tensor:
    """Encode every clip once and write the latents' mean and deviation into the config of `vae`.

    Returns:
      Normalised latents [N, C, f, h, w], float32: zero mean, unit deviation in each channel.
    """
    parts = []
    for start, index in enumerate(torch.arange(len(clips.video)).split(32)):
        video = clips.batch(index).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(encode(vae, video)[0].float())
        if start % 60 == 59:
            log(f"encoded {32 * (start + 1)} of {len(clips.video)} clips")
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return (latents - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)


def _since(started: float) -> str:
    return f" {time.monotonic() - started:.0f} s"


def _channels_last(model: nn.Module) -> None:
    """Lay convolution weights out channels last, which the CPU kernels for few channels prefer."""
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
