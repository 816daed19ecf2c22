import pickle

import pytest

from cast.data.packed_names import PackedNames


def test_names_come_back():
    names = ["a.jpg", "", "Straße/ü.png", "undecodable \udcff.jpg"]
    packed = PackedNames(iter(names))
    assert len(packed) == 4
    assert [packed[i] for i in range(4)] == names
    assert [pickle.loads(pickle.dumps(packed))[i] for i in range(4)] == names


@pytest.mark.parametrize("index", [-1, 2])
def test_no_name_outside(index):
    with pytest.raises(IndexError, match=r"\[0, 2\)"):
        PackedNames(["a", "b"])[index]


def test_pickled_as_two_blocks_not_as_many_names():
    packed = PackedNames(f"class/{i:06d}.jpg" for i in range(10_000))
    assert len(pickle.dumps(packed)) < 10_000 * (16 + 8) + 1000  # characters and ends, and no more per name
