"""What is written is whole or not there, and nothing else is touched."""

import multiprocessing

import pytest

from selfdistill.disk import merge, object_of, rows_of, taken, whole_folder
from selfdistill.errors import Misuse


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
    lock = taken(folder)
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
        taken(tmp_path)
    other.kill()  # what a killed process held is free
    other.join()
    taken(tmp_path).release()
    taken(tmp_path).release()


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
