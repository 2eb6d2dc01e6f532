"""What each op must pass: `opcheck` (schema, fake kernel, dispatch), `gradcheck`, compilation without a graph break."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload


def check_op(op: OpOverload, args: Sequence[Any]) -> None:
    """Runs `torch.library.opcheck` on an op of `define_op`: the schema tells the truth about writes and aliases, the
    fake kernel agrees with the real one in shape, dtype and stride, AOT dispatch works. Tensors are detached first:
    these ops are called below autograd, gradients belong to the `autograd.Function` around them (see
    `check_gradients`).

    Raises:
      torch.testing._internal.optests.OpCheckError (or AssertionError): one of the checks fails.
    """
    torch.library.opcheck(op, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args))


def check_gradients(
    function: Callable[..., Any], inputs: Sequence[torch.Tensor], *, eps: float = 1e-6, atol: float = 1e-6
) -> None:
    """Runs `torch.autograd.gradcheck` in float64: analytic against central differences. Inputs are copied; all of them
    that are floating point require a gradient.

    Raises:
      torch.autograd.gradcheck.GradcheckError: a gradient differs.
    """
    copies = [t.detach().double().clone().requires_grad_(True) if t.is_floating_point() else t for t in inputs]
    torch.autograd.gradcheck(function, tuple(copies), eps=eps, atol=atol)


def check_compiles(function: Callable[..., Any], args: Sequence[Any], *, backend: str = "aot_eager") -> None:
    """Compiles `function` with fullgraph=True and asserts that it returns exactly what eager does.

    `aot_eager` traces forward and backward through Dynamo and AOTAutograd, which is where an op can break, and leaves
    out Inductor's code generation (17 CPU seconds cold).
    """
    expected = function(*args)
    torch._dynamo.reset()
    actual = torch.compile(function, fullgraph=True, backend=backend)(*args)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0, equal_nan=True)
