"""The published models and their baselines, by class or by name."""

from .cast import Cast, CastOutput
from .cast_seg import CastSeg, CastSegOutput
from .cast_segmenter import CastSegmenter
from .config import CastConfig, CastSegConfig, CastSegmenterConfig, ImageConfig, SuperpixelConfig, ViTConfig
from .extractor import FeatureExtractor
from .features import LevelFeatures
from .registry import build_model, create_model, list_models
from .saving import from_pretrained
from .trunk import PooledLevel
from .vit import ViT

__all__ = [
    "Cast",
    "CastConfig",
    "CastOutput",
    "CastSeg",
    "CastSegConfig",
    "CastSegOutput",
    "CastSegmenter",
    "CastSegmenterConfig",
    "FeatureExtractor",
    "ImageConfig",
    "LevelFeatures",
    "PooledLevel",
    "SuperpixelConfig",
    "ViT",
    "ViTConfig",
    "build_model",
    "create_model",
    "from_pretrained",
    "list_models",
]
