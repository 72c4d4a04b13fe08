"""The same numbers wherever they go."""

import csv
import json
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import selfdistill as sd
from selfdistill.spec import leaves
from selfdistill.train import checkpoint, loggers
from tests.conftest import TINY


def run_with(tiny_source, out, *log, **more):
    return sd.pretrain("simsiam", f"log=[{', '.join(log)}]", data=tiny_source, out=out, **{**TINY, "epochs": 1}, **more)


def losses(run):
    return {row["step"]: row["loss"] for row in run.metrics if "loss" in row}


def test_tensorboard_and_csv_have_the_lines_of_metrics(tiny_source, tmp_path):
    run = run_with(tiny_source, tmp_path / "run", "tensorboard", "csv")
    events = EventAccumulator(str(run.path)).Reload()
    assert {e.step: pytest.approx(e.value, abs=1e-6) for e in events.Scalars("loss")} == losses(run)
    rows = list(csv.DictReader((run.path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [row["step"] for row in run.metrics]
    assert [float(row["loss"]) for row in rows if row["loss"]] == list(losses(run).values())
    assert rows[-1]["verdict"] == run.metrics[-1]["verdict"]


def test_a_run_that_begins_again_is_not_drawn_twice(tmp_path):
    """Killed before its first checkpoint."""
    for value in (1.0, 2.0):
        writer = loggers.TensorBoard(tmp_path, sd.METHODS["byol"], 0)
        for step in (0, 1, 10):
            writer.log(step, {"loss": value})
        writer.close(ended=value == 2.0)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(0, 2.0), (1, 2.0), (10, 2.0)]


def test_none(tiny_source, tmp_path):
    run = sd.pretrain("simsiam", "log=none", data=tiny_source, out=tmp_path / "run", **{**TINY, "epochs": 1})
    assert run.recipe.log == ()
    assert not list(run.path.glob("events*"))
    assert losses(run)


@pytest.mark.parametrize(("value", "kept"), [("csv", ("csv",)), ("[csv, tensorboard]", ("csv", "tensorboard")), ("none", ()), ("[]", ())])
def test_one_word_a_list_or_none(value, kept):
    assert sd.METHODS["byol"].edit([f"log={value}"]).log == kept


def test_an_unknown_logger_or_a_client_that_is_missing_leaves_nothing(tiny_source, tmp_path, monkeypatch):
    with pytest.raises(sd.Misuse, match=r"log.*wandbb.*tensorboard"):
        run_with(tiny_source, tmp_path / "run", "wandbb")
    monkeypatch.setattr("selfdistill.errors.find_spec", lambda package: None)
    with pytest.raises(sd.Misuse, match=r"log=wandb needs wandb: pip install 'selfdistill\[wandb\]'"):
        run_with(tiny_source, tmp_path / "run", "tensorboard", "wandb")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_no_is_one_message_with_the_way_out(tiny_source, tmp_path, monkeypatch):
    class Refusing(loggers.CSV):
        def __init__(self, folder, recipe, step):
            raise RuntimeError("no such\nhost")

    monkeypatch.setitem(loggers.LOGGERS, "csv", Refusing)
    with pytest.raises(loggers.Failure, match=r"log=csv: no such host: .*--resume"):
        run_with(tiny_source, tmp_path / "run", "csv")


def test_a_logger_that_fails_while_the_run_goes_on(tiny_source, tmp_path, monkeypatch, capsys):
    class Leaving(loggers.CSV):
        def log(self, step, scalars):
            if step == 2:
                raise RuntimeError("gone\naway.")

    monkeypatch.setitem(loggers.LOGGERS, "csv", Leaving)
    run = run_with(tiny_source, tmp_path / "run", "csv", "tensorboard")
    assert capsys.readouterr().out.count("Leaving: gone away. It gets no more of this run") == 1
    events = EventAccumulator(str(run.path)).Reload()
    assert {e.step for e in events.Scalars("loss")} == losses(run).keys() == {1, 2, 3}


def stopped(monkeypatch, after):
    """A run ends early, as if by a signal, with a checkpoint of that step."""
    kept = checkpoint.Keeper.after

    def ending(self, now, *args, **kw):
        kept(self, now, *args, **{**kw, "asked": now.step == after})
        if now.step == after:
            raise InterruptedError

    monkeypatch.setattr(checkpoint.Keeper, "after", ending)
    return lambda: monkeypatch.setattr(checkpoint.Keeper, "after", kept)


def records(file):
    """Of wandb's offline file: LevelDB's log, blocks of 32 KiB with pieces of records: crc [4], length [2], 1 whole or 4 last [1]."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:
            at += 32768 - at % 32768
            continue
        length, piece = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if piece in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline_and_resumed(tiny_source, tmp_path, monkeypatch):
    """What its client keeps for `wandb sync`: every line once, under one id, the recipe, and whether the run ended."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    free = stopped(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        run_with(tiny_source, tmp_path / "run", "wandb")
    free()
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", resume=True)
    id = json.loads((run.path / "loggers.json").read_text())["wandb"]
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert [file.name for file in files] == [f"run-{id}.wandb"] * 2
    found, exits = {}, []
    for record in (record for file in files for record in records(file)):
        if record.WhichOneof("record_type") == "history":
            values = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            found[record.history.step.num] = values
        elif record.WhichOneof("record_type") == "exit":
            exits.append(record.exit.exit_code)
    assert exits == [1, 0]
    assert {step: values["loss"] for step, values in found.items() if "loss" in values} == losses(run)
    assert found[3]["effective_rank"] == run.metrics[-1]["effective_rank"]


def test_mlflow_and_resumed(tiny_source, tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    free, client = stopped(monkeypatch, 2), tracking.MlflowClient()
    with pytest.raises(InterruptedError):
        run_with(tiny_source, tmp_path / "run", "mlflow")
    free()
    id = json.loads((tmp_path / "run" / "loggers.json").read_text())["mlflow"]
    assert client.get_run(id).info.status == "KILLED"
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", resume=True)
    assert json.loads((run.path / "loggers.json").read_text())["mlflow"] == id
    assert {m.step: pytest.approx(m.value) for m in client.get_metric_history(id, "loss")} == losses(run)
    found = client.get_run(id)
    assert found.info.status == "FINISHED"
    assert found.data.params["encoder.name"] == "resnet-small"
    assert found.data.params.keys() == {path for path, _ in leaves(run.recipe)}


def test_mlflow_without_a_server(tiny_source, tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(sd.Failure, match=r"log=mlflow: .*127\.0\.0\.1.*set MLFLOW_TRACKING_URI.*--resume"):
        run_with(tiny_source, tmp_path / "run", "mlflow")
