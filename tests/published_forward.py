"""The published forward passes as plain functions of a published state dict, in PyTorch's own operations alone.

Written from the description of the models, to check ours against: no layer, op or table of this project is used.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

KAPPA = 5.0
HEADS = 12


def sub(state, prefix):
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def norm(x, w, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], w["weight"], w["bias"], eps)


def linear(x, w):
    return x @ w["weight"].T + w.get("bias", 0.0)


def batch_norm(x, w, axis):
    """With the running statistics, or where the weights hold none, as in training, with those of the batch."""
    others = [a for a in range(x.ndim) if a != axis]
    shape = [1] * x.ndim
    shape[axis] = -1
    mean = w.get("running_mean", x.mean(others)).view(shape)
    var = w.get("running_var", x.var(others, correction=0)).view(shape)
    x = (x - mean) / torch.sqrt(var + 1e-5)
    return x * w["weight"].view(shape) + w["bias"].view(shape) if "weight" in w else x


def attention(x, w, heads):
    batch, count, dim = x.shape
    q, k, v = (t.view(batch, count, heads, -1).transpose(1, 2) for t in linear(x, sub(w, "qkv.")).split(dim, dim=2))
    weights = (q @ k.transpose(2, 3) / math.sqrt(dim // heads)).softmax(dim=3)
    return linear((weights @ v).transpose(1, 2).reshape(batch, count, dim), sub(w, "proj."))


def block(x, w, heads=HEADS, eps=1e-6):
    x = x + attention(norm(x, sub(w, "norm1."), eps), sub(w, "attn."), heads)
    return x + linear(F.gelu(linear(norm(x, sub(w, "norm2."), eps), sub(w, "mlp.fc1."))), sub(w, "mlp.fc2."))


def conv_stem(image, w, strides):
    for i, stride in enumerate(strides):
        image = F.conv2d(image, w[f"proj.{3 * i}.weight"], stride=stride, padding=1)
        image = batch_norm(image, sub(w, f"proj.{3 * i + 1}."), 1).clamp(min=0)
    return F.conv2d(image, w["proj.12.weight"], w["proj.12.bias"])


def sincos(side, dim):
    """[1, dim, side, side]; the row comes first."""
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    a, b = row[..., None] * omega, column[..., None] * omega
    return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=-1).permute(2, 0, 1)[None]


def segment_means(x, labels, count):
    """x [B, C, H, W] -> means [B, count, C] and the number of pixels [B, count]."""
    one_hot = F.one_hot(labels.flatten(1), count).to(x.dtype)  # [B, H W, count]
    pixels = one_hot.sum(1)
    return one_hot.transpose(1, 2) @ x.flatten(2).transpose(1, 2) / pixels.clamp(min=1)[..., None], pixels


def farthest_points(x, empty, count):
    """Start from the mean of the valid tokens, which stands in for the empty ones too; ties to the lowest index."""
    picked = []
    for tokens, skip in zip(x, empty, strict=True):
        mean = tokens[~skip].mean(0, keepdim=True)
        points = torch.cat([mean, torch.where(skip[:, None], mean, tokens)])
        order, distance = [0], torch.full((len(points),), math.inf, dtype=x.dtype)
        for _ in range(count):
            distance = torch.minimum(distance, (points - points[order[-1]]).square().sum(1))
            order.append(int((distance == distance.max()).nonzero()[0]))
        picked.append(torch.tensor(order[1:]) - 1)
    picked = torch.stack(picked)
    assert (picked >= 0).all()
    return picked


def graph_pool(cls, x, empty, count, w):
    indices = farthest_points(x.detach(), empty, count)
    rows = torch.arange(len(x))[:, None]
    c = sub(w, "centroid_fc.")
    u = x + attention(norm(x, sub(c, "norm.")), sub(c, "attn."), HEADS)
    u = u - u.mean(1, keepdim=True) + c["bias"]
    logits = KAPPA * F.cosine_similarity(u[:, :, None], u[rows, indices][:, None], dim=3)
    p = logits.softmax(2)
    z = F.gelu(linear(norm(torch.cat([cls, x], 1), sub(w, "fc1.0."), 1e-5), sub(w, "fc1.1.")))
    pooled = p.transpose(1, 2) @ z[:, 1:] / p.sum(1)[..., None]
    z = linear(norm(torch.cat([z[:, :1], pooled], 1), sub(w, "fc2.0."), 1e-5), sub(w, "fc2.1."))
    return cls + z[:, :1], x[rows, indices] + z[:, 1:], logits


def embed(state, image, labels, count, *, upsample):
    """Class token, segment tokens, and which of them are empty."""
    features = conv_stem(image, sub(state, "patch_embed."), (2, 2, 2, 1))
    table, cls = state["pos_embed"], state["cls_token"]
    if "pe_token" not in state:
        cls, table = cls + table[:, :1], table[:, 1:]
    side = math.isqrt(table.shape[1])
    table = table.transpose(1, 2).unflatten(2, (side, side))
    if upsample:
        features = F.interpolate(features, labels.shape[1:], mode="bilinear", align_corners=False)
        table = F.interpolate(table, labels.shape[1:], mode="bicubic", align_corners=False)
    else:
        labels = labels[:, ::8, ::8]
    tokens, pixels = segment_means(features, labels, count)
    positions, _ = segment_means(table.expand(len(image), -1, -1, -1), labels, count)
    return cls.expand(len(image), -1, -1), tokens + positions, pixels == 0


def run_stages(state, cls, x, empty, depths, clusters):
    """Per stage: tokens after the blocks, class token before and after the pool, the pool's logits."""
    stages, flat = [], 0
    for level, (depth, count) in enumerate(zip(depths, clusters, strict=True), start=1):
        joint = torch.cat([cls, x], 1)
        for i in range(depth):
            name = f"blocks.{flat}." if "blocks.0.norm1.weight" in state else f"blocks{level}.{i}."
            joint = block(joint, sub(state, name))
            flat += 1
        before, x = joint[:, :1], joint[:, 1:]
        cls, pooled, logits = graph_pool(before, x, empty, count, sub(state, f"pool{level}.pool_block."))
        stages.append((x, before, cls, logits))
        x, empty = pooled, torch.zeros(pooled.shape[:2], dtype=torch.bool)
    return stages


