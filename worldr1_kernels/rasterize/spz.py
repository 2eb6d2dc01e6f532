"""The .spz of 3D Gaussians, from bytes and to bytes: https://github.com/nianticlabs/spz, read in versions 1 to 4.

Versions 1 to 3 are a gzip stream: 16 bytes of header, then field by field means, opacities, colours, logarithms of
scales, rotations, harmonics. Version 4 packs the fields one by one with zstd, which is left to gaussforge.
"""

import importlib.util
import struct
import subprocess
import sys
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import torch

from worldr1_kernels.rasterize import ply
from worldr1_kernels.rasterize.splats import Splats

POSITION_BITS = 12  # behind the point, as every writer has it
STEP = 2.0**-POSITION_BITS
LIMIT = 2.0 ** (23 - POSITION_BITS)  # of a coordinate, 24 bits in all
COLOR_SCALE = 0.15
MAX_COLOR = 0.5 / COLOR_SCALE
LOG_SCALES = (-10.0, 255 / 16 - 10.0)  # in steps of 1/16
_MAGIC, _HEADER = 0x5053474E, struct.Struct("<IIIBBBB")
_ANTIALIASED, _EXTENSIONS = 1, 2  # flags
_DEFLATE = 1032  # a deflate stream grows at most this much, and no scene nearly so much in any other
_ROOT_HALF = 0.5**0.5
_CHILD = """
import os, sys
out, nothing = os.fdopen(os.dup(1), "wb"), os.open(os.devnull, os.O_WRONLY)
os.dup2(nothing, 1)
os.dup2(nothing, 2)
import gaussforge
out.write(gaussforge.GaussForge().convert(sys.stdin.buffer.read(), "spz", "ply").get("data") or b"")
"""


