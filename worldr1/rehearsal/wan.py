"""A complete `WanPipeline` folder with untrained weights, small enough to run in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = "the camera pans left right push in pull out a red ball on green floor orbits slowly".split()


def save_tiny_wan(folder: Path, *, seed: int = 0) -> Path:
    """Write tokenizer, UMT5 encoder, transformer, VAE (4x space, 4x time) and scheduler; returns the folder.

    The transformer's output layer is enlarged, so that differences between prompts, sigmas and adapters show in the
    velocity.
    """
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [("\u2581" + word, -3.0) for word in VOCABULARY]
    pieces += [(letter, -8.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    raw = Tokenizer(models.Unigram(pieces, unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
        )
        transformer: Any = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=32, freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=64,
        )  # fmt: skip
        vae = AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 0.7], scale_factor_temporal=4,
            scale_factor_spatial=4,
        )  # fmt: skip
        with torch.no_grad():
            transformer.proj_out.weight.mul_(3.0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    pipeline: Any = WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
    )
    pipeline.save_pretrained(folder)
    return folder
