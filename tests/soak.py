"""Kills runs of all eight methods, at random moments, and compares each with one that was left alone: make soak."""

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from tests.conftest import TINY_OF
from tests.crash import killed_until_done, same, state_of


def bars():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 2
    pixels = torch.randint(0, 256, (128, 1, 8, 8), generator=g, dtype=torch.uint8)
    pixels[labels == 0, :, 2:4] = 255
    return Source("bars", Pixels(pixels[:96], labels[:96], ("0", "1")), Pixels(pixels[96:], labels[96:], ("0", "1")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng, source, started = random.Random(asked.seed), bars(), time.monotonic()
    done, torn, wrong, whole = 0, 0, [], {}
    with tempfile.TemporaryDirectory() as folder:
        for n in itertools.count():  # a run may end before its moment comes: no kill
            method = list(TINY_OF)[n % len(TINY_OF)]
            if done == asked.kills or time.monotonic() - started > 60 * asked.minutes:
                break
            if method not in whole:
                at = time.monotonic()
                run = sd.pretrain(method, data=source, out=Path(folder) / method / "whole", console=Console(quiet=True), **TINY_OF[method])
                whole[method] = state_of(run), time.monotonic() - at
            state, seconds = whole[method]
            out = Path(folder) / f"{n}" / "run"
            out.parent.mkdir()
            killed, half = killed_until_done(out, method, source, TINY_OF[method], 1, seconds, rng)
            done, torn = done + killed, torn + half
            if not same(state, state_of(sd.load(out))):
                wrong.append(f"{method}, run {n + 1}")
            print(f"{done:4} kills {method:12} {len(wrong)} wrong  {time.monotonic() - started:.0f} s", flush=True)
    print(f"{done} kills of {n} runs over {len(whole)} methods, {torn} of them while a file was half written")
    print(f"not bit for bit the same: {wrong or 'none'}")
    sys.exit(bool(wrong) or done < asked.kills)


if __name__ == "__main__":
    main()
