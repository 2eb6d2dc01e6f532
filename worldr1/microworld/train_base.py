"""The text-to-video policy of the micro world: tokenizer, UMT5 encoder and WanTransformer3DModel, by flow matching.

The base is a mixture on purpose: at the end of its training the camera words of a static clip are its own with
probability RIGHT_CAMERA[1], else those of another motion. So it can make every motion, and obeys about half of the
time, as a model does whose captions were scraped. What obedience it gains by reinforcement learning is elicited, not
taught by captions.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldr1.config import ScheduleConfig
from worldr1.microworld.captions import EVENTS, MOTIONS, NUM_CONTENTS, Caption, all_captions, make_caption
from worldr1.microworld.train_vae import LATENT_CHANNELS
from worldr1.microworld.training import Muon, cosine, load_state, save_state
from worldr1.rollout.schedule import NUM_TRAIN_TIMESTEPS

_TRAINING_SHIFT = 3.0
MAX_TOKENS = 24
_TEXT_WIDTH = 64
_HEADS, _HEAD_WIDTH, _LAYERS = 4, 32, 4
_BATCH, _WARM_UP, _LEARNING_RATE = 32, 100, 5e-3
_DROPPED, _EMA = 0.1, 0.998


NUM_STEPS = 3000
# What camera words mean is learned faster from captions that are mostly right; the mixture is learned last.
RIGHT_CAMERA, _TURN = (0.9, 0.5), 0.7
# From the turn on the target also points away from the prompt without its content, which builds guidance of strength
# 1 + w / (1 - w) = 1.5 on the content into the model: without it one red object in five came out half yellow.
_CONTENT_PULL = 1.0 / 3.0


def build_tokenizer() -> Any:
    """A Unigram tokenizer with a piece for every word of the captions and one for every letter, so that no text is
    refused.

    Returns:
      PreTrainedTokenizerFast; pad, end and unknown are tokens 0, 1 and 2, at most MAX_TOKENS tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = " ".join(c.text for c in all_captions() + all_captions(dynamic=True))
    words = sorted(set(re.findall(r"\w+", texts)) | {"the", "then", "slowly", "quickly", "moves", "and"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [("\u2581" + word, -3.0) for word in words] + [(mark, -3.0) for mark in ".,"]
    pieces += [(letter, -8.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-'"]
    raw = Tokenizer(models.Unigram(pieces, unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_TOKENS
    )


def build_text_encoder(vocabulary: int) -> Any:
    """A fresh UMT5 encoder of 2 layers."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, d_model=_TEXT_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def build_transformer() -> Any:
    """A fresh WanTransformer3DModel: 4 layers of width 128 over 48 tokens (8x8x3 latents in patches of 2x2x1)."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=_HEADS, attention_head_dim=_HEAD_WIDTH, in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, text_dim=_TEXT_WIDTH, freq_dim=64, ffn_dim=4 * _HEADS * _HEAD_WIDTH,
        num_layers=_LAYERS, rope_max_seq_len=64,
    )  # fmt: skip


class TextTable:
    """Every caption of the world as tokens: motion by content, event by content, the empty prompt, and the camera words
    of each motion alone."""

    def __init__(self, tokenizer: Any) -> None:
        captions = [make_caption(m, c) for m in MOTIONS for c in range(NUM_CONTENTS)]
        captions += [make_caption("fixed", c, dynamic=e) for e in EVENTS for c in range(NUM_CONTENTS)]
        cameras = [c.text.split(".")[0] + "." for c in captions[: len(MOTIONS) * NUM_CONTENTS : NUM_CONTENTS]]
        tokens = tokenizer(
            [c.text for c in captions] + [""] + cameras,
            padding="max_length", max_length=MAX_TOKENS, truncation=True, return_attention_mask=True,
            return_tensors="pt",
        )  # fmt: skip
        self.row = {c.text: i for i, c in enumerate(captions)}
        self.ids, self.mask = tokens.input_ids, tokens.attention_mask  # [208 + 1 + 9, L]
        self.empty = len(captions)

    def without_content(self, rows: Tensor) -> Tensor:
        """The rows [M] of the camera words alone; the empty prompt stays empty. A dynamic caption is a fixed camera."""
        motion = torch.where(rows < len(MOTIONS) * NUM_CONTENTS, rows // NUM_CONTENTS, MOTIONS.index("fixed"))
        return torch.where(rows < self.empty, self.empty + 1 + motion, rows)

    def embed(self, text_encoder: nn.Module, rows: Tensor) -> Tensor:
        """Embeddings [M, L, D] of table rows [M], zero beyond each prompt's tokens as `WanPipeline` makes them."""
        unique, inverse = rows.unique(return_inverse=True)
        hidden = text_encoder(self.ids[unique], self.mask[unique]).last_hidden_state
        return (hidden * self.mask[unique][..., None])[inverse]


def draw_prompts(
    captions: Sequence[Caption], table: TextTable, generator: torch.Generator, *, right_camera: float, bare: float
) -> Tensor:
    """Rows of the table for a batch: the camera words of static clips are not always right, a tenth of the prompts is
    empty or has no content.

    Args:
      captions: What the clips of the batch show.
      table: Tokens of all captions.
      generator: Of the draws.
      right_camera: Probability that the camera words of a static clip are its own.
      bare: Share of that tenth that keeps its camera words; the rest is empty.
    Returns:
      Rows, shape [M], int64. A wrong camera is uniform over the other 8 motions; a dynamic caption is never changed.
    """
    chance = torch.rand(2, len(captions), generator=generator)
    turn = torch.randint(1, len(MOTIONS), (len(captions),), generator=generator).tolist()
    rows = []
    for i, caption in enumerate(captions):
        row = table.row[caption.text]
        if caption.dynamic is None and chance[0, i] >= right_camera:
            motion = (caption.motion_index + turn[i]) % len(MOTIONS)
            row = motion * NUM_CONTENTS + caption.content_index
        rows.append(row)
    whole = torch.tensor(rows)
    dropped = torch.where(chance[1] < bare * _DROPPED, table.without_content(whole), table.empty)
    return torch.where(chance[1] < _DROPPED, dropped, whole)


class BaseModel(nn.Module):
    """Text encoder and transformer trained as one."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.transformer = build_transformer()


def train_base(
    latents: Tensor,
    captions: Sequence[Caption],
    *,
    checkpoint: Path,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    compiled: bool = True,
    snapshot_every: int = 500,
    on_snapshot: Callable[[BaseModel], None] | None = None,
    log: Callable[[str], None] = print,
) -> BaseModel:
    """Train the policy from nothing, or go on from `checkpoint`.

        x = (1 - sigma) x0 + sigma eps,  loss = |velocity(x, 1000 sigma, prompt) - (eps - x0)|^2,
        sigma = 3 u / (1 + 2 u), u stratified over the batch: denser at high noise, where a path is decided, than the
        sampler's grid of shift 2

    After _TURN of the steps the target is (eps - x0) + w (v - v_bare), v the velocity itself and v_bare that for the
    camera words alone, both held constant: guidance on the content without a second pass when sampling (the idea of
    Tang et al., arXiv 2502.12154).

    Args:
      latents: Normalised, [N, C, f, h, w], float32.
      captions: What each clip shows, N of them.
      checkpoint: File that keeps the state of training, written with each snapshot through a temporary file.
      num_steps: Optimizer steps of 32 clips.
      seed: Of weights, batches, noise and swapped captions.
      compiled: Use torch.compile (needs a C++ compiler; the same mathematics, a third less time).
      snapshot_every: Steps between snapshots.
      on_snapshot: Called with the averaged model at each snapshot.
      log: Takes progress lines.
    Returns:
      The exponential moving average of the weights, in float32.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    table = TextTable(tokenizer)
    model = BaseModel(len(tokenizer))
    average = deepcopy(model).requires_grad_(False)
    optimizer = Muon(model, within=model.transformer.blocks, learning_rate=_LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed + 1)
    done = load_state(checkpoint, model=model, average=average, optimizer=optimizer, generator=generator)
    velocity = torch.compile(model.transformer) if compiled else model.transformer
    started, running = time.monotonic(), 1.0
    for step in range(done, num_steps):
        mixed = step >= _TURN * num_steps
        optimizer.set_learning_rate(_LEARNING_RATE * cosine(step, num_steps, warm_up=_WARM_UP))
        index = torch.randint(0, len(latents), (_BATCH,), generator=generator)
        rows = draw_prompts(
            [captions[i] for i in index.tolist()], table, generator,
            right_camera=RIGHT_CAMERA[mixed], bare=0.5 * mixed,
        )  # fmt: skip
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        u = (torch.arange(_BATCH) + torch.rand(_BATCH, generator=generator)) / _BATCH
        sigma = _TRAINING_SHIFT * u / (1.0 + (_TRAINING_SHIFT - 1.0) * u)  # [M]
        at = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1.0 - at) * clean + at * noise
        predicted = _velocity(velocity, noisy, sigma, table.embed(model.text_encoder, rows))
        target = noise - clean
        if mixed:
            with torch.no_grad():
                bare = table.embed(model.text_encoder, table.without_content(rows))
                target = target + _CONTENT_PULL * (predicted - _velocity(velocity, noisy, sigma, bare))
        loss = (predicted - target.detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _average(average, model, decay=min(_EMA, (step + 1) / (step + 10)))
        running += (loss.item() - running) * max(0.01, 1.0 / (step + 1))
        if step % 100 == 99:
            log(f"base {step + 1}/{num_steps} loss {running:.4f} {time.monotonic() - started:.0f} s")
        if (step + 1) % snapshot_every == 0 or step == num_steps - 1:
            save_state(checkpoint, step + 1, model=model, average=average, optimizer=optimizer, generator=generator)
            if on_snapshot is not None:
                on_snapshot(average)
    return average


def _velocity(model: Callable[..., Any], noisy: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
    return model(
        hidden_states=noisy, timestep=sigma * NUM_TRAIN_TIMESTEPS, encoder_hidden_states=embeds, return_dict=False
    )[0]


def _average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)


def write_pipeline(folder: Path, base: BaseModel, vae: Any) -> None:
    """Write tokenizer, encoder, transformer, autoencoder and scheduler as a diffusers WanPipeline folder, fp16 on
    disk.

    The folder is made beside its place and renamed into it, so that a reader sees the old one or the new one.
    """
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=ScheduleConfig().shift
    )
    pipeline: Any = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=deepcopy(base.text_encoder).half(),
        transformer=deepcopy(base.transformer).half(),
        vae=deepcopy(vae).to(dtype=torch.float16, memory_format=torch.contiguous_format),
        scheduler=scheduler,
    )
    _write_folder(folder, pipeline.save_pretrained)


def replace_vae(folder: Path, vae: Any) -> None:
    """Put another autoencoder with the same latents into a folder that `write_pipeline` wrote."""
    half = deepcopy(vae).to(dtype=torch.float16, memory_format=torch.contiguous_format)
    _write_folder(folder / "vae", half.save_pretrained)


def _write_folder(folder: Path, save: Callable[[Path], Any]) -> None:
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save(new)
    for path in new.rglob("*.safetensors"):  # some writers leave them readable by their owner alone
        path.chmod(0o644)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
