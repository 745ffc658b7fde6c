import os
import stat

import pytest

from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, replacing, replacing_folder


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


def test_names_too_long_for_the_disk(tmp_path):
    with pytest.raises(InputError, match=r"^cannot write .*File name too long"):
        check_writable(tmp_path / ("x" * 300))


# ---- folders


def test_the_folder_appears_when_it_is_whole(tmp_path):
    (tmp_path / "ordinary").mkdir()
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "a").touch()
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "out") == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["ordinary", "out"]
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "out")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [KeyError("half"), OSError(28, "No space left on device")])
def test_half_a_folder_leaves_nothing(tmp_path, error):
    def write_half():
        with replacing_folder(tmp_path / "out") as temporary:
            (temporary / "a").touch()
            raise error

    with pytest.raises((KeyError, InputError)):
        write_half()
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "song.mid").touch()
    places = {"full": "is there already", "no/out": "cannot make", "x" * 300: "cannot make", "\0": "cannot make"}
    for name, message in places.items():
        with pytest.raises(InputError, match=message), replacing_folder(tmp_path / name):
            pytest.fail("it was made")
    assert os.listdir(tmp_path) == ["full"]
