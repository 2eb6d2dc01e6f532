"""An HPSv3 folder as the aesthetic judge: human preference for single frames, given the prompt.

Ma et al., 2025, https://github.com/MizzenAI/HPSv3; package hpsv3 1.0.0. It is Qwen2-VL-7B without its language head,
read at one token by a small head. The package is pinned to transformers 4.45.2; this is the same network by
transformers 5. Two things differ from Qwen2-VL as transformers builds it, because the weights were trained so:
positions count tokens (no M-RoPE), and the frequencies of both rotary embeddings are bfloat16. docs/models/hpsv3.md
tells how to make a folder.
"""

from __future__ import annotations

import ast
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldr1.config import RewardConfig
from worldr1.rewards.judges.shards import keys, tensors, weights_path

LICENCE = (
    "HPSv3: package MIT (Mizzen AI); its base Qwen2-VL-7B-Instruct Apache-2.0; for the weights HPSv3.safetensors read "
    "the model card at https://huggingface.co/MizzenAI/HPSv3"
)

PICTURES_PER_CALL = 8
"""Pictures that pass the network together. Of 832x480 they are some 7,000 tokens; the widest layer holds three times
18,944 bfloat16 values of each, .8 GB, beside 15.5 GB of weights."""

MAX_PROMPT_CHARS = 2000
"""A longer prompt is cut. Wan reads 512 tokens, some 2,000 characters of English, so that nothing that it was asked for
is lost; in the worst case (a token a byte) eight pictures are then 70,000 tokens, 8 GB in the widest layer."""

INSTRUCTION_NAME = "instruction.txt"
PROMPT_FIELD, REWARD_TOKEN = "{text_prompt}", "<|Reward|>"
_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_NAMES = ("HPSv3.safetensors", "HPSv3.safetensors.index.json", "model.safetensors.index.json", "model.safetensors")
_PIXELS = 256 * 28 * 28  # least and most at once: smaller pictures are enlarged
_MAX_ASPECT = 200


