"""The .ply of 3D Gaussian splatting, plain and packed, from bytes and to bytes.

Plain: an element vertex with x y z, f_dc_*, f_rest_*, opacity (logit), scale_* (logarithms), rot_* (wxyz). Packed, as
SuperSplat and gsplat's `ply_compressed` write it: chunks of 256 Gaussians with their bounds, and four 32-bit words a
Gaussian. A comment "SplatRenderMode: mip" (Brush) or "antialiased 1" (Postshot) says in which mode it was fitted.
"""

import re
from typing import NamedTuple

import numpy as np
import torch

from worldr1_kernels.rasterize.splats import Splats

CHUNK = 256  # Gaussians that share bounds
_DC = 0.28209479177387814  # Y_0: colour = 1/2 + _DC f_dc
_CORE = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3)))
_ROTATION = tuple(f"rot_{i}" for i in range(4))
_PACKED = tuple(f"packed_{name}" for name in ("position", "rotation", "scale", "color"))
_BOUNDS = tuple(f"{end}_{part}{axis}" for part in ("", "scale_") for end in ("min", "max") for axis in "xyz")
_COLOR_BOUNDS = tuple(f"{end}_{channel}" for end in ("min", "max") for channel in "rgb")
_COUNTS = [3 * ((d + 1) ** 2 - 1) for d in range(5)]  # of f_rest_*
_HEADER_BYTES = 1 << 20  # a header ends within
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    **{"double": "f8", "float64": "f8"},
}


class _Element(NamedTuple):
    rows: int
    properties: dict[str, str]  # name -> numpy type without byte order; "" for a list


class _Header(NamedTuple):
    order: str  # "<", ">" or "" for text
    elements: dict[str, _Element]
    antialiased: bool
    size: int  # bytes, where the data begin


def _mode(comment: str, before: bool) -> bool:
    """Whether a scene is antialiased, after one more comment of its header."""
    brush = re.fullmatch(r"\s*splatrendermode:\s*(\w+)\s*", comment, re.IGNORECASE)
    postshot = re.fullmatch(r"\s*antialiased\s+([01])\s*", comment, re.IGNORECASE)
    if brush:
        return brush[1].lower() == "mip"
    return postshot[1] == "1" if postshot else before


def _parse_header(content: bytes) -> _Header:
    newline = next((e for e in (b"\r\n", b"\r", b"\n") if content.startswith(b"ply" + e)), None)
    if newline is None:
        raise ValueError("it does not begin with a line 'ply'")
    end = content.find(newline + b"end_header" + newline, 0, _HEADER_BYTES)
    if end < 0:
        raise ValueError("its header has no end")
    order, elements, antialiased, current = None, dict[str, _Element](), False, None
    for line in content[:end].decode("latin-1").split(newline.decode())[1:]:
        match line.split():
            case ["format", name, "1.0"] if name in _ORDERS:
                order = _ORDERS[name]
            case ["comment", *_]:
                antialiased = _mode(line.strip()[len("comment") :], antialiased)
            case ["element", name, count] if name not in elements and re.fullmatch(r"[0-9]{1,18}", count):
                current = elements[name] = _Element(int(count), {})
            case ["property", kind, name] if kind in _TYPES and current and name not in current.properties:
                current.properties[name] = _TYPES[kind]
            case ["property", "list", _, _, name] if current and name not in current.properties:
                current.properties[name] = ""
            case [] | ["obj_info", *_]:
                pass
            case _:
                raise ValueError(f"its header has a line {line[:80]!r}")
    if order is None:
        raise ValueError("its header has no format that is known")
    return _Header(order, elements, antialiased, end + 2 * len(newline) + len("end_header"))


