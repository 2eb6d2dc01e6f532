"""Words of Philox and the two halves of Box-Muller in Triton, by the definition of philox.py. Imported by the families'
triton_kernels.py alone, never with the package.

The polynomials are those of csrc/common/sde_step.h, so that a launch without fusion draws the same bits as C++.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32, uint32."""
    for _ in tl.static_range(10):
        high0, high2 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low2 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def radius(word):
    """sqrt(-2 ln u), u = ((word >> 9) + 1/2) 2^-23."""
    h = (word >> 9).to(tl.int32).to(tl.float32) + 0.5
    bits = h.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = (exponent - 23).to(tl.float32)
    p = f * -0.07634492963552475 + 0.12761574983596802
    p = p * f - 0.13160182535648346
    p = p * f + 0.14201758801937103
    p = p * f - 0.16623356938362122
    p = p * f + 0.20001226663589478
    p = p * f - 0.2500081956386566
    p = p * f + 0.3333333134651184
    s = f * f
    y = p * (s * f)
    y = y + e * 1.428606765330187e-6
    y = y - 0.5 * s
    return tl.sqrt_rn(-2.0 * ((f + y) + e * 0.693145751953125))


@triton.jit
def turn(word):
    """(cos, sin) of 2 pi (u - 1/2), u as above; quarter turns are taken off in integers."""
    w = (word >> 9).to(tl.int32)
    k = (w + 1048576) >> 21
    f = ((w - (k << 21)).to(tl.float32) + 0.5) * 7.490140774280007e-7
    s = f * f
    in_sine = (s * -0.00019515282474458218 + 0.00833216030150652) * s - 0.16666655242443085
    in_cosine = (s * 2.44331567955669e-5 - 0.0013887316454201937) * s + 0.04166664555668831
    sine = f + f * s * in_sine
    cosine = (1.0 - 0.5 * s) + s * s * in_cosine
    odd = (k & 1) != 0
    a, b = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((k + 1) & 2) == 0, -a, a), tl.where((k & 2) == 0, -b, b)
