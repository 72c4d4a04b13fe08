"""A run that dies at any moment goes on as if it had not: killed, signalled, with steps that were not finite, with a rank lost."""

import io
import json
import os
import random
import signal
import time

import pytest
import torch

import selfdistill as sd
from selfdistill.siamese import Siamese
from selfdistill.train import checkpoint
from selfdistill.train.meeting import meet_on_loopback
from tests.conftest import TINY, TINY_OF
from tests.crash import go, killed_until_done, lines, listening, process, same, state_of, until


@pytest.fixture(scope="module")
def whole(tiny_source, tmp_path_factory):
    """method -> the uninterrupted run, and its seconds."""
    made = {}

    def of(method):
        if method not in made:
            started = time.monotonic()
            run = sd.pretrain(method, data=tiny_source, out=tmp_path_factory.mktemp("whole") / "run", **TINY_OF[method])
            made[method] = run, time.monotonic() - started
        return made[method]

    return of


def test_killed_at_random_moments(whole, tiny_source, tmp_path):
    run, seconds = whole("swav")
    killed_until_done(tmp_path / "run", "swav", tiny_source, TINY_OF["swav"], 3, seconds, random.Random(0))
    assert same(state_of(run), state_of(sd.load(tmp_path / "run")))


@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename", "before the first", "folder half made"])
def test_killed_while_a_file_is_written(whole, tiny_source, tmp_path, moment):
    """At the third checkpoint, at the first, or when the folder is made."""
    out = tmp_path / "run"

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def dies(out):
        real, count = os.replace, []

        def replace(src, dst):
            if moment == "folder half made" and src.is_dir():
                die()
            if dst.name == "last.ckpt":
                count.append(dst)
            if len(count) == (1 if moment == "before the first" else 3):
                if moment == "half written":
                    os.truncate(src, os.path.getsize(src) // 2)
                if moment == "after the rename":
                    real(src, dst)
                die()
            real(src, dst)

        os.replace = replace
        go(out, "moco", tiny_source, TINY_OF["moco"])

    made, _ = process(dies, out)
    made.join()
    assert made.exitcode == -signal.SIGKILL
    if moment == "folder half made":
        assert not out.exists()
    elif moment == "before the first":
        assert not (out / "checkpoints" / "last.ckpt").exists()
        assert [row["step"] for row in sd.load(out).metrics] == [0, 1]
    else:
        step = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["step"]
        assert step == (3 if moment == "after the rename" else 2)
        (out / "metrics.jsonl").open("a").write('{"step": 4, "lo')
        assert [row["step"] for row in sd.load(out).metrics] == [0, 1, 2, 3]
    made, message = process(go, out, "moco", tiny_source, TINY_OF["moco"])
    made.join()
    assert made.exitcode == 0, message.read_text()
    assert same(state_of(whole("moco")[0]), state_of(sd.load(out)))
    assert not list(tmp_path.rglob("*.part"))


BAD = (3, 5)
"""steps of six, counted from 1, whose views are not finite: at the end of the first epoch, where there is a probe, and later"""


@pytest.fixture
def poisoned(monkeypatch):
    """Views of NaN at the steps `BAD`: they reach the statistics of every BatchNorm, the queues, the centres. The images seen there."""
    forward, seen = Siamese.forward, {}

    def with_nan(self, views, progress):
        if progress.step + 1 in BAD:
            seen.setdefault(progress.step + 1, []).extend(views.ids.tolist())
            views = views._replace(crops=tuple(torch.full_like(c, torch.nan) for c in views.crops))
        return forward(self, views, progress)

    monkeypatch.setattr(Siamese, "forward", with_nan)
    return seen


@pytest.fixture
def written(monkeypatch):
    """The checkpoint of every step, as bytes and as what they hold."""
    found, write = {}, checkpoint.write_whole

    def recorded(path, content):
        state = torch.load(io.BytesIO(content), weights_only=True)
        found[state["step"]] = (bytes(content), state)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", recorded)
    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    return found


SOLVED = {k: v for k, v in TINY.items() if not k.startswith("predictor")}
SLOTS = {
    **{method: (method, tiny) for method, tiny in TINY_OF.items()},
    "least-squares": ("byol", {**SOLVED, "predictor": "least-squares"}),
    "directpred": ("byol", {**SOLVED, "predictor": "directpred"}),
    "expectation": ("simsiam", {**SOLVED, "teacher": "expectation", "predictor": None}),
    "accumulate": ("simsiam", {**TINY, "accumulate": 2}),
}


@pytest.mark.parametrize("slots", SLOTS)
def test_a_step_that_is_not_finite_leaves_nothing_and_a_resume_knows_of_it(slots, tiny_source, tmp_path, poisoned, written):
    method, tiny = SLOTS[slots]
    run = sd.pretrain(method, data=tiny_source, out=tmp_path / "run", **tiny)
    for bad in BAD:
        for part in ("model", "optimizer"):
            before, after = (written[step][1][part] for step in (bad - 1, bad))
            if part == "optimizer":  # the schedules went on
                before, after = before["state"], after["state"]
            assert same(before, after)
        noted = json.loads((run.path / "bad_steps" / f"{bad}.json").read_text())
        assert (noted["step"], noted["loss"]) == (bad, "nan")
        assert sorted(noted["images"]) == sorted(poisoned[bad])
    assert not same(written[1][1]["model"], written[2][1]["model"])
    assert all(v.isfinite().all() for v in written[6][1]["model"].values())
    assert written[6][1]["bad_steps"] == list(BAD)
    whole = state_of(run)
    run.checkpoint.write_bytes(written[4][0])  # killed after the fourth step
    resumed = sd.pretrain(method, data=tiny_source, out=run.path, resume=True)
    assert same(whole, state_of(resumed))


def test_a_snapshot_that_is_due_is_taken_though_the_step_is_not_made(tiny_source, tmp_path, poisoned, written):
    """The third step ends the first epoch: left out, the second would be taught by the student of the start."""
    sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **{**TINY, "teacher": "snapshot", "teacher.every": "epoch"})
    for step, alike in ((2, False), (3, True)):
        model = written[step][1]["model"]
        pairs = {name: name.replace("teacher.net.", "student.") for name in model if name.startswith("teacher.net.")}
        assert pairs
        assert all(torch.equal(model[mine], model[theirs]) for mine, theirs in pairs.items()) == alike


