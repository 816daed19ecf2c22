"""Checksums that guard the equality of ``seeds`` with OpenCV where OpenCV is not installed.

Each is ``testing.checksum`` of the labels that OpenCV 5.0.0 gave ``testing.synthetic_image(*SEEDS_GOLDEN_SIZE)`` for
the arguments; tests/test_seeds.py compares them with OpenCV itself where it is installed.
"""

SEEDS_GOLDEN_SIZE = (97, 131)
SEEDS_GOLDEN = {
    (("num_superpixels", 60),): 0x2D327FD9,
    (("num_superpixels", 60), ("bins", 5), ("iterations", 15)): 0xC53D1257,
    (("num_superpixels", 40), ("prior", 0), ("num_levels", 3), ("double_step", True), ("iterations", 5)): 0xE5B8513A,
    (("num_superpixels", 90), ("prior", 3), ("color", "rgb")): 0x413ED6FA,
}
