import pytest
import torch
from gpu_checks import assert_graph_replays, assert_no_synchronisation, needs_gpu
from small_vit import FAMILIES, close, features_by_hand, make_image, make_vit, wake_pools

from cast import patch_timm, unpatch_timm

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_family
@torch.no_grad()
def test_as_many_clusters_as_tokens_only_permute_them(family, dtype):
    vit = make_vit(family, grid=(3, 5), dtype=dtype)
    image = make_image(vit)
    expected, features = vit(image), vit.forward_features(image)
    assert expected.std() > 0.1
    found = patch_timm(vit, {0: 15, 1: 15, 2: 15}).forward_hierarchy(image)
    close(vit(image), expected)
    close(found.logits, expected)
    place = torch.arange(15).expand(2, -1)
    for pool in found.pools:
        place = place.gather(1, pool.indices)
    assert not torch.equal(place, torch.arange(15).expand(2, -1))  # or nothing was tested
    order = torch.cat([torch.arange(vit.num_prefix_tokens).expand(2, -1), vit.num_prefix_tokens + place], 1)
    close(found.features, features.gather(1, order[..., None].expand_as(features)))


@every_family
@torch.no_grad()
def test_fewer_clusters_match_a_forward_pass_by_hand(family):
    vit = wake_pools(patch_timm(make_vit(family, grid=(3, 5), dtype=torch.float64), {0: 11, 1: 7, 3: 1}))
    image = make_image(vit, batch=3)
    found = vit.forward_features(image)
    assert found.shape == (3, vit.num_prefix_tokens + 1, 48)
    close(found, features_by_hand(vit, image))
    close(vit(image), vit.forward_head(found))


@torch.no_grad()
def test_at_first_pools_keep_the_farthest_tokens_and_leave_the_class_token():
    vit = patch_timm(make_vit(dtype=torch.float64), {3: 6})
    image = make_image(vit)
    found = vit.forward_features(image)
    indices = vit.forward_hierarchy(image).pools[0].indices
    plain = unpatch_timm(vit).forward_features(image)
    close(found, torch.cat([plain[:, :1], plain[:, 1:].gather(1, indices[..., None].expand(-1, -1, 48))], 1))


@pytest.mark.parametrize("family", ["plain", "distilled", "siglip", "dinov3", "mixed"])
def test_every_parameter_gets_a_gradient_and_checkpointing_gives_the_same(family):
    vit = wake_pools(patch_timm(make_vit(family, dtype=torch.float64), {0: 9, 1: 5}, dropout=0.0)).train()
    first, second = make_image(vit), make_image(vit)

    def gradients():
        vit.zero_grad()
        out = vit(first), vit(second)  # both passes before either gradient, so that none may leave state behind
        (out[0].square().sum() + 2 * out[1].square().sum()).backward()
        return {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}

    plain = gradients()
    assert set(plain) == {name for name, _ in vit.named_parameters()}
    for name, gradient in plain.items():
        centred = name.endswith("attn.proj.bias") and name.startswith("graph_pools")
        assert (gradient.abs().max() < 1e-9) if centred else (gradient.abs().max() > 0), name
    vit.set_grad_checkpointing()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-9, atol=1e-9, msg=name)


def test_pooling_starts_to_learn_from_zero():
    vit = patch_timm(make_vit(), {0: 6}).train()
    optimizer = torch.optim.SGD(vit.parameters(), 0.1)
    image = make_image(vit)
    for _ in range(2):
        optimizer.zero_grad()
        vit(image).square().mean().backward()
        optimizer.step()
    pool = vit.graph_pools["0"]
    assert pool.fc2.weight.abs().max() > 0
    assert pool.attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", ["plain", "dinov3", "mixed"])
def test_compiles_to_one_graph(family):
    vit = wake_pools(patch_timm(make_vit(family, depth=2), {0: 8, 1: 4}, dropout=0.0)).train()
    image = make_image(vit)
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(vit(image).sum(), vit.patch_embed.proj.weight)
    found = torch.autograd.grad(compiled(image).sum(), vit.patch_embed.proj.weight)
    torch.testing.assert_close(compiled(image), vit(image), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_compiles_with_its_own_superpixels():
    vit = wake_pools(patch_timm(make_vit(depth=2), {0: 8}, superpixels=16))
    image = make_image(vit)
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), vit(image), rtol=1e-4, atol=1e-4)


def test_compiles_with_checkpointing():
    vit = wake_pools(patch_timm(make_vit(depth=2), {0: 8}))
    vit.set_grad_checkpointing()
    image = make_image(vit)
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(vit(image).sum(), vit.patch_embed.proj.weight)
    found = torch.autograd.grad(compiled(image).sum(), vit.patch_embed.proj.weight)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["plain", "dinov3"])