class _Head(NamedTuple):
    version: int
    num: int
    degree: int
    bits: int  # of a position, behind the point
    antialiased: bool
    has_extensions: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes a Gaussian: means, opacities, colours, scales, rotations, harmonics."""
        means, rotations = 6 if self.version == 1 else 9, 3 if self.version < 3 else 4
        return means, 1, 3, 3, rotations, 3 * ((self.degree + 1) ** 2 - 1)


def _head(content: bytes, packed_size: int) -> _Head:
    if len(content) < _HEADER.size:
        raise ValueError("it ends in its header")
    magic, version, count, degree, bits, flags, _ = _HEADER.unpack_from(content)
    if magic != _MAGIC or not 1 <= version <= 4 or degree > 4:
        raise ValueError(f"its header says magic {magic:#x}, version {version}, degree {degree}")
    head = _Head(version, count, degree, bits, bool(flags & _ANTIALIASED), bool(flags & _EXTENSIONS))
    if count * sum(head.sizes) > _DEFLATE * packed_size:
        raise ValueError(f"its header promises {count} Gaussians, which {packed_size} bytes cannot hold")
    return head


def decode(content: bytes) -> Splats:
    """A scene from the bytes of an .spz, not looked at for NaN.

    Raises:
      ValueError: what is wrong, "it ..."; nothing is allocated beyond a multiple of the bytes that are there.
      RuntimeError: version 4, and gaussforge is not installed.
    """
    if content[:4] == _MAGIC.to_bytes(4, "little"):
        return _decode_zstd(content, _head(content, len(content)))
    unpack = zlib.decompressobj(wbits=31)
    try:
        body = unpack.decompress(content, _HEADER.size)
        head = _head(body, len(content))
        size = _HEADER.size + head.num * sum(head.sizes)
        body += unpack.decompress(unpack.unconsumed_tail, size + 1 - len(body))
    except zlib.error as error:
        raise ValueError(f"its gzip stream is broken: {error}") from error
    if len(body) < size or not (head.has_extensions or (unpack.eof and len(body) == size)):
        raise ValueError(f"its {head.num} Gaussians must be {size} bytes behind gzip, got less, more or no end")
    if head.version == 4:
        raise ValueError("its header says version 4, which is not packed as a whole")
    return _unpack(body, head)


def _unpack(body: bytes, head: _Head) -> Splats:
    fields, place, n = [], _HEADER.size, head.num
    for size in head.sizes:
        fields.append(np.frombuffer(body, np.uint8, n * size, place).reshape(n, size))
        place += n * size
    means, opacities, colors, scales, rotations, harmonics = fields
    if head.version == 1:
        points = np.ascontiguousarray(means).view("<f2").astype(np.float64)
    else:
        wide = np.zeros((n, 3, 4), np.uint8)
        wide[..., 1:] = means.reshape(n, 3, 3)
        points = np.ldexp((wide.reshape(n, 12).view("<i4") >> 8).astype(np.float64), -head.bits)
    dc = (colors / 255.0 - 0.5) / COLOR_SCALE
    higher = (harmonics.reshape(n, head.sizes[-1] // 3, 3) - 128.0) / 128.0
    values = (
        points,
        _quats_of_three(rotations) if head.version < 3 else _quats_of_word(rotations),
        np.exp(scales / 16.0 + LOG_SCALES[0]),
        opacities[:, 0] / 255.0,
        np.concatenate([dc[:, None], higher], 1),
    )
    return Splats(
        *(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in values), antialiased=head.antialiased
    )


def _quats_of_three(rotations: np.ndarray) -> np.ndarray:
    """x, y, z in a byte each; w >= 0. wxyz."""
    xyz = rotations / 127.5 - 1.0
    w = np.sqrt(np.maximum(1.0 - (xyz**2).sum(1, keepdims=True), 0.0))
    return np.concatenate([w, xyz], 1)


def _quats_of_word(rotations: np.ndarray) -> np.ndarray:
    """2 bits: which of xyzw is the largest, and left out; 10 bits, the last lowest, of each other: sign, size. wxyz."""
    word = np.ascontiguousarray(rotations).view("<u4")[:, 0]
    largest = (word >> 30).astype(np.int64)
    parts = np.stack([word >> shift & 0x3FF for shift in (20, 10, 0)], 1).astype(np.int64)
    sizes = (parts & 0x1FF) * (_ROOT_HALF / 511) * np.where(parts & 0x200, -1.0, 1.0)
    xyzw = np.empty((len(word), 4))
    np.put_along_axis(xyzw, _OTHERS[largest], sizes, 1)
    np.put_along_axis(xyzw, largest[:, None], np.sqrt(np.maximum(1.0 - (sizes**2).sum(1, keepdims=True), 0.0)), 1)
    return xyzw[:, [3, 0, 1, 2]]


_OTHERS = np.array([[i for i in range(4) if i != k] for k in range(4)])


def _decode_zstd(content: bytes, head: _Head) -> Splats:
    """Version 4, by gaussforge in a process of its own: it prints on the standard output of the one it runs in, leaves
    out the flag, and bytes that are no scene may end it."""
    if head.version != 4:
        raise ValueError(f"its header says version {head.version}, but it is not packed by gzip")
    if importlib.util.find_spec("gaussforge") is None:
        raise RuntimeError('it is of version 4: gaussforge must be installed: pip install "worldr1[splats]"')
    command, limit = [sys.executable, "-c", _CHILD], 60.0 + len(content) / 1e6
    try:
        done = subprocess.run(command, input=content, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"gaussforge did not read it within {limit:.0f} s") from error
    if not done.stdout:
        raise ValueError("gaussforge cannot read it")
    return ply.decode(done.stdout)._replace(antialiased=head.antialiased)


def fit(splats: Splats, *, clip: bool) -> Splats:
    """`splats`, float64 and checked as for a .ply, within what the format holds.

    Args:
      splats: The scene.
      clip: Clip scales and colours to their range, with a UserWarning that counts them, in place of an error.
    Raises:
      ValueError: a value is out of range; a quaternion is zero; half of the Gaussians are finer than the positions.
    """
    half = 1 / 32  # of a step of the logarithms
    lowest, highest = (float(np.exp(end + sign * half)) for end, sign in zip(LOG_SCALES, (-1, 1), strict=True))
    first, higher = splats.colors[:, :1], splats.colors[:, 1:]
    means = _fit("means", splats.means, -LIMIT, LIMIT - STEP, None)
    scales = _fit("scales", splats.scales, lowest, highest, clip)
    first = _fit("colors of degree 0", first, -MAX_COLOR, MAX_COLOR, clip)
    higher = _fit("colors of degree 1 and more", higher, -1.0, 1.0, clip)
    if bool((splats.quats == 0).all(1).any()):
        raise ValueError("save_splats: quats must not be zero for an .spz; write a .ply, or leave such Gaussians out")
    median = float(splats.scales.amax(1).median()) if len(splats.means) else 1.0
    if median < STEP:
        raise ValueError(
            f"save_splats: scales must not be below 1/{2**POSITION_BITS} of a unit, to which an .spz rounds the means, "
            f"in half of the Gaussians, got a median of {median:.3g}; scale the scene up, or write a .ply"
        )
    return splats._replace(means=means, scales=scales, colors=torch.cat([first, higher], 1))


def _fit(name: str, field: torch.Tensor, low: float, high: float, clip: bool | None) -> torch.Tensor:
    outside = (field < low) | (field > high)
    if not bool(outside.any()):
        return field
    first = f"{float(field[outside][0]):.6g} in row {int(outside.nonzero()[0, 0])}"
    text = f"save_splats: {name} must be in [{low:.6g}, {high:.6g}] for an .spz, got {first}"
    text += f" ({int(outside.sum())} of {field.numel()} values)"
    if not clip:
        mend = "move or scale the scene" if clip is None else "use clip=True"
        raise ValueError(f"{text}; {mend}, or write a .ply")
    warnings.warn(f"{text}; clipped", stacklevel=4)
    return field.clamp(low, high)


def encode(splats: Splats) -> bytes:
    """The bytes of an .spz of version 3. `splats` comes from `fit`."""

    def rounded(field: np.ndarray) -> np.ndarray:
        return np.floor(field + 0.5).astype(np.int64)

    means, quats, scales, opacities, colors = (field.numpy() for field in splats)
    n, degree = len(means), int(np.sqrt(colors.shape[1])) - 1
    points = rounded(means * 2**POSITION_BITS).astype("<i4").reshape(n, 3, 1).view(np.uint8)[..., :3]
    logs = np.clip(rounded((np.log(scales) - LOG_SCALES[0]) * 16), 0, 255)
    dc = rounded((colors[:, 0] * COLOR_SCALE + 0.5) * 255)
    step = np.where(np.arange(colors.shape[1] - 1) < 3, 8, 16)[:, None]  # 5 bits for degree 1, 4 for the others
    higher = np.clip((rounded(colors[:, 1:] * 128) + 128 + step // 2) // step * step, 0, 255)

    xyzw = quats[:, [1, 2, 3, 0]] / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(xyzw).argmax(1)
    others = np.take_along_axis(xyzw, _OTHERS[largest], 1)
    flipped = np.take_along_axis(xyzw, largest[:, None], 1) < 0
    parts = rounded(np.abs(others) * (511 / _ROOT_HALF)) | np.where((others < 0) ^ flipped, 0x200, 0)
    words = (largest << 30 | parts[:, 0] << 20 | parts[:, 1] << 10 | parts[:, 2]).astype("<u4")

    flags = _ANTIALIASED if splats.antialiased else 0
    body = [_HEADER.pack(_MAGIC, 3, n, degree, POSITION_BITS, flags, 0), points.tobytes()]
    body += [f.astype(np.uint8).tobytes() for f in (rounded(opacities * 255), dc, logs)]
    body += [words.tobytes(), higher.astype(np.uint8).tobytes()]
    packer = zlib.compressobj(wbits=31)
    return packer.compress(b"".join(body)) + packer.flush()
