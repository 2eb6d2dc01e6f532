"""The network of depth-anything-3 by itself: built from the package's configuration, filled with weights.

The package asks for numpy < 2, torchvision, OpenCV, open3d and more; its network needs addict, omegaconf and einops.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

_log = logging.getLogger(__name__)

_INSTALL = (
    "`make judges` installs it (pip install --no-deps depth-anything-3==0.1.1 addict omegaconf einops; "
    "its other dependencies are not needed)"
)


def build_network(settings: dict[str, Any], *, source: Path) -> Any:
    """The package's network on the meta device.

    Args:
      settings: config.json: model_name of the package's registry; where the registry does not know it, also `config`,
        in the form of the package's yaml files.
      source: Its folder, for messages.
    Raises:
      ValueError: the package is not installed, or the settings name no network of it.
    """
    cfg, registry = _import_package(source)
    from accelerate import init_empty_weights

    name, config = settings.get("model_name"), settings.get("config")
    if name in registry.MODEL_REGISTRY:
        config = cfg.load_config(registry.MODEL_REGISTRY[name])
    elif isinstance(config, dict):
        _check_config(config, source=source)
    else:
        raise ValueError(
            f"DepthAnything: model_name in {source} must be in {', '.join(registry.MODEL_REGISTRY)}, got {name!r}"
        )
    try:
        with init_empty_weights():  # torch.device("meta") fails where the constructor reads a number
            return cfg.create_object(config)
    except (AssertionError, AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"DepthAnything: config of {source} must build a network, got {error!r}") from error


def _check_config(config: Any, *, source: Path) -> None:
    """A configuration that comes in a folder may name classes of the package's networks and nothing else: it would
    import any module, and the package registers Python's eval as something that a value may call."""
    if isinstance(config, dict):
        named = config.get("__object__", {"path": "depth_anything_3.model."})
        path = named.get("path") if isinstance(named, dict) else None
        if "__inherit__" in config or not str(path).startswith("depth_anything_3.model."):
            raise ValueError(
                f"DepthAnything: config of {source} must name classes of depth_anything_3.model alone, got {path!r}"
            )
        for value in config.values():
            _check_config(value, source=source)
    elif isinstance(config, list):
        for value in config:
            _check_config(value, source=source)
    elif isinstance(config, str) and "${" in config:
        raise ValueError(f"DepthAnything: config of {source} must hold plain values, got {config!r}")


def _import_package(source: Path) -> tuple[Any, Any]:
    """depth_anything_3.cfg and .registry, with all that the network needs imported."""
    try:
        with _evo(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its configuration library, at import
            from depth_anything_3.utils.logger import logger

            if "DA3_LOG_LEVEL" not in os.environ:
                logger.level = 0  # errors: it prints a line at every forward
            importlib.import_module("depth_anything_3.model.gs_adapter")  # which imports evo
            from depth_anything_3 import cfg, registry
    except ModuleNotFoundError as error:
        raise ValueError(
            f"DepthAnything: package depth-anything-3 must be installed to open {source}, got no module {error.name}; "
            + _INSTALL
        ) from error
    return cfg, registry


@contextlib.contextmanager
def _evo() -> Iterator[None]:
    """The package imports one class of evo, for an alignment with given poses that is not called here. Where evo is not
    installed an empty module takes its place for as long as the import lasts."""
    names = ("evo", "evo.core", "evo.core.trajectory")
    if find_spec("evo") is not None:
        yield
        return
    stubs = {name: types.ModuleType(name) for name in names}
    stubs["evo.core.trajectory"].PosePath3D = None  # type: ignore[attr-defined]
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def fill(net: Any, weights: dict[str, Tensor], *, source: Path) -> None:
    """Make `weights` the parameters of `net`, float32, without a copy where they are that. ValueError unless all of its
    parameters are there; what belongs to no part of it is said in the log and left out, as the package does."""
    state = {key.removeprefix("model."): value.float() for key, value in weights.items()}
    own = net.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for key, value in own.items():
        shared.setdefault(id(value), []).append(key)
    for keys in shared.values():  # one LayerNorm may serve several heads, and is saved once
        saved = [key for key in keys if key in state]
        if saved:
            state.update({key: state[saved[0]] for key in keys if key not in state})
    wrong = {
        "missing": sorted(own.keys() - state.keys()),
        "of another shape": sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape),
    }
    found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys)
    if found:
        raise ValueError(f"DepthAnything: {source} must hold the weights of its model, got {found}")
    if unknown := sorted(state.keys() - own.keys()):
        _log.warning("%s: %d weights are of no part of the model (%s)", source, len(unknown), ", ".join(unknown[:3]))
    net.load_state_dict({key: state[key] for key in own}, assign=True)


def any_view(net: Any) -> Any:
    """The branch that gives poses and Gaussians: of a nested network one of two."""
    return getattr(net, "da3", net)


def keep_constant_colour(adapter: Any) -> None:
    """Have the package's Gaussian adapter read the constant band of the colours alone: what this project draws. The
    others would need e3nn to be turned, and are 24 of the 37 numbers of a Gaussian. Twice is as once."""
    if adapter.pred_color:
        return
    bands, start = adapter.d_sh, (2 if adapter.pred_offset_xy else 0) + 3 + 4

    def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        raw = kwargs["raw_gaussians"]
        keep = [*range(start), *(start + c * bands for c in range(3)), *range(start + 3 * bands, raw.shape[-1])]
        return args, {**kwargs, "raw_gaussians": raw[..., keep]}

    adapter.register_forward_pre_hook(drop, with_kwargs=True)
    adapter.pred_color = True  # three numbers of colour, that it leaves as they are