def test_exports(family):
    vit = patch_timm(make_vit(family, depth=2), {0: 8, 1: 4})
    image = make_image(vit)
    program = torch.export.export(vit, (image,), strict=True)
    torch.testing.assert_close(program.module()(image), vit(image), rtol=1e-5, atol=1e-5)


@every_family
@torch.no_grad()
def test_half_precision(family):
    vit = wake_pools(patch_timm(make_vit(family), {0: 8, 2: 4}))
    image = make_image(vit)
    assert vit(image).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vit(image).isfinite().all()
    half = vit.bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_deterministic_and_indifferent_to_the_batch():
    vit = wake_pools(patch_timm(make_vit(), {0: 8, 2: 4}))
    image = make_image(vit, batch=3)
    assert torch.equal(vit(image), vit(image))
    close(vit(image[1:2]), vit(image)[1:2])
    assert vit(image[:0]).shape == (0, 5)


@pytest.mark.parametrize("family", ["plain", "registers", "siglip", "dinov3"])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@torch.no_grad()
def test_intermediates_of_a_permutation_are_those_of_the_model(family, output_fmt):
    vit = make_vit(family, grid=(3, 5), dtype=torch.float64)
    image = make_image(vit)
    options = {"output_fmt": output_fmt, "return_prefix_tokens": vit.num_prefix_tokens > 0}
    calls = [{"indices": [0, 3, -2]}, {"indices": 2, "norm": True}, {"indices": [1], "stop_early": True}, {}]
    expected = [vit.forward_intermediates(image, intermediates_only=True, **options, **call) for call in calls]
    patch_timm(vit, {0: 15, 2: 15})
    for call, maps in zip(calls, expected, strict=True):
        found = vit.forward_intermediates(image, intermediates_only=True, **options, **call)
        assert len(found) == len(maps)
        for one, other in zip(found, maps, strict=True):
            pairs = zip(one, other, strict=True) if options["return_prefix_tokens"] else [(one, other)]
            for a, b in pairs:
                close(a, b)


@torch.no_grad()
def test_intermediates_give_each_patch_the_token_of_its_segment():
    vit = wake_pools(patch_timm(make_vit(grid=(3, 5), dtype=torch.float64), {0: 6, 1: 2}))
    image = make_image(vit)
    features, maps = vit.forward_intermediates(image)
    out = vit.forward_hierarchy(image)
    assert torch.equal(features, out.features)
    assert [m.shape for m in maps] == [(2, 48, 3, 5)] * 4
    last = vit.norm(maps[3].permute(0, 2, 3, 1))
    for b in range(2):
        for patch in range(15):
            segment = out.pools[1].parents[b, out.pools[0].parents[b, patch]]
            close(last[b].flatten(0, 1)[patch], features[b, 1 + segment])
    as_dict = vit.forward_intermediates(image, [1], output_dict=True, return_prefix_tokens=True)
    assert torch.equal(as_dict["image_intermediates"][0], maps[1])
    assert as_dict["image_intermediates_prefix"][0].shape == (2, 1, 48)
    assert torch.equal(as_dict["image_features"], features)


def test_refuses_bad_calls():
    vit = patch_timm(make_vit(), {0: 17})
    image = make_image(vit)
    with pytest.raises(ValueError, match="17 tokens to pool, got 16"):
        vit(image)
    with pytest.raises(ValueError, match="attention mask"):
        vit(image, attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="attention mask"):
        vit.forward_intermediates(image, is_causal=True)
    with pytest.raises(ValueError, match="NCHW"):
        vit.forward_intermediates(image, output_fmt="NHWC")
    for indices in ([4], 0, 5, []):
        with pytest.raises(ValueError, match="indices of 4"):
            vit.forward_intermediates(image, indices)


@torch.no_grad()
def test_the_number_of_clusters_may_change_after_training():
    vit = wake_pools(patch_timm(make_vit(dtype=torch.float64), {0: 8, 2: 4}))
    image = make_image(vit)
    before = vit(image)
    vit.graph_pools["0"].num_clusters, vit.graph_pools["2"].num_clusters = 11, 6
    assert vit.hierarchy(image).num_segments == (16, 11, 6)
    close(vit.forward_features(image), features_by_hand(vit, image))
    assert not torch.allclose(vit(image), before)


class TestOnTheGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("family", ["plain", "dinov3"])
    @torch.no_grad()
    def test_runs_without_waiting_and_in_a_graph(self, family):
        vit = wake_pools(patch_timm(make_vit(family), {0: 8, 2: 4})).cuda()
        case, other = (make_image(vit).cuda(),), (make_image(vit).cuda(),)

        def run(image):
            return (vit(image),)

        assert_no_synchronisation(run, case)
        assert_graph_replays(run, case, other)
