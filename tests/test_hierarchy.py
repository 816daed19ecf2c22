import itertools
import sys

import numpy as np
import pytest
import torch

from cast.hierarchy import Hierarchy


def make(batch=2, height=7, width=5, counts=(13, 5, 3, 1), seed=0, dtype=torch.float32, device="cpu"):
    """Random superpixels and logits with many ties."""
    g = torch.Generator().manual_seed(seed)
    superpixels = torch.randint(0, counts[0], (batch, height, width), generator=g)
    logits = [
        torch.randint(0, 4, (batch, fine, coarse), generator=g).to(device, dtype)
        for fine, coarse in itertools.pairwise(counts)
    ]
    return superpixels.to(device), logits


def walk(superpixels, logits):
    """Label maps by plain loops: the definition."""
    batch, height, width = superpixels.shape
    maps = np.empty((batch, len(logits) + 1, height, width), dtype=np.int64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                label = maps[b, 0, y, x] = int(superpixels[b, y, x])
                for level, table in enumerate(logits):
                    row = table[b, label].tolist()
                    label = maps[b, level + 1, y, x] = row.index(max(row))
    return maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("counts", [(13, 5, 3, 1), (1, 1), (7, 7, 7), (196, 64, 32, 16, 8)])
def test_labels_are_the_chain_of_largest_logits_lowest_index_on_ties(counts, dtype, device):
    superpixels, logits = make(counts=counts, dtype=dtype, device=device)
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    maps = hierarchy.label_maps()
    assert maps.dtype == torch.int32
    assert maps.device.type == device
    np.testing.assert_array_equal(maps.cpu().numpy(), walk(superpixels.cpu(), logits))
    assert hierarchy.num_segments == counts
    assert hierarchy.num_levels == len(counts)
    again = Hierarchy(superpixels, hierarchy.parents, num_coarsest=counts[-1])
    assert torch.equal(again.label_maps(), maps)
    assert all(p.dtype == torch.int64 for p in hierarchy.parents)
    for level in range(len(counts)):
        chain = hierarchy.chain(level)
        assert chain.dtype == torch.int64
        assert torch.equal(chain.gather(1, superpixels.flatten(1)).view_as(superpixels).int(), maps[:, level])


def test_recorded_hierarchy(monkeypatch, shared_folder):
    monkeypatch.syspath_prepend(str(shared_folder("fixtures")))
    try:
        import oracle_common
        import oracle_functions

        recorded = oracle_common.load_arrays("fn_hierarchy")
        for case, (logits, superpixels) in enumerate(oracle_functions.hierarchy_cases()):
            maps = Hierarchy.from_assignments(superpixels, logits).label_maps()[:, 1:].numpy()
            expected = recorded[f"out_{case}"]
            assert maps.shape == expected.shape
            assert (maps == expected).all()
    finally:
        sys.modules.pop("oracle_common", None)
        sys.modules.pop("oracle_functions", None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_labels_outside_belong_to_no_segment_at_any_level(dtype):
    superpixels, logits = make()
    superpixels[0, 0, 0], superpixels[1, 2, 3] = -7, 13
    if dtype == torch.int64:
        superpixels[0, 1, 1] = 2**32 + 1  # would be a valid label if it were cut to 32 bits
    hierarchy = Hierarchy.from_assignments(superpixels.to(dtype), logits)
    stray = (superpixels < 0) | (superpixels >= 13)
    maps = hierarchy.label_maps()
    assert torch.equal(maps == -1, stray[:, None].expand_as(maps))
    assert (maps[~stray[:, None].expand_as(maps)] >= 0).all()
    assert hierarchy.areas(2).sum() == (~stray).sum()
    assert (hierarchy.soft_maps(2).sum(1)[stray] == 0).all()


def test_uint8_labels():
    superpixels, logits = make()
    stray = superpixels.clone()
    stray[0, 0, 0] = 255
    hierarchy = Hierarchy.from_assignments(stray.to(torch.uint8), logits)
    assert hierarchy.labels(0)[0, 0, 0] == -1
    assert torch.equal(hierarchy.labels(0)[1], superpixels[1].int())


def test_soft_is_the_product_of_soft_assignments():
    superpixels, logits = make(dtype=torch.float64)
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    expected = np.eye(13)[None].repeat(2, 0)
    np.testing.assert_array_equal(hierarchy.soft(0), expected)
    for level, table in enumerate(logits):
        e = np.exp(table.numpy())
        expected = expected @ (e / e.sum(-1, keepdims=True))
        np.testing.assert_allclose(hierarchy.soft(level + 1), expected, rtol=1e-12)
        maps = hierarchy.soft_maps(level + 1)
        assert maps.shape == (2, table.shape[2], 7, 5)
        np.testing.assert_array_equal(maps[1, :, 3, 2], hierarchy.soft(level + 1)[1, superpixels[1, 3, 2]])


def test_soft_of_half_precision_is_float32_and_carries_gradients():
    superpixels, logits = make(dtype=torch.float16)
    logits[0].requires_grad_(True)
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    assert hierarchy.soft(3).dtype == torch.float32
    (hierarchy.soft(1) ** 2).sum().backward()
    assert logits[0].grad.abs().sum() > 0
    assert not hierarchy.parents[0].requires_grad


def test_known_parents_are_kept():
    superpixels = torch.zeros(1, 2, 2, dtype=torch.int32)
    logits = [torch.zeros(1, 3, 2, dtype=torch.bfloat16)]  # a tie, as rounding to half precision makes them
    hierarchy = Hierarchy.from_assignments(superpixels, logits, [torch.tensor([[1, 0, 1]])])
    assert hierarchy.parents[0].tolist() == [[1, 0, 1]]
    with pytest.raises(ValueError, match="one table of parents"):
        Hierarchy.from_assignments(superpixels, logits, [torch.tensor([[1, 0]])])


def test_hard_parents_have_no_soft_assignments():
    superpixels, logits = make()
    hierarchy = Hierarchy(superpixels, [table.argmax(-1) for table in logits])
    assert hierarchy.assignments is None
    for method in (hierarchy.soft, hierarchy.soft_maps):
        with pytest.raises(ValueError, match="hard parents"):
            method(1)
    with pytest.raises(ValueError, match="hard parents"):
        hierarchy.arrays(soft=True)


def test_areas_count_pixels_and_know_empty_segments():
    superpixels, logits = make(counts=(40, 12, 3))
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    for level, count in enumerate((40, 12, 3)):
        labels = hierarchy.labels(level).numpy()
        expected = [np.bincount(image.ravel(), minlength=count) for image in labels]
        np.testing.assert_array_equal(hierarchy.areas(level), expected)
    assert (hierarchy.areas(0) == 0).any()


@pytest.mark.parametrize(("height", "width"), [(7, 5), (14, 10), (3, 2), (1, 1), (23, 31), (8, 4)])
def test_resize_is_nearest_neighbour_with_aligned_centres(height, width):
    superpixels, logits = make()
    resized = Hierarchy.from_assignments(superpixels, logits).resize(height, width)
    rows = [int((i + 0.5) * 7 / height) for i in range(height)]
    columns = [int((j + 0.5) * 5 / width) for j in range(width)]
    assert torch.equal(resized.superpixels, superpixels[:, rows][:, :, columns].int())
    assert resized.size == (height, width)
    assert resized.assignments is not None


def test_one_image_of_a_batch():
    superpixels, logits = make(batch=3)
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    assert len(hierarchy) == hierarchy.batch_size == 3
    singles = list(hierarchy)
    assert len(singles) == 3
    for b, single in enumerate(singles):
        assert single.batch_size == 1
        assert torch.equal(single.label_maps()[0], hierarchy.label_maps()[b])
        assert torch.equal(single.soft(2)[0], hierarchy.soft(2)[b])
    assert torch.equal(hierarchy[-1].superpixels, hierarchy[2].superpixels)
    with pytest.raises(IndexError, match="batch of 3"):
        hierarchy[3]


def test_empty_batch():
    superpixels, logits = make(batch=0)
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    assert hierarchy.label_maps().shape == (0, 4, 7, 5)
    assert hierarchy.tables() == []


def test_input_is_not_shared_or_changed():
    superpixels, logits = make()
    before = superpixels.clone()
    hierarchy = Hierarchy.from_assignments(superpixels.mT, logits)  # non-contiguous
    assert torch.equal(hierarchy.labels(0), before.mT.int())
    assert torch.equal(superpixels, before)


@pytest.mark.parametrize("soft", [False, True])
def test_save_and_load(tmp_path, soft):
    superpixels, logits = make()
    superpixels[0, 0, 0] = -1
    hierarchy = Hierarchy.from_assignments(superpixels, logits)
    path = tmp_path / "größe.npz"
    hierarchy.save(path, soft=soft)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = Hierarchy.load(path)
    assert torch.equal(loaded.label_maps(), hierarchy.label_maps())
    assert loaded.num_segments == hierarchy.num_segments
    assert (loaded.assignments is not None) == soft
    if soft:
        assert torch.equal(loaded.soft(3), hierarchy.soft(3))
    with np.load(path) as arrays:
        assert arrays["level0"].dtype == np.int16
        np.testing.assert_array_equal(arrays["level2"], hierarchy.labels(2))


def test_many_segments_need_wider_labels(tmp_path):
    superpixels = torch.arange(40_000).view(1, 200, 200)
    hierarchy = Hierarchy(superpixels, [torch.zeros(1, 40_000, dtype=torch.int32)])
    hierarchy.save(tmp_path / "h.npz")
    assert torch.equal(Hierarchy.load(tmp_path / "h.npz").superpixels, superpixels.int())
    assert hierarchy.num_segments == (40_000, 1)


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    hierarchy = Hierarchy.from_assignments(*make())
    path = tmp_path / "h.npz"
    path.write_bytes(b"precious")

    def interrupted(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hierarchy.save(path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_load_rejects_other_files(tmp_path, content):
    path = tmp_path / "h.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold a hierarchy"):
        Hierarchy.load(path)


def test_load_rejects_damaged_files(tmp_path):
    path = tmp_path / "h.npz"
    Hierarchy.from_assignments(*make(counts=(100, 9, 3), height=40, width=40)).save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="does not hold a hierarchy"):
            Hierarchy.load(path)
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    with pytest.raises(ValueError, match="does not hold a hierarchy"):
        Hierarchy.load(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"level0": np.full((1, 3, 4), 2**33)}, r"level0 must lie in \[-1, 6\)"),
        ({"level0": np.full((1, 3, 4), -2)}, r"level0 must lie in \[-1, 6\)"),
        ({"level0": np.zeros((1, 3, 4))}, "level0 of signed integers"),
        ({"level0": np.zeros((1, 3, 4), np.uint64)}, "level0 of signed integers"),
        ({"level0": np.zeros((3, 3, 3, 3), int)}, r"superpixels \[B, H, W\]"),
        ({"num_segments": np.array([9, 2])}, "for 2 levels"),
        ({"num_segments": np.array([6, 3, 2, 2])}, "for 4 levels"),
        ({"num_segments": np.array([9, 3, 2])}, r"have \[6, 3\] rows"),
        ({"num_segments": np.zeros(0, int)}, "at least two levels"),
        ({"num_segments": np.array(6)}, "at least two levels"),
        ({"num_segments": np.array([6.0, 3.0, 2.0])}, "num_segments of signed integers"),
        ({"num_segments": np.array([6, 3, 1])}, r"parents\[1\] must lie in \[0, 1\)"),
        ({"parents0": np.full((1, 6), 2**32)}, r"parents\[0\] must lie in"),
        ({"parents0": np.zeros((2, 6), int)}, "holds 2 images"),
        ({"parents1": np.zeros(3, int)}, r"parents\[1\] \[B, N\]"),
        ({"assignments0": np.zeros((1, 6, 3))}, "assignments0, assignments1"),
        ({"assignments0": np.zeros((1, 6, 2)), "assignments1": np.zeros((1, 3, 2))}, "assigns to 2"),
    ],
)
def test_load_rejects_tables_that_contradict_each_other(tmp_path, changes, match):
    arrays = {
        "num_segments": np.array([6, 3, 2]),
        "level0": np.arange(12).reshape(1, 3, 4) % 7 - 1,
        "parents0": np.array([[0, 1, 2, 2, 1, 0]]),
        "parents1": np.array([[0, 1, 1]]),
    }
    path = tmp_path / "h.npz"
    np.savez(path, **arrays)
    assert Hierarchy.load(path).num_segments == (6, 3, 2)
    np.savez(path, **arrays | changes)
    with pytest.raises(ValueError, match=match) as error:
        Hierarchy.load(path)
    assert str(path) in str(error.value)


