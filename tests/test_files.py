import os
import stat

import pytest

from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, replacing


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "song.wav"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".wav")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["song.wav"]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "song.wav"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise KeyError("half")

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["song.wav"]


def test_a_full_disk_is_the_users_to_mend(tmp_path):
    def fill_up():
        with replacing(tmp_path / "song.wav"):
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"song\.wav: No space left on device"):
        fill_up()
    assert os.listdir(tmp_path) == []


def test_the_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "ordinary").write_text("")
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")]
    assert modes[0] == modes[1]


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "song.wav")
    check_writable(tmp_path / "song.wav")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "song.wav")
    assert os.listdir(tmp_path) == []
