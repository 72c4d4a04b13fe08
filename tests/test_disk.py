"""What is written is whole or not there, and nothing else is touched."""

import multiprocessing
import os

import pytest

from selfdistill.ablate import cells
from selfdistill.disk import locked, merge, object_of, rows_of, whole_folder, write_whole
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.train.run import make_folder


def fail(out, meanwhile=None):
    """A folder that is half made when something goes wrong."""
    with whole_folder(out) as folder:
        (folder / "half").touch()
        if meanwhile:
            with whole_folder(meanwhile) as other:
                (other / "whole").touch()
        raise RuntimeError


def test_a_folder_that_fails_takes_the_empty_folders_above_it_with_it(tmp_path):
    with pytest.raises(RuntimeError):
        fail(tmp_path / "new" / "deep" / "a")
    assert not list(tmp_path.iterdir())


def test_and_not_what_another_command_has_put_there_meanwhile(tmp_path):
    with pytest.raises(RuntimeError):
        fail(tmp_path / "new" / "a", meanwhile=tmp_path / "new" / "b")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b"]
    assert (tmp_path / "new" / "b" / "whole").exists()


def hold(folder, held, done):
    lock = locked(folder)
    held.set()
    done.wait(60)
    lock.release()


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(Misuse, match="another process writes there now"):
        locked(tmp_path)
    other.kill()  # what a killed process held is free
    other.join()
    locked(tmp_path).release()
    locked(tmp_path).release()


def test_a_disk_that_knows_no_locks_holds_nothing_up(tmp_path, monkeypatch):
    def unknown(*args, **named):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", unknown)
    locked(tmp_path).release()
    merge(tmp_path / "a.json", {"b": 1})
    cell = cells.cell(METHODS["simsiam"], tmp_path)
    assert not cell.is_taken()
    cell.taken().release()


def put(file, name):
    for i in range(20):
        merge(file, {f"{name}{i}": i})


def test_what_processes_put_into_one_file_is_all_there(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=put, args=(tmp_path / "found.json", name)) for name in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert object_of(tmp_path / "found.json").keys() == {f"{name}{i}" for name in "ab" for i in range(20)}


@pytest.mark.parametrize("line", ["5", "[]", '{"loss": 1.0}', '{"step": "x", "epoch": 1.0}', '{"step": 3, "ep'])
def test_what_is_no_line_of_a_log_ends_it(tmp_path, line):
    whole = '{"step": 1, "epoch": 0.5, "loss": null}'
    (tmp_path / "log").write_text("\n".join([whole, line, whole]))
    assert rows_of(tmp_path / "log") == [{"step": 1, "epoch": 0.5, "loss": None}]


def make(folder, both, made):
    os.chdir(folder)
    for _ in range(10):
        both.wait(60)
        made.put(str(make_folder(None, "run", METHODS["simsiam"])))


def test_processes_that_start_together_have_a_run_folder_each(tmp_path):
    context = multiprocessing.get_context("fork")
    both, made = context.Barrier(2), context.Queue()
    processes = [context.Process(target=make, args=(tmp_path, both, made)) for _ in range(2)]
    for process in processes:
        process.start()
    names = [made.get(timeout=60) for _ in range(20)]
    for process in processes:
        process.join()
    assert sorted(names) == sorted(f"runs/run-{n}" for n in range(1, 21))
    assert all((tmp_path / name / "recipe.yaml").exists() for name in names)


def test_a_half_of_another_process_stays_and_one_of_a_dead_process_goes(tmp_path):
    context = multiprocessing.get_context("fork")
    dead = context.Process(target=int)
    dead.start()
    dead.join()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".a.npy.{pid}.part").touch()
    write_whole(tmp_path / "a.npy", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".a.npy.{os.getppid()}.part", "a.npy"]
