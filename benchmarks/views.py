"""Images to views: lightly, torchvision v2, kornia and ours, the same images, the same number of processes, in turn.

    python benchmarks/views.py [--cores 1] [--rounds 5]     (make bench-views)

A: 32 x 32 colour pixels in memory to SimSiam's two views, with blur and jitter.
B: JPEG of 500 x 375 to DINO's 2 x 224 + 8 x 96, decoded and cropped, ready for a GPU's colour operations.
C: the same to normalised float tensors, all on the CPU.
D: as B from JPEG of 2000 x 1500, and from what `selfdistill pack` makes of them.
Rates are images per second of all processes together, by their own CPU time (each is one thread that never waits), so that a neighbour's
work counts for little; medians over rounds, and each round runs every contestant once.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.multiprocessing as mp
from PIL import Image

from selfdistill.data.images import Encoded, Files
from selfdistill.data.pack import pack
from selfdistill.data.sources import open_source

warnings.filterwarnings("ignore")


def photos() -> list[Image.Image]:
    """Photographs that scikit-image has in its wheel."""
    import skimage.data as d

    return [Image.fromarray(getattr(d, name)()).resize((500, 375), Image.Resampling.LANCZOS) for name in ("astronaut", "chelsea", "coffee")]


def jpegs(folder: Path, n: int, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """n files of that size, quality 90, each a crop of its own of a photograph."""
    rng, taken, paths = np.random.default_rng(0), photos(), []
    for i in range(n):
        photo = taken[i % 3]
        left, top = rng.integers(0, 60, 2)
        paths.append(folder / f"{i}.jpg")
        photo.crop((left, top, left + 420, top + 315)).resize(size, Image.Resampling.LANCZOS).save(paths[-1], quality=90)
    return paths


def small(n: int) -> np.ndarray:
    """uint8 [n, 32, 32, 3]."""
    rng, taken, cut = np.random.default_rng(0), photos(), []
    for i in range(n):
        left, top = rng.integers(0, 300, 2)
        cut.append(np.asarray(taken[i % 3].crop((left, top, left + 64, top + 64)).resize((32, 32))))
    return np.stack(cut)


# A ------------------------------------------------------------------------------------------------------------------


def lightly_simsiam(images: np.ndarray) -> Callable[[], None]:
    from lightly.transforms import SimSiamTransform

    transform, pil = SimSiamTransform(input_size=32, gaussian_blur=0.5), [Image.fromarray(image) for image in images]

    def run() -> None:
        torch.stack([view for image in pil for view in transform(image)])

    return run


def torchvision_simsiam(images: np.ndarray) -> Callable[[], None]:
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def run() -> None:
        torch.stack([transform(image) for image in tensors for _ in range(2)])

    return run


def kornia_simsiam(images: np.ndarray) -> Callable[[], None]:
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
    )
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def run() -> None:
        for batch in tensors.split(256):
            x = batch.float() / 255
            transform(x), transform(x)

    return run


def our_simsiam(images: np.ndarray) -> Callable[[], None]:
    from selfdistill.methods import METHODS
    from selfdistill.views.augment import views_of_pixels

    spec = METHODS["simsiam"].edit(["views.size=32"]).views
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def run() -> None:
        for ids in torch.arange(len(tensors)).split(256):
            views_of_pixels(tensors[ids], ids, spec, 2, 0, 0)

    return run


# B and C ------------------------------------------------------------------------------------------------------------


def lightly_dino(paths: list[Path]) -> Callable[[], None]:
    from lightly.transforms import DINOTransform

    transform = DINOTransform(n_local_views=8)

    def run() -> None:
        for path in paths:
            transform(Image.open(path).convert("RGB"))

    return run


def torchvision_dino(paths: list[Path], colour: bool) -> Callable[[], None]:
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
        crop = v2.RandomResizedCrop(size, scale=scale, antialias=True)
        kernel = max(3, size // 10 | 1)
        rest = [
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
        return v2.Compose([crop, *(rest if colour else [])])

    views = [view(224, (0.4, 1.0), 1.0, 0.0), view(224, (0.4, 1.0), 0.1, 0.2), *[view(96, (0.05, 0.4), 0.5, 0.0)] * 8]

    def run() -> None:
        for path in paths:
            image = decode_jpeg(read_file(str(path)))
            for transform in views:
                transform(image)

    return run


def our_dino(images: Encoded, colour: bool) -> Callable[[], None]:
    from selfdistill.data.loader import _Crops
    from selfdistill.methods import METHODS
    from selfdistill.train.allocator import keep_freed_memory
    from selfdistill.views.augment import views_of_crops

    keep_freed_memory()  # as a run does before it starts its workers
    recipe = METHODS["dino"]
    dataset = _Crops(images, recipe)

    def run() -> None:
        for ids in torch.arange(len(images)).split(32):
            _, index, crops, _ = dataset.__getitems__([(0, i) for i in ids.tolist()])
            if colour:
                views_of_crops(crops, index, recipe.views, 2, 0, 0)

    return run


def decode_alone(paths: list[Path]) -> Callable[[], None]:
    """The physical limit of B and C: libjpeg-turbo and nothing else."""
    import simplejpeg

    def run() -> None:
        for path in paths:
            simplejpeg.decode_jpeg(path.read_bytes(), "RGB")

    return run


# --------------------------------------------------------------------------------------------------------------------


def timed(make: Callable[[], Callable[[], None]], barrier: Barrier, seconds: mp.Queue, rounds: int) -> None:
    """One process: build once, then a run each time the barrier opens. The first run warms up."""
    torch.set_num_threads(1)
    run = make()
    run()
    for _ in range(rounds):
        barrier.wait()
        start = time.process_time()
        run()
        seconds.put(time.process_time() - start)
        barrier.wait()


def compare(title: str, contestants: dict[str, Callable[[], Callable[[], None]]], images: int, cores: int, rounds: int) -> None:
    """Every contestant has its processes waiting; they are let go one contestant at a time, in turn."""
    context = mp.get_context("fork")
    groups = {}
    for name, make in contestants.items():
        barrier, seconds = context.Barrier(cores + 1), context.SimpleQueue()
        processes = [context.Process(target=timed, args=(make, barrier, seconds, rounds), daemon=True) for _ in range(cores)]
        for process in processes:
            process.start()
        groups[name] = (barrier, seconds, processes)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (barrier, seconds, _) in groups.items():
            barrier.wait()
            barrier.wait()
            rates[name].append(sum(images / seconds.get() for _ in range(cores)))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"\n{title} ({cores} process{'es' if cores > 1 else ''}, {images} images each, {rounds} rounds)")
    for name, rate in medians.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        ratio = "  ".join(f"{rate / medians[peer]:6.2f} x {peer}" for peer in contestants if peer.startswith(("lightly", "kornia")))
        print(f"  {name:16} {rate:8.0f} images/s  ({spread:>16})  {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="ABCD")
    args = parser.parse_args()
    how = {"cores": args.cores, "rounds": args.rounds}
    if "A" in args.only:
        images = small(512)
        makers = {
            "lightly": partial(lightly_simsiam, images),
            "torchvision v2": partial(torchvision_simsiam, images),
            "kornia": partial(kornia_simsiam, images),
            "ours": partial(our_simsiam, images),
        }
        compare("A: SimSiam's two views of 32 x 32", makers, len(images), **how)
    with TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), 64)
        if "B" in args.only:
            crops = {
                "lightly": partial(lightly_dino, paths),
                "torchvision v2": partial(torchvision_dino, paths, False),
                "ours": partial(our_dino, Files(paths), colour=False),
                "decode alone": partial(decode_alone, paths),
            }
            compare("B: JPEG to DINO's uint8 crops", crops, len(paths), **how)
        if "C" in args.only:
            whole = {
                "lightly": partial(lightly_dino, paths),
                "torchvision v2": partial(torchvision_dino, paths, True),
                "ours": partial(our_dino, Files(paths), colour=True),
            }
            compare("C: JPEG to DINO's normalised floats", whole, len(paths), **how)
        if "D" in args.only:
            (large := Path(folder) / "large").mkdir()
            paths = jpegs(large, 300, (2000, 1500))
            pack(str(large), Path(folder) / "packed")
            sources = {
                "decode alone": partial(decode_alone, paths),
                "ours": partial(our_dino, Files(paths), colour=False),
                "ours, packed": partial(our_dino, open_source(f"{folder}/packed").train, colour=False),
            }
            compare("D: JPEG of 2000 x 1500 to DINO's uint8 crops", sources, len(paths), **how)


if __name__ == "__main__":
    main()
