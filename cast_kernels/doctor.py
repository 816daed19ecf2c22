"""What each op runs on here, why, and whether it is right: the answer to most bug reports."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata

import torch

from cast_kernels import (
    _ext,
    assign_pool,
    farthest_point_sample,
    labels_to_edges,
    rgb_to_lab,
    seeds,
    segment_mean,
    superpixel_metrics,
    superpixel_summary,
    testing,
    unpool,
    unpool_concat,
    unpool_linear,
)
from cast_kernels._cuda import has_kernels, is_built_for
from cast_kernels._version import __version__
from cast_kernels.labels_to_edges import MAX_SEGMENTS as MAX_EDGE_SEGMENTS
from cast_kernels.rgb_to_lab import rgb_to_lab_ref
from cast_kernels.seeds_golden import SEEDS_GOLDEN, SEEDS_GOLDEN_SIZE, SEEDS_PARALLEL_GOLDEN
from cast_kernels.segment_mean import MAX_SEGMENTS
from cast_kernels.superpixel_summary import MAX_PIXELS


@dataclass(frozen=True)
class Finding:
    """One op on one device: what runs, why that, and what is wrong (None = the self-test passed)."""

    op: str
    device: str
    backend: str
    reason: str
    problem: str | None


def diagnose(devices: list[str] | None = None) -> list[Finding]:
    """Look at every op on every device (default: the CPU, and CUDA where there is one), self-tests included."""
    devices = devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [_examine(op, device) for device in devices for op in _OPS]


def render(findings: list[Finding]) -> str:
    """The findings and versions as text, a line each."""
    lines = [f"{name:<10} {value}" for name, value in versions().items()]
    lines.append("")
    for f in findings:
        lines.append(f"{f.op:<22} {f.device:<5} -> {f.backend} ({f.reason}): {f.problem or 'self-test passed'}")
    wrong = sum(f.problem is not None for f in findings)
    lines.append("")
    lines.append(f"{wrong} of {len(findings)} ops are wrong" if wrong else f"all {len(findings)} ops are right")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on; imports nothing optional."""
    found = {"cast-kernels": __version__, "python": f"{platform.python_version()} on {platform.platform()}"}
    found["torch"] = f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}"
    packages = {name: name for name in ("triton", "numpy", "timm")} | {"opencv": "opencv-contrib-python-headless"}
    for name, package in packages.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    try:
        info = _ext.load().build_info()
        archs = ", ".join(info["cuda_archs"])
        cuda = f"CUDA {info['cuda']} for {archs}" if info["cuda"] else "CPU only"
        found["extension"] = f"{cuda}, compiled by {info['compiler']}"
    except ImportError as error:
        found["extension"] = f"missing: {error}"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
    else:
        found["GPU"] = "none"
    return found


def _examine(op: str, device: str) -> Finding:
    choose, check = _OPS[op]
    try:
        backend, reason = choose(device)
    except ImportError as error:
        return Finding(op, device, "missing", "what it runs on is not available", str(error))
    try:
        problem = check(device)
    except Exception as error:  # whatever an op raises here is the finding
        problem = f"raised {type(error).__name__}: {error}"
    return Finding(op, device, backend, reason, problem)


# What runs where
_TOO_OLD = "the kernels need a GPU of compute capability 8.0 or newer"


def _seeds_backend(device: str) -> tuple[str, str]:
    info = _ext.load().build_info()
    if device == "cpu":
        return f"C++, {info['simd_used']}", f"the best of {', '.join(info['simd'])} that this CPU has"
    if lack := _lack_of_code(device):
        return "C++ on the host", f"{lack}: the images are copied to the host and back"
    return "CUDA", "both orders; images above 8,191 pixels a side or 2^24 in all run on the host"


def _lab_backend(device: str) -> tuple[str, str]:
    if device == "cpu":
        return "C++", "integer tables"
    if lack := _lack_of_code(device):
        return "PyTorch reference", lack
    return "CUDA", "the extension was built with nvcc"


def _lack_of_code(device: str) -> str:
    """Say why the extension does not run on a GPU, or nothing."""
    archs = _ext.load().build_info()["cuda_archs"]
    if not archs:
        return "the extension was built without nvcc"
    if not has_kernels(torch.device(device)):
        return _TOO_OLD
    return "" if is_built_for(torch.device(device)) else f"the extension was built for {', '.join(archs)}, not this GPU"


