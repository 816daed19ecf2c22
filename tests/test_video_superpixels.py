import importlib.util

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageSequence

import cast
from cast_kernels.testing import synthetic_image

FRAMES, DURATIONS = 5, [40, 40, 80, 40, 120]
OPTIONS = ["--superpixels", "12", "--batch", "2"]  # the last batch is not full


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("video_superpixels", ROOT / "examples" / "video_superpixels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def frames():
    return [synthetic_image(40, 48, seed)[0].numpy() for seed in range(FRAMES)]


def save(path, frames):
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=DURATIONS, loop=0)
    return path


def read(path):
    with Image.open(path) as animation:
        found = [
            (np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(animation)
        ]
    return [image for image, _ in found], [duration for _, duration in found]


@pytest.mark.parametrize("picture", ["outlined", "mosaic"])
def test_each_frame_is_segmented_on_its_own(example, frames, picture, tmp_path, capsys):
    source, target = save(tmp_path / "in.png", frames), tmp_path / "out.png"  # animated PNG loses nothing
    example.main([str(source), str(target), *OPTIONS, *(["--mosaic"] if picture == "mosaic" else [])])
    images, durations = read(target)
    assert durations == DURATIONS
    for image, frame in zip(images, frames, strict=True):
        assert np.array_equal(image, getattr(cast.superpixels(frame, 12), picture)()[0].numpy())
    assert "5 frames of 48 x 40" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_usual_formats(example, frames, suffix, tmp_path):
    target = tmp_path / f"out{suffix}"
    example.main([str(save(tmp_path / f"in{suffix}", frames)), str(target), *OPTIONS])
    images, durations = read(target)
    assert len(images) == FRAMES
    assert images[0].shape == frames[0].shape
    assert durations == DURATIONS


def test_a_folder_of_frames_in_natural_order(example, frames, tmp_path):
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{8 + number}.png")  # 8, 9, 10 ...
    found = list(example.read_frames(tmp_path, 20))
    assert all(np.array_equal(image, frame) for (image, _), frame in zip(found, frames, strict=True))
    assert {duration for _, duration in found} == {50}


def test_films_by_opencv(example, frames, tmp_path):
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 40))
    for frame in frames:
        film.write(np.repeat(np.repeat(frame[..., 2::-1][::8, ::8], 8, 0), 8, 1))  # large blocks survive JPEG
    film.release()
    found = list(example.read_frames(tmp_path / "film.avi", 25))
    assert [duration for _, duration in found] == [100] * FRAMES
    for (image, _), frame in zip(found, frames, strict=True):
        assert image.shape == frame.shape
        difference = np.abs(image[4::8, 4::8].astype(int) - frame[::8, ::8]).mean((0, 1))
        swapped = np.abs(image[4::8, 4::8, ::-1].astype(int) - frame[::8, ::8]).mean((0, 1))
        assert difference.sum() < swapped.sum()  # red is red


def test_a_run_can_be_cut_short(example, frames, tmp_path):
    target = tmp_path / "out.gif"
    example.main([str(save(tmp_path / "in.gif", frames)), str(target), "--frames", "3", *OPTIONS])
    assert len(read(target)[0]) == 3


def test_what_is_no_video_is_named(example, frames, tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(SystemExit, match=r"text\.mp4"):
        example.main([str(tmp_path / "text.mp4"), str(tmp_path / "out.gif")])
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(frames[0]).save(folder / "1.png")
    Image.fromarray(frames[0][:30]).save(folder / "2.png")
    with pytest.raises(SystemExit, match="frames of one size"):
        example.main([str(folder), str(tmp_path / "out.gif"), *OPTIONS])
