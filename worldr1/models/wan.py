"""Wan text-to-video models: any diffusers `WanPipeline` folder, from the micro world's 1 M parameters to Wan2.1-14B."""

from __future__ import annotations

import contextlib
import functools
import html
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldr1.config import ModelConfig, VideoConfig
from worldr1.models import lora
from worldr1.models.attention import set_attention
from worldr1.models.lora_files import read_adapter
from worldr1.models.recompute import checkpoint_blocks
from worldr1.models.text_cache import MAX_KEPT_PROMPTS, TextCache, keep_recent
from worldr1.run.files import read_json, reading

_MAX_SEQUENCE_LENGTH = 512
"""Text tokens that Wan was trained with; a tokenizer with a smaller model_max_length shortens it."""
_TRAIN_TIMESTEPS = 1000
"""Wan's transformer is conditioned on sigma times this."""


def load_policy(model: ModelConfig, *, device: torch.device | str, text_cache: TextCache | None = None) -> WanPolicy:
    """Load a `WanPipeline` folder from disk, freeze it and add a fresh LoRA.

    Args:
      model: Folder, base precision, LoRA and its sigma range.
      device: Where everything goes.
      text_cache: Keeps embeddings of prompts on disk.
    Returns:
      WanPolicy with an adapter that changes nothing yet.
    Raises:
      ValueError: not a WanPipeline folder, or one with two transformers or per-token timesteps (Wan2.2); an attention
        kernel that does not run here.
    """
    folder = Path(model.path)
    check_folder(folder)
    # Imported here: these two packages take seconds to import.
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]

    def read(cls: Any, name: str, precision: torch.dtype) -> Any:
        return cls.from_pretrained(folder / name, local_files_only=True, dtype=precision).eval().requires_grad_(False)

    with _no_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        transformer = read(WanTransformer3DModel, "transformer", dtype)
        vae = read(AutoencoderKLWan, "vae", torch.float32)  # bfloat16 costs visible quality in this VAE

    def read_text_encoder() -> Any:
        with _no_progress_bars():
            return read(UMT5EncoderModel, "text_encoder", dtype)

    return WanPolicy(
        tokenizer=tokenizer, read_text_encoder=read_text_encoder, transformer=transformer, vae=vae, model=model,
        device=device, text_cache=text_cache,
    )  # fmt: skip


def load_adapted_policy(
    folder: Path, adapter: Path, *, dtype: str = "float32", device: torch.device | str = "cpu"
) -> WanPolicy:
    """Load a `WanPipeline` folder together with an adapter that `WanPolicy.save_lora` wrote, sigma range included, or
    with a LoRA file of others (`lora_files.read_adapter`).

    Raises:
      ValueError: as `load_policy`; a missing or unreadable adapter, or one of another architecture.
      OSError: a file that cannot be read.
    """
    info, weights = read_adapter(adapter)
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"load_adapted_policy: dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    model = ModelConfig(
        path=Path(folder), dtype=dtype, lora_rank=info.rank, lora_alpha=info.alpha, lora_ffn=info.ffn,  # type: ignore[arg-type]
        adapter_sigma_min=info.sigma_min,
    )  # fmt: skip
    policy = load_policy(model, device=device)
    with reading(Path(adapter), f"an adapter of {folder}"):
        lora.load_lora(policy.transformer, weights)
    return policy


