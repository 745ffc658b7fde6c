import tarfile

import pytest

from spectrodiff.errors import InputError
from spectrodiff.evaluation.downloads import fetched


def test_weights_at_a_url_are_downloaded_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "vggish" / "variables").mkdir(parents=True)
    (tmp_path / "vggish" / "saved_model.pb").write_bytes(b"model")
    (tmp_path / "vggish" / "variables" / "numbers").write_bytes(b"12")
    with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "vggish", "./")
    address = (tmp_path / "1.tar.gz").as_uri()
    folder = fetched(address)
    assert sorted(path.name for path in folder.iterdir()) == ["saved_model.pb", "variables"]
    assert (folder / "variables" / "numbers").read_bytes() == b"12"
    (tmp_path / "1.tar.gz").unlink()
    assert fetched(address) == folder
    with pytest.raises(InputError, match=r"file:.*1\.tar\.gz\?new: "):
        fetched(f"{address}?new")
    (tmp_path / "clap.onnx").write_bytes(b"one file")
    assert fetched((tmp_path / "clap.onnx").as_uri()).read_bytes() == b"one file"
    assert fetched(str(tmp_path / "there")) == tmp_path / "there"
    with tarfile.open(tmp_path / "2.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "clap.onnx", "../clap.onnx")
    with pytest.raises(InputError, match=r"2\.tar\.gz: .*outside"):
        fetched((tmp_path / "2.tar.gz").as_uri())
    assert len(list((tmp_path / "cache" / "spectrodiff" / "downloads").iterdir())) == 2
