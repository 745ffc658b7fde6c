import io
import json
import resource
import struct

import matplotlib.image
import numpy as np
import pytest
import soundfile
from tensorboardX.proto.event_pb2 import Event, SessionLog

from spectrodiff.errors import InputError
from spectrodiff.training.metric_writer import MetricWriter


def rows(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def event_files(workdir):
    return sorted((workdir / "tensorboard").iterdir())


def events(path):
    """The events in a TFRecord file, whose records are length, checksum of it, data and checksum of the data."""
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_logged_metrics_can_be_read_back(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    sound = rng.uniform(-1.2, 1.2, 100).astype(np.float32)
    writer = MetricWriter(tmp_path, -1)
    writer.write_scalars(3, {"loss": np.float32(0.5), "heldout_loss/a": 2})
    writer.write_images(3, {"mel/0": picture})
    writer.write_audio(4, {"audio/0": sound})
    writer.write_texts(0, {"config": "a = 1\n\n# *b*"})
    writer.close()
    assert rows(tmp_path) == [{"step": 3, "loss": 0.5, "heldout_loss/a": 2.0}]
    (path,) = event_files(tmp_path)
    version, start, *logged = events(path)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    values = {value.tag: (event.step, value) for event in logged for value in event.summary.value}
    scalars = {tag: (step, value.simple_value) for tag, (step, value) in values.items() if "loss" in tag}
    assert scalars == {"loss": (3, 0.5), "heldout_loss/a": (3, 2.0)}
    step, value = values["mel/0"]
    seen = matplotlib.image.imread(io.BytesIO(value.image.encoded_image_string), format="png")
    np.testing.assert_array_equal(np.round(255 * seen).astype(int), picture)
    assert step == 3
    step, value = values["audio/0"]
    decoded, rate = soundfile.read(io.BytesIO(value.audio.encoded_audio_string))
    np.testing.assert_allclose(decoded, np.clip(sound, -1, 1), atol=2**-15)
    assert (step, rate) == (4, 16000)
    step, value = values["config/text_summary"]
    assert value.tensor.string_val == [b"    a = 1\n    \n    # *b*"]  # indented text is verbatim in Markdown


def test_resumed_run_logs_no_step_twice(tmp_path):
    first = MetricWriter(tmp_path, -1)
    for step in (0, 2, 4, 6):
        first.write_scalars(step, {"loss": 1.0 / 3.0 + step})
    first.close()
    before = (tmp_path / "log.jsonl").read_text()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "los')  # the run was killed while writing this row
    second = MetricWriter(tmp_path, 4)
    assert (tmp_path / "log.jsonl").read_text() == "".join(before.splitlines(keepends=True)[:3])
    second.write_scalars(6, {"loss": 7.0})
    second.close()
    assert [row["step"] for row in rows(tmp_path)] == [0, 2, 4, 6]
    assert rows(tmp_path)[-1]["loss"] == 7.0
    old, new = event_files(tmp_path)  # by name, as TensorBoard reads them
    assert [event.step for event in events(old) if event.summary.value] == [0, 2, 4, 6]
    assert [(event.session_log.status, event.step) for event in events(new)][1] == (SessionLog.START, 5)
    MetricWriter(tmp_path, -1).close()
    assert rows(tmp_path) == []


def test_rows_are_written_immediately(tmp_path):
    writer = MetricWriter(tmp_path, -1)
    writer.write_scalars(1, {"loss": 1.0})
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


def test_full_disk_raises_input_error(tmp_path):
    """The full disk is simulated by a limit on the file size."""
    writer, sound = MetricWriter(tmp_path, -1), np.zeros(10**6, np.float32)
    for step in range(5):
        writer.write_scalars(step, {"loss": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.jsonl").stat().st_size + 10, limits[1]))
    try:
        writer.write_scalars(5, {"loss": 0.5})  # only half of this row fits
        for write in (lambda: writer.write_scalars(6, {"loss": 0.5}), lambda: writer.write_audio(6, {"audio": sound})):
            with pytest.raises(InputError) as error:
                write()
            assert str(error.value).endswith(f" {tmp_path}: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    MetricWriter(tmp_path, 3).close()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3]


def test_unwritable_workdir_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=r"/nowhere: No such file"):
        MetricWriter(tmp_path / "nowhere", -1)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"workdir .*: Is a directory"):
        MetricWriter(tmp_path, -1)
