"""Text embeddings of prompts: on disk, so that a prompt is encoded once for all runs, and the latest in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from worldr1.run.files import read_tensors, reading, write_tensors

MAX_KEPT_PROMPTS = 4096
"""Embeddings held in the host's memory: 0.8 MB a prompt of 100 tokens of Wan's text encoder in bfloat16, 3.4 GB in all.
Of more prompts the oldest leave."""


def keep_recent(memory: dict[str, Tensor], prompt: str, embedding: Tensor) -> None:
    """Put an embedding into `memory`, and the oldest out of it beyond MAX_KEPT_PROMPTS."""
    memory[prompt] = embedding
    while len(memory) > MAX_KEPT_PROMPTS:
        del memory[next(iter(memory))]


class TextCache:
    """Prompt -> embedding [L, D] without padding; in memory, and one file a prompt in `folder`.

    A file's name is the hash of the prompt and of what encodes it: configuration, weights (by name, size and date) and
    tokenizer of the model's folder, and the precision. Ranks may share the folder: files appear whole or not at all.

    Args:
      folder: Made when the first embedding is written.
      model: A diffusers pipeline's folder.
      dtype: Precision of the text encoder.
    """

    def __init__(self, folder: Path, *, model: Path, dtype: str) -> None:
        self.folder = Path(folder)
        self._memory: dict[str, Tensor] = {}
        digest = hashlib.sha256(dtype.encode())
        for part in ("text_encoder", "tokenizer"):
            for file in sorted((Path(model) / part).glob("*")):
                status = file.stat()
                digest.update(f"{part}/{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        self._encoder = digest.hexdigest()

    def path(self, prompt: str) -> Path:
        """The file of a prompt."""
        name = hashlib.sha256(f"{self._encoder}\n{prompt}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._memory or self.path(prompt).is_file()

    def __getitem__(self, prompt: str) -> Tensor:
        if prompt not in self._memory:
            file = self.path(prompt)
            try:
                with reading(file, "the embedding [L, D] of a prompt"):
                    embedding = read_tensors(file, "the embedding [L, D] of a prompt")["embedding"]
                    if embedding.ndim != 2 or not embedding.is_floating_point() or not embedding.isfinite().all():
                        raise ValueError(f"{list(embedding.shape)} {embedding.dtype}, or numbers that are not finite")
            except ValueError as error:
                raise ValueError(f"TextCache: {error}; delete it, and it is made again") from error
            keep_recent(self._memory, prompt, embedding)
        return self._memory[prompt]

    def __setitem__(self, prompt: str, embedding: Tensor) -> None:
        keep_recent(self._memory, prompt, embedding)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path(prompt), {"embedding": embedding.contiguous().cpu()})
