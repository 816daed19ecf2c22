"""The building blocks against their definitions, written out in plain loops and products."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cast.layers import (
    Attention,
    Block,
    BlockFusion,
    ConvStem,
    DropPath,
    Mlp,
    resize_labels,
    resize_pos_embed,
    sincos_2d,
    superpixel_tokens,
    tokens_to_pixels,
)


@pytest.mark.parametrize(("tokens", "dim", "heads"), [(1, 8, 1), (7, 12, 12), (13, 30, 3)])
def test_attention_is_softmax_of_scaled_products(tokens, dim, heads):
    layer = Attention(dim, heads).double()
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    out = torch.empty_like(x)
    width = dim // heads
    for b in range(2):
        q, k, v = (x[b] @ layer.qkv.weight.T + layer.qkv.bias).split(dim, dim=1)
        for h in range(heads):
            s = slice(h * width, (h + 1) * width)
            out[b, :, s] = (q[:, s] @ k[:, s].T / math.sqrt(width)).softmax(-1) @ v[:, s]
    expected = out @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_heads"):
        Attention(10, 3)


def test_attention_without_qkv_bias():
    assert Attention(12, 3, qkv_bias=False).qkv.bias is None


def test_mlp_uses_the_exact_gelu():
    layer = Mlp(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(layer(x), hidden @ layer.fc2.weight.T + layer.fc2.bias, rtol=1e-12, atol=1e-12)


def test_block_is_pre_norm_with_epsilon_1e_6():
    block = Block(12, 3).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x = 1e-3 * torch.randn(2, 5, 12, dtype=torch.float64)  # small enough for the epsilon to show

    def norm(layer, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    y = x + block.attn(norm(block.norm1, x))
    torch.testing.assert_close(block(x), y + block.mlp(norm(block.norm2, y)), rtol=1e-11, atol=1e-11)


def test_dropout_of_a_block_acts_on_attention_and_perceptron_while_training():
    plain, block = Block(12, 3, eps=1e-5), Block(12, 3, dropout=0.5, eps=1e-5)
    block.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 12)
    assert torch.equal(block.eval()(x), plain(x))
    block.train()
    attended, mixed = block.attn(torch.ones(1, 400, 12)), block.mlp(torch.ones(1, 400, 12))
    for out in (attended, mixed):
        assert (out == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    kept = attended[attended != 0]
    assert kept.abs().min() > 0
    block.attn.dropout.p = block.mlp.dropout.p = 0.0
    assert torch.equal(block(x), plain(x))
    nn.init.zeros_(block.attn.proj.bias)
    block.attn.dropout.p = 0.999999
    assert not block.attn(x).any()
    assert not [m for m in plain.modules() if isinstance(m, nn.Dropout)]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out[:, 0, 0].mean().item() == pytest.approx(1.0, abs=0.04)
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert repr(layer) == "DropPath(drop_prob=0.25)"
    with pytest.raises(ValueError, match="drop_prob"):
        DropPath(1.0)


def test_block_drops_both_branches():
    block = Block(12, 3, drop_path=0.999999)
    x = torch.randn(2, 5, 12)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("size", [(8, 8), (32, 16), (24, 40)])
def test_conv_stem_widths_strides_and_grid(size):
    stem = ConvStem(3, 48)
    assert [layer.conv.out_channels for layer in stem.layers] == [6, 12, 24, 48]
    assert [layer.conv.stride for layer in stem.layers] == [(2, 2), (2, 2), (2, 2), (1, 1)]
    assert all(layer.conv.bias is None for layer in stem.layers)
    assert stem.proj.bias is not None
    assert stem.eval()(torch.randn(2, 3, *size)).shape == (2, 48, size[0] // 8, size[1] // 8)


def test_conv_stem_of_stride_16():
    stem = ConvStem(3, 16, stride=16).eval()
    assert [layer.conv.stride for layer in stem.layers] == [(2, 2)] * 4
    assert stem(torch.randn(1, 3, 33, 64)).shape == (1, 16, 3, 4)
    with pytest.raises(ValueError, match="stride 8 or 16, got 4"):
        ConvStem(3, 16, stride=4)


def test_conv_stem_ends_without_norm_or_activation():
    stem = ConvStem(3, 16).eval()
    x = torch.randn(1, 3, 16, 16)
    hidden = stem.layers(x)
    assert hidden.min() >= 0
    expected = torch.einsum("oc,bchw->bohw", stem.proj.weight[:, :, 0, 0], hidden) + stem.proj.bias[:, None, None]
    torch.testing.assert_close(stem(x), expected)
    with pytest.raises(ValueError, match="multiple of 8"):
        ConvStem(3, 20)


@pytest.mark.parametrize(("height", "width", "dim"), [(1, 1, 4), (3, 5, 12), (28, 28, 192)])
def test_sincos_table_is_row_first(height, width, dim):
    table = sincos_2d(height, width, dim)
    assert table.shape == (1, height * width, dim)
    assert table.dtype == torch.float32
    q = dim // 4
    for r in range(height):
        for c in range(0, width, 3):
            row = table[0, r * width + c].tolist()
            for k in range(q):
                w = 10000 ** (-k / q)
                expected = [math.sin(r * w), math.cos(r * w), math.sin(c * w), math.cos(c * w)]
                assert row[k::q] == pytest.approx(expected, abs=4e-6)


def test_sincos_rejects_odd_widths():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 6)


def test_resize_pos_embed_is_bicubic_over_the_grid():
    table = torch.randn(1, 12, 5, dtype=torch.float64, requires_grad=True)
    assert resize_pos_embed(table, (3, 4), (3, 4)) is table
    out = resize_pos_embed(table, (3, 4), (6, 2))
    assert out.shape == (1, 12, 5)
    # Separable cubic convolution with a = -0.75, sample positions of align_corners=False, borders repeated.
    expected = torch.zeros(6, 2, 5, dtype=torch.float64)
    for i in range(6):
        for j in range(2):
            for m, wm in _cubic(i, 3, 6):
                for n, wn in _cubic(j, 4, 2):
                    expected[i, j] += wm * wn * table[0, m * 4 + n].detach()
    torch.testing.assert_close(out.detach(), expected.reshape(1, 12, 5), rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert table.grad.abs().min() > 0
    with pytest.raises(ValueError, match="rows"):
        resize_pos_embed(table, (3, 3), (2, 2))


def _cubic(i, old, new, a=-0.75):
    x = (i + 0.5) * old / new - 0.5
    base, t = math.floor(x), x - math.floor(x)
    near = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (t, 1 - t)]
    far = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (1 + t, 2 - t)]
    weights = (far[0], near[0], near[1], far[1])
    return [(min(max(base + o, 0), old - 1), w) for o, w in zip((-1, 0, 1, 2), weights, strict=True)]


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (8, 8)), ((24, 16), (3, 2)), ((7, 5), (3, 4)), ((5, 7), (11, 13)), ((9, 4), (1, 1))]
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_resize_labels_takes_the_top_left_pixel(old, new, dtype):
    labels = torch.randint(0, 200, (2, *old)).to(dtype)
    out = resize_labels(labels, new)
    assert out.dtype == dtype
    expected = [[[labels[b, i * old[0] // new[0], j * old[1] // new[1]] for j in range(new[1])] for i in range(new[0])]
                for b in range(2)]  # fmt: skip
    assert torch.equal(out, torch.tensor(expected, dtype=dtype))


def test_resize_labels_of_whole_cells_copies_nothing():
    labels = torch.zeros(1, 16, 24, dtype=torch.int32)
    assert resize_labels(labels, (2, 3)).data_ptr() == labels.data_ptr()


@pytest.mark.parametrize(("shape", "size"), [((4, 4), (2, 2)), ((1, 4, 4), (0, 2)), ((1, 0, 4), (1, 1))])
def test_resize_labels_rejects_bad_sizes(shape, size):
    with pytest.raises(ValueError, match="labels"):
        resize_labels(torch.zeros(shape, dtype=torch.int64), size)


def test_superpixel_tokens_call_the_projection_on_the_means():
    """As a module, and with a bias that stays away from empty superpixels."""
    proj = nn.Conv2d(5, 5, 1).double()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    positions = torch.randn(1, 12, 5, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[labels == 2] = 9
    called = []

    def hook(_, inputs, output):
        called.append(tuple(inputs[0].shape))
        return 3 * output

    plain, mask = superpixel_tokens(features, labels, 7, positions, proj)
    expected, _ = superpixel_tokens(proj(features), labels, 7, positions)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)
    assert not mask[:, [2, 5, 6]].any()
    assert not plain[~mask].any()
    proj.register_forward_hook(hook)
    hooked, _ = superpixel_tokens(features, labels, 7, positions, proj)
    assert called == [(2, 5, 7, 1)]
    expected, _ = superpixel_tokens(proj(features), labels, 7, positions)
    torch.testing.assert_close(hooked, expected, rtol=1e-12, atol=1e-12)


def test_superpixel_tokens_are_mean_feature_plus_mean_position():
    features = torch.randn(2, 5, 3, 4)
    positions = torch.randn(1, 12, 5, dtype=torch.float64)
    labels = torch.randint(0, 6, (2, 24, 32), dtype=torch.int32)
    labels[labels == 2] = 7  # segment 2 is empty and label 7 is outside
    labels[0, 0, 0] = -1
    tokens, mask = superpixel_tokens(features, labels, 6, positions)
    assert tokens.dtype == torch.float64  # as for any sum of both
    assert mask.dtype == torch.bool
    small = labels[:, ::8, ::8]
    for b in range(2):
        for s in range(6):
            cells = [(i, j) for i in range(3) for j in range(4) if small[b, i, j] == s]
            assert mask[b, s].item() == bool(cells)
            expected = torch.zeros(5, dtype=torch.float64)
            if cells:
                expected = sum(features[b, :, i, j].double() + positions[0, i * 4 + j] for i, j in cells) / len(cells)
            torch.testing.assert_close(tokens[b, s], expected)
    assert not mask[:, 2].any()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 5)])
def test_superpixel_tokens_over_pixels(grid, late):
    """Features bilinear, positions bicubic, from grids of their own to that of the labels."""
    proj = nn.Conv2d(5, 5, 1).double()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    positions = torch.randn(1, grid[0] * grid[1], 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (2, 23, 30))
    labels[labels == 2] = 9
    given = (features, labels, 7, positions, proj) if late else (proj(features), labels, 7, positions)
    tokens, mask = superpixel_tokens(*given, pos_grid=grid)
    fine = F.interpolate(proj(features), (23, 30), mode="bilinear", align_corners=False)
    table = positions.transpose(1, 2).unflatten(2, grid)
    fine = fine + F.interpolate(table, (23, 30), mode="bicubic", align_corners=False)
    for b, s in itertools.product(range(2), range(7)):
        inside = labels[b] == s
        assert mask[b, s] == inside.any()
        expected = fine[b][:, inside].mean(1) if inside.any() else torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(tokens[b, s], expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(tokens)
    (tokens * weight).sum().backward()
    ours = (features.grad.clone(), positions.grad.clone())
    features.grad = positions.grad = None
    one_hot = F.one_hot(labels.clamp(max=7), 8)[..., :7].double()
    means = torch.einsum("bchw,bhws->bsc", fine, one_hot) / one_hot.sum((1, 2)).clamp(min=1)[..., None]
    (means * weight).sum().backward()
    torch.testing.assert_close(ours, (features.grad, positions.grad), rtol=1e-10, atol=1e-12)


# --- fusion of levels, pixels


@pytest.mark.parametrize("training", [False, True])
def test_block_fusion_is_norm_and_linear_of_the_concatenation(training):
    fusion = BlockFusion(6, 3, dropout=0.0).double().train(training)
    for p in (*fusion.norm.parameters(), fusion.norm.running_mean):
        p.data += torch.randn_like(p)
    levels = [torch.randn(2, n, 6, dtype=torch.float64) for n in (7, 4, 2)]
    parents = [torch.randint(0, 4, (2, 7)), torch.randint(0, 2, (2, 4))]
    cls = [torch.randn(2, 1, 6, dtype=torch.float64) for _ in range(3)]
    rows = [torch.cat([cls[level][:, 0] for level in range(3)], 1)]
    for n in range(7):
        parent = parents[0][:, n]
        grandparent = parents[1][range(2), parent]
        rows.append(torch.cat([levels[0][:, n], levels[1][range(2), parent], levels[2][range(2), grandparent]], 1))
    x = torch.stack(rows, 1)
    mean, var = (x.mean((0, 1)), x.var((0, 1), correction=0)) if training else (
        fusion.norm.running_mean.clone(), fusion.norm.running_var.clone())  # fmt: skip
    x = (x - mean) / (var + 1e-5).sqrt() * fusion.norm.weight + fusion.norm.bias
    expected = x @ fusion.proj.weight.T + fusion.proj.bias
    torch.testing.assert_close(fusion(levels, parents, cls), expected, rtol=1e-10, atol=1e-10)


class Wrapped(nn.Linear):
    """A layer that fine-tuning has changed: its product is not all it does."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_block_fusion_multiplies_before_the_gather_once_its_norm_is_folded():
    fusion = BlockFusion(6, 3).double().eval()
    for p in (*fusion.norm.parameters(), fusion.norm.running_mean):
        p.data += torch.randn_like(p)
    levels = [torch.randn(2, n, 6, dtype=torch.float64, requires_grad=True) for n in (40, 4, 2)]
    parents = [torch.randint(0, 4, (2, 40)), torch.randint(0, 2, (2, 4))]
    cls = [torch.randn(2, 1, 6, dtype=torch.float64) for _ in range(3)]
    plain = fusion(levels, parents, cls)
    weight = torch.randn_like(plain)
    grads = torch.autograd.grad((plain * weight).sum(), levels)
    scale = fusion.norm.weight / (fusion.norm.running_var + fusion.norm.eps).sqrt()
    shift = fusion.norm.bias - scale * fusion.norm.running_mean
    fusion.proj.bias.data += fusion.proj.weight.data @ shift.data
    fusion.proj.weight.data *= scale.data
    fusion.norm = nn.Identity()
    with FlopCounterMode(display=False) as late:
        folded = fusion(levels, parents, cls)
    torch.testing.assert_close(folded, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((folded * weight).sum(), levels), grads, rtol=1e-12, atol=1e-12)
    fusion.train()
    fusion.dropout.p = 0.0
    with FlopCounterMode(display=False) as early:  # in training as before, dropout included
        torch.testing.assert_close(fusion(levels, parents, cls), plain, rtol=1e-12, atol=1e-12)
    assert late.get_total_flops() < 0.5 * early.get_total_flops()
    wrapped = Wrapped(18, 6).double()
    wrapped.load_state_dict(fusion.proj.state_dict())
    fusion.proj = wrapped
    torch.testing.assert_close(fusion.eval()(levels, parents, cls), 2 * plain, rtol=1e-12, atol=1e-12)