def _kernel(device: str, beyond: str = "float64 runs") -> tuple[str, str]:
    if device == "cpu":
        return "PyTorch reference", "the CPU's path"
    if not has_kernels(torch.device(device)):
        return "PyTorch reference", _TOO_OLD
    return f"Triton {metadata.version('triton')}", f"{beyond} the PyTorch reference"


_MEAN_BEYOND = f"float64 and more than {MAX_SEGMENTS} segments run"
_SUMMARY_BEYOND = f"images of more than {MAX_PIXELS} pixels run"
_EDGES_BEYOND = f"more than {MAX_EDGE_SEGMENTS} segments or {MAX_PIXELS} pixels run"


# Self-tests: the op as users call it, against a definition written a second way. None, or what is wrong.
def _verdict(error: float, bound: float) -> str | None:
    return None if error <= bound else f"error {error:.2e} exceeds {bound:.0e}"


def _random(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)


def _check_seeds(device: str) -> str | None:
    image = testing.synthetic_image(*SEEDS_GOLDEN_SIZE).to(device)
    for order, golden in (("parallel", SEEDS_PARALLEL_GOLDEN), ("sequential", SEEDS_GOLDEN)):
        for options, expected in golden.items():
            found = testing.checksum(seeds(image, order=order, **dict(options)))
            if found != expected:
                return (
                    f"{order} labels of the synthetic image for {dict(options)} have crc32 {found:08x}, "
                    f"expected {expected:08x}"
                )
    return None


def _check_lab(device: str) -> str | None:
    image = testing.synthetic_image(64, 65)
    wrong = (rgb_to_lab(image.to(device)).cpu() != rgb_to_lab_ref(image)).sum().item()
    return f"{wrong} values differ from the integer tables" if wrong else None


def _check_segment_mean(device: str) -> str | None:
    x, labels = _random(2, 9, 11, 13, device=device), torch.arange(198, device=device).view(2, 9, 11) % 18 - 1
    mean, count = segment_mean(x.requires_grad_(), labels, 19)
    exact = _leaf(x)
    oracle = testing.segment_mean_oracle(exact, labels, 19)
    counts = torch.stack([(labels == s).sum((1, 2)) for s in range(19)], 1)
    if not torch.equal(count, counts.float()):
        return "wrong counts"
    return _verdict(testing.max_error(mean, oracle), 1e-6) or _check_gradient(mean, x, oracle, exact)


def _check_sampling(device: str) -> str | None:
    x = _random(2, 61, 24, device=device)
    shortfall = testing.farthest_point_oracle(x, farthest_point_sample(x, 17), x.double().mean(1))
    if problem := _verdict(shortfall.max().item(), 1e-5):
        return problem
    twins = torch.tensor([[5.0], [0.0], [5.0], [9.0], [0.0], [7.0]], device=device)[None]
    mask = torch.tensor([[True, True, True, False, True, False]], device=device)
    for options, expected in (({}, [0, 1, 2, 4, 3, 5]), ({"duplicates": "repeat"}, [0, 1, 0, 0, 0, 0])):
        if farthest_point_sample(twins, 6, mask=mask, **options)[0].tolist() != expected:
            return f"wrong picks among equal and masked tokens, {options or 'distinct'}"
    return None


def _check_assign_pool(device: str) -> str | None:
    u, z = _random(2, 61, 24, device=device), _random(2, 61, 50, device=device)
    centroids = torch.arange(14, device=device).view(2, 7)
    logits, pooled, parents = assign_pool(u.requires_grad_(), centroids, z)
    exact = _leaf(u)
    exact_logits, exact_pooled = testing.assign_pool_oracle(exact, centroids, z, 5.0)
    if not torch.equal(parents, exact_logits.argmax(-1)):
        return "wrong parents"
    error = max(testing.max_error(logits, exact_logits), testing.max_error(pooled, exact_pooled))
    return _verdict(error, 1e-5) or _check_gradient(pooled, u, exact_pooled, exact)


def _check_unpool(device: str) -> str | None:
    coarse, parents = _random(2, 7, 5, device=device), torch.arange(42, device=device).view(2, 21) % 8
    fine = unpool(coarse.requires_grad_(), parents)
    exact = _leaf(coarse)
    oracle = testing.unpool_oracle([exact.new_empty(2, 21, 0), exact], [parents])
    return _verdict(testing.max_error(fine, oracle), 0.0) or _check_gradient(fine, coarse, oracle, exact)


