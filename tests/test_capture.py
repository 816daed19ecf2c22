"""`model.capture()`: what it refuses anywhere, and what a captured model must hold on a GPU."""

import copy

import pytest
import torch
from gpu_checks import needs_gpu
from small_model import grid_labels, make_model, photo

from cast import create_model
from cast.capture import CapturedModel


@pytest.fixture
def vit():
    return create_model("vit_conv_small", embed_dim=48, num_heads=4, depth=1, img_size=64, num_classes=5).eval()


# --- refused before anything is launched


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 64), {}, ValueError, "expected batch to be an integer of at least 1, got 0"),
        ((True, 64), {}, ValueError, "expected batch"),
        ((1, (64, -8)), {}, ValueError, "expected width to be an integer of at least 1, got -8"),
        ((1, 64.0), {}, ValueError, "expected height"),
        ((1, 64), {"dtype": torch.int64}, TypeError, r"expected dtype uint8 or floating point, got torch\.int64"),
        ((1, 64), {"labels": True, "num_superpixels": 25}, ValueError, "labels or num_superpixels, got both"),
        ((1, 8), {}, ValueError, "SEEDS cannot divide"),
        ((1, 64), {}, ValueError, "expected a model on a CUDA device, got one on cpu"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        make_model().capture(*arguments, **options)


def test_train_mode():
    with pytest.raises(ValueError, match=r"call eval\(\) before capture\(\)"):
        make_model().train().capture(1, 64)


@pytest.mark.parametrize("options", [{"labels": True}, {"num_segments": 16}, {"num_superpixels": 16}])
def test_patches_have_no_superpixels(vit, options):
    with pytest.raises(ValueError, match="ViT is a model of patches"):
        vit.capture(1, 64, **options)


# --- what goes into a call is checked without a device, too


def stub(labels):
    """A captured model without a graph: its checks run before any of CUDA."""
    captured = CapturedModel.__new__(CapturedModel)
    captured.image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    captured.labels = torch.zeros(2, 64, 64, dtype=torch.int32) if labels else None
    return captured


@pytest.mark.parametrize(
    ("labels", "arguments", "error", "message"),
    [
        (False, (torch.zeros(2, 3, 64, 64),), TypeError, r"expected an image in torch\.uint8, as captured"),
        (False, (photo(1, 64, 64),), ValueError, r"expected an image \(2, 3, 64, 64\), as captured"),
        (False, (photo(2, 64, 64)[0],), ValueError, "expected an image"),
        (False, ("photo.jpg",), TypeError, "expected image to be a torch.Tensor"),
        (False, (photo(2, 64, 64), grid_labels(2, 64, 64)), ValueError, "expected no labels"),
        (True, (photo(2, 64, 64),), ValueError, "captured with labels=True"),
        (True, (photo(2, 64, 64), grid_labels(2, 64, 64).float()), TypeError, "expected integer labels"),
        (True, (photo(2, 64, 64), grid_labels(2, 32, 64)), ValueError, r"expected labels \(2, 64, 64\), as captured"),
    ],
)
def test_bad_calls(labels, arguments, error, message):
    with pytest.raises(error, match=message):
        stub(labels)(*arguments)


# --- on a GPU


def tensors(output):
    """All tensors of an output, the hierarchy's among them."""
    if isinstance(output, torch.Tensor):
        return [output]
    hierarchy = output.hierarchy
    levels = [t for level in output.levels for t in level]
    return [*(t for t in output if isinstance(t, torch.Tensor)), hierarchy.label_maps(), *hierarchy.parents, *levels]


def assert_equal(output, expected):
    assert all(torch.equal(a, b) for a, b in zip(tensors(output), tensors(expected), strict=True))


class TestOnGPU:
    pytestmark = needs_gpu

    @pytest.fixture
    def model(self):
        return make_model().cuda()

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("hierarchy", [True, False])
    def test_labels_given(self, model, dtype, hierarchy):
        model = model.to(dtype)
        captured = model.capture(2, (64, 72), labels=True, num_segments=40, hierarchy=hierarchy)
        for _ in range(3):
            image = photo(2, 64, 72).cuda()
            labels = torch.randint(0, 40, (2, 64, 72)).cuda()
            forward = model.forward_hierarchy if hierarchy else model
            assert_equal(captured(image, labels), forward(image, labels, 40))

    @torch.no_grad()
    def test_superpixels_inside(self, model):
        """Where this build makes them on the device; otherwise it says what to do instead."""
        image = photo(2, 64, 64).cuda()
        try:
            captured = model.capture(2, 64)
        except ValueError as error:
            assert "capture with labels=True" in str(error)  # noqa: PT017
        else:
            assert_equal(captured(image), model.forward_hierarchy(image))
            assert_equal(captured(image.permute(0, 2, 3, 1).contiguous()), model.forward_hierarchy(image))
        model(image)  # and the device is as usable as before

    @torch.no_grad()
    def test_two_side_by_side(self, model):
        """At two sizes, called in turn; and what the first returned stays until its own next call."""
        small, large = model.capture(1, 64, labels=True), model.capture(3, 96, labels=True)
        image, labels = photo(1, 64, 64).cuda(), grid_labels(1, 64, 64).cuda()
        first = small(image, labels)
        kept = [t.clone() for t in tensors(first)]
        for _ in range(3):
            image, labels = photo(3, 96, 96).cuda(), grid_labels(3, 96, 96, 24).cuda()
            assert_equal(large(image, labels), model.forward_hierarchy(image, labels))
        assert all(torch.equal(a, b) for a, b in zip(tensors(first), kept, strict=True))

    @torch.no_grad()
    def test_a_shared_pool(self, model):
        first = model.capture(2, 64, labels=True)
        second = model.capture(2, 64, labels=True, pool=first.pool)
        assert second.pool == first.pool
        for captured in (first, second, first):
            image, labels = photo(2, 64, 64).cuda(), grid_labels(2, 64, 64).cuda()
            expected = model.forward_hierarchy(image, labels)
            assert_equal(captured(image, labels), expected)

    @torch.no_grad()
    def test_weights_changed_in_place_take_effect(self, model):
        captured = model.capture(1, 64, labels=True, hierarchy=False)
        image, labels = photo(1, 64, 64).cuda(), grid_labels(1, 64, 64).cuda()
        before = captured(image, labels).clone()
        model.load_state_dict(make_model().state_dict())
        assert torch.equal(captured(image, labels), model(image, labels))
        assert not torch.equal(captured(image, labels), before)

    @torch.no_grad()
    def test_weights_that_moved_away_are_kept(self, model):
        captured = model.capture(1, 64, labels=True, hierarchy=False)
        image, labels = photo(1, 64, 64).cuda(), grid_labels(1, 64, 64).cuda()
        expected = model(image, labels)
        model.cpu()
        junk = [torch.full((2**18,), 77.0, device="cuda") for _ in range(16)]
        assert torch.equal(captured(image, labels), expected)
        assert len(junk) == 16

    @torch.no_grad()
    def test_autocast(self, model):
        image, labels = photo(2, 64, 64).cuda(), grid_labels(2, 64, 64).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            model(image, labels)  # fills the cache of casts
            captured = model.capture(2, 64, labels=True, hierarchy=False)
            expected = model(image, labels)
        torch.full((2**24,), 77.0, device="cuda")  # over what the cache of casts held
        assert expected.dtype == captured.output.dtype == torch.bfloat16
        assert torch.equal(captured(image, labels), expected)

    @torch.no_grad()
    def test_other_streams_and_other_devices_of_inputs(self, model):
        captured = model.capture(1, 64, labels=True)
        image, labels = photo(1, 64, 64), grid_labels(1, 64, 64)
        expected = model.forward_hierarchy(image.cuda(), labels.cuda())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = captured(image.pin_memory(), labels)
        torch.cuda.current_stream().wait_stream(side)
        assert_equal(found, expected)

    @torch.no_grad()
    def test_calls_wait_for_nothing(self, model):
        captured = model.capture(1, 64, labels=True)
        image, labels = photo(1, 64, 64).cuda(), grid_labels(1, 64, 64).cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            captured(image, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @torch.no_grad()
    def test_what_waits_is_refused(self, model):
        model.norm.register_forward_hook(lambda *_: print(torch.zeros(1, device="cuda").item()))
        with pytest.raises(ValueError, match="waits for the device"):
            model.capture(1, 64, labels=True)
        assert torch.cuda.get_sync_debug_mode() == 0

    @torch.no_grad()
    def test_fused_models_and_patches(self, model, vit):
        image, labels = photo(2, 64, 64).cuda(), grid_labels(2, 64, 64).cuda()
        fused = copy.deepcopy(model).fuse()
        assert_equal(fused.capture(2, 64, labels=True)(image, labels), fused.forward_hierarchy(image, labels))
        vit = vit.cuda()
        assert torch.equal(vit.capture(2, 64)(image), vit(image))

    @torch.no_grad()
    def test_normalised_images(self, model):
        captured = model.capture(2, 64, labels=True, dtype=torch.float32)
        image, labels = torch.randn(2, 3, 64, 64).cuda(), grid_labels(2, 64, 64).cuda()
        assert_equal(captured(image, labels), model.forward_hierarchy(image, labels))
