import os
import pathlib
import stat

import pytest

from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, file_name, local_path, replacing, replacing_folder, write_json


def test_replacing_writes_the_file_atomically(tmp_path):
    path = tmp_path / "song.wav"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".wav")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["song.wav"]


def test_failed_replacing_keeps_the_old_file(tmp_path):
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


def test_full_disk_raises_input_error(tmp_path):
    def raise_disk_full():
        with replacing(tmp_path / "song.wav"):
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"song\.wav: No space left on device"):
        raise_disk_full()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_replaced_files_get_default_permissions(tmp_path, umask, monkeypatch):
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


def test_unwritable_paths_raise_input_error(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=f" {tmp_path}: "):
        check_writable(tmp_path)
    with pytest.raises(InputError, match=r"song\.wav: .*/nowhere "):
        check_writable(tmp_path / "nowhere" / "song.wav")
    check_writable(tmp_path / "song.wav")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root has permission everywhere
    with pytest.raises(InputError, match=rf"song\.wav: .* {tmp_path}$"):
        check_writable(tmp_path / "song.wav")
    assert os.listdir(tmp_path) == []


def test_too_long_file_names_raise_input_error(tmp_path):
    for name in ("x" * 256, "é" * 128):
        with pytest.raises(InputError, match=f"{name}.*File name too long"):
            check_writable(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["x" * 246 + ".wav", "x" * 251 + ".wav", "x" * 255, "x." + "y" * 253, "é" * 125 + ".json", "é.wav"]
)
def test_longest_valid_file_names_are_written(tmp_path, name):
    write_json(tmp_path / name, 1)
    assert os.listdir(tmp_path) == [name]
    with replacing_folder(tmp_path / f"{name[:-1]}_") as temporary:
        (temporary / "a").touch()
    assert len(os.listdir(tmp_path)) == 2


def test_non_utf8_file_names_are_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_json(tmp_path / name, 1)
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.wav"]


def test_check_writable_needs_enough_disk_space(tmp_path):
    check_writable(tmp_path / "song.wav", 1000)
    with pytest.raises(InputError, match=r"song\.wav.*1000000000000\.0 MB"):
        check_writable(tmp_path / "song.wav", 10**18)


def test_file_name_escapes_and_shortens_song_names():
    assert file_name("set/2 (live)") == "set%2F2 %28live%29"
    assert file_name(os.fsdecode(b"caf\xe9")) == "caf%E9"
    assert file_name("x" * 240) == "x" * 240
    assert len(file_name("\u00e9" * 100)) == 240
    assert len({file_name("\u00e9" * 100 + end, longest) for end in "ab" for longest in (240, 200)}) == 4


# ---- URLs


def write_one(path):
    write_json(path, 1)


def make_folder(path):
    with replacing_folder(path):
        pass


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "memory://a", "file:///tmp/a", "HDFS://a:1/b"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_urls_raise_input_error(tmp_path, monkeypatch, address, kind):
    monkeypatch.chdir(tmp_path)
    for use in (
        local_path,
        check_writable,
        lambda path: write_json(path, 1),
        lambda path: replacing_folder(path).__enter__(),
    ):
        with pytest.raises(InputError, match=f"^{address.split(':')[0]}://") as caught:
            use(kind(address))
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["a", "a/b:/c", "./gs", "a:b", "/gs:/b", "c:/music", "gs:"])
def test_paths_with_colons_are_accepted(path):
    assert local_path(path) == pathlib.Path(path)


# ---- folders


def test_replacing_folder_creates_the_folder_atomically(tmp_path):
    (tmp_path / "ordinary").mkdir()
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "a").touch()
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path / "out") == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["ordinary", "out"]
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "out")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [KeyError("half"), OSError(28, "No space left on device")])
def test_failed_replacing_folder_leaves_nothing(tmp_path, error):
    def write_half():
        with replacing_folder(tmp_path / "out") as temporary:
            (temporary / "a").touch()
            raise error

    with pytest.raises((KeyError, InputError)):
        write_half()
    assert os.listdir(tmp_path) == []


def test_invalid_folder_paths_raise_input_error(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "song.mid").touch()
    places = {"full": "/full ", "no/out": "/no/out: ", "x" * 300: "File name too long", "\0": "\0: "}
    for name, message in places.items():
        with pytest.raises(InputError, match=message), replacing_folder(tmp_path / name):
            pytest.fail("it was made")
    assert os.listdir(tmp_path) == ["full"]
