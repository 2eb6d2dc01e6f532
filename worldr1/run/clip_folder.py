"""A folder of numbered clips with a manifest: what is there and whole is kept, so that a batch goes on.

DIR/
    settings.json     what all clips have in common
    manifest.jsonl    a line a clip, in order: its file, and what it was made of
    0000.mp4 ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldr1.run.files import read_json, write_json, write_text
from worldr1.run.video import num_frames_of

SETTINGS, MANIFEST = "settings.json", "manifest.jsonl"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of SHA-256 of the settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


class ClipFolder:
    """Clips that a command makes, by number.

    Args:
      path: The folder; it need not be there.
      settings: What all clips have in common, plain JSON values.
      clips: What each clip is made of, plain JSON values; its file is added.
    Raises:
      ValueError: the folder holds clips of other settings, or of other prompts: the first difference is named. Clips
        may be added behind those of an earlier batch.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]) -> None:
        self.path, self.settings = Path(path), dict(settings)
        self.lines: list[dict[str, Any]] = [
            {"file": f"{i:04d}.mp4", **clip, "settings": settings_hash(settings)} for i, clip in enumerate(clips)
        ]
        self._check_settings()
        self._kept = self._read()

    def _check_settings(self) -> None:
        file = self.path / SETTINGS
        if not file.is_file():
            if (self.path / MANIFEST).exists() or list(self.path.glob("[0-9]*.mp4"))[:1]:
                raise ValueError(
                    f"{self.path} must be a folder without clips, or one of an earlier batch, got clips without "
                    f"{SETTINGS}; choose another --output-dir"
                )
            return
        found = read_json(file, "the settings of a batch of clips")
        for name in sorted(found.keys() | self.settings.keys()):
            if found.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.path} holds clips with {name} = {found.get(name)!r}, and now it is "
                    f"{self.settings.get(name)!r}; choose another --output-dir, or the same settings to go on"
                )

    def _read(self) -> dict[str, dict[str, Any]]:
        """Lines of the manifest by file; one that was cut off is not there."""
        file, found = self.path / MANIFEST, {}
        ours = {line["file"]: line for line in self.lines}
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
            try:
                line = json.loads(text)
                name = line["file"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if name not in ours:
                raise ValueError(
                    f"{file} names {name}, which is none of the {len(ours)} clips asked for; choose another "
                    "--output-dir, or give all prompts of the earlier batch"
                )
            for key in ours[name]:
                if line.get(key) != ours[name][key]:
                    raise ValueError(
                        f"{file}: {name} was made with {key} = {line.get(key)!r}, and now it is {ours[name][key]!r}; "
                        "choose another --output-dir"
                    )
            found[name] = line
        return found

    def pending(self, num_frames: int) -> list[int]:
        """The clips that are not there, or not whole."""
        return [i for i, line in enumerate(self.lines) if not self._is_whole(line["file"], num_frames)]

    def _is_whole(self, name: str, num_frames: int) -> bool:
        if name not in self._kept:
            return False
        try:
            return num_frames_of(self.path / name) == num_frames
        except (OSError, ValueError):
            return False

    def begin(self) -> None:
        """Write the settings, and the manifest without lines that were cut off. On rank 0, once."""
        write_json(self.path / SETTINGS, self.settings)
        self._write()

    def file(self, index: int) -> Path:
        """Where a clip goes."""
        return self.path / self.lines[index]["file"]

    def done(self, indices: Sequence[int]) -> None:
        """Note that these are written. On rank 0."""
        self._kept |= {self.lines[i]["file"]: self.lines[i] for i in indices}
        self._write()

    def _write(self) -> None:
        kept = [line for line in self.lines if line["file"] in self._kept]
        write_text(self.path / MANIFEST, "".join(json.dumps(line) + "\n" for line in kept))
