"""`cast bench throughput`: from JPEG files to logits, with superpixels made in the data loader or on the device.

What the loader's workers have to do decides how many images a second reach the model. With superpixels on the device
they only decode and crop. Under ``torchrun`` every process runs its own loader and model, and the figures are those of
all together.
"""

import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cast.data import read_image
from cast.models import Cast

from .inputs import normalised, photos, seeds_worker
from .models import build
from .paths import Workshop
from .setting import DTYPES, Setting

SIZE = 224
Row = dict[str, object]


@dataclass(frozen=True)
class Load:
    """How to run.

    Attributes:
        model: One of ours.
        batch: Images at once, per process.
        workers: Processes of each data loader; 0 = the main process loads.
        batches: Batches that count.
        warmup: Batches before them.
        files: Photos to cycle through; without any, JPEGs made in memory.
    """

    model: str = "cast_small"
    batch: int = 64
    workers: int = 2
    batches: int = 20
    warmup: int = 2
    files: Sequence[Path] = ()


class Photos(Dataset):
    """JPEG photos, decoded and cropped to ``[3, 224, 224]`` uint8, and with ``make`` their superpixels.

    Args:
        count: Length; the photos repeat.
        files: Where they lie; without any, crops of the photo that the package ships, encoded again.
        settings: With SEEDS settings of a model, the second entry of an item is its superpixels, else an empty tensor.
    """

    def __init__(self, count: int, files: Sequence[Path], settings: object = None) -> None:
        self.count = count
        self.files = list(files)
        self.settings = settings
        self.encoded = [] if files else [_jpeg(crop) for crop in photos(32, 256)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = _crop(self._read(index))
        if self.settings is None:
            return image, torch.empty(0)
        return image, seeds_worker(self.settings)[0](image[None])[0]

    def _read(self, index: int) -> Image.Image:
        if self.encoded:
            return Image.open(io.BytesIO(self.encoded[index % len(self.encoded)])).convert("RGB")
        return Image.fromarray(read_image(self.files[index % len(self.files)]))


def measure_throughput(load: Load, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """Yield a row for superpixels made by the loader's workers, and one for superpixels made on the device.

    Called in every process of a ``torchrun``; only the first yields.

    Raises:
        Refused: The model computes something else than its float64 reference.
    """
    processes = _join()
    short = next(name for name, value in DTYPES.items() if value == dtype)
    Workshop(device, 1).path(Setting(load.model, 2, dtype=short, superpixels="given"))
    model = build(load.model).to(device, dtype)
    for where in ("workers", "made"):
        settings = model.config.superpixels if where == "workers" else None
        # As many again as the loader works ahead: else the last batches would be ready before they are asked for.
        count = load.warmup + load.batches + 2 * load.workers
        dataset = Photos(count * load.batch, load.files, settings)
        loader = DataLoader(
            dataset, load.batch, num_workers=load.workers, drop_last=True, pin_memory=device.type == "cuda"
        )
        seconds = _run(model, loader, load, device, dtype)
        if processes > 1:
            slowest = torch.tensor(seconds, dtype=torch.float64)
            torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
            seconds = slowest.item()
        if processes == 1 or torch.distributed.get_rank() == 0:
            images = load.batches * load.batch * processes
            yield {
                "model": load.model,
                "superpixels": where,
                "batch": load.batch,
                "processes": processes,
                "workers": load.workers,
                "images_per_s": round(images / seconds, 2),
                "hours_per_million": round(1e6 * seconds / images / 3600, 3),
                "note": seeds_worker(model.config.superpixels)[1] if where == "workers" else f"on {device.type}",
            }


@torch.no_grad()
def _run(model: Cast, loader: DataLoader, load: Load, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds from the first batch that counts to the last logits."""
    start = 0.0
    for i, (images, labels) in enumerate(loader):
        if i == load.warmup:
            _wait(device)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # all processes at once is what is measured
            start = time.perf_counter()
        if labels.numel():
            model(normalised(images.to(device, non_blocking=True)).to(dtype), labels.to(device, non_blocking=True))
        else:
            model(images.to(device, non_blocking=True))
        if i == load.warmup + load.batches - 1:
            break
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _join() -> int:
    """Join the process group that ``torchrun`` describes, if it does; return the number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return processes


def _jpeg(crop: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _crop(image: Image.Image) -> Tensor:
    """The published evaluation transform: the short side to 256 pixels, then the central square of 224."""
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    image = image.crop((left, top, left + SIZE, top + SIZE))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