def test_block_fusion_of_one_level():
    fusion = BlockFusion(6, 1).eval()
    assert fusion([torch.randn(2, 5, 6)], [], [torch.randn(2, 1, 6)]).shape == (2, 6, 6)
    with pytest.raises(ValueError, match="one table of parents fewer"):
        fusion([torch.randn(2, 5, 6)], [torch.zeros(2, 5, dtype=torch.int64)], [torch.randn(2, 1, 6)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_tokens_to_pixels(dtype):
    tokens = torch.randn(2, 4, 3, requires_grad=True)
    labels = torch.randint(0, 6, (2, 5, 7), dtype=dtype)
    pixels = tokens_to_pixels(tokens, labels)
    assert pixels.shape == (2, 3, 5, 7)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for b, r, c in itertools.product(range(2), range(5), range(7)):
        y = int(labels[b, r, c])
        assert torch.equal(pixels[b, :, r, c], tokens[b, y] if y < 4 else torch.zeros(3))
    pixels.sum().backward()
    counts = torch.stack([(labels.flatten(1) == y).sum(1) for y in range(4)], 1).float()
    assert torch.equal(tokens.grad, counts[..., None].expand(-1, -1, 3))
    with pytest.raises(ValueError, match=r"expected labels \[B, H, W\]"):
        tokens_to_pixels(tokens, labels.flatten(1))