def test_load_of_changed_bytes_gives_a_hierarchy_or_a_value_error(tmp_path):
    path = tmp_path / "h.npz"
    Hierarchy.from_assignments(*make()).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        broken = whole.copy()
        broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        try:
            Hierarchy.load(path)
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Hierarchy.load(tmp_path / "absent.npz")


def test_tables_are_plain_numbers():
    hierarchy = Hierarchy.from_assignments(*make())
    table = hierarchy.tables()[1]
    assert table["num_segments"] == [13, 5, 3, 1]
    assert table["parents"] == [p[1].tolist() for p in hierarchy.parents]
    assert [sum(areas) for areas in table["areas"]] == [35] * 4


INTS, TABLE = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "match", "build"),
    [
        (TypeError, "superpixels to be an integer", lambda: Hierarchy(INTS.float(), [TABLE])),
        (TypeError, "superpixels to be an integer", lambda: Hierarchy(INTS.bool(), [TABLE])),
        (TypeError, "superpixels to be an integer", lambda: Hierarchy(INTS.numpy(), [TABLE])),
        (ValueError, r"superpixels \[B, H, W\]", lambda: Hierarchy(INTS[0], [TABLE])),
        (ValueError, "at least one", lambda: Hierarchy(INTS, [])),
        (TypeError, r"parents\[0\] to be an integer", lambda: Hierarchy(INTS, [TABLE.float()])),
        (ValueError, r"parents\[0\] \[B, N\]", lambda: Hierarchy(INTS, [TABLE[0]])),
        (ValueError, "holds 1 images", lambda: Hierarchy(INTS, [TABLE[:1]])),
        (ValueError, r"parents\[0\] must lie in \[0, 3\)", lambda: Hierarchy(INTS, [TABLE + 3, TABLE[:, :3]])),
        (ValueError, r"parents\[0\] must lie in", lambda: Hierarchy(INTS, [TABLE - 1], num_coarsest=2)),
        (ValueError, "one soft assignment per table", lambda: Hierarchy(INTS, [TABLE], [])),
        (ValueError, r"soft\[0\] \[B, 6, K\]", lambda: Hierarchy(INTS, [TABLE], [torch.zeros(2, 5, 2)])),
        (ValueError, "assigns to 2", lambda: Hierarchy(INTS, [TABLE], [torch.zeros(2, 6, 2)], num_coarsest=3)),
        (ValueError, "at least one level", lambda: Hierarchy.from_assignments(INTS, [])),
        (TypeError, "floating point", lambda: Hierarchy.from_assignments(INTS, [TABLE[..., None]])),
        (ValueError, "no clusters", lambda: Hierarchy.from_assignments(INTS, [torch.zeros(2, 6, 0)])),
        (
            ValueError,
            r"logits\[1\] \[B, 4, K\]",
            lambda: Hierarchy.from_assignments(INTS, [torch.zeros(2, 6, 4), torch.zeros(2, 5, 2)]),
        ),
        (
            ValueError,
            r"parents\[0\] must lie in \[0, 3\), got 99",
            lambda: Hierarchy.from_assignments(INTS, [torch.zeros(2, 6, 3)], [TABLE + 99]),
        ),
        (
            TypeError,
            r"parents\[0\] to be an integer",
            lambda: Hierarchy.from_assignments(INTS, [torch.zeros(2, 6, 3)], [TABLE.float()]),
        ),
        (TypeError, "superpixels to be an integer", lambda: Hierarchy(INTS.to(torch.uint64), [TABLE])),
        (TypeError, "num_coarsest to be an integer", lambda: Hierarchy(INTS, [TABLE], num_coarsest=1.5)),
        (TypeError, "index of one image.*slice", lambda: Hierarchy(INTS, [TABLE])[0:1]),
        (TypeError, "height to be an integer, got float", lambda: Hierarchy(INTS, [TABLE]).resize(3.5, 4)),
        (TypeError, "width to be an integer, got float", lambda: Hierarchy(INTS, [TABLE]).resize(3, 4.0)),
        (TypeError, "level to be an integer", lambda: Hierarchy(INTS, [TABLE]).labels(1.0)),
        (ValueError, "level in", lambda: Hierarchy(INTS, [TABLE]).labels(2)),
        (ValueError, "level in", lambda: Hierarchy(INTS, [TABLE]).chain(-1)),
        (ValueError, "cannot resize", lambda: Hierarchy(INTS, [TABLE]).resize(0, 3)),
    ],
)
def test_rejects_bad_input(error, match, build):
    with pytest.raises(error, match=match):
        build()


def test_stays_on_the_device_without_a_host_sync(device):
    superpixels, logits = make(device=device)
    expected = Hierarchy.from_assignments(superpixels.cpu(), [table.cpu() for table in logits])
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        hierarchy = Hierarchy.from_assignments(superpixels, logits)
        maps, areas, resized = hierarchy.label_maps(), hierarchy.areas(1), hierarchy.resize(9, 9)
        soft, last = hierarchy.soft_maps(2), hierarchy[1]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert {t.device.type for t in (maps, areas, soft, resized.superpixels, last.superpixels)} == {device}
    assert torch.equal(maps.cpu(), expected.label_maps())
    assert torch.equal(areas.cpu(), expected.areas(1))
    assert torch.equal(resized.to("cpu").superpixels, expected.resize(9, 9).superpixels)
