"""CAST: image recognition that segments, from superpixels to objects, in one pass.

Names are imported when they are first used, so that `cast --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cast.checkpoints import load_official
    from cast.hierarchy import Hierarchy
    from cast.layers import GraphPool
    from cast.models import (
        Cast,
        CastConfig,
        CastOutput,
        PooledLevel,
        SuperpixelConfig,
        create_model,
        from_pretrained,
        list_models,
    )
    from cast_kernels import __version__

__all__ = [
    "Cast",
    "CastConfig",
    "CastOutput",
    "GraphPool",
    "Hierarchy",
    "PooledLevel",
    "SuperpixelConfig",
    "__version__",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_official",
]

_HOMES = {
    "GraphPool": "cast.layers",
    "Hierarchy": "cast.hierarchy",
    "__version__": "cast_kernels",
    "load_official": "cast.checkpoints",
}
_MODULES = ("data", "hierarchy", "layers", "models")  # reachable as attributes, as after an eager import


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"cast.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'cast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "cast.models")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
