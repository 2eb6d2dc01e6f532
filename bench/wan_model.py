"""Wan2.1-1.3B as published, with random weights: the policy that the loop's benchmark drives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from worldr1.config import TrainConfig, VideoConfig
from worldr1.cost.flops import NUM_TEXT_TOKENS, WAN
from worldr1.models.wan import WanPolicy
from worldr1.presets import wan2_1_1_3b

TINY: dict[str, Any] = WAN["1.3b"] | dict(
    num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=48, text_dim=32, freq_dim=32
)
"""The same arguments, small: every line of the benchmark runs on a CPU in seconds."""
PROMPT = "The camera pushes in through a garden"


@dataclass(frozen=True)
class Size:
    """What is measured: the transformer's arguments, the settings of a run, and how many views the rewards render."""

    transformer: dict[str, Any]
    config: TrainConfig
    num_views: int


def size_of(*, smoke: bool) -> Size:
    """832x480x81 (32,760 tokens), a group of 8; or everything tiny."""
    config = wan2_1_1_3b()
    rollout = replace(config.rollout, prompts_per_iteration=1, guidance_scale=1.0, share_initial_noise=True)
    config = replace(config, rollout=rollout)
    if not smoke:
        return Size(WAN["1.3b"], config, config.video.num_frames)
    config = replace(
        config,
        model=replace(config.model, lora_rank=2, lora_alpha=4),
        video=replace(config.video, height=32, width=48, num_frames=9),
        schedule=replace(config.schedule, num_steps=6, window_range=(0, 4)),
        rollout=replace(rollout, group_size=4),
    )
    return Size(TINY, config, 2)


class RandomWan(WanPolicy):
    """A `WanPolicy` without tokenizer and text encoder: a prompt's embedding is drawn, keyed by its length."""

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N, 512, D], the same for the same prompt."""
        width = self.transformer.config.text_dim
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(len(prompt))
            rows.append(torch.randn(NUM_TEXT_TOKENS, width, generator=generator))
        return torch.stack(rows).to(self.device, self.transformer.dtype)


def build(size: Size, device: str) -> RandomWan:
    """Transformer and VAE in the precisions in which `load_policy` reads them, with a fresh LoRA.

    Raises:
      ImportError: diffusers or peft is not installed.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        transformer: Any = WanTransformer3DModel(**size.transformer)
        small: dict[str, Any] = dict(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        vae: Any = AutoencoderKLWan(**({} if size.transformer is WAN["1.3b"] else small))
    transformer.eval()
    vae.eval().requires_grad_(False)
    for name, parameter in transformer.named_parameters():
        # These diffusers reads in float32 whatever is asked for.
        if not any(part in name.split(".") for part in transformer._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.to(torch.bfloat16)
    return RandomWan(
        tokenizer=SimpleNamespace(model_max_length=NUM_TEXT_TOKENS), read_text_encoder=nn.Identity,
        transformer=transformer, vae=vae, model=size.config.model, device=device,
    )  # fmt: skip


def latent(policy: RandomWan, video: VideoConfig, *, num: int = 1, seed: int = 0) -> Tensor:
    """Random latents [num, C, f, h, w], float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *policy.latent_shape(video), generator=generator).to(policy.device)


class CompiledBlocks:
    """torch.compile of each transformer block, on and off at will; blocks share their compiled code."""

    def __init__(self, policy: RandomWan) -> None:
        self._blocks: list[Any] = list(policy.transformer.blocks)
        # On a CPU the compiler proper takes minutes; there only the way through it is of interest.
        backend = "inductor" if policy.device.type == "cuda" else "aot_eager"
        for block in self._blocks:
            block.compile(dynamic=False, backend=backend)
        self._compiled = [block._compiled_call_impl for block in self._blocks]
        self._set(None)

    def _set(self, calls: Sequence[Any] | None) -> None:
        for i, block in enumerate(self._blocks):
            block._compiled_call_impl = None if calls is None else calls[i]

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the blocks run compiled."""
        self._set(self._compiled)
        try:
            yield
        finally:
            self._set(None)


def attention(name: str) -> contextlib.AbstractContextManager[Any]:
    """Chooses the kernel of scaled_dot_product_attention: "flash", "cudnn", or "auto" for torch's own order."""
    if name == "auto":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name])


def within(context: contextlib.AbstractContextManager[Any], run: Callable[[], Tensor]) -> Tensor:
    """Calls `run` inside `context`."""
    with context:
        return run()


def captured(run: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """`run` as a CUDA graph: captured once, replayed at each call.

    Raises:
      RuntimeError: not on a GPU, or something in it cannot be captured.
    """
    if device != "cuda":
        raise RuntimeError("needs a GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # allocations and handles, outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