class HPSv3:
    """HPSv3 as an AestheticJudge."""

    role = "aesthetic"

    def __init__(self, network: RewardNetwork, chat: Chat, image_processor: Any) -> None:
        self.network = network
        self.chat = chat
        self.image_processor = image_processor

    @classmethod
    def recognises(cls, folder: Path, config: dict[str, Any]) -> bool:
        """Weights of the published name, or with the reward head, and no config.json but of Qwen2-VL.

        What is missing or damaged beyond that, `load` says.
        """
        path = weights_path(folder, _NAMES)
        if path is None or config.get("model_type", "qwen2_vl") != "qwen2_vl":
            return False
        if path.name.startswith("HPSv3"):
            return True
        try:
            return bool(config) and any(key.startswith("rm_head.") for key in keys(path))
        except ValueError:
            return True

    @classmethod
    def licence(cls, folder: Path) -> str:
        """LICENCE."""
        return LICENCE

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, config: RewardConfig) -> HPSv3:
        """Read the folder: bfloat16 for a GPU, float32 on a CPU, the head always in float32; nothing is downloaded.

        Raises:
          ValueError: a file is missing; no instruction text; weights that are damaged or of another model; a tokenizer
            without the chat's tokens.
          OSError: config.json or preprocessor_config.json is no JSON.
        """
        from accelerate import init_empty_weights
        from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil

        folder, device = Path(folder), torch.device(device)
        for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"HPSv3.load: {folder} must hold {name} of Qwen2-VL-7B-Instruct, got no such file")
        chat = Chat(folder)
        settings: Any = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
        if settings.image_token_id != chat.image:
            raise ValueError(
                f"HPSv3.load: image_token_id of {folder / 'config.json'} must be {chat.image}, that of tokenizer.json, "
                f"got {settings.image_token_id}; both must be of Qwen2-VL-7B-Instruct"
            )
        # The package shrinks the vocabulary to what the tokenizer knows, the reward token last.
        settings.text_config.vocab_size = chat.reward + 1
        with init_empty_weights():  # parameters alone: the frequencies of the rotary embeddings are in no file
            network = RewardNetwork(settings, reward_token_id=chat.reward)
        on_gpu = device.type == "cuda" or (config.offload and torch.cuda.is_available())
        network.fill(folder, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True, do_resize=False)
        return cls(network.eval().requires_grad_(False), chat, image_processor)

    def to(self, device: torch.device | str) -> HPSv3:
        """Move the network; returns self."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def score(self, frames: Tensor, prompts: list[str]) -> Tensor:
        """The mean mu of the preference that the head predicts; its spread is not used.

        Args:
          frames: Shape [N, K, 3, H, W] in [0, 1]; seen in 8 bits and at some 200,000 pixels.
          prompts: N texts; cut to MAX_PROMPT_CHARS, and never read as chat tokens.
        Returns:
          [N, K] float32 on the device of `frames`, about -10 ... 10. The score of a frame depends on it and its prompt.
        Raises:
          ValueError: prompts and frames differ in number, or a frame is longer than 200 times its width.
        """
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"HPSv3.score: frames must have shape [N, K, 3, H, W], got {list(frames.shape)}")
        num, k = frames.shape[:2]
        if len(prompts) != num:
            raise ValueError(f"HPSv3.score: prompts must be {num}, one per video, got {len(prompts)}")
        pictures = frames.flatten(0, 1)  # [N K, 3, H, W]
        texts = [prompt for prompt in prompts for _ in range(k)]
        parts = [
            self._score(pictures[i : i + PICTURES_PER_CALL], texts[i : i + PICTURES_PER_CALL])
            for i in range(0, num * k, PICTURES_PER_CALL)
        ]
        return torch.cat([frames.new_zeros(0, dtype=torch.float32), *parts]).reshape(num, k)

    def _score(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        device = self.network.device
        seen = self._pixels(pictures)
        grid = seen["image_grid_thw"]  # [n, 3]: patches along time, height, width
        tokens = (grid.prod(1) // self.image_processor.merge_size**2).tolist()
        rows = [torch.tensor(self.chat.ids(prompt, n)) for prompt, n in zip(prompts, tokens, strict=True)]
        # Padded on the right: attention is causal, so that nothing before the padding sees it, whatever its id.
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [n, L]
        out = self.network(ids.to(device), seen["pixel_values"].to(device), grid.to(device))
        return out[:, 0].to(pictures.device)

    def _pixels(self, pictures: Tensor) -> Any:
        """Pictures [n, 3, H, W] in [0, 1] -> pixel_values [patches of all, 1176] and image_grid_thw [n, 3]."""
        from PIL import Image

        height, width = target_size(*pictures.shape[-2:])
        pixels = (pictures.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        resized = [Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in pixels]
        return self.image_processor(images=[np.asarray(picture) for picture in resized], return_tensors="pt")


class RewardNetwork(nn.Module):
    """Qwen2-VL without its language head, and the reward head on one token."""

    def __init__(self, config: Any, *, reward_token_id: int) -> None:
        from transformers import Qwen2VLModel

        super().__init__()
        self.reward_token_id = reward_token_id
        self.model: Any = Qwen2VLModel(config)
        self.rm_head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, 1024), nn.ReLU(), nn.Dropout(0.05),
            nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2),
        )  # fmt: skip
        # Cast by the package with the weights (see VisionRotary): .3 rad between tokens that are 250 apart.
        frequencies = self.model.language_model.rotary_emb.inv_freq
        frequencies.copy_(frequencies.bfloat16())
        self.model.visual.rotary_pos_emb = VisionRotary(self.model.visual.rotary_pos_emb.inv_freq)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.rm_head.parameters()).device

    def forward(self, ids: Tensor, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Token ids [n, L] with one reward token each, and the patches of their n pictures -> [n, 2], mu first."""
        # What the package feeds when it passes no positions: the index of the token, also on the two axes of the image.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.model(
            input_ids=ids, position_ids=positions, pixel_values=pixel_values, image_grid_thw=grid, use_cache=False
        ).last_hidden_state  # [n, L, D]
        at = ids == self.reward_token_id
        assert bool((at.sum(1) == 1).all()), "one reward token a row"
        return self.rm_head(hidden[at].float())

    def fill(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """Take the published weights, one tensor at a time, in `dtype` but for the head, and move to `device`.

        Raises:
          ValueError: a file or tensor is missing, damaged, or of another shape or model; with its path.
        """
        path = weights_path(folder, _NAMES)
        if path is None:
            raise ValueError(f"HPSv3.load: {folder} must hold {_NAMES[0]}, got no such file")
        wanted = {name: tensor.shape for name, tensor in self.state_dict().items()}
        state: dict[str, Tensor] = {}
        for key, tensor in tensors(path):
            if key == "lm_head.weight":  # of Qwen2-VL; no score goes through it
                continue
            name = _ours(key)
            if wanted.get(name) != tensor.shape:
                what = f"must have shape {list(wanted[name])}" if name in wanted else "is not one of HPSv3's"
                raise ValueError(
                    f"HPSv3.load: {key} of {path} {what}, got {list(tensor.shape)}; config.json and tokenizer.json "
                    f"must be those of the base of these weights"
                )
            state[name] = tensor.to(device, torch.float32 if name.startswith("rm_head.") else dtype, copy=True)
        missing = sorted(wanted.keys() - state.keys())
        if missing:
            raise ValueError(f"HPSv3.load: {path} must hold all of HPSv3, got {len(missing)} missing: {missing[0]} ...")
        self.load_state_dict(state, assign=True)
        self.to(device)


class VisionRotary(nn.Module):
    """Rotary embedding of the patches with bfloat16 angles, cosines and sines.

    The package casts the whole network, buffers included, before it trains and before it scores: at 42 patches an angle
    is off by up to .13 rad, and the weights know it so. Called as transformers calls its own since 5.17.
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.bfloat16(), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each patch [T, 2] -> cosine and sine [T, D], D the size of an attention head."""
        angles = position_ids[..., None].to(self.inv_freq) * self.inv_freq  # [T, 2, D / 4]
        angles = angles.flatten(1).repeat(1, 2)  # rows, columns, rows, columns
        return angles.cos(), angles.sin()


class Chat:
    """The conversation around a picture and a prompt, as token ids."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"HPSv3.load: {path} must be a tokenizer, got {error}") from error
        found: dict[str, Any] = {token: self.tokenizer.token_to_id(token) for token in _CHAT_TOKENS}
        unknown = [token for token, i in found.items() if i is None]
        if unknown:
            raise ValueError(
                f"HPSv3.load: {path} must know {', '.join(found)}, got no {unknown}; take that of Qwen2-VL-7B-Instruct"
            )
        start, end, vision_start, vision_end, self.image = found.values()
        # The token that HPSv3 adds behind Qwen2-VL's own.
        known = self.tokenizer.token_to_id(REWARD_TOKEN)
        self.reward: int = self.tokenizer.get_vocab_size() if known is None else known
        # A prompt that spells a chat token is text: it must not end its own turn.
        self.tokenizer.encode_special_tokens = True
        unmarked = [token for token in (*_CHAT_TOKENS, REWARD_TOKEN) if len(self._text(token)) == 1]
        if unmarked:
            raise ValueError(f"HPSv3.load: {path} must mark the chat's tokens as special, got {unmarked} without it")
        self._question, answer = read_instruction(folder).split(REWARD_TOKEN)
        line = self._text("\n")
        self._before = [start, *self._text("system\nYou are a helpful assistant."), end, *line]
        self._before += [start, *self._text("user\n"), vision_start]
        self._vision_end = vision_end
        self._after = [self.reward, *self._text(answer), end, *line, start, *self._text("assistant\n")]

    def ids(self, prompt: str, image_tokens: int) -> list[int]:
        """Token ids of the whole conversation, with so many tokens for the picture."""
        # Cut before it is encoded; halves of surrogate pairs have no bytes.
        prompt = prompt[:MAX_PROMPT_CHARS].encode("utf-8", "replace").decode("utf-8")
        question = self._text(self._question.replace(PROMPT_FIELD, prompt))
        return [*self._before, *[self.image] * image_tokens, self._vision_end, *question, *self._after]

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def read_instruction(folder: Path) -> str:
    """What follows the picture: the question with "{text_prompt}" once, then "<|Reward|>" once and what follows it.

    From instruction.txt in the folder, else from the source of the installed package hpsv3, which is not imported.

    Raises:
      ValueError: neither is there, or the text lacks one of the two, or has them twice or in another order.
    """
    path = Path(folder) / INSTRUCTION_NAME
    if path.is_file():
        try:
            text = path.read_bytes().decode("utf-8")  # line ends as they are: they are tokens
        except UnicodeDecodeError as error:
            raise ValueError(f"HPSv3.load: {path} must be UTF-8, got {error}") from error
    else:
        found = find_spec("hpsv3")
        places = [] if found is None else list(found.submodule_search_locations or [])
        sources = [s for p in places if (s := Path(p) / "dataset" / "data_collator_qwen.py").is_file()]
        if not sources:
            raise ValueError(
                f"HPSv3.load: the instruction that these weights were trained with must be in {path} or come from the "
                f"package hpsv3, got neither; either pip install --no-deps hpsv3==1.0.0 (it is read, not imported), or "
                f"write the file: INSTRUCTION and prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py, "
                f"one behind the other"
            )
        path = sources[0]
        strings = _string_constants(path)
        if not {"INSTRUCTION", "prompt_with_special_token"} <= strings.keys():
            raise ValueError(
                f"HPSv3.load: {path} must define INSTRUCTION and prompt_with_special_token, got {sorted(strings)}; "
                f"take hpsv3 1.0.0"
            )
        text = strings["INSTRUCTION"] + strings["prompt_with_special_token"]
    if text.count(PROMPT_FIELD) != 1 or text.count(REWARD_TOKEN) != 1 or PROMPT_FIELD in text.split(REWARD_TOKEN)[1]:
        raise ValueError(f"HPSv3.load: {path} must have {PROMPT_FIELD} once and, behind it, {REWARD_TOKEN} once")
    return text


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that a picture is resized to: multiples of 28, about its aspect, about 256 x 28 x 28 pixels.

    Raises:
      ValueError: one side is more than 200 times the other.
    Source: smart_resize of qwen-vl-utils, with least and most pixels both at 200,704, as the package calls it.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ValueError(f"HPSv3.score: sides must differ by at most {_MAX_ASPECT} times, got {height}x{width}")
    rounded = [max(28, round(side / 28) * 28) for side in (height, width)]
    pixels = rounded[0] * rounded[1]
    if pixels > _PIXELS:
        shrink = math.sqrt(height * width / _PIXELS)
        return math.floor(height / shrink / 28) * 28, math.floor(width / shrink / 28) * 28
    if pixels < _PIXELS:
        grow = math.sqrt(_PIXELS / (height * width))
        return math.ceil(height * grow / 28) * 28, math.ceil(width * grow / 28) * 28
    return rounded[0], rounded[1]


def _ours(key: str) -> str:
    """Name of a published tensor here: transformers has moved both halves of Qwen2-VL since."""
    if key.startswith("visual."):
        return "model." + key
    return key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key


def _string_constants(path: Path) -> dict[str, str]:
    """NAME = "..." at the top of a Python file."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found