def fuse(state, stages):
    w = sub(state, "block_fusion.proj_blocks.")
    rows = torch.arange(len(stages[0][0]))[:, None]
    columns, chain = [stages[0][0]], None
    for (*_, logits), (x, *_) in pairwise(stages):
        parents = logits.argmax(2)
        chain = parents if chain is None else parents[rows, chain]
        columns.append(x[rows, chain])
    fused = torch.cat([torch.cat([cls for _, _, cls, _ in stages], 2), torch.cat(columns, 2)], 1)
    return linear(batch_norm(fused, sub(w, "0.norm."), 2), sub(w, "2."))


def classify(state, image, labels, count, depths, clusters):
    stages = run_stages(state, *embed(state, image, labels, count, upsample=False), depths, clusters)
    return linear(norm(stages[-1][1], sub(state, "norm."))[:, 0], sub(state, "head."))


def dense(state, image, labels, count, depths, clusters, *, upsample):
    """The fused class token and tokens, and the clusters of each segment of level 0 through all four groupings."""
    stages = run_stages(state, *embed(state, image, labels, count, upsample=upsample), depths, clusters)
    chain, rows = torch.arange(count).expand(len(image), -1), torch.arange(len(image))[:, None]
    for *_, logits in stages:
        chain = logits.argmax(2)[rows, chain]
    return fuse(state, stages), chain


def projector(x, w):
    shape = x.shape
    x = x.flatten(0, 1)
    for i in (0, 3, 6):
        x = batch_norm(x @ w[f"{i}.weight"].T, sub(w, f"{i + 1}."), 1)
        x = x if i == 6 else x.clamp(min=0)
    return x.unflatten(0, shape[:2])


def mask_decoder(x, w, depth, heads):
    classes = w["cls_emb"].shape[1]
    x = torch.cat([linear(x, sub(w, "proj_dec.")), w["cls_emb"].expand(len(x), -1, -1)], 1)
    for i in range(depth):
        x = block(x, sub(w, f"blocks.{i}."), heads, 1e-5)
    x = norm(x, sub(w, "decoder_norm."), 1e-5)
    segments, classes = x[:, :-classes] @ w["proj_patch"], x[:, -classes:] @ w["proj_classes"]
    cosine = F.cosine_similarity(segments[:, :, None], classes[:, None], dim=3)
    return norm(cosine, sub(w, "mask_norm."), 1e-5)


def to_pixels(x, labels):
    """[B, N, C] -> [B, C, H, W]."""
    return torch.stack([tokens[y] for tokens, y in zip(x, labels, strict=True)]).permute(0, 3, 1, 2)


def conv_decoder(pixels, w):
    pixels = batch_norm(F.conv2d(pixels, w["0.weight"]), sub(w, "1."), 1).clamp(min=0)
    return F.conv2d(pixels, w["3.weight"], w["3.bias"])


def patch_classify(state, image, depth):
    x = conv_stem(image, sub(state, "patch_embed."), (2, 2, 2, 2)).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(depth):
        x = block(x, sub(state, f"blocks.{i}."))
    return linear(norm(x, sub(state, "norm."))[:, 0], sub(state, "head."))
