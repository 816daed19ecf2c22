"""Images from files: finding them, decoding them, and the way from their pixels to the network's and back."""

from cast.data.geometry import Geometry, crop_geometry, fit_geometry
from cast.data.images import find_images, read_image, to_rgb

__all__ = ["Geometry", "crop_geometry", "find_images", "fit_geometry", "read_image", "to_rgb"]
