"""An HPSv3 folder with untrained weights, in the form that docs/models/hpsv3.md makes of the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from worldr1.rehearsal.tokenizer import save_byte_tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen2-VL's, in its order. HPSv3's own <|Reward|> is in no published tokenizer."""

INSTRUCTION = (
    "\nHow good is this picture, and how well does it show what was asked for?\nAsked for: {text_prompt}\n\n"
    "\nGrade: <|Reward|>\n\nDone\n"
)
"""In our words: the published one is not ours to ship."""


def save_tiny_hpsv3(folder: Path, *, seed: int = 0) -> Path:
    """Write config.json, tokenizer, preprocessor_config.json, instruction.txt, HPSv3.safetensors; returns the folder.

    The weights are bfloat16 in the published names, with the language head that is not used; the reward head is
    float32. They are large enough that a score depends on picture, prompt and positions.
    """
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import Qwen2VLConfig

    from worldr1.rewards.judges.hpsv3 import RewardNetwork

    folder = Path(folder)
    ids = save_byte_tokenizer(folder, SPECIAL_TOKENS)
    reward = max(ids.values()) + 1
    # Flat, as published; the vocabulary is larger than what the tokenizer knows, as Qwen's is.
    settings: dict[str, Any] = dict(
        architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl", vocab_size=reward + 50,
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        hidden_act="silu", max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}, tie_word_embeddings=False, torch_dtype="bfloat16",
        use_sliding_window=False, bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        vision_config=dict(
            depth=2, embed_dim=32, hidden_size=32, mlp_ratio=2, num_heads=2, in_channels=3, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2,
        ),
    )  # fmt: skip
    pixels = dict(
        image_processor_type="Qwen2VLImageProcessor", min_pixels=3136, max_pixels=12845056, patch_size=14,
        temporal_patch_size=2, merge_size=2, image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )  # fmt: skip
    for name, content in (("config.json", settings), ("preprocessor_config.json", pixels)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "instruction.txt").write_bytes(INSTRUCTION.encode("utf-8"))

    config: Any = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
    config.text_config.vocab_size = reward + 1
    with init_empty_weights():
        network = RewardNetwork(config, reward_token_id=reward)
    shapes = {_published(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes["lm_head.weight"] = (reward + 1, 32)
    draws = np.random.default_rng(seed)  # numpy's stream is the same everywhere
    state = {}
    for name in sorted(shapes):
        tensor = torch.from_numpy(draws.standard_normal(shapes[name]))
        if tensor.ndim > 1:
            tensor *= 1.5 if "embed_tokens" in name else 1.5 / tensor[0].numel() ** 0.5
        elif name.endswith(".weight"):  # of a norm
            tensor = 1.0 + 0.1 * tensor
        else:
            tensor *= 0.1
        state[name] = tensor.to(torch.float32 if name.startswith("rm_head.") else torch.bfloat16)
    save_file(state, folder / "HPSv3.safetensors", metadata={"format": "pt"})
    return folder


def _published(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
