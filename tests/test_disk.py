"""What is written is whole or not there, and nothing else is touched."""

import pytest

from selfdistill.disk import whole_folder


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
