"""A network that lives in a folder: config.json (architecture, sizes) and model.safetensors."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldr1.config import RewardConfig

T = TypeVar("T", bound="FolderNetwork")

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class FolderNetwork(nn.Module):
    """Base of the micro networks: remembers its constructor arguments, goes to a folder and comes back from it.

    A subclass takes keyword arguments of JSON types only and hands them on as `settings`. One that names a role is a
    `rewards.base.JudgeKind`.
    """

    role: ClassVar[str] = ""
    disk_dtype: ClassVar[torch.dtype] = torch.float16

    @classmethod
    def recognises(cls, folder: Path, config: dict[str, Any]) -> bool:
        """By the architecture in config.json."""
        return config.get("architecture") == cls.__name__

    @classmethod
    def licence(cls, folder: Path) -> str:
        """Of the embedded weights."""
        return "Apache-2.0, as this package"

    @classmethod
    def load(cls: type[T], folder: Path, *, device: torch.device, config: RewardConfig) -> T:
        """As `from_pretrained`; it has no settings."""
        return cls.from_pretrained(folder, device=device)

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors (disk_dtype) into `folder`, each through a temporary file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to("cpu", self.disk_dtype).contiguous() for k, v in self.state_dict().items()}
        config = {"architecture": type(self).__name__, **self.settings}
        text = json.dumps(config, indent=2) + "\n"
        save_file(state, folder / (WEIGHTS_NAME + ".part"), metadata={"format": "pt"})
        (folder / (CONFIG_NAME + ".part")).write_text(text, encoding="utf-8")
        os.chmod(folder / (WEIGHTS_NAME + ".part"), 0o644)
        os.replace(folder / (WEIGHTS_NAME + ".part"), folder / WEIGHTS_NAME)
        os.replace(folder / (CONFIG_NAME + ".part"), folder / CONFIG_NAME)

    @classmethod
    def from_pretrained(cls: type[T], folder: Path, *, device: torch.device | str = "cpu") -> T:
        """Read a network from a folder, in float32 and evaluation mode, frozen.

        Args:
          folder: Holds config.json and model.safetensors.
          device: Where the parameters go.
        Raises:
          ValueError: a file is missing or damaged, or the folder holds another architecture, other tensors or settings
            that it does not have.
        """
        config = read_config(folder)
        name = config.pop("architecture", None)
        if name != cls.__name__:
            raise ValueError(f"from_pretrained: architecture in {folder} must be {cls.__name__}, got {name!r}")
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        if not set(config) <= known:
            raise ValueError(f"from_pretrained: settings in {folder} must be in {sorted(known)}, got {sorted(config)}")
        network = cls(**config)
        path = Path(folder) / WEIGHTS_NAME
        if not path.is_file():
            raise ValueError(f"from_pretrained: {folder} must hold {WEIGHTS_NAME}, got no such file; build it first")
        try:
            network.load_state_dict({key: value.to(torch.float32) for key, value in load_file(path).items()})
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"from_pretrained: {path} must hold the tensors of {name}, got {error}") from error
        return network.to(device).eval().requires_grad_(False)

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a network folder. ValueError where it is missing or no JSON object."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"read_config: {folder} must hold {CONFIG_NAME}, got no such file; build the weights first")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"read_config: {path} must be JSON, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"read_config: {path} must hold a JSON object, got {type(config).__name__}")
    return config


class Residual(nn.Module):
    """x + gain * conv(silu(conv(silu(x)))), 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(nn.functional.silu(x))
        return x + self.gain * self.second(nn.functional.silu(h))


def check_video(name: str, video: Tensor, *, num_frames: int, size: int) -> None:
    """ValueError unless video has shape [N, num_frames, 3, size, size]."""
    want = (num_frames, 3, size, size)
    if video.ndim != 5 or tuple(video.shape[1:]) != want:
        shape = f"[N, {num_frames}, 3, {size}, {size}]"
        raise ValueError(f"{name}: video must have shape {shape}, the size it was trained at, got {list(video.shape)}")


def check_images(name: str, images: Tensor, size: int) -> None:
    """ValueError unless images has shape [N, 3, size, size]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise ValueError(f"{name}: images must have shape [N, 3, {size}, {size}], got {list(images.shape)}")
