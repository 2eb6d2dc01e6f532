"""Files: what a decoder raises becomes one sentence with the path, and what is written is whole or not there.

Reading: ValueError where the content is wrong (damaged, cut off, another format), OSError where the disk is. Writing:
under another name, looked at, then renamed; with the mode that the umask gives, whatever the writer made of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

UNFINISHED = ".unfinished_"
"""Begins the name of a file or folder that is being written."""
_NUMBERED = re.compile(r"iteration_(\d{6}|[1-9]\d{6,})")
_LONGEST = 300  # characters of another library's message that are handed on


class Unreadable(ValueError):
    """The content of a file is not what it should be; the text names the file."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """What a decoder raises inside becomes a sentence: "PATH must be WHAT, got ...".

    Decoders raise what they like on a damaged file: zlib.error, BadZipFile, SafetensorError, KeyError, struct.error,
    RecursionError, MemoryError where a length was hit, an OSError without a number for "not an image".

    Args:
      path: The file (or folder) that is read.
      what: What it should be, with its article.
    Raises:
      Unreadable: a ValueError: anything that the content made the block raise.
      OSError: what the system said of the disk, with the path.
    """
    try:
        yield
    except Unreadable:  # of a file within
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a seek to where a damaged length points
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise Unreadable(f"{path} must be {what}, got {told(error)}") from error
    except Exception as error:
        raise Unreadable(f"{path} must be {what}, got {told(error)}") from error


def told(error: Exception) -> str:
    """An exception in one line: its first line of text, and its type where that says more."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= _LONGEST else lines[0][:_LONGEST] + " ..."
    return text if text and type(error) is ValueError else f"{type(error).__name__}: {text}".removesuffix(": ")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      ValueError: not JSON, or JSON of something else than an object.
      OSError: it cannot be read.
    """
    with reading(path, what):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a JSON {type(found).__name__} and not an object")
    return found


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU.

    Raises:
      ValueError: damaged or of another format.
      OSError: it cannot be read.
    """
    from safetensors.torch import load_file

    with reading(path, what):
        with open(path, "rb"):  # what the system has to say of it; safetensors gives no number
            pass
        return load_file(str(path))


def read_tensor_metadata(path: Path, what: str) -> dict[str, str]:
    """The texts that a .safetensors file holds beside its tensors. Raises as `read_tensors`."""
    from safetensors import safe_open

    with reading(path, what):
        with open(path, "rb"):
            pass
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; none may be pickled.

    Raises:
      ValueError: damaged or of another format.
      OSError: it cannot be read.
    """
    import numpy as np

    with reading(path, what):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with found:
            return {name: found[name] for name in found.files}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed to it when the block ends well, and gone when it does not.

    Several processes may write one file at once (two reports of a run, ranks that encode one prompt): each gets a name
    of its own, and the last to end has the file.

    Args:
      path: The file; an older one stays until the new one takes its name, with the mode that the umask gives.
    Raises:
      OSError: from the system.
    """
    path = Path(path)
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}_{path.name}")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode & 0o777  # safetensors' writer makes 600
        yield unfinished
        with contextlib.suppress(OSError):  # a file system without modes
            unfinished.chmod(mode)
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `whole` does."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON as `whole` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> str:
    """Write a .safetensors file as `whole` does, and read its table back before it takes its name.

    Args:
      path: As for `whole`.
      tensors: On the CPU, contiguous, none sharing memory.
      metadata: Texts beside them.
    Returns:
      SHA-256 of the file.
    Raises:
      OSError: it cannot be written (disk full, no permission), or is not whole.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    with whole(path) as unfinished:
        try:
            save_file(dict(tensors), str(unfinished), metadata=metadata)
            with safe_open(str(unfinished), framework="pt") as file:  # its length must fit the table
                found = set(file.keys())
        except SafetensorError as error:  # this is how it reports a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
        assert found == set(tensors), "the file that was written holds other tensors"
        return digest(unfinished)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Folders of the names that a run gives, iteration_000020, by number: [(20, path), ...]. Others are not ours: a
    copy called iteration_000020_best is left alone, and iteration_1000000 comes after iteration_999999."""
    try:
        found = [(_NUMBERED.fullmatch(path.name), path) for path in Path(folder).iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(match[1]), path) for match, path in found if match)


def iteration_name(number: int) -> str:
    """The name of a folder after so many iterations."""
    return f"iteration_{number:06d}"