def _check_unpool_concat(device: str) -> str | None:
    levels = [_random(2, n, c, device=device) for n, c in ((21, 2), (9, 3), (4, 1))]
    parents = [torch.arange(2 * n, device=device).view(2, n) * 5 % k for n, k in ((21, 9), (9, 4))]
    error = testing.max_error(unpool_concat(levels, parents), testing.unpool_oracle(levels, parents))
    return _verdict(error, 0.0)


def _check_unpool_linear(device: str) -> str | None:
    levels = [_random(2, n, c, device=device) for n, c in ((21, 2), (9, 3), (4, 1))]
    parents = [torch.arange(2 * n, device=device).view(2, n) * 5 % k for n, k in ((21, 9), (9, 4))]
    weight, bias = _random(7, 6, device=device), _random(7, device=device)
    out = unpool_linear([x.requires_grad_() for x in levels], parents, weight, bias)
    exact = [_leaf(x) for x in levels]
    oracle = testing.unpool_oracle(exact, parents) @ weight.double().mT + bias.double()
    return _verdict(testing.max_error(out, oracle), 1e-5) or _check_gradient(out, levels[2], oracle, exact[2])


def _check_summary(device: str) -> str | None:
    image = testing.synthetic_image(17, 23)
    labels = (torch.arange(17)[:, None] // 4 * 6 + torch.arange(23) // 4 - 1)[None]  # one label too low, one unused
    for boundary in ("thin", "thick"):
        area, box, color, edge = superpixel_summary(labels.to(device), 31, image.to(device), boundary=boundary)
        exact = testing.superpixel_summary_oracle(labels, 31, image, boundary == "thick")
        found = {"areas": area, "boxes": box, f"{boundary} boundary": edge}
        for (name, result), expected in zip(found.items(), (*exact[:2], exact[3]), strict=True):
            if not torch.equal(result.cpu(), expected):
                return f"wrong {name}"
        if problem := _verdict(testing.max_error(color.cpu(), exact[2].float()), 0.0):
            return f"mean colours: {problem}"
    return None


def _check_edges(device: str) -> str | None:
    labels = (torch.arange(17)[:, None] // 4 * 6 + torch.arange(23) // 4 - 1)[None]
    edges, count = labels_to_edges(labels.to(device), 29)
    (expected,) = testing.edges_oracle(labels, 29)
    if count.tolist() != [len(expected)]:
        return f"{count.tolist()} edges, expected {[len(expected)]}"
    padding = [[-1, -1]] * (edges.shape[1] - len(expected))
    return None if edges[0].tolist() == expected + padding else "wrong edges"


def _check_metrics(device: str) -> str | None:
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    found = superpixel_metrics(labels, truth=torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1]]), tolerance=0)
    known = {"segments": 2, "components": 2, "boundary_recall": 0.0, "achievable_segmentation_accuracy": 0.75}
    wrong = {key: found[key] for key, value in known.items() if found[key] != value}
    return f"expected {known}, got {wrong}" if wrong else None


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double().requires_grad_()


def _check_gradient(out: torch.Tensor, x: torch.Tensor, oracle: torch.Tensor, exact: torch.Tensor) -> str | None:
    """Compare the gradients of ``out`` by ``x`` and of ``oracle`` by ``exact``."""
    weight = _random(*out.shape, device=out.device.type)
    (found,) = torch.autograd.grad(out, x, weight)
    (expected,) = torch.autograd.grad(oracle, exact, weight.double())
    error = testing.max_error(found, expected)
    return None if error <= 1e-5 else f"gradient: {_verdict(error, 1e-5)}"


_OPS: dict[str, tuple[Callable[[str], tuple[str, str]], Callable[[str], str | None]]] = {
    "seeds": (_seeds_backend, _check_seeds),
    "rgb_to_lab": (_lab_backend, _check_lab),
    "segment_mean": (partial(_kernel, beyond=_MEAN_BEYOND), _check_segment_mean),
    "farthest_point_sample": (_kernel, _check_sampling),
    "assign_pool": (_kernel, _check_assign_pool),
    "unpool": (_kernel, _check_unpool),
    "unpool_concat": (_kernel, _check_unpool_concat),
    "unpool_linear": (_kernel, _check_unpool_linear),
    "superpixel_summary": (partial(_kernel, beyond=_SUMMARY_BEYOND), _check_summary),
    "labels_to_edges": (partial(_kernel, beyond=_EDGES_BEYOND), _check_edges),
    "superpixel_metrics": (lambda device: ("NumPy", "on the host"), _check_metrics),
}
