import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cast.data import crop_geometry, find_images, fit_geometry, read_image
from cast.hierarchy import Hierarchy


def rgb(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "ppm", "webp", "tga"])
def test_lossless_formats(tmp_path, extension):
    array = rgb()
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path, array, f"image.{extension}", **options)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, array)


def test_content_decides_the_format_not_the_name(tmp_path):
    path = saved(tmp_path, rgb(), "image.png")
    wrong = path.rename(tmp_path / "photo of a Straße.jpg")
    np.testing.assert_array_equal(read_image(wrong), rgb())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    array = rgb()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, array, exif=exif)
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array.transpose(1, 0, 2)[:, ::-1],
        7: array.transpose(1, 0, 2)[::-1, ::-1],
        8: array.transpose(1, 0, 2)[::-1],
    }
    np.testing.assert_array_equal(read_image(path), turned[orientation])


def test_grey_and_bilevel(tmp_path):
    grey = rgb()[..., 0]
    np.testing.assert_array_equal(read_image(saved(tmp_path, grey)), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(read_image(saved(tmp_path, bits))[..., 1], np.where(grey > 127, 255, 0))


def test_palette(tmp_path):
    image = Image.fromarray(rgb()).quantize(16)
    np.testing.assert_array_equal(read_image(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white(tmp_path):
    array = np.dstack([rgb(), np.full((6, 9), 255, np.uint8)])
    array[0, 0, 3], array[1, 1, 3] = 0, 51
    image = read_image(saved(tmp_path, array))
    np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
    np.testing.assert_allclose(image[1, 1], array[1, 1, :3] * 0.2 + 255 * 0.8, atol=1)
    opaque = array[..., 3] == 255
    np.testing.assert_array_equal(image[opaque], array[opaque][:, :3])


def test_transparent_palette_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    decoded = read_image(saved(tmp_path, image, transparency=1))
    np.testing.assert_array_equal(decoded[:, 1], 255)
    np.testing.assert_array_equal(decoded[:, 0], [[10, 20, 30], [70, 80, 90]])


def test_grey_with_alpha(tmp_path):
    image = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(read_image(saved(tmp_path, image))[..., 0], [[7, 255]])


@pytest.mark.parametrize("extension", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, extension):
    values = np.array([[0, 128, 129, 256, 32767, 32768, 65406, 65535]], np.uint16)
    image = read_image(saved(tmp_path, values, f"image.{extension}"))
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(image[..., 2], expected)


def test_sixteen_bit_png_with_a_transparent_value(tmp_path):
    # written by hand: Pillow does not save this combination
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"\0" + struct.pack(">3H", 0, 1000, 65535)
    header = struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0)
    body = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 1000)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body))
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 255, 255])


@pytest.mark.parametrize("scale", [1, 255])
def test_float_tiff(tmp_path, scale):
    values = np.linspace(0, scale, 12, dtype=np.float32).reshape(3, 4)
    image = read_image(saved(tmp_path, values, "image.tiff"))
    np.testing.assert_array_equal(image[..., 0], np.rint(values * (255 / scale)))


@pytest.mark.parametrize("values", [[[-1.0, 2.0]], [[float("nan"), 0.0]], [[0.0, 300.0]]])
def test_float_values_without_a_white_point(tmp_path, values):
    path = saved(tmp_path, np.array(values, np.float32), "image.tiff")
    with pytest.raises(ValueError, match="float images must have values"):
        read_image(path)


def test_thirty_two_bit_integers_without_a_white_point(tmp_path):
    path = saved(tmp_path, np.array([[0, 70_000]], np.int32), "image.tiff")
    with pytest.raises(ValueError, match=r"values in \[0, 65535\]"):
        read_image(path)


