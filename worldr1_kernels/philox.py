"""Philox4x32-10, a counter-based generator, in plain torch, and the normals drawn from its words.

A counter-based draw is a pure function of (key, counter): sample 7 gets the same numbers alone, in a batch of 32, on
one rank or on eight. The definition below is complete, so that another implementation can reproduce it:

    words  x0..x3 = Philox4x32-10(counter c0..c3, key k0 = seed mod 2^32, k1 = seed div 2^32)
    u_i    = (x_i >> 9) 2^-23 + 2^-24                            exact in float32, in (0, 1)
    z_2j   = sqrt(-2 ln u_2j) cos(2 pi (u_2j+1 - 1/2))           j = 0, 1
    z_2j+1 = sqrt(-2 ln u_2j) sin(2 pi (u_2j+1 - 1/2))           |z| <= 5.77

23 bits make the uniforms exact in float32, so float32 and float64 see the same u and differ by rounding only; the
tail cut off at 5.77 has probability 8e-9.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123), and Box & Muller 1958.
"""

import math

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Word c3 of the counter starts with the purpose of the draw, so that no two ops ever share a counter.
STREAM_SDE = 1
STREAM_TRANSPORT_SOURCE = 2
STREAM_TRANSPORT_TARGET = 3


def check_seed(op: str, seed: int) -> None:
    """Raises TypeError unless `seed` is an int, ValueError unless 0 <= seed < 2^63 (what an op's schema can carry)."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"{op}: seed must be in [0, 2**63), got {seed}")


def check_sample_ids(op: str, sample_ids: torch.Tensor | None, num_samples: int, device: torch.device) -> torch.Tensor:
    """The ids as int64 [N] on `device`; 0..N-1 when None.

    Raises:
      TypeError: not an integer tensor.
      ValueError: not of shape [N], or an id outside [0, 2^32).
    """
    if sample_ids is None:
        return torch.arange(num_samples, device=device)
    if not isinstance(sample_ids, torch.Tensor) or sample_ids.is_floating_point() or sample_ids.dtype == torch.bool:
        got = sample_ids.dtype if isinstance(sample_ids, torch.Tensor) else type(sample_ids).__name__
        raise TypeError(f"{op}: sample_ids must be an integer tensor, got {got}")
    if tuple(sample_ids.shape) != (num_samples,):
        raise ValueError(f"{op}: sample_ids must have shape [{num_samples}], got {list(sample_ids.shape)}")
    # The range is read only where it costs no synchronisation.
    if sample_ids.device.type == "cpu" and num_samples > 0 and not torch.compiler.is_compiling():
        low, high = int(sample_ids.min()), int(sample_ids.max())
        if low < 0 or high > _WORD:
            raise ValueError(f"{op}: sample_ids must be in [0, 2**32), got {low}..{high}")
    return sample_ids.to(device=device, dtype=torch.int64)


def philox4x32(
    c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ten rounds of Philox4x32, vectorised over counters.

    Args:
      c0, c1, c2, c3: Words of the counter, int64 in [0, 2^32), shapes that broadcast.
      seed: Key, 0 <= seed < 2^64; the low half is key word 0.
    Returns:
      Four int64 tensors of the broadcast shape, values in [0, 2^32).
    Source: Salmon et al. 2011, https://github.com/DEShawResearch/random123
    """
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    factor = torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=c0.device).view(2, *[1] * len(shape))
    key0, key1 = seed & _WORD, seed >> 32
    keys = [[(key0 + r * _WEYL[0]) & _WORD, (key1 + r * _WEYL[1]) & _WORD] for r in range(_ROUNDS)]
    key = torch.tensor(keys, dtype=torch.int64, device=c0.device).view(_ROUNDS, 2, *[1] * len(shape))

    # Rows (c0, c2) are multiplied, rows (c3, c1) are only XORed; both halves of the 64-bit product are used, so the row
    # made from c0 becomes the new c3 and the row made from c2 the new c1: the product buffer itself. Its upper half
    # is cut off where it meets the next XOR.
    mixed = torch.empty((2, *shape), dtype=torch.int64, device=c0.device)
    carried = torch.empty_like(mixed)
    mixed[0], mixed[1], carried[0], carried[1] = c0, c2, c3, c1
    product, high = torch.empty_like(mixed), torch.empty_like(mixed)
    for r in range(_ROUNDS):
        torch.mul(mixed, factor, out=product)
        torch.bitwise_right_shift(product, 32, out=high)
        torch.bitwise_xor(high[1], carried[1], out=mixed[0])
        torch.bitwise_xor(high[0], carried[0], out=mixed[1])
        mixed.bitwise_xor_(key[r]).bitwise_and_(_WORD)
        product, carried = carried, product
    carried.bitwise_and_(_WORD)
    return mixed[0], carried[1], mixed[1], carried[0]


def philox_normal(
    c0: torch.Tensor,
    c1: torch.Tensor,
    c2: torch.Tensor,
    c3: torch.Tensor,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Four independent N(0, 1) draws per counter, by the definition at the top of this module.

    Args:
      c0, c1, c2, c3: Words of the counter, int64 in [0, 2^32), shapes that broadcast to S.
      seed: Key, 0 <= seed < 2^64.
      dtype: float32, or float64 (the same uniforms, evaluated more exactly).
    Returns:
      [*S, 4] of `dtype`, contiguous.
    """
    words = philox4x32(c0, c1, c2, c3, seed=seed)
    out = torch.empty((*words[0].shape, 4), dtype=dtype, device=c0.device)
    for j in (0, 1):
        # (x >> 9) + 1/2 is below 2^23: exact in float32, as is its product with a power of two.
        radius = (words[2 * j] >> 9).to(dtype).add_(0.5).mul_(2.0**-23).log_().mul_(-2.0).sqrt_()
        angle = ((words[2 * j + 1] >> 9) - 2**22).to(dtype).add_(0.5).mul_(2.0 * math.pi * 2.0**-23)
        torch.mul(radius, torch.cos(angle), out=out[..., 2 * j])
        torch.mul(radius, angle.sin_(), out=out[..., 2 * j + 1])
    return out
