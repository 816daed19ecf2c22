import logging
import multiprocessing
import os
from itertools import chain

import loading_helpers as helpers
import numpy as np
import pytest
import torch
from image_set_helpers import class_tree, number_of, png, write_files, write_tar
from PIL import Image

from cast.data.image_sets import BrokenImage, open_image_set
from cast.data.loading import count_workers, evaluation_batches, training_batches
from cast.data.sampling import epoch_order, prepare_generator
from cast.train.batch import AUGMENT, HELD_OUT, numpy_generator
from cast.train.config import TrainConfig

COUNT = 14  # 3 batches of 4


@pytest.fixture
def images(tmp_path):
    return open_image_set(class_tree(tmp_path / "set", classes=2, per_class=COUNT // 2))


def config(workers=0, **settings):
    return TrainConfig(**{"batch": 4, "seed": 5, "workers": workers} | settings)


def train(images, c=None, rank=0, world=1, first_step=0, last_step=7, transform=helpers.two_views, **options):
    c = c or config()
    place = {"rank": rank, "world": world, "first_step": first_step, "last_step": last_step}
    return list(training_batches(images, transform, c, **place, **options))


def evaluate(images, c=None, rank=0, world=1, transform=helpers.two_views, **options):
    return list(evaluation_batches(images, transform, c or config(), rank=rank, world=world, **options))


def flat(lists):
    return list(chain.from_iterable(lists))


def numbers(batches):
    return [[int(image[0, 0, 0, 0]) for image in batch.images] for batch in batches]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        for tensor, right in zip(batch, other, strict=True):
            assert (tensor is right is None) or torch.equal(tensor, right)


def test_batches_follow_the_order_and_the_numbers_of_each_place(images):
    batches = train(images)
    orders = [epoch_order(COUNT, 5, epoch).tolist() for epoch in range(3)]
    assert numbers(batches) == [orders[step // 3][step % 3 * 4 :][:4] for step in range(7)]
    for step, batch in enumerate(batches):
        assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (4, 2, 3, 8, 8))
        assert batch.targets.dtype == torch.int64
        assert batch.targets.tolist() == [n // 7 for n in numbers([batch])[0]]
        assert batch.labels is None
        for i, views in enumerate(batch.images):
            generator = numpy_generator(AUGMENT, 5, step // 3, step % 3 * 4 + i)
            assert views[1].tolist() == generator.integers(0, 256, (3, 8, 8), dtype=np.uint8).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(images, workers):
    settings = {"accumulate": 2, "batch": 4}
    expected = train(images, config(**settings), prepare=helpers.numbered)
    assert len(expected) == 14
    assert_equal(train(images, config(workers, **settings), prepare=helpers.numbered), expected)
    assert_equal(evaluate(images, config(workers)), evaluate(images))


@pytest.mark.parametrize("first_step", [1, 3, 5, 7])
def test_a_run_that_is_resumed_gets_the_same_batches(images, first_step):
    whole = train(images, prepare=helpers.numbered)
    assert_equal(train(images, first_step=first_step, prepare=helpers.numbered), whole[first_step:])


def test_processes_share_the_batches_of_one(images):
    whole = train(images)
    shares = [train(images, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.targets, batch.targets[rank::2])


def test_repeats_are_augmented_each_on_its_own(images):
    first, *_ = train(images, config(batch=6), repeats=3)
    order = epoch_order(COUNT, 5, 0).tolist()
    assert numbers([first]) == [[order[0]] * 3 + [order[1]] * 3]
    assert len({tuple(views[1].flatten().tolist()) for views in first.images}) == 6


def test_workers_prepare_with_the_numbers_of_the_training_step(images):
    for rank in range(2):
        batches = train(images, config(accumulate=2), rank=rank, world=2, first_step=2, prepare=helpers.numbered)
        assert len(batches) == 10
        for number, batch in enumerate(batches):
            step, part = 2 + number // 2, number % 2
            generator = prepare_generator(5, step, 3, part, rank)
            assert torch.equal(batch.labels, helpers.numbered(batch, generator).labels)


def test_a_batch_that_cannot_be_is_refused_at_once(images):
    with pytest.raises(ValueError, match="at least one batch of 16, got a set of 14"):
        training_batches(images, helpers.two_views, config(batch=16), rank=0, world=1, first_step=0, last_step=1)
    with pytest.raises(ValueError, match="3 processes"):
        training_batches(images, helpers.two_views, config(), rank=0, world=3, first_step=0, last_step=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_views_of_another_kind_are_refused(images, workers):
    with pytest.raises(ValueError, match=r"uint8 views \[V, 3, S, S\], got torch.float32 \(2, 3, 8, 8\)"):
        train(images, config(workers), transform=helpers.floats)


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 16), (2, 4), (3, 3), (2, 64), (16, 16)])
def test_evaluation_sees_each_image_once(images, world, batch):
    shares = [evaluate(images, config(batch=batch), rank, world) for rank in range(world)]
    for rank, share in enumerate(shares):
        assert flat(numbers(share)) == list(range(COUNT))[rank::world]
        assert all(len(x.targets) == batch // world for x in share[:-1])
        assert flat(x.targets.tolist() for x in share) == [n // 7 for n in range(COUNT)[rank::world]]
        for n, views in zip(flat(numbers(share)), (views for x in share for views in x.images), strict=True):
            generator = numpy_generator(HELD_OUT, 5, n)
            assert views[1].tolist() == generator.integers(0, 256, (3, 8, 8), dtype=np.uint8).tolist()


@pytest.mark.parametrize(("settings", "size"), [({}, 4), ({"batch": 6, "accumulate": 3}, 6), ({"batch": 64}, COUNT)])
def test_whole_batches_are_the_same_for_any_number_of_processes(images, settings, size):
    alone = evaluate(images, config(**settings), whole=True)
    lists = numbers(alone)
    assert sorted(flat(lists)) == list(range(COUNT))
    assert [len(x) for x in lists[:-1]] == [size] * (len(lists) - 1)
    assert flat(lists) != list(range(COUNT))
    for batch in alone:
        for n, views in zip(numbers([batch])[0], batch.images, strict=True):
            drawn = numpy_generator(HELD_OUT, 5, n).integers(0, 256, (3, 8, 8), dtype=np.uint8)
            assert views[1].tolist() == drawn.tolist()
    for world in (2, 3, 5):
        for rank in range(world):
            assert_equal(evaluate(images, config(**settings), rank, world, whole=True), alone[rank::world])
    assert_equal(evaluate(images, config(**settings), whole=True), alone)
    assert numbers(evaluate(images, config(**settings, seed=6), whole=True)) != lists


def test_whole_batches_are_of_64_at_most(tmp_path):
    many = open_image_set(class_tree(tmp_path / "many", classes=2, per_class=70))
    lists = numbers(evaluate(many, config(batch=128), whole=True))
    assert [len(x) for x in lists] == [64, 64, 12]
    assert all(20 < sum(n < 70 for n in x) < 44 for x in lists[:2])  # both classes


def test_evaluation_of_a_flat_folder_and_of_shards(tmp_path):
    files = {f"{i}.png": png(i) for i in range(5)}
    for path in (write_files(tmp_path / "flat", files), write_tar(tmp_path / "a.tar", files)):
        batches = evaluate(open_image_set(path), config(1))
        assert numbers(batches) == [[0, 1, 2, 3], [4]]
        assert [batch.targets.tolist() for batch in batches] == [[0] * 4, [0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_ends_the_run_by_name(images, workers):
    write_files_over(images, 3)
    for run in (train, evaluate):
        with pytest.raises(BrokenImage) as caught:
            run(images, config(workers))
        assert str(caught.value) == f"{images.name(3)} is not an image that Pillow can read"


def write_files_over(images, *broken):
    for i in broken:
        with open(images.name(i), "w") as file:
            file.write("no image")


def test_a_broken_image_is_replaced_by_the_next(images, caplog):
    whole = train(images)
    write_files_over(images, 3, 4, COUNT - 1)
    with caplog.at_level(logging.WARNING, "cast"):
        batches = train(images, config(skip_broken=True), last_step=7)
    instead = {3: 5, 4: 5, COUNT - 1: 0}
    assert numbers(batches) == [[instead.get(n, n) for n in batch] for batch in numbers(whole)]
    for batch, right in zip(batches, whole, strict=True):
        assert batch.targets.tolist() == [n // 7 for n in numbers([batch])[0]]
        assert torch.equal(batch.images[:, 1], right.images[:, 1])  # the random numbers are those of the place
    messages = [record.getMessage() for record in caplog.records]
    told = [f"{images.name(i)} is not an image that Pillow can read; the next image takes its place" for i in instead]
    assert sorted(messages) == sorted(told)  # each once, though there were three epochs


def test_a_broken_image_is_left_out_of_evaluation(images, caplog):
    write_files_over(images, 1, 8, 9, 10, 11)
    with caplog.at_level(logging.WARNING, "cast"):
        batches = evaluate(images, config(skip_broken=True))
    assert numbers(batches) == [[0, 2, 3], [4, 5, 6, 7], [12, 13]]  # nothing is left of the third batch
    assert f"{images.name(1)} is not an image that Pillow can read; it is left out" in caplog.messages
    assert len(caplog.messages) == 5
    replaced = evaluate(images, config(skip_broken=True), replace_broken=True)
    assert numbers(replaced) == [[0, 2, 2, 3], [4, 5, 6, 7], [12] * 4, [12, 13]]
    with pytest.raises(BrokenImage):
        evaluate(images, replace_broken=True)  # broken images are not skipped


def test_nothing_but_broken_images_ends_the_run(images):
    write_files_over(images, *range(COUNT))
    with pytest.raises(BrokenImage, match=r"no image can be read from this one on: .*\.png is not an image"):
        train(images, config(skip_broken=True))
    assert evaluate(images, config(skip_broken=True)) == []


def test_an_image_that_the_transform_refuses_is_named(images, caplog):
    with open(images.name(6), "wb") as file:
        file.write(png(6, (8, 8)))
    with pytest.raises(BrokenImage) as caught:
        train(images, config(1), transform=helpers.only_large)
    assert str(caught.value) == f"cannot use {images.name(6)}: it is too small"
    with caplog.at_level(logging.WARNING, "cast"):
        assert 6 not in flat(numbers(train(images, config(skip_broken=True), transform=helpers.only_large)))
    assert len(caplog.messages) == 1


def test_workers_last_have_one_thread_and_leave_interrupts_to_the_main_process(images):
    batches = train(images, config(2), transform=helpers.worker_state)
    states = {tuple(views[:, :, 0, 0].flatten().tolist()) for batch in batches for views in batch.images}
    assert {state[2:4] for state in states} == {(1, 1)}  # one thread; the interrupt is ignored
    workers = {state[:2] for state in states}
    assert len(workers) == 2  # over three epochs
    assert (os.getpid() % 256, os.getpid() // 256 % 256) not in workers


def test_workers_end_with_the_run(images):
    before = set(multiprocessing.active_children())
    batches = training_batches(images, helpers.two_views, config(1), rank=0, world=1, first_step=0, last_step=99)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1
    batches.close()
    assert set(multiprocessing.active_children()) <= before
    with pytest.raises(ValueError, match="uint8 views"):
        train(images, config(1), transform=helpers.floats, last_step=99)
    assert set(multiprocessing.active_children()) <= before


def test_loading_takes_no_global_random_numbers(images):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(images, config(1), last_step=1)
    train(images, last_step=1)
    assert torch.equal(torch.rand(3), expected)


def test_spawned_workers(images, tmp_path, monkeypatch):
    shards = open_image_set(write_tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(4)}))
    assert number_of(shards.read(2)) == 2  # the archive is open
    expected = train(shards, last_step=2, prepare=helpers.numbered)
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("spawn")
    assert_equal(train(shards, config(1), last_step=2, prepare=helpers.numbered), expected)


def test_the_number_of_workers(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [count_workers(n) for n in (0, 3, 20, -1)] == [0, 3, 20, 6]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_workers(-1) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert count_workers(-1) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(200)))
    assert count_workers(-1) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_cuda_are_pinned(images, device, workers):
    for batch in train(images, config(workers, device=device), last_step=2):
        assert batch.images.is_pinned() == batch.targets.is_pinned() == (device == "cuda")


def test_real_transforms_fit(images):
    from cast.data.augment import MocoViews

    Image.new("RGB", (40, 30)).save(images.name(0))
    batch = train(images, config(1), transform=MocoViews(16), last_step=1)[0]
    assert tuple(batch.images.shape) == (4, 2, 3, 16, 16)
