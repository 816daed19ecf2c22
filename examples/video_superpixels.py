"""Superpixels of a video: reads an animation, a folder of frames or a film, writes an animation with their outlines.

    python examples/video_superpixels.py clip.gif outlined.webp --superpixels 400

Frames go through ``cast.superpixels`` in batches; each is segmented on its own, nothing is carried over to the next.
GIF, WebP, APNG and folders need Pillow alone; films (MP4, AVI ...) are read by OpenCV where it is installed.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

import cast
from cast.data import find_images, read_image, to_rgb

Frame = tuple[np.ndarray, float]  # uint8 [H, W, 3], and how many milliseconds it is shown


def read_frames(source: Path, fps: float) -> Iterator[Frame]:
    """The frames of a folder of images, of an animation, or of a film."""
    if source.is_dir():
        for path in find_images(source):
            yield read_image(path), 1000 / fps
        return
    try:
        with Image.open(source) as animation:
            for frame in ImageSequence.Iterator(animation):
                yield to_rgb(frame), frame.info.get("duration") or 1000 / fps
    except UnidentifiedImageError:
        yield from read_film(source, fps)


def read_film(source: Path, fps: float) -> Iterator[Frame]:
    """The frames of whatever OpenCV decodes."""
    try:
        import cv2
    except ImportError:
        raise SystemExit(f"{source} is no image; to read films: pip install opencv-python-headless") from None
    film = cv2.VideoCapture(str(source))
    if not film.isOpened():
        raise SystemExit(f"neither Pillow nor OpenCV can read {source}")
    duration = 1000 / (film.get(cv2.CAP_PROP_FPS) or fps)
    while True:
        more, frame = film.read()
        if not more:
            return
        yield frame[..., ::-1], duration


def draw_frames(frames: Iterator[Frame], arguments: argparse.Namespace) -> Iterator[tuple[Image.Image, float]]:
    """Each frame with its superpixels drawn, a batch at a time."""
    while batch := list(islice(frames, arguments.batch)):
        sizes = {image.shape for image, _ in batch}
        if len(sizes) > 1:
            raise SystemExit(f"expected frames of one size, got {sorted(sizes)}")
        images = np.stack([image for image, _ in batch])
        found = cast.superpixels(images, arguments.superpixels, device=arguments.device)
        pictures = found.mosaic() if arguments.mosaic else found.outlined()
        for picture, (_, duration) in zip(pictures.cpu().numpy(), batch, strict=True):
            yield Image.fromarray(picture), duration


def main(words: list[str] | None = None) -> None:
    """Read, segment, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="animation, folder of frames, or film")
    parser.add_argument("target", type=Path, help="animation to write: .gif, .webp or .png")
    parser.add_argument("--superpixels", type=int, default=400, help="wanted number per frame (default: 400)")
    parser.add_argument("--mosaic", action="store_true", help="paint mean colours instead of outlines")
    parser.add_argument("--batch", type=int, default=16, help="frames segmented at once (default: 16)")
    parser.add_argument("--frames", type=int, help="stop after so many")
    parser.add_argument("--fps", type=float, default=25, help="for sources that do not say (default: 25)")
    parser.add_argument("--device", help="such as cuda (default: the CPU)")
    arguments = parser.parse_args(words)
    drawn = list(draw_frames(islice(read_frames(arguments.source, arguments.fps), arguments.frames), arguments))
    if not drawn:
        raise SystemExit(f"{arguments.source} has no frames")
    (first, *rest), durations = [list(column) for column in zip(*drawn, strict=True)]
    first.save(arguments.target, save_all=True, append_images=rest, duration=[round(d) for d in durations], loop=0)
    print(f"{arguments.target}: {len(drawn)} frames of {first.width} x {first.height}")


if __name__ == "__main__":
    main()