def test_cmyk(tmp_path):
    image = Image.fromarray(rgb()).convert("CMYK")
    decoded = read_image(saved(tmp_path, image, "image.tiff"))
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_animated_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    path = saved(tmp_path, frames[0], "image.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.asarray(frames[0]))


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_truncated_file(tmp_path, extension):
    path = saved(tmp_path, rgb(64, 64), f"image.{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cannot (read|decode) .*image\." + extension):
        read_image(path)


def test_damaged_bytes_raise_nothing_but_value_errors(tmp_path):
    rng = np.random.default_rng(0)
    for extension in ("png", "gif", "tiff", "webp", "bmp"):
        path = saved(tmp_path, rgb(24, 24), f"image.{extension}")
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            broken = whole.copy()
            broken[rng.integers(0, len(broken), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            try:
                image = read_image(path)
            except ValueError:
                continue
            assert image.dtype == np.uint8
            assert image.ndim == 3


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "not an image"), (b"hello", "not an image"), (None, "No such file")]
)
def test_no_image(tmp_path, content, match):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_image(path)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = saved(tmp_path, rgb(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # only a warning to Pillow: legitimate
    assert read_image(path).shape == (20, 20, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        read_image(path)


def test_find_images_in_folders_and_globs(tmp_path):
    names = ["b10.PNG", "b2.png", "B1.jpg", "ä.webp", "notes.txt", ".hidden.png", "data.h5"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.png").write_bytes(b"x")
    found = [path.name for path in find_images(tmp_path)]
    assert found == ["B1.jpg", "b2.png", "b10.PNG", "ä.webp"]
    assert [p.name for p in find_images(str(tmp_path / "b*"))] == ["b2.png", "b10.PNG"]
    assert [p.name for p in find_images(str(tmp_path / "**" / "*.png"))] == ["b2.png", "c.png"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # named: decoding will tell


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = tmp_path / "a[1].png"
    path.write_bytes(b"x")
    assert find_images(path) == [path]


def test_pictures_in_result_folders_are_not_photos(tmp_path):
    about = {"format": "cast-hierarchy-1", "photo": {"path": "/x.png", "sha256": "0"}, "settings": {}}
    for folder, text in (("ours", json.dumps(about)), ("theirs", '{"format": "other"}'), ("none", None)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "level1.png").write_bytes(b"x")
        if text:
            (tmp_path / folder / "hierarchy.json").write_text(text)
    found = find_images(str(tmp_path / "**" / "*"))
    assert found == [tmp_path / "none" / "level1.png", tmp_path / "theirs" / "level1.png"]
    with pytest.raises(ValueError, match="no images in the folder"):
        find_images(tmp_path / "ours")
    assert find_images(tmp_path / "ours" / "level1.png") == [tmp_path / "ours" / "level1.png"]


def test_find_images_finds_nothing(tmp_path):
    with pytest.raises(ValueError, match="empty name"):
        find_images("")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match="no such file or folder"):
        find_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="no images in the folder"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="no image matches"):
        find_images(tmp_path / "*.png")


@pytest.mark.parametrize(
    ("height", "width", "size", "network"),
    [
        (300, 451, 224, (224, 336)),  # 336.7
        (451, 300, 224, (336, 224)),
        (224, 224, 224, (224, 224)),
        (4000, 6000, 224, (224, 336)),
        (20, 20, 224, (224, 224)),
        (480, 640, 100, (104, 136)),  # 133.3
        (100, 1600, 8, (8, 128)),
        (1, 16, 224, (224, 3584)),
    ],
)
def test_fit_geometry(height, width, size, network):
    geometry = fit_geometry(height, width, size)
    assert geometry.network == network
    assert geometry.region == (0, 0, height, width)
    image = rgb(height, width) if height * width < 1e6 else np.zeros((height, width, 3), np.uint8)
    assert geometry.apply(image).shape == (*network, 3)
    assert geometry.cut(image).shape == image.shape


@pytest.mark.parametrize(
    ("height", "width", "resized", "crop"),
    [
        # what torchvision's Resize(256) and CenterCrop(224) do
        (300, 451, (256, 384), (16, 80, 224, 224)),
        (451, 300, (384, 256), (80, 16, 224, 224)),
        (375, 500, (256, 341), (16, 58, 224, 224)),  # 58.5: half to even
        (256, 343, (256, 343), (16, 60, 224, 224)),  # 59.5
        (347, 256, (347, 256), (62, 16, 224, 224)),  # 61.5
        (333, 500, (256, 384), (16, 80, 224, 224)),
        (20, 20, (256, 256), (16, 16, 224, 224)),
    ],
)
def test_crop_geometry(height, width, resized, crop):
    geometry = crop_geometry(height, width, 224)
    assert geometry.resized == resized
    assert geometry.crop == crop
    assert geometry.apply(rgb(height, width)).shape == (224, 224, 3)
    top, left, bottom, right = geometry.region
    assert abs(top - 16 * height / resized[0]) <= 0.5 or height > width
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width
    assert geometry.cut(rgb(height, width)).shape == (bottom - top, right - left, 3)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 16), (16, 1), (1, 1), (2, 31), (3, 40), (1, 2)])
