"""The published classification models, by class or by name."""

from .cast import Cast, CastOutput
from .config import CastConfig, SuperpixelConfig
from .registry import create_model, list_models
from .trunk import PooledLevel

__all__ = ["Cast", "CastConfig", "CastOutput", "PooledLevel", "SuperpixelConfig", "create_model", "list_models"]
