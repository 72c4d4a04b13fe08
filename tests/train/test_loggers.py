"""The same numbers wherever they go."""

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import selfdistill as sd
from selfdistill.recipe import leaves
from selfdistill.train import loggers
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


def test_wandb_offline(tiny_source, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = run_with(tiny_source, tmp_path / "run", "wandb")
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    id = json.loads((run.path / "loggers.json").read_text())["wandb"]
    assert folder.name.endswith(id)
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for word in (b"effective_rank", b"output_std", b"simsiam"):
        assert word in content


def test_mlflow(tiny_source, tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = run_with(tiny_source, tmp_path / "run", "mlflow")
    id = json.loads((run.path / "loggers.json").read_text())["mlflow"]
    client = tracking.MlflowClient()
    assert {m.step: pytest.approx(m.value) for m in client.get_metric_history(id, "loss")} == losses(run)
    found = client.get_run(id)
    assert found.info.status == "FINISHED"
    assert found.data.params["encoder.name"] == "resnet-small"
    assert found.data.params.keys() == {path for path, _ in leaves(run.recipe)}
    sd.pretrain("simsiam", data=tiny_source, out=run.path, resume=True)  # nothing is left to do; the same run there
    assert json.loads((run.path / "loggers.json").read_text())["mlflow"] == id
