import os
import pathlib
import stat

import pytest

from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, file_name, local_path, replacing, replacing_folder, write_json


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


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_file_is_as_readable_as_any_other(tmp_path, umask, monkeypatch):
    before = os.umask(umask)
    try:
        (tmp_path / "ordinary").write_text("")
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changes what other threads write"))
        with replacing(tmp_path / "ours") as temporary:
            temporary.write_text("")
    finally:
        monkeypatch.undo()
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")]
    assert modes == [0o666 & ~umask] * 2


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
    for name in ("x" * 256, "é" * 128):
        with pytest.raises(InputError, match=r"^cannot write .*File name too long"):
            check_writable(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["x" * 246 + ".wav", "x" * 251 + ".wav", "x" * 255, "x." + "y" * 253, "é" * 125 + ".json", "é.wav"]
)
def test_every_name_that_the_disk_takes(tmp_path, name):
    write_json(tmp_path / name, 1)
    assert os.listdir(tmp_path) == [name]
    with replacing_folder(tmp_path / f"{name[:-1]}_") as temporary:
        (temporary / "a").touch()
    assert len(os.listdir(tmp_path)) == 2


def test_names_whose_bytes_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_json(tmp_path / name, 1)
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.wav"]


def test_a_file_that_will_not_fit(tmp_path):
    check_writable(tmp_path / "song.wav", 1000)
    with pytest.raises(InputError, match=r"song\.wav.*1000000000000\.0 MB"):
        check_writable(tmp_path / "song.wav", 10**18)


def test_names_of_songs_are_names_of_files():
    assert file_name("set/2 (live)") == "set%2F2 %28live%29"
    assert file_name(os.fsdecode(b"caf\xe9")) == "caf%E9"
    assert file_name("x" * 240) == "x" * 240
    assert len(file_name("\u00e9" * 100)) == 240
    assert len({file_name("\u00e9" * 100 + end, longest) for end in "ab" for longest in (240, 200)}) == 4


# ---- addresses


def write_one(path):
    write_json(path, 1)


def make_folder(path):
    with replacing_folder(path):
        pass


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "memory://a", "file:///tmp/a", "HDFS://a:1/b"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_an_address_is_not_a_path(tmp_path, monkeypatch, address, kind):
    monkeypatch.chdir(tmp_path)
    for use in (
        local_path,
        check_writable,
        lambda path: write_json(path, 1),
        lambda path: replacing_folder(path).__enter__(),
    ):
        with pytest.raises(InputError, match=f"^{address.split(':')[0]}://.* is an address") as caught:
            use(kind(address))
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["a", "a/b:/c", "./gs", "a:b", "/gs:/b", "c:/music", "gs:"])
def test_paths_with_colons_are_paths(path):
    assert local_path(path) == pathlib.Path(path)


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