def test_the_network_sees_at_least_one_pixel_each_way(height, width, crop):
    for size in (8, 224):
        geometry = (crop_geometry if crop else fit_geometry)(height, width, size)
        top, left, bottom, right = geometry.region
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert geometry.cut(rgb(height, width)).shape == (bottom - top, right - left, 3)
        # what is cut out overlaps with what the network sees
        assert left * geometry.resized[1] < (geometry.crop[1] + geometry.crop[3]) * width
        assert right * geometry.resized[1] > geometry.crop[1] * width


def test_same_size_is_the_identity():
    image = rgb(64, 96)
    np.testing.assert_array_equal(fit_geometry(64, 96, 64).apply(image), image)


def test_resampling_filters_are_pillows():
    image = rgb(120, 90)
    for name, resampling in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        expected = np.asarray(Image.fromarray(image).resize((48, 64), resampling))
        np.testing.assert_array_equal(fit_geometry(120, 90, 48).apply(image, name), expected)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("height", "width"), [(300, 451), (97, 33), (11, 13)])
def test_restored_labels_lie_where_the_photo_has_them(height, width, crop):
    geometry = (crop_geometry if crop else fit_geometry)(height, width, 64)
    h, w = geometry.network
    cells = torch.arange(h)[:, None] * w + torch.arange(w)
    hierarchy = Hierarchy(cells[None], [torch.zeros(1, h * w, dtype=torch.int64)])
    restored = geometry.restore(hierarchy).superpixels[0].numpy()
    top, left, bottom, right = geometry.region
    assert restored.shape == (bottom - top, right - left)
    assert restored.min() >= 0
    # the centre of every pixel of the photo falls into its cell, but for the rounding of the region to whole pixels
    y = (np.arange(top, bottom) + 0.5) * geometry.resized[0] / height - geometry.crop[0]
    x = (np.arange(left, right) + 0.5) * geometry.resized[1] / width - geometry.crop[1]
    slack = 1e-9 if not crop else 0.51 * max(geometry.resized[0] / height, geometry.resized[1] / width)
    assert (np.abs(restored // w + 0.5 - y[:, None]) <= 0.5 + slack).all()
    assert (np.abs(restored % w + 0.5 - x) <= 0.5 + slack).all()


@pytest.mark.parametrize(
    ("match", "build"),
    [
        ("too narrow", lambda: fit_geometry(1, 500)),
        ("too narrow", lambda: crop_geometry(500, 1)),
        ("8 to 8192 pixels, got 7", lambda: fit_geometry(30, 30, 7)),
        ("8 to 8192 pixels, got 8193", lambda: fit_geometry(30, 30, 8193)),
        ("8 to 8192 pixels, got 8200", lambda: crop_geometry(30, 30, 8200)),
        ("multiple of 8", lambda: crop_geometry(30, 30, 100)),
        ("at least one pixel", lambda: fit_geometry(0, 30)),
        ("expected an image of", lambda: fit_geometry(30, 40).apply(rgb(40, 30))),
    ],
)
def test_rejects_bad_geometry(match, build):
    with pytest.raises(ValueError, match=match):
        build()