def _tables(content: bytes, header: _Header, wanted: set[str]) -> dict[str, np.ndarray]:
    """The elements `wanted` that there are, as structured arrays: nothing is allocated that the bytes do not fill."""
    tables: dict[str, np.ndarray] = {}
    left = wanted & header.elements.keys()
    words = content[header.size :].split() if header.order == "" else []
    place = header.size if header.order else 0  # in bytes, or in words
    for name, (count, properties) in header.elements.items():
        if not left:
            break
        if "" in properties.values():
            raise ValueError(f"its element {name} holds lists, which are not read")
        dtype = np.dtype([(key, (header.order or "<") + kind) for key, kind in properties.items()])
        step, there = (dtype.itemsize, len(content)) if header.order else (len(properties), len(words))
        if place + count * step > there:
            raise ValueError(f"it ends in its element {name}, which should have {count} rows")
        if name in left:
            left.remove(name)
            if header.order:
                tables[name] = np.frombuffer(content, dtype, count, place)
            else:
                flat = np.fromiter(map(float, words[place : place + count * step]), np.float64, count * step)
                tables[name] = _typed(flat.reshape(count, step), dtype)
        place += count * step
    return tables


def _typed(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Columns of a text, as the header types them; floats stay float64, as they were written."""
    kinds = [(key, "f8" if dtype[key].kind == "f" else dtype[key]) for key in dtype.names or ()]
    table = np.empty(len(numbers), kinds)
    for (key, kind), column in zip(kinds, numbers.T, strict=True):
        if kind != "f8":
            info = np.iinfo(kind)
            if not ((column >= info.min) & (column <= info.max) & (column % 1 == 0)).all():
                raise ValueError(f"its {key} must hold whole numbers from {info.min} to {info.max}")
        table[key] = column
    return table


def _columns(table: np.ndarray, names: tuple[str, ...]) -> torch.Tensor:
    out = np.empty((len(table), len(names)), np.float32)
    for i, name in enumerate(names):
        out[:, i] = table[name]
    return torch.from_numpy(out)


def _rest_names(properties: dict[str, str]) -> tuple[str, ...]:
    count = sum(name.startswith("f_rest_") for name in properties)
    names = tuple(f"f_rest_{i}" for i in range(count))
    if count not in _COUNTS or not properties.keys() >= set(names):
        raise ValueError(f"it must have f_rest_0 to f_rest_n with a count of {_COUNTS}, got {count}")
    return names


def _plain(table: np.ndarray, rest: tuple[str, ...]) -> Splats:
    higher = _columns(table, rest).reshape(len(table), 3, len(rest) // 3).mT  # [N, K - 1, 3]
    colors = torch.cat([_columns(table, _CORE[3:6])[:, None], higher], 1)
    opacities = _columns(table, ("opacity",))[:, 0].sigmoid()
    scales = _columns(table, _CORE[7:]).exp()
    return Splats(_columns(table, _CORE[:3]), _columns(table, _ROTATION), scales, opacities, colors)


def _fields(words: np.ndarray, *bits: int) -> np.ndarray:
    """[N] of 32 bits -> [N, len(bits)] in [0, 1], the first of them in the highest bits."""
    shifts = 32 - np.cumsum(bits)
    return np.stack([(words >> s & (1 << b) - 1) / ((1 << b) - 1) for s, b in zip(shifts, bits, strict=True)], 1)


def _packed(chunks: np.ndarray, table: np.ndarray, sh: np.ndarray | None, rest: tuple[str, ...]) -> Splats:
    num = len(table)
    bounds = {name: np.repeat(chunks[name].astype(np.float64), CHUNK)[:num] for name in chunks.dtype.names or ()}
    words = {name: table[name].astype(np.uint32) for name in _PACKED}  # of either byte order

    def between(low: list[str], high: list[str], share: np.ndarray) -> np.ndarray:
        a, b = (np.stack([bounds[name] for name in names], 1) for names in (low, high))
        return a + (b - a) * share

    def spread(part: str, axes: str, share: np.ndarray) -> np.ndarray:
        return between([f"min_{part}{a}" for a in axes], [f"max_{part}{a}" for a in axes], share)

    means = spread("", "xyz", _fields(words["packed_position"], 11, 10, 11))
    scales = spread("scale_", "xyz", _fields(words["packed_scale"], 11, 10, 11))
    rgba = _fields(words["packed_color"], 8, 8, 8, 8)
    rgb = spread("", "rgb", rgba[:, :3]) if set(_COLOR_BOUNDS) <= bounds.keys() else rgba[:, :3]

    # The largest of wxyz is left out, and positive; the others, in order, lie within 1/sqrt(2).
    largest = (words["packed_rotation"] >> 30).astype(np.int64)
    others = (_fields(words["packed_rotation"], 2, 10, 10, 10)[:, 1:] - 0.5) * np.sqrt(2.0)
    quats = np.empty((num, 4))
    places = np.array([[i for i in range(4) if i != k] for k in range(4)])[largest]
    np.put_along_axis(quats, places, others, 1)
    np.put_along_axis(quats, largest[:, None], np.sqrt(np.maximum(1 - (others**2).sum(1), 0))[:, None], 1)

    colors = ((rgb - 0.5) / _DC)[:, None]
    if sh is not None:  # 8 bits over [-4, 4]: the ends, and between them the middle of what a byte stands for
        values = np.stack([sh[name].astype(np.float64) for name in rest], 1)
        higher = 8 * np.where(values % 255 == 0, values / 255, (values + 0.5) / 256) - 4
        colors = np.concatenate([colors, higher.reshape(num, 3, -1).transpose(0, 2, 1)], 1)
    fields = (means, quats, np.exp(scales), rgba[:, 3], colors)
    return Splats(*(torch.from_numpy(np.ascontiguousarray(f, dtype=np.float32)) for f in fields))


def decode(content: bytes) -> Splats:
    """A scene from the bytes of a .ply, not looked at for NaN.

    Raises:
      ValueError: what is wrong, "it ..."; nothing is allocated beyond a multiple of the bytes that are there.
    """
    header = _parse_header(content)
    if "vertex" not in header.elements:
        raise ValueError("it has no element vertex")
    count, vertex = header.elements["vertex"]
    if vertex.keys() >= set(_PACKED):
        return _decode_packed(content, header)
    missing = [name for name in (*_CORE, *_ROTATION) if name not in vertex]
    if missing:
        raise ValueError(f"its vertices have no {', '.join(missing)}")
    rest = _rest_names(vertex)
    splats = _plain(_tables(content, header, {"vertex"})["vertex"], rest)
    assert len(splats.means) == count
    return splats._replace(antialiased=header.antialiased)


def _decode_packed(content: bytes, header: _Header) -> Splats:
    count, vertex = header.elements["vertex"]
    num_chunks, bounds = header.elements.get("chunk", _Element(0, {}))
    num_rows, sh = header.elements.get("sh", _Element(count, {}))
    missing = [name for name in _BOUNDS if name not in bounds]
    if missing or any(vertex[name] != "u4" for name in _PACKED):
        raise ValueError(f"its packed vertices must be uint, and its element chunk have {', '.join(_BOUNDS)}")
    if num_chunks * CHUNK < count or num_rows != count:
        raise ValueError(f"it must have a chunk for {CHUNK} vertices and a row of sh for each, got {num_chunks} and "
                         f"{num_rows} for {count}")  # fmt: skip
    rest = _rest_names(sh)
    tables = _tables(content, header, {"chunk", "vertex", "sh"} if rest else {"chunk", "vertex"})
    splats = _packed(tables["chunk"], tables["vertex"], tables.get("sh"), rest)
    return splats._replace(antialiased=header.antialiased)


def encode(raw: Splats) -> bytes:
    """The bytes of a plain little-endian .ply; `raw` has logarithms of scales, logits of opacities, float32."""
    num = len(raw.means)
    higher = raw.colors[:, 1:].mT.flatten(1)  # channel by channel
    rest = tuple(f"f_rest_{i}" for i in range(higher.shape[1]))
    names = ("x", "y", "z", "nx", "ny", "nz", *_CORE[3:6], *rest, "opacity", *_CORE[7:], *_ROTATION)
    parts = [raw.means, torch.zeros(num, 3), raw.colors[:, 0], higher, raw.opacities[:, None], raw.scales, raw.quats]
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += ["comment SplatRenderMode: mip"] if raw.antialiased else []
    lines += [f"element vertex {num}", *(f"property float {name}" for name in names), "end_header"]
    return "\n".join([*lines, ""]).encode() + torch.cat(parts, 1).numpy().astype("<f4").tobytes()
