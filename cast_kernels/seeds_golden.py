"""Checksums of the labels that ``seeds`` must give ``testing.synthetic_image(*SEEDS_GOLDEN_SIZE)``, by arguments.

``SEEDS_GOLDEN`` guards the equality of order "sequential" with OpenCV where OpenCV is not installed: recorded from
OpenCV 5.0.0, with which tests/test_seeds.py compares them where it is. ``SEEDS_PARALLEL_GOLDEN`` pins order "parallel",
which is to stay the same from release to release, on every device: recorded from csrc/seeds_literal.cpp.
"""

SEEDS_GOLDEN_SIZE = (97, 131)
SEEDS_GOLDEN = {
    (("num_superpixels", 60),): 0x2D327FD9,
    (("num_superpixels", 60), ("bins", 5), ("iterations", 15)): 0xC53D1257,
    (("num_superpixels", 40), ("prior", 0), ("num_levels", 3), ("double_step", True), ("iterations", 5)): 0xE5B8513A,
    (("num_superpixels", 90), ("prior", 3), ("color", "rgb")): 0x413ED6FA,
}
SEEDS_PARALLEL_GOLDEN = {
    (("num_superpixels", 60),): 0x8BB522C6,
    (("num_superpixels", 60), ("bins", 5), ("quality", "fast")): 0x59FEE23F,
    (("num_superpixels", 300),): 0x5ED85697,
    (("num_superpixels", 90), ("color", "rgb"), ("stride", 3)): 0x499F5E9B,
}
