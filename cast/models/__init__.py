"""The published classification models, by class or by name."""

from .cast import Cast, CastOutput, PooledLevel
from .config import CastConfig, SuperpixelConfig
from .registry import create_model, list_models

__all__ = ["Cast", "CastConfig", "CastOutput", "PooledLevel", "SuperpixelConfig", "create_model", "list_models"]
