import loading_helpers as helpers
import numpy as np
import pytest
import torch
from image_set_helpers import class_tree
from PIL import Image

from cast.data.device_images import DeviceImages
from cast.data.image_sets import BrokenImage, FolderImages, open_image_set
from cast.data.sampling import Position, augment_generator, epoch_order
from cast.train.config import TrainConfig

COUNT = 14


@pytest.fixture
def images(tmp_path):
    return open_image_set(class_tree(tmp_path / "set", classes=2, per_class=COUNT // 2))


def config(**settings):
    return TrainConfig(**{"batch": 4, "seed": 5, "workers": 0, "cache": "device", "img_size": 8} | settings)


def batches(kept, rank=0, world=1, first_step=0, last_step=7, **options):
    place = {"rank": rank, "world": world, "first_step": first_step, "last_step": last_step}
    return list(kept.batches(helpers.device_views, **place, **options))


def numbers(batch):
    return batch.images[:, 0, 0, 0, 0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_set_lies_on_the_device(images, device, workers, monkeypatch):
    monkeypatch.setattr("cast.data.device_images._CHUNK", 5)
    told = []
    kept = DeviceImages(images, config(workers=workers, device=device), device, lambda *told_now: told.append(told_now))
    assert kept.images.device.type == kept.targets.device.type == device
    assert (kept.images.dtype, tuple(kept.images.shape)) == (torch.uint8, (COUNT, 3, 8, 8))
    assert kept.images[:, 0, 3, 3].tolist() == list(range(COUNT))
    assert kept.targets.tolist() == [0] * 7 + [1] * 7
    assert told == [(5, COUNT), (10, COUNT), (COUNT, COUNT)]


@pytest.mark.parametrize("size", [(24, 16), (16, 20), (16, 16)])
def test_images_become_central_squares(tmp_path, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    for settings, side in (({"cache_size": 16}, 16), ({}, 8)):  # without one, the size of the network's images
        kept = DeviceImages(open_image_set(tmp_path), config(**settings), "cpu")
        width, height = (length * side // 16 for length in size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        square = resized[top : top + side, left : left + side]
        assert torch.equal(kept.images[0].permute(1, 2, 0), torch.from_numpy(square))


def test_batches_follow_the_order_and_the_numbers_of_the_position(images, device):
    kept = DeviceImages(images, config(accumulate=2), device)
    orders = [epoch_order(COUNT, 5, epoch).tolist() for epoch in range(3)]
    for rank in range(2):
        made = batches(kept, rank=rank, world=2)
        assert len(made) == 14
        for number, batch in enumerate(made):
            step, part = divmod(number, 2)
            mine = orders[step // 3][step % 3 * 4 :][:4][rank::2]
            assert numbers(batch) == mine[part : part + 1]
            assert batch.targets.tolist() == [n // 7 for n in numbers(batch)]
            assert batch.images.device.type == batch.targets.device.type == device
            generator = augment_generator(5, Position(step // 3, step % 3, part, rank))
            assert torch.equal(batch.images, helpers.device_views(batch.images[:, 0], generator))


def test_indices_are_sent_without_waiting(images, monkeypatch):
    sent = []
    monkeypatch.setattr("cast.data.device_images.send", lambda x, device: sent.append(x.tolist()) or x.to(device))
    made = batches(DeviceImages(images, config(), "cpu"))
    assert sent == [numbers(batch) for batch in made]


@pytest.mark.parametrize("first_step", [1, 3, 5, 7])
def test_a_run_that_is_resumed_gets_the_same_batches(images, first_step):
    kept = DeviceImages(images, config(), "cpu")
    whole, rest = batches(kept), batches(kept, first_step=first_step)
    assert len(rest) == 7 - first_step
    for batch, right in zip(rest, whole[first_step:], strict=True):
        assert torch.equal(batch.images, right.images)
        assert torch.equal(batch.targets, right.targets)


def test_repeats(images):
    first, *_ = batches(DeviceImages(images, config(batch=6), "cpu"), repeats=3)
    order = epoch_order(COUNT, 5, 0).tolist()
    assert numbers(first) == [order[0]] * 3 + [order[1]] * 3


def test_a_batch_that_cannot_be_is_refused_at_once(images):
    kept = DeviceImages(images, config(batch=16), "cpu")
    with pytest.raises(ValueError, match="at least one batch of 16, got a set of 14"):
        kept.batches(helpers.device_views, rank=0, world=1, first_step=0, last_step=1)


def test_broken_images(images, caplog):
    with open(images.name(6), "w") as file:
        file.write("no image")
    with pytest.raises(BrokenImage, match=r"006\.png is not an image"):
        DeviceImages(images, config(), "cpu")
    kept = DeviceImages(images, config(skip_broken=True), "cpu")
    assert kept.images[5:9, 0, 0, 0].tolist() == [5, 7, 7, 8]
    assert kept.targets[5:9].tolist() == [0, 1, 1, 1]
    assert "006.png" in caplog.text


class _Endless(FolderImages):
    def __len__(self):
        return 10**12


def test_a_set_that_does_not_fit_is_refused(device):
    message = rf"fit on {device}.*: 1000000000000 of 8 x 8 pixels need 178813\.9 GiB.*; choose a smaller cache_size, or"
    with pytest.raises(ValueError, match=message):
        DeviceImages(_Endless("", ["a.png"]), config(), device)


def test_what_is_free_on_cuda_is_told(images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 10**6))
    with pytest.raises(ValueError, match=r"14 of 8 x 8 pixels need 0\.0 GiB, 0\.0 are free; choose"):
        DeviceImages(images, config(), "cuda")
