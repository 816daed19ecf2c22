"""Scores of what a model makes of images: its segments against masks, and the baseline that a patch ViT gets."""

from cast.evaluate.foreground import ForegroundScores, foreground_iou, mean_foreground_iou
from cast.evaluate.token_kmeans import kmeans_hierarchy

__all__ = ["ForegroundScores", "foreground_iou", "kmeans_hierarchy", "mean_foreground_iou"]
