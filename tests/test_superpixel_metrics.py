import itertools

import numpy as np
import pytest
import torch

from cast_kernels import superpixel_metrics


def grid(height, width, block):
    """Square superpixels, numbered row by row."""
    y, x = np.indices((height, width)) // block
    return y * (-(-width // block)) + x


def test_perfect_superpixels():
    labels = grid(12, 12, 4)
    result = superpixel_metrics(labels, truth=labels, image=np.repeat(labels[..., None], 3, 2))
    assert result["segments"] == result["components"] == 9
    assert result["boundary_recall"] == result["boundary_precision"] == result["explained_variation"] == 1.0
    assert result["achievable_segmentation_accuracy"] == 1.0
    assert result["undersegmentation_error"] == result["area_variation"] == 0.0
    assert result["compactness"] == pytest.approx(np.pi / 4)


def test_one_superpixel_over_two_truths():
    truth = np.zeros((4, 10), int)
    truth[:, 6:] = 7
    result = superpixel_metrics(np.zeros((4, 10), int), truth=truth)
    assert result["boundary_recall"] == 0.0
    assert result["achievable_segmentation_accuracy"] == pytest.approx(24 / 40)
    assert result["undersegmentation_error"] == pytest.approx((16 + 16) / 40)


def test_tolerance_is_chebyshev_distance():
    labels, truth = np.zeros((9, 20), int), np.zeros((9, 20), int)
    labels[:, 8:] = 1
    truth[:, 11:] = 1  # the boundaries lie 3 pixels apart
    recall = [superpixel_metrics(labels, truth=truth, tolerance=t)["boundary_recall"] for t in (0, 2, 3)]
    assert recall == [0.0, 0.0, 1.0]


def test_annotators_are_averaged():
    labels = grid(8, 8, 4)
    half = np.repeat([[0] * 4 + [1] * 4], 8, 0)
    both = superpixel_metrics(labels, truth=np.stack([half, half.T * 0]))
    each = [superpixel_metrics(labels, truth=t) for t in (half, half.T * 0)]
    for key in ("boundary_precision", "undersegmentation_error"):
        assert both[key] == pytest.approx(np.mean([one[key] for one in each]))


@pytest.mark.parametrize("seed", range(8))
def test_components_match_a_flood_fill(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 23, 2))
    labels = rng.integers(0, 3, shape)
    seen, count = np.zeros(shape, bool), 0
    for start in itertools.product(*map(range, shape)):
        if seen[start]:
            continue
        count += 1
        stack = [start]
        while stack:
            y, x = stack.pop()
            if not (0 <= y < shape[0] and 0 <= x < shape[1]) or seen[y, x] or labels[y, x] != labels[start]:
                continue
            seen[y, x] = True
            stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    assert superpixel_metrics(labels)["components"] == count


def test_a_serpentine_is_one_component():
    labels = np.zeros((41, 30), int)
    labels[::2] = 1
    labels[1::4, -1] = labels[3::4, 0] = 1  # the rows of ones joined at alternating ends
    assert superpixel_metrics(labels)["components"] == 1 + 20
    assert superpixel_metrics(labels.T)["components"] == 1 + 20


def test_explained_variation_is_a_variance_ratio():
    rng = np.random.default_rng(0)
    labels, image = grid(9, 10, 3), rng.integers(0, 256, (9, 10, 3))
    means = np.stack([image[labels == k].mean(0) for k in range(labels.max() + 1)])[labels]
    centre = image.reshape(-1, 3).mean(0)
    expected = ((means - centre) ** 2).sum() / ((image - centre) ** 2).sum()
    assert superpixel_metrics(labels, image=image)["explained_variation"] == pytest.approx(expected)


def test_tensors_and_arrays_agree():
    labels = grid(8, 12, 3)
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    tensors = superpixel_metrics(
        torch.tensor(labels, dtype=torch.int32), truth=torch.tensor(labels.T.reshape(8, 12)), image=torch.tensor(image)
    )
    assert tensors == superpixel_metrics(labels, truth=labels.T.reshape(8, 12), image=image)


def test_images_that_numpy_has_no_name_for():
    labels, image = grid(8, 12, 3), torch.rand(8, 12, 3, dtype=torch.bfloat16)
    expected = superpixel_metrics(labels, image=image.double().numpy())
    assert superpixel_metrics(labels, image=image.requires_grad_()) == expected


def test_names_of_labels_do_not_matter():
    labels = grid(8, 12, 3)
    assert superpixel_metrics(labels * 1000 - 7) == superpixel_metrics(labels)


def test_agrees_with_the_study_evaluation(shared_folder):
    """The second implementation that made the published tables, on human segmentations."""
    import importlib.util

    from PIL import Image

    spec = importlib.util.spec_from_file_location("superpixel_eval", shared_folder("tools") / "superpixel_eval.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    folder = shared_folder("data/bsds500")
    path = sorted((folder / "images").glob("*.jpg"))[0]
    image, truth = np.asarray(Image.open(path)), np.load(folder / "gt" / f"{path.stem}.npz")["seg"]
    labels = grid(*image.shape[:2], 23)
    theirs = study.metrics(labels, image, list(truth.astype(np.int64)), 2)
    ours = superpixel_metrics(labels, truth=truth, image=image)
    names = {
        "segments": "K",
        "components": "CC",
        "compactness": "CO",
        "boundary_density": "bd",
        "area_variation": "ACV",
        "area_minimum": "Amin",
        "boundary_recall": "BR",
        "boundary_precision": "BP",
        "undersegmentation_error": "UE",
        "achievable_segmentation_accuracy": "ASA",
        "explained_variation": "EV",
    }
    assert ours == {key: pytest.approx(theirs[name]) for key, name in names.items()}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": np.zeros((3, 4))}, TypeError, "integer labels"),
        ({"labels": np.zeros((2, 3, 4), int)}, ValueError, r"\[H, W\]"),
        ({"labels": np.zeros((0, 4), int)}, ValueError, r"\[H, W\]"),
        ({"labels": np.zeros((3, 4), int), "truth": np.zeros((4, 3), int)}, ValueError, "truth"),
        ({"labels": np.zeros((3, 4), int), "image": np.zeros((3, 3, 4))}, ValueError, "image"),
        ({"labels": np.zeros((3, 4), int), "tolerance": -1}, ValueError, "tolerance"),
        ({"labels": np.zeros((3, 4), int), "tolerance": 1.5}, ValueError, "tolerance"),
    ],
)
def test_rejects_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        superpixel_metrics(**arguments)