def test_a_bad_step_at_a_probe_says_nothing_of_the_network(tiny_source, tmp_path, poisoned):
    run = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", **{**TINY, "probe_every": 1, "on_collapse": "stop"})
    assert [row["step"] for row in run.metrics if row.get("verdict")] == [6]
    assert run.summary["verdict"] != "diverged"


def test_one_bad_step_too_many_stops_the_run(tiny_source, tmp_path, poisoned, monkeypatch):
    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    with pytest.raises(sd.Failure, match=r"step 5: loss nan.*2 steps were not finite, and max_bad_steps=1\b.*lr"):
        sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", max_bad_steps=1, **TINY)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 4
    assert sorted(p.name for p in (tmp_path / "run" / "bad_steps").iterdir()) == ["3.json", "5.json"]
    found = sd.diagnosis_of(tmp_path / "run")
    assert found.verdict == "diverged"
    assert "2 steps were not finite, and max_bad_steps=1" in found.because
    assert "Lower lr" in found.because
    assert "2 steps were not finite" in sd.write_report(tmp_path / "run").read_text()
    with pytest.raises(sd.Failure, match="step 5"):  # and again
        sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", resume=True)
    assert sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", resume=True, max_bad_steps=2).summary["step"] == 6


def test_an_infinite_gradient_of_a_finite_loss_is_seen(tiny_source, tmp_path, monkeypatch):
    forward = Siamese.forward

    def steep(self, views, progress):
        step = forward(self, views, progress)
        loss = step.loss
        if progress.step == 1:
            loss.register_hook(lambda g: g * torch.inf)
        return step._replace(loss=loss)

    monkeypatch.setattr(Siamese, "forward", steep)
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    noted = json.loads((run.path / "bad_steps" / "2.json").read_text())
    assert noted["loss"] not in ("nan", "inf")
    assert noted["gradient_norm"] in ("nan", "inf")
    assert all(v.isfinite().all() for v in state_of(run)["model"].values())


# Two ranks, which are two processes on one machine.

LONG = {**TINY, "epochs": 2000, "log_every": 1, "probe_every": 2000, "devices": 2}