def clean_prompt(prompt: str) -> str:
    """A prompt as `WanPipeline` hands it to the tokenizer: repaired text, no HTML entities, single spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar per weight file over the run's own progress line."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _channels_last(vae: nn.Module) -> None:
    """Twice the speed on a CPU (590 -> 290 ms for 32 micro videos), the same numbers to 3e-6: most of the gain is the
    VAE's norm over channels, which then reads memory in order."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_folder(folder: Path) -> None:
    """ValueError unless it is a `WanPipeline` folder of a kind that can be trained, with all of its parts."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"load_policy: {folder} must be a diffusers WanPipeline folder, it has no model_index.json")
    parts = read_json(index, "JSON, the index of a pipeline")
    if parts.get("_class_name") != "WanPipeline":
        raise ValueError(f"load_policy: {index} must describe a WanPipeline, got {parts.get('_class_name')!r}")
    second = parts.get("transformer_2")
    if (isinstance(second, list) and second and second[0] is not None) or parts.get("expand_timesteps"):
        raise ValueError(
            f"load_policy: {folder} must have one transformer and one timestep per sample (Wan2.1), got a Wan2.2 folder"
        )
    missing = [name for name in ("tokenizer", "text_encoder", "transformer", "vae") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"load_policy: {folder} must hold the folders of a WanPipeline, {', '.join(missing)} missing")


class WanPolicy:
    """A frozen Wan model with a LoRA: implements `models.base.VideoPolicy`."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        read_text_encoder: Callable[[], Any],
        transformer: Any,
        vae: Any,
        model: ModelConfig,
        device: torch.device | str,
        text_cache: TextCache | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model
        self.tokenizer = tokenizer
        self._read_text_encoder = read_text_encoder
        self.transformer = transformer.to(self.device)
        set_attention(transformer, model.attention, device=self.device)
        if model.tf32:
            # For the whole process: a backward pass, which recomputes parts of the forward one, runs outside ours.
            torch.backends.cuda.matmul.allow_tf32 = True
        self.vae = vae.to(self.device)
        self.max_sequence_length = int(min(tokenizer.model_max_length, _MAX_SEQUENCE_LENGTH))
        self._parameters = lora.add_lora(transformer, rank=model.lora_rank, alpha=model.lora_alpha, ffn=model.lora_ffn)
        self._switch = lora.LoraSwitch(transformer)
        self._embeds: dict[str, Tensor] | TextCache = {} if text_cache is None else text_cache
        if self.device.type == "cpu":
            _channels_last(self.vae)
        if model.gradient_checkpointing:
            checkpoint_blocks(transformer, keep=model.checkpoint_keep)
        self._inexact = torch.compile(transformer) if model.compile else transformer
        if text_cache is None:
            _ = self.text_encoder  # its mistakes show now

        def per_channel(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)

        self._latents_mean = per_channel(vae.config.latents_mean)
        self._latents_inverse_std = 1.0 / per_channel(vae.config.latents_std)

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, f, h, w) of one video's latent.

        Raises:
          ValueError: height or width does not divide into the VAE's cells and the transformer's patches, or the
            number of frames is not 1 more than a multiple of the temporal compression.
        """
        t, s = self.vae.config.scale_factor_temporal, self.vae.config.scale_factor_spatial
        patch = self.transformer.config.patch_size
        for name, value, multiple in (("height", video.height, s * patch[1]), ("width", video.width, s * patch[2])):
            if value <= 0 or value % multiple:
                raise ValueError(f"latent_shape: video.{name} must be a multiple of {multiple}, got {value}")
        frames = (video.num_frames - 1) // t + 1
        if video.num_frames < 1 or (video.num_frames - 1) % t or frames % patch[0]:
            raise ValueError(f"latent_shape: video.num_frames must be {t} k + 1, got {video.num_frames}")
        return self.transformer.config.in_channels, frames, video.height // s, video.width // s

    @functools.cached_property
    def text_encoder(self) -> Any:
        """The largest part of a small model (UMT5-XXL: 11.4 GB in bfloat16), read when a prompt is met that was not
        encoded yet. It stands on the host, and on the policy's device only while it encodes."""
        return self._read_text_encoder()

    def free_text_encoder(self) -> None:
        """Drop the text encoder; the next prompt without an embedding reads it again."""
        self.__dict__.pop("text_encoder", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def keep_prompts(self, prompts: Sequence[str]) -> int:
        """Encode prompts ahead, keep their embeddings on the host and drop the text encoder.

        Args:
          prompts: All that will be asked for, at most MAX_KEPT_PROMPTS different ones.
        Returns:
          How many were encoded; the others were there.
        Raises:
          ValueError: more prompts than are kept.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeds]
        if len(set(prompts)) > MAX_KEPT_PROMPTS:
            raise ValueError(f"keep_prompts: at most {MAX_KEPT_PROMPTS} prompts are kept, got {len(set(prompts))}")
        self._embeddings(missing)
        self.free_text_encoder()
        return len(missing)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [N, L, D] as `WanPipeline` computes them, zero beyond each prompt's tokens.

        L is the tokenizer's model_max_length, at most 512. Each new prompt is encoded alone, so that its embedding
        does not depend on when and beside which others it first appeared; it is kept on the host, without the padding.
        """
        kept = self._embeddings(prompts)
        if self.device.type != "cpu" and "text_encoder" in vars(self):
            self.text_encoder.to("cpu")
        width = self.transformer.config.text_dim
        out = torch.zeros(len(kept), self.max_sequence_length, width, dtype=self.transformer.dtype, device=self.device)
        for row, embed in zip(out, kept, strict=True):
            row[: len(embed)] = embed
        return out  # [N, L, D]

    @torch.no_grad()
    def _embeddings(self, prompts: Sequence[str]) -> list[Tensor]:
        """[L, D] of each prompt, on the host."""
        out = []
        for prompt in prompts:
            if prompt not in self._embeds:
                tokens = self.tokenizer(
                    [clean_prompt(prompt)], padding="max_length", max_length=self.max_sequence_length, truncation=True,
                    add_special_tokens=True, return_attention_mask=True, return_tensors="pt",
                )  # fmt: skip
                mask = tokens.attention_mask.to(self.device)  # [1, L]
                encoder = self.text_encoder.to(self.device)
                hidden = encoder(tokens.input_ids.to(self.device), mask).last_hidden_state  # [1, L, D]
                embedding = hidden[0, : int(mask.sum())].to("cpu", self.transformer.dtype).clone()
                if isinstance(self._embeds, TextCache):
                    self._embeds[prompt] = embedding
                else:
                    keep_recent(self._embeds, prompt, embedding)
            out.append(self._embeds[prompt])
        return out

    def is_adapted(self, sigma: float) -> bool:
        """Whether the adapter acts at this sigma."""
        return sigma >= self.model.adapter_sigma_min

    def velocity(
        self, sample: Tensor, sigma: float, prompt_embeds: Tensor, *, adapter: bool = True, exact: bool = True
    ) -> Tensor:
        """Velocity of the flow, eps - x0.

        Args:
          sample: Latents [N, C, f, h, w], float32.
          sigma: In [0, 1].
          prompt_embeds: [N, L, D].
          adapter: False asks for the base model.
          exact: False may run the compiled transformer (`model.compile`), or the adapter merged into the weights
            (`model.merge_lora`), then without a graph.
        Returns:
          [N, C, f, h, w] in the base's dtype. Differentiable in the adapter where it acts; elsewhere without a graph.
        """
        state: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not (adapter and self.is_adapted(sigma)):
            state = self._switch.off()
        elif self.model.merge_lora and not exact:
            state = self._switch.merged()
        with state:
            timestep = torch.full((len(sample),), sigma * _TRAIN_TIMESTEPS, device=self.device)
            return (self.transformer if exact else self._inexact)(
                hidden_states=sample.to(self.transformer.dtype),
                timestep=timestep,
                encoder_hidden_states=prompt_embeds,
                return_dict=False,
            )[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Video [N, F, 3, H, W] in [0, 1], float32, with the latent normalisation of `WanPipeline`."""
        latents = latents.to(self.vae.dtype) / self._latents_inverse_std + self._latents_mean
        video = self.vae.decode(latents, return_dict=False)[0]  # [N, 3, F, H, W] in [-1, 1]
        return (video.float() * 0.5 + 0.5).clamp(0, 1).transpose(1, 2).contiguous()

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The LoRA's parameters, float32, in module order."""
        return self._parameters

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the LoRA by parameter name, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in lora.lora_parameters(self.transformer).items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite the LoRA in place; ValueError when names or shapes differ."""
        lora.load_parameters(lora.lora_parameters(self.transformer), state)

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA for `WanPipeline.load_lora_weights(folder)`, and adapter.json with its sigma range."""
        lora.save_lora(self.transformer, folder, sigma_min=self.model.adapter_sigma_min, ffn=self.model.lora_ffn)
