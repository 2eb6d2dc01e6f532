"""A complete Qwen3-VL folder with untrained weights, small enough to run in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from worldr1.rehearsal.tokenizer import BYTES, save_byte_tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
"""Of the published tokenizer, those that a chat about a picture needs."""

_WIDTH = 32
_CONSTANT = 1.0  # of the constant channel, beside others of about that size
_PUSH = 1.5  # weight of that channel in a digit's logit, and of its negative in every other token's


def save_tiny_qwen(folder: Path, *, seed: int = 0, answers: bool = True) -> Path:
    """Write model, byte-level tokenizer and image processor as a published folder holds them.

    The weights are random. So that a rehearsal is not stopped by answers that are no digits, the output layer is biased
    on purpose: one channel of the last position's state is a positive constant whatever goes in (before the norm), and
    the output layer reads it for the digits and against all other tokens. Which digit is left to chance and the
    picture: the grades mean nothing.

    Args:
      folder: Made if missing.
      seed: Of the weights.
      answers: False leaves the weights as they were drawn, with digits no likelier than other tokens.
    Returns:
      The folder.
    """
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = save_byte_tokenizer(folder, SPECIAL_TOKENS)
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=BYTES + len(ids), hidden_size=_WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1], mrope_interleaved=True),
        ),
        vision_config=dict(
            depth=2, hidden_size=_WIDTH, intermediate_size=64, num_heads=2, patch_size=16, out_hidden_size=_WIDTH,
            num_position_embeddings=64, deepstack_visual_indexes=[0],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = Qwen3VLForConditionalGeneration(config)
        for p in model.parameters():  # far enough from uniform to tell digits and pictures apart
            p.mul_(3.0)
        if answers:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            _answer_with_digits(model, tokenizer.convert_tokens_to_ids(list("0123456789")))
    model.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _answer_with_digits(model: Any, digits: list[int]) -> None:
    """Channel 0 of every text position: set by the embedding, written by no layer, read by the output as a bias."""
    text = model.model.language_model
    text.embed_tokens.weight[:, 0] = _CONSTANT
    for layer in text.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = -_PUSH
    model.lm_head.weight[digits, 0] = _PUSH
