import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from toy_corpus import Toy, write_toys

from spectrodiff.data.builders import preparation
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import decode
from spectrodiff.errors import InputError

ROOT = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(preparation, "SHARD_BYTES", 20_000)


@pytest.fixture
def toys(tmp_path):
    return write_toys(tmp_path / "toys")


@pytest.fixture(scope="module")
def reference_contents(tmp_path_factory):
    """The contents of the dataset that an uninterrupted run makes of six toys."""
    folder = tmp_path_factory.mktemp("reference_contents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "SHARD_BYTES", 20_000)
        return contents(prepare(Toy(), write_toys(folder / "toys"), folder / "data", workers=1))


def contents(folder):
    """A hash of every file, and the metadata fields that do not depend on the location of the corpus."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    files.pop("metadata.json")
    metadata = json.loads((folder / "metadata.json").read_text())
    return files | {"skipped": metadata["skipped"], "options": metadata["options"], "packages": metadata["packages"]}


def names(data_dir, split):
    return [decode(record).name for record in open_dataset(data_dir, "toy")[split]]


def staged(data_dir):
    return [path for path in (data_dir / "toy_staging").iterdir() if path.is_file() and path.name != "lock"]


def test_prepare_writes_all_recordings_to_a_dataset(toys, tmp_path, reference_contents, capsys):
    data = tmp_path / "new" / "data"
    folder = prepare(Toy(), toys, data)
    assert names(data, "train") == ["toy00", "toy02", "toy03", "toy05"]
    assert names(data, "validation") == ["toy01", "toy04"]
    for entry in Toy().entries(toys):
        (record,) = (r for r in open_dataset(data, "toy")[entry.split] if r["name"] == entry.name.encode())
        found, made = decode(record), Toy().read(entry)
        assert abs(found.audio - made.audio).max() < 2**-15
        assert len(found.stems) == len(made.stems) == int(entry.source[1]) % 3
        assert (found.notes.start == made.notes.start).all()
    assert len(list(folder.glob("toy-train.array_record-*"))) > 1
    assert [path.name for path in data.iterdir()] == ["toy"]
    assert contents(folder) == reference_contents
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["source"] == str(toys)
    assert metadata["options"] == {"gain": 1.0}
    assert metadata["packages"].keys() >= {"spectrodiff", "soundfile", "tensorflow-datasets"}


def test_prepared_dataset_is_not_prepared_again(toys, tmp_path, monkeypatch):
    folder = prepare(Toy(), toys, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(Toy, "read", lambda self, entry: pytest.fail("reads again"))
    assert prepare(Toy(), toys, tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_changed_corpus_replaces_the_dataset(toys, tmp_path):
    prepare(Toy(), toys, tmp_path)
    (toys / "toy06.toy").write_text("test 6")
    (toys / "toy00.toy").unlink()
    prepare(Toy(), toys, tmp_path)
    assert names(tmp_path, "train") == ["toy02", "toy03", "toy05"]
    assert names(tmp_path, "test") == ["toy06"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toys"]


def test_other_options_or_source_raise_input_error(toys, tmp_path):
    folder = prepare(Toy(), toys, tmp_path)
    before = contents(folder)
    with pytest.raises(InputError, match=r"gain 1\.0.* 0\.5.*--data_dir"):
        prepare(Toy(gain=0.5), toys, tmp_path)
    with pytest.raises(InputError, match=r"source toys.* /"):
        prepare(Toy(), write_toys(tmp_path.parent / f"{tmp_path.name}-other"), tmp_path)
    assert contents(folder) == before
    (folder / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"toy/1\.0\.0 .*`spectrodiff prepare`"):
        prepare(Toy(), toys, tmp_path)


def test_moved_data_dir_remains_valid(toys, tmp_path):
    folder = prepare(Toy(), toys, tmp_path)
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert prepare(Toy(), moved / "toys", moved) == moved / folder.relative_to(tmp_path)


def test_bad_recording_raises_input_error_and_skip_bad_resumes(tmp_path, monkeypatch):
    toys = write_toys(tmp_path / "toys", bad=(4,))
    with pytest.raises(InputError, match=r"toy04\.toy .*--skip_bad") as error:
        prepare(Toy(), toys, tmp_path, workers=1)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "toy").exists()
    assert len(staged(tmp_path)) == 4
    read = Toy.read
    again = []
    monkeypatch.setattr(Toy, "read", lambda self, entry: again.append(entry.name) or read(self, entry))
    folder = prepare(Toy(), toys, tmp_path, workers=1, skip_bad=True)
    assert again == ["toy04", "toy05"]
    assert names(tmp_path, "validation") == ["toy01"]
    skipped = json.loads((folder / "metadata.json").read_text())["skipped"]
    assert skipped == {"toy04": f"{toys}/toy04.toy is a bad toy; get another"}


def test_corpus_of_only_bad_recordings_raises_input_error(tmp_path):
    toys = write_toys(tmp_path / "toys", 2, bad=(0, 1))
    with pytest.raises(InputError, match=r"\btoy .*toy00\.toy"):
        prepare(Toy(), toys, tmp_path, skip_bad=True)


def test_empty_corpus_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"toys .*\btoy\b"):
        prepare(Toy(), write_toys(tmp_path / "toys", 0), tmp_path)


def test_zero_workers_raise_input_error(toys, tmp_path):
    with pytest.raises(InputError, match="workers is 0"):
        prepare(Toy(), toys, tmp_path, workers=0)


def test_unwritable_data_dir_raises_input_error(toys):
    with pytest.raises(InputError, match=r"/proc/nope .*--data_dir"):
        prepare(Toy(), toys, "/proc/nope")
    with pytest.raises(InputError, match=r"toy00\.toy .*--data_dir"):
        prepare(Toy(), toys, toys / "toy00.toy")


def raise_disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_while_reading_recordings_can_be_resumed(toys, tmp_path, reference_contents, monkeypatch):
    write = pathlib.Path.write_bytes
    free_writes = [1, 1, 1]
    monkeypatch.setattr(
        pathlib.Path,
        "write_bytes",
        lambda path, data: write(path, data) if free_writes and free_writes.pop() else raise_disk_full(),
    )
    for skip_bad in (False, True):  # a full disk does not make a recording bad
        with pytest.raises(InputError, match="No space left on device"):
            prepare(Toy(), toys, tmp_path, workers=1, skip_bad=skip_bad)
    monkeypatch.undo()
    assert len(staged(tmp_path)) == 3
    monkeypatch.setattr(preparation, "SHARD_BYTES", 20_000)
    assert contents(prepare(Toy(), toys, tmp_path, workers=1)) == reference_contents


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts disks")
def test_disk_full_while_writing_shards_can_be_resumed(tmp_path):
    toys, disk = write_toys(tmp_path / "toys", 9), tmp_path / "disk"
    disk.mkdir()
    # Nine records of 26 to 79 kB fit on the disk once, but not twice.
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]).returncode:
        pytest.skip("no disks to mount here")
    try:
        with pytest.raises(InputError, match="No space left on device") as error:
            prepare(Toy(), toys, disk, workers=1)
        assert "\n" not in str(error.value)
        assert len(staged(disk)) == 9
        assert not (disk / "toy").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        prepare(Toy(), toys, disk, workers=1)
        assert len(names(disk, "train")) == 6
    finally:
        subprocess.run(["umount", disk], check=True)


def test_missing_tfds_raises_input_error(toys, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "spectrodiff.data.builders.tfds_builder", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"TFDS.*spectrodiff\[data\]"):
        prepare(Toy(), toys, tmp_path)


def test_concurrent_run_raises_input_error(toys, tmp_path, monkeypatch):
    read = Toy.read

    def start_another(self, entry):
        with pytest.raises(InputError, match=r"toy_staging"):
            prepare(Toy(), toys, tmp_path, workers=1)
        return read(self, entry)

    monkeypatch.setattr(Toy, "read", start_another)
    prepare(Toy(), toys, tmp_path, workers=1)
    assert len(names(tmp_path, "train")) == 4


def test_report_of_the_corpus_is_called_once(toys, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(Toy, "report", lambda self, *about: reports.append(about), raising=False)
    prepare(Toy(), toys, tmp_path, workers=1)
    assert reports == [(toys, Toy().entries(toys), 1)]


# Runs `prepare` once per point, in a process that kills itself there: with a file half written, between two steps...
KILLS = """
import os, pathlib, shutil, signal, sys

from spectrodiff.data.builders import preparation, tfds_builder
from toy_corpus import Toy

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at(count, owner, name, then=die):
    calls, original = [], getattr(owner, name)
    def counting(*args, **options):
        calls.append(args)
        return then(*args) if len(calls) == count else original(*args, **options)
    setattr(owner, name, counting)

def half(path, data):
    path.open("wb").write(data[: len(data) // 2])
    die()

def renaming(path, target):
    if str(target).endswith("toy/1.0.0"):
        die()
    rename(path, target)

def removing(path, **options):
    if str(path).endswith("_staging"):
        shutil.rmtree(next(pathlib.Path(path).iterdir()), ignore_errors=True)
        die()
    remove(path, **options)

rename, remove = pathlib.Path.rename, shutil.rmtree
points = {
    "reading": lambda: at(4, Toy, "read"),
    "half a recording": lambda: at(4, pathlib.Path, "write_bytes", half),
    "half a shard": lambda: at(4, preparation.msgpack, "unpackb"),
    "metadata": lambda: at(1, tfds_builder.tfds.core.DatasetInfo, "write_to_directory"),
    "renaming": lambda: setattr(pathlib.Path, "rename", renaming),
    "removing": lambda: setattr(preparation.shutil, "rmtree", removing),
}
toys, data = sys.argv[1:]
preparation.SHARD_BYTES = 20_000
for point, patch in points.items():
    child = os.fork()
    if not child:
        patch()
        preparation.prepare(Toy(), toys, pathlib.Path(data, point), workers=1)
        os._exit(0)
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=":")
"""


@pytest.mark.trial
def test_run_killed_at_any_point_is_resumed(toys, tmp_path, reference_contents, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, toys, tmp_path / "data"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    killed = dict(line.split(":") for line in done.stdout.splitlines())
    assert set(killed.values()) == {str(-signal.SIGKILL)}
    read, again = Toy.read, []
    monkeypatch.setattr(Toy, "read", lambda self, entry: again.append(entry.name) or read(self, entry))
    reread = {}
    for point in killed:
        data = tmp_path / "data" / point
        complete = (data / "toy").exists() and any((data / "toy").iterdir())
        assert complete == (point == "removing")
        if complete:
            assert contents(data / "toy" / "1.0.0") == reference_contents
        assert contents(prepare(Toy(), toys, data, workers=1)) == reference_contents
        assert [path.name for path in data.iterdir()] == ["toy"]
        reread[point], again[:] = len(again), []
    assert reread == {
        "reading": 3,
        "half a recording": 3,
        "half a shard": 0,
        "metadata": 0,
        "renaming": 0,
        "removing": 0,
    }


@pytest.mark.trial
def test_worker_count_and_kills_do_not_change_the_dataset(tmp_path, monkeypatch):
    toys = write_toys(tmp_path / "toys", 40)
    alone = contents(prepare(Toy(), toys, tmp_path / "alone", workers=1))
    pids, data = tmp_path / "pids", tmp_path / "data"
    pids.mkdir()
    program = (
        "import sys; from spectrodiff.data.builders import preparation; from toy_corpus import Toy;"
        "preparation.SHARD_BYTES = 20_000; preparation.prepare(Toy(), *sys.argv[1:], workers=2)"
    )
    run = subprocess.Popen([sys.executable, "-c", program, toys, data], cwd=ROOT, env=os.environ | {"PIDS": str(pids)})
    while not data.exists() or len(staged(data)) < 5:
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert 5 <= len(staged(data)) < 40
    workers = [int(path.name) for path in pids.iterdir()]
    assert len(workers) == 2
    assert run.pid not in workers
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)
    assert contents(prepare(Toy(), toys, data, workers=2)) == alone
