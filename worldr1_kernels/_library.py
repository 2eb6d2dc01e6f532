"""The one `torch.library` of this package and the helper that defines an op in it.

Why `Library.define` and not `torch.library.custom_op`: the latter costs 11 us a call (20 with grad) against about 3,
which matters for ops that take tens of microseconds. Gradients are attached outside the op, by an `autograd.Function`
whose forward and backward call ops defined here; a Python branch skips it when no gradient is wanted (`needs_grad`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.library import Library

NAMESPACE = "worldr1"

# A Library unregisters everything it holds when it is garbage collected: it must live as long as the process. A
# FRAGMENT because a second module may add ops to the same namespace.
LIBRARY = Library(NAMESPACE, "FRAGMENT")


def define_op(
    schema: str,
    impl: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    dispatch_key: str = "CompositeExplicitAutograd",
) -> OpOverload:
    """Defines `worldr1::<name>`, registers its implementation and its fake kernel, returns the overload to call.

    Bind the result once at module level: `torch.ops.worldr1.x` costs an attribute look-up at each call.

    Args:
      schema: Schema without the namespace, e.g. `"axpy(Tensor x, Tensor y, float a, str backend) -> Tensor"`.
        Arguments are not written unless the schema marks them `(a!)`, and outputs never alias inputs.
      impl: Python function with the schema's arguments, in order; runs below autograd on any device.
      fake: Same arguments, returns empty tensors of the right shape, dtype and device; must not read data.
      dispatch_key: Where `impl` is registered. The default serves every device; use "CPU" or "CUDA" to split.
    Returns:
      The op's default overload, callable with positional arguments.
    Raises:
      RuntimeError: the op is defined already, or the schema does not parse.
    """
    name = schema.split("(", 1)[0].strip()
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, impl, dispatch_key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def needs_grad(tensors: Sequence[torch.Tensor | None]) -> bool:
    """True when autograd is recording and one of `tensors` requires a gradient: take the `autograd.Function` then."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
