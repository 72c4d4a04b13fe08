"""Runs in processes of their own, made to die: what tests/train/test_crash.py does three times, tests/soak.py does a hundred times."""

import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import selfdistill as sd
from selfdistill.train import checkpoint

VOLATILE = ("images_per_second", "wall_seconds", "data_share")
"""of metrics.jsonl: what a clock says"""


def same(a, b):
    """Bit for bit, through dicts and lists of tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_of(run):
    """All that a run leaves: weights, teacher, memory, optimiser, the steps passed over, and each line of its log."""
    lines = [{k: v for k, v in row.items() if k not in VOLATILE} for row in run.metrics]
    return {"lines": lines, **torch.load(run.checkpoint, weights_only=True)}


def process(f, *args, rank=None):
    """`f(*args)` in a fork of this process, which has everything imported; as one of two ranks, if `rank` is given. Its exit code
    is 0, 1 for a Failure and 2 for Misuse, whose message stands in the returned file, and 128 + a signal that saved it."""
    message = Path(args[0]).with_name(f"said-{rank}.txt")

    def work():
        torch.set_num_threads(1)
        if rank is not None:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            f(*args)
        except (sd.Misuse, sd.Failure, sd.Interrupted) as e:
            message.write_text(str(e))
            code = 128 + e.signum if isinstance(e, sd.Interrupted) else 2 if isinstance(e, sd.Misuse) else 1
            os._exit(code)
        os._exit(0)

    made = multiprocessing.get_context("fork").Process(target=work)
    made.start()
    return made, message


def go(out, method, source, settings):
    """Starts a run or goes on with it, with a checkpoint after every step: most of the time is then spent in writing one."""
    checkpoint.Keeper.due = lambda self: True
    if (Path(out) / "recipe.yaml").exists():
        sd.pretrain(method, data=source, out=out, resume=True)
    else:
        sd.pretrain(method, data=source, out=out, **settings)


def killed_until_done(out, method, source, settings, kills, seconds, rng: random.Random):
    """Kills the run `kills` times, each at a moment drawn from a run's whole duration, then lets it end. Returns how often it was
    killed, and how often while a file was half written; a run may be done before its moment comes."""
    died = torn = 0
    for _ in range(kills):
        made, _ = process(go, out, method, source, settings)
        made.join(rng.uniform(0, seconds))
        if made.exitcode is not None:
            break
        made.kill()
        made.join()
        died += 1
        torn += bool(list(Path(out).parent.rglob("*.part")))
    made, message = process(go, out, method, source, settings)
    made.join()
    assert made.exitcode == 0, message.read_text()
    return died, torn


def until(condition, seconds=120):
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def listening(pid):
    """Addresses, as the kernel writes them, at which a process takes connections from a network."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(link))
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def lines(out):
    file = Path(out) / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


__all__ = ["go", "killed_until_done", "lines", "listening", "process", "same", "signal", "state_of", "until"]