def rank(out, source, settings):
    sd.pretrain("byol", data=source, out=out, **settings)


@pytest.fixture
def two_ranks(tiny_source, tmp_path, monkeypatch):
    """A run of two ranks that has made a few steps: (processes, files of their last words, folder)."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that they are as they were afterwards
        monkeypatch.delenv(name)
    store = meet_on_loopback(2)
    out = tmp_path / "run"
    made = [process(rank, out, tiny_source, LONG, rank=r) for r in (0, 1)]
    until(lambda: lines(out) > 3 or any(p.exitcode is not None for p, _ in made))
    yield [p for p, _ in made], [m for _, m in made], out
    for p, _ in made:
        p.kill()
        p.join()
    del store


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_ends_the_other_with_a_message(two_ranks, lost):
    processes, messages, out = two_ranks
    heard = [address for pid in (os.getpid(), *(p.pid for p in processes)) for address in listening(pid)]
    assert heard
    assert all(address.startswith("0100007F:") for address in heard)  # 127.0.0.1
    processes[lost].kill()
    other = processes[1 - lost]
    other.join(60)
    assert other.exitcode == 1
    assert f"process {1 - lost} of 2 lost another one" in messages[1 - lost].read_text()
    assert f"out={str(out)!r}, resume=True" in messages[1 - lost].read_text()


def test_a_signal_to_one_rank_saves_the_run_of_both_which_one_may_end(two_ranks, tiny_source):
    processes, messages, out = two_ranks
    os.kill(processes[1].pid, signal.SIGTERM)
    for p in processes:
        p.join(60)
        assert p.exitcode == 128 + signal.SIGTERM
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(f"saved at step {state['step']} of 6000" in m.read_text() for m in messages)
    steps = [row["step"] for row in sd.load(out).metrics]
    assert steps == list(range(state["step"] + 1))
    checkpointed = state["step"]

    def more(out):  # of one rank, until the next signal
        sd.pretrain("byol", data=tiny_source, out=out, resume=True, devices=1)

    made, message = process(more, out)
    until(lambda: lines(out) > checkpointed + 4 or made.exitcode is not None)
    os.kill(made.pid, signal.SIGUSR1)
    made.join(60)
    assert made.exitcode == 128 + signal.SIGUSR1, message.read_text()
    steps = [row["step"] for row in sd.load(out).metrics]
    assert steps == list(range(len(steps)))
    assert len(steps) > checkpointed + 4


def test_one_process_takes_no_connections(tiny_source, tmp_path):
    made, _ = process(rank, tmp_path / "run", tiny_source, {**LONG, "devices": 1})
    until(lambda: lines(tmp_path / "run") > 2)
    assert listening(made.pid) == []
    made.kill()
    made.join()


def test_a_row_of_bad_steps_is_counted_through_a_resume(tiny_source, tmp_path, poisoned, monkeypatch):
    """Three in a row are the network's state, and are probed: also where the run was killed between the second and the third."""
    monkeypatch.setitem(globals(), "BAD", (4, 5, 6))
    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    written, write = {}, checkpoint.write_whole

    def recorded(path, content):
        written[torch.load(io.BytesIO(content), weights_only=True)["step"]] = bytes(content)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", recorded)
    run = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", **{**TINY, "epochs": 3, "probe_every": 1})
    assert next(row["verdict"] for row in run.metrics if row["step"] == 6) == "diverged"
    whole = state_of(run)
    run.checkpoint.write_bytes(written[5])
    assert same(whole, state_of(sd.pretrain("byol", data=tiny_source, out=run.path, resume=True)))


def test_what_was_measured_before_a_run_went_on_is_of_it_no_more(tiny_source, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    first, write = [], checkpoint.write_whole
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, content: (first.append(bytes(content)), write(path, content)))
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", workers=1, **TINY)
    sd.measure(run, "knn")
    sd.diagnosis_of(run)
    assert {"evaluation.json", "diagnosis.json"} <= {p.name for p in run.path.iterdir()}
    run.checkpoint.write_bytes(first[0])
    resumed = sd.pretrain("simsiam", data=tiny_source, out=run.path, resume=True, workers=0)
    assert resumed.recipe.workers == 0
    assert not {"evaluation.json", "diagnosis.json"} & {p.name for p in run.path.iterdir()}
