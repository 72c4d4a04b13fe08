"""kNN over a bank of ImageNet's size: time of a query beside the matrix product alone, and the peak of memory.

    OMP_NUM_THREADS=1 python benchmarks/knn.py                        # 1,281,167 x 384, 1,024 queries, k = 20 and 200
    OMP_NUM_THREADS=1 python benchmarks/knn.py --bank 100000 --queries 2048

Product and search take turns in one run, on the same chunks. Features are a thousand clusters, sorted by class as a folder is.
Seconds are those of the process (`time.process_time`), so that a shared core does not change the ratio. Time is linear in the
queries but for one pass over the bank, to normalise it (2 s), which 1,024 queries share here and 50,000 would: what is said of 50,000
is the measured time of a query times 50,000, not measured.
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F

from selfdistill.evaluate.knn import BANK, QUERIES, nearest


def clusters(n: int, dim: int, classes: int, draws: torch.Generator) -> torch.Tensor:
    """[n, dim], sorted by class; the spread leaves neighbours of other classes among the nearest 200."""
    features = torch.randn(n, dim, generator=draws)
    for rows, centre in zip(
        features.tensor_split(classes), torch.randn(classes, dim, generator=torch.Generator().manual_seed(1)), strict=True
    ):
        rows += centre
    return features


def product(bank: torch.Tensor, queries: torch.Tensor) -> None:
    """Every similarity, and nothing done with it."""
    out = torch.empty(min(QUERIES, len(queries)), min(BANK, len(bank)))
    for part in bank.split(BANK):
        for rows in queries.split(QUERIES):
            torch.mm(rows, part.T, out=out[: len(rows), : len(part)])


def seconds(f, *args) -> float:
    started = time.process_time()
    f(*args)
    return time.process_time() - started


def peak() -> float:
    """GB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=int, default=1_281_167)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--turns", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    bank, queries = (clusters(n, args.dim, 1000, draws) for n in (args.bank, args.queries))
    unit = F.normalize(queries)
    start = peak()
    product(bank[:BANK], unit)  # warm
    times: dict[str, list[float]] = {}
    for _ in range(args.turns):
        times.setdefault("product", []).append(seconds(product, bank, unit))
        for k in args.k:
            times.setdefault(f"k={k}", []).append(seconds(nearest, bank, queries, k))
    best = {name: min(of) for name, of in times.items()}
    print(f"bank {args.bank:,} x {args.dim} ({bank.nbytes / 1e9:.2f} GB), {args.queries:,} queries, one thread, best of {args.turns}")
    for name, of in best.items():
        ms = of / args.queries * 1e3
        ratio = of / best["product"]
        print(f"{name:8} {of:7.2f} s {ms:7.2f} ms a query, ratio {ratio:.2f}; 50,000 queries {ms * 50 / 60:.0f} min (extrapolated)")
    print(f"peak {peak():.2f} GB, {start:.2f} GB of it before the first search")


if __name__ == "__main__":
    main()
