from itertools import chain, islice

import numpy as np
import pytest
import torch

from cast.data.sampling import (
    Position,
    Requests,
    augment_generator,
    epoch_order,
    prepare_generator,
    steps_per_epoch,
)
from cast.train.batch import AUGMENT, PREPARE, SHUFFLE, numpy_generator, torch_seed


def plan(length=22, batch=8, accumulate=1, seed=3, repeats=1, rank=0, world=1, first_step=0, last_step=6):
    return Requests(length, batch, accumulate, seed, repeats, rank, world, first_step, last_step)


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert epoch_order(50, 1, 2).tolist() == orders[5]
    assert orders[5] == numpy_generator(SHUFFLE, 1, 2).permutation(50).tolist()


@pytest.mark.parametrize(("length", "kept"), [(100, 100), (255, 255), (256, 256), (700, 512)])
def test_repeated_augmentation(length, kept):
    once, thrice = epoch_order(length, 5, 1), epoch_order(length, 5, 1, repeats=3)
    assert len(thrice) == kept
    assert thrice.tolist() == [index for index in once.tolist() for _ in range(3)][:kept]
    assert len(once) == length
    assert steps_per_epoch(length, 50, 3) == kept // 50
    assert steps_per_epoch(length, 50) == length // 50


def test_one_process_takes_batches_in_the_order_of_the_epochs():
    lists = list(plan())
    assert len(lists) == len(plan()) == 6
    for step, requests in enumerate(lists):
        epoch, within = divmod(step, 2)  # 22 images are 2 batches of 8
        places = range(8 * within, 8 * within + 8)
        assert [request.epoch for request in requests] == [epoch] * 8
        assert [request.place for request in requests] == list(places)
        assert [request.index for request in requests] == epoch_order(22, 3, epoch)[places].tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 2)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_and_parts_share_the_batches_of_one(world, accumulate, repeats):
    whole = list(plan(repeats=repeats))
    shares = [list(plan(rank=r, world=world, accumulate=accumulate, repeats=repeats)) for r in range(world)]
    for step, requests in enumerate(whole):
        mine = [list(chain(*share[step * accumulate : (step + 1) * accumulate])) for share in shares]
        assert mine == [requests[r::world] for r in range(world)]
    assert {len(part) for share in shares for part in share} == {8 // (world * accumulate)}


def test_repeats_of_an_image_go_to_different_processes():
    for parts in zip(*(list(plan(length=24, batch=12, repeats=3, rank=r, world=3)) for r in range(3)), strict=True):
        assert len({tuple(request.index for request in part) for part in parts}) == 1
        assert len({request.place for part in parts for request in part}) == 12


@pytest.mark.parametrize("first_step", range(7))
def test_a_run_that_is_resumed_goes_on_where_it_was(first_step):
    whole = list(plan(accumulate=2))
    assert list(plan(accumulate=2, first_step=first_step)) == whole[2 * first_step :]
    assert list(plan(accumulate=2, last_step=first_step)) == whole[: 2 * first_step]


def test_a_long_run_is_not_listed_in_advance():
    assert len(list(islice(plan(last_step=10**12), 7))) == 7


def test_positions_of_requests():
    for rank in range(2):
        requests = plan(accumulate=2, rank=rank, world=2)
        for number, part in enumerate(requests):
            step, expected_part = divmod(number, 2)
            expected = Position(*divmod(step, 2), expected_part, rank)
            assert {requests.position(request) for request in part} == {expected}


def test_generators_depend_on_the_position():
    def draw(generator):
        assert generator.device.type == "cpu"
        return torch.rand(3, generator=generator).tolist()

    expected = torch.Generator().manual_seed(torch_seed(PREPARE, 5, 2, 1, 3, 4))
    assert draw(prepare_generator(5, 2 * 7 + 1, 7, 3, 4)) == draw(expected)
    expected = torch.Generator().manual_seed(torch_seed(AUGMENT, 5, 2, 1, 3, 4))
    assert draw(augment_generator(5, Position(2, 1, 3, 4))) == draw(expected)
    keys = [(5, 15, 7, 3, 4), (6, 15, 7, 3, 4), (5, 16, 7, 3, 4), (5, 22, 7, 3, 4), (5, 15, 7, 2, 4), (5, 15, 7, 3, 5)]
    assert len({tuple(draw(prepare_generator(*key))) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 7}, "at least one batch of 8, got a set of 7"),
        ({"length": 300, "batch": 264, "repeats": 3}, "at least one batch of 264, got a set of 300"),
        ({"world": 3}, "divides among 3 processes with 1 parts each, got 8"),
        ({"world": 4, "accumulate": 4}, "divides among 4 processes with 4 parts each, got 8"),
        ({"rank": 2, "world": 2}, r"a rank in \[0, 2\), got 2"),
        ({"first_step": 7}, "first_step <= last_step, got 7 and 6"),
        ({"first_step": -1}, "0 <= first_step"),
    ],
)
def test_plans_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


def test_orders_are_plain_numbers():
    assert epoch_order(5, 0, 0).dtype == np.int64
    assert all(type(value) is int for request in next(iter(plan())) for value in request)
