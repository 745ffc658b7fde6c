"""User errors on the command line: one line on stderr, exit status 2, and no files written or changed."""

import io
import os
import pathlib
import shutil
import types

import gin
import jax.numpy as jnp
import mido
import numpy as np
import pyloudnorm
import pytest
import soundfile
from inputs import random_notes

from spectrodiff.cli import main
from spectrodiff.notes.midi import write_midi
from spectrodiff.synthesizer import Synthesizer

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """A folder for inputs and outputs, with song.mid in it."""
    write_midi(random_notes(0, seconds=6.0), tmp_path / "song.mid")
    return tmp_path


@pytest.fixture
def fast_loading(synthesizer, monkeypatch):
    """Replaces loading by the shared synthesizer, which is compiled already."""
    monkeypatch.setattr(Synthesizer, "from_pretrained", lambda *_: synthesizer)
    return synthesizer


@pytest.fixture
def error_of(capsys, folder):
    """Runs a command that must fail, and returns its one-line error; every file must be unchanged."""

    def run(*arguments, status=2):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert exit.value.code == status
        assert captured.err.endswith("\n")
        assert "Traceback" not in captured.err
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        *progress, message = captured.err.strip().splitlines()
        assert all("synthesizing:" in line for line in filter(None, progress))
        assert message.startswith("spectrodiff")
        return message

    return run


@pytest.fixture
def midi_error(error_of, folder, fast_loading):
    return lambda name, *options: error_of("synthesize", "--midi", folder / name, "--out", folder / "out.wav", *options)


def write_song(path, *messages, ticks_per_beat=500):
    mido.MidiFile(ticks_per_beat=ticks_per_beat, tracks=[mido.MidiTrack(messages)]).save(path)


def note_messages(ticks, pitch=60):
    return mido.Message("note_on", note=pitch), mido.Message("note_off", note=pitch, time=ticks)


# ---- the MIDI file


def test_missing_midi_file_is_named(midi_error):
    assert "nope.mid" in midi_error("nope.mid")


def test_folder_in_place_of_a_midi_file_is_named(error_of, folder, fast_loading):
    """`synthesize` accepts a folder, but not one without MIDI files."""
    assert str(folder) in error_of("demo", "--midi", folder, "--out", folder)
    (folder / "none").mkdir()
    message = error_of("synthesize", "--midi", folder / "none", "--out", folder / "out")
    assert str(folder / "none") in message
    assert ".kar" in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (np.random.default_rng(0).bytes(1000), "'MThd'"),
        (b"MThd" + np.random.default_rng(0).bytes(1000), "MIDI"),
    ],
)
def test_invalid_midi_file_is_named(midi_error, folder, content, word):
    (folder / "bad.mid").write_bytes(content)
    message = midi_error("bad.mid")
    assert "bad.mid" in message
    assert word in message


@pytest.mark.parametrize("size", [10, 20, 60, -1])
def test_truncated_midi_file_is_named(midi_error, folder, size):
    (folder / "short.mid").write_bytes((folder / "song.mid").read_bytes()[:size])
    assert "short.mid" in midi_error("short.mid")


def test_midi_file_without_notes_is_an_error(midi_error, folder):
    write_song(folder / "silent.mid", mido.Message("program_change", program=3, time=500))
    assert "no notes" in midi_error("silent.mid")


def test_midi_file_with_zero_velocities_only_is_an_error(midi_error, folder):
    write_song(folder / "muted.mid", mido.Message("note_on", note=60, velocity=0), mido.Message("note_off", note=60))
    assert "no notes" in midi_error("muted.mid")


def test_midi_file_longer_than_max_minutes_is_an_error(midi_error, folder):
    write_song(
        folder / "long.mid",
        *note_messages(500),
        mido.Message("note_on", note=60, time=4 * 3600 * 1000),
        *note_messages(500)[1:],
    )
    message = midi_error("long.mid")
    assert all(part in message for part in ("long.mid", "240.0 min", " 60 min", "--max_minutes"))


def test_too_many_notes_in_a_window_are_an_error(midi_error, folder):
    write_midi(random_notes(1, seconds=4.0, voices=60, drums=3000), folder / "crowd.mid")
    assert "0.00 s" in (message := midi_error("crowd.mid"))
    assert "--on_overflow thin" in message


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "spectrodiff: --steps is 0;"),
        (["--steps=100000"], "spectrodiff: --steps is 100000;"),
        (["--steps", "many"], "argument --steps"),
        (["--steps", "2.5"], "argument --steps"),
        (["--guidance", "-1"], "spectrodiff: --guidance is -1.0;"),
        (["--guidance", "nan"], "spectrodiff: --guidance is nan;"),
        (["--guidance", "strong"], "argument --guidance"),
        (["--overlap", "300"], "spectrodiff: --overlap is 300;"),
        (["--dither", "0.1"], " --dither; "),
        (["--tone_temperature", "0.5"], " --tone_temperature; "),
        (["--seed", "-1"], "spectrodiff: --seed is -1;"),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999"),
        (["--sampler", "euler"], "spectrodiff: --sampler is 'euler';"),
        (["--on_overflow", "ignore"], "argument --on_overflow"),
        (["--level", "loud"], "argument --level"),
        (["--speed", "2"], "--speed 2"),
    ],
)
def test_invalid_options_are_named(midi_error, options, message):
    assert message in midi_error("song.mid", *options)


def test_missing_arguments_are_named(error_of):
    assert "COMMAND" in error_of()
    assert "--midi, --out" in error_of("synthesize")
    assert "'compose'" in error_of("compose")


# ---- the checkpoint


def test_missing_checkpoint_lists_the_packaged_ones(error_of, folder):
    message = error_of("synthesize", "--midi", folder / "song.mid", "--out", folder / "a.wav", "--checkpoint", "nope")
    assert "checkpoint 'nope'" in message
    assert "demo" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spectrogram.json", b"", "spectrogram.json"),
        ("spectrogram.json", b"{}", "spectrogram.json"),
        ("spectrogram.json", b'{"format_version": 99, "config": {}}', "version 99"),
        ("spectrogram.json", b'{"format_version": 2, "config": {"colour": 1}}', "'colour'"),
        ("spectrogram.safetensors", b"", "spectrogram.safetensors"),
        ("spectrogram.safetensors", bytes(1000), "spectrogram.safetensors"),
        ("vocoder.json", b"{}", "vocoder.json"),
    ],
)
def test_damaged_checkpoint_file_is_named(error_of, folder, checkpoint, name, content, message):
    shutil.copytree(checkpoint, folder / "weights")
    (folder / "weights" / name).write_bytes(content)
    arguments = ("--midi", folder / "song.mid", "--out", folder / "a.wav", "--checkpoint", folder / "weights")
    assert message in error_of("synthesize", *arguments)


# ---- outputs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope/a{}", "/nope "),
        ("taken{}", "/taken."),
        ("a.xyz", "a.xyz"),
        ("a", "suffix"),
        ("song.mid/a{}", "/song.mid "),
    ],
)
@pytest.mark.parametrize(("option", "suffix"), [("--out", ".wav"), ("--plot", ".png"), ("--mel_out", ".npz")])
def test_unwritable_output_paths_are_named(error_of, folder, fast_loading, option, suffix, name, message):
    (folder / f"taken{suffix}").mkdir()
    options = {"--midi": folder / "song.mid", "--out": folder / "fine.wav"}
    options[option] = folder / name.format(suffix)
    assert message in error_of("synthesize", *(part for pair in options.items() for part in pair))


def test_output_folder_without_permission_is_named(error_of, folder, fast_loading, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as root has permission everywhere
    message = error_of("synthesize", "--midi", folder / "song.mid", "--out", folder / "a.wav")
    assert f"{folder}/a.wav" in message
    assert "permission" in message


@pytest.fixture
def output_args(folder):
    """Command-line arguments for three output files, each of which already exists."""
    paths = {"--out": folder / "a.wav", "--plot": folder / "a.png", "--mel_out": folder / "a.npz"}
    for path in paths.values():
        path.write_text("older")
    return [part for pair in paths.items() for part in pair]


def silent_windows(tokens, context, *_, **__):
    return jnp.asarray(context)


def raising(error):
    def stop(*_, **__):
        raise error

    return stop


def test_interrupt_exits_with_130_and_keeps_old_files(error_of, folder, fast_loading, output_args, monkeypatch):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", raising(KeyboardInterrupt))
    message = error_of("synthesize", "--midi", folder / "song.mid", *output_args, status=130)
    assert message == "spectrodiff: interrupted"


def test_nan_output_is_an_error(error_of, folder, fast_loading, output_args, monkeypatch):
    nans = jnp.full((1, 256, 128), np.nan)
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", lambda *_, **__: nans)
    assert "frame 0" in error_of("synthesize", "--midi", folder / "song.mid", *output_args)


@pytest.mark.parametrize("place", ["spectrodiff.audio.spool.soundfile.SoundFile", "spectrodiff.plot.plot_piece"])
def test_full_disk_at_the_end_keeps_old_files(error_of, folder, fast_loading, output_args, monkeypatch, place):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    monkeypatch.setattr(place, raising(OSError(28, "No space left on device")))
    assert "No space left on device" in error_of("synthesize", "--midi", folder / "song.mid", *output_args)


# ---- successful runs


def test_synthesize_writes_audio_plot_and_mel(folder, fast_loading, output_args, capsys):
    options = {"steps": 2, "sampler": "ddim", "guidance": 1.0, "seed": 7}
    flags = [f"--{name}={value}" for name, value in {**options, "level": "raw"}.items()]
    main(["synthesize", "--midi", str(folder / "song.mid"), *map(str, output_args), *flags])
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{folder}/a.wav: 7.0 s ")
    assert "synthesizing: 100%" in captured.err
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "a.png", "a.wav", "song.mid"]

    mel = np.load(folder / "a.npz")["mel"]
    np.testing.assert_array_equal(mel, np.concatenate(list(fast_loading.mels(folder / "song.mid", **options))))
    audio, rate = soundfile.read(folder / "a.wav")
    expected = fast_loading.vocoder(mel)
    np.testing.assert_allclose(audio, expected / max(1.0, np.abs(expected).max()), atol=1e-4)
    assert rate == 16000
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_peak_level_normalizes_the_peak(folder, fast_loading, monkeypatch):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    main(["synthesize", "--midi", str(folder / "song.mid"), "--out", str(folder / "a.wav"), "--level", "peak"])
    assert np.abs(soundfile.read(folder / "a.wav")[0]).max() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "ogg", "flac"])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_default_level_normalizes_the_loudness(folder, fast_loading, monkeypatch, suffix, scale):
    tone = scale * np.sin(np.arange(16_000 * 7) / 7).astype(np.float32)
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    monkeypatch.setattr(
        type(fast_loading.vocoder), "stream", lambda self, mels: (tone[: len(mel) * 320] for mel in mels)
    )
    main(["synthesize", "--midi", str(folder / "song.mid"), "--out", str(folder / f"a.{suffix}")])
    audio, rate = soundfile.read(folder / f"a.{suffix}")
    assert pyloudnorm.Meter(rate).integrated_loudness(audio) == pytest.approx(-16, abs=0.3)


def test_thinning_reports_dropped_notes(folder, fast_loading, capsys, monkeypatch):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    write_midi(random_notes(1, seconds=4.0, voices=60, drums=3000), folder / "crowd.mid")
    main(["synthesize", "--midi", str(folder / "crowd.mid"), "--out", str(folder / "a.wav"), "--on_overflow", "thin"])
    assert "crowd.mid: " in capsys.readouterr().out
    assert (folder / "a.wav").exists()


def test_demo_writes_audio_and_plot(folder, fast_loading, monkeypatch):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    main(["demo", "--midi", str(folder / "song.mid"), "--out", str(folder / "new" / "out")])
    assert sorted(path.name for path in (folder / "new" / "out").iterdir()) == ["song.png", "song.wav"]


def test_demo_output_must_be_a_folder(error_of, folder, fast_loading):
    assert f"{folder}/song.mid" in error_of("demo", "--midi", folder / "song.mid", "--out", folder / "song.mid")


def test_demo_refuses_two_pieces_with_the_same_name(error_of, folder, fast_loading):
    (folder / "b").mkdir()
    shutil.copy(folder / "song.mid", folder / "b")
    message = error_of("demo", "--midi", folder / "song.mid", folder / "b" / "song.mid", "--out", folder)
    assert f"{folder}/song.wav" in message


# ---- file names and disk space


@pytest.mark.parametrize(
    "stem",
    ["x" * 251, os.fsdecode(b"caf\xe9 \xff"), "cafe\u0301", "\U0001d11e" * 62],
    ids=["long", "no text", "decomposed", "long in bytes"],
)
def test_long_and_non_utf8_file_names_work(folder, fast_loading, monkeypatch, stem):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", silent_windows)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", terminal)
    midi = (folder / "song.mid").rename(folder / f"{stem}.mid")
    outputs = [str(folder / f"{stem}{suffix}") for suffix in (".wav", ".png", ".npz")]
    main(
        [
            "synthesize",
            "--midi",
            str(midi),
            "--out",
            outputs[0],
            "--plot",
            outputs[1],
            "--mel_out",
            outputs[2],
        ]
    )
    assert sorted(os.listdir(folder)) == sorted(stem + suffix for suffix in (".wav", ".png", ".npz", ".mid"))
    terminal.flush()
    said = terminal.buffer.getvalue().decode("ascii").splitlines()
    assert len(said) == 1
    assert ": 7.0 s " in said[0]


def test_too_long_output_name_fails_before_loading_weights(error_of, folder, monkeypatch):
    monkeypatch.setattr(Synthesizer, "from_pretrained", lambda *_: pytest.fail("loads"))
    for name in ("x" * 252 + ".wav", "\u00e9" * 126 + ".wav"):
        message = error_of("synthesize", "--midi", folder / "song.mid", "--out", folder / name)
        assert "too long" in message
    midi = (folder / "song.mid").rename(folder / ("x" * 252 + ".mi"))
    assert "too long" in error_of("demo", "--midi", midi, "--out", folder)
    assert "too long" in error_of("synthesize", "--midi", "x" * 300, "--out", folder / "song.wav")


def test_too_little_disk_space_fails_before_rendering(error_of, folder, fast_loading, monkeypatch):
    monkeypatch.setattr(fast_loading.mel_sampler, "sample_windows", lambda *_, **__: pytest.fail("renders"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    message = error_of("synthesize", "--midi", folder / "song.mid", "--out", folder / "a.wav")
    assert "a.wav" in message
    assert "0.1 MB" in message


# ---- train


@pytest.fixture
def train_error(error_of, folder):
    def run(*arguments):
        message = error_of("train", "--workdir", folder / "run", *arguments)
        assert "configurable '" not in message.replace("Configurable 'train' doesn't", "")  # gin's call trace
        return message

    yield run
    gin.clear_config()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Nope.x = 1", "'Nope'"),
        ("train.nope = 1", "'nope'"),
        ("train.steps = many", "'many' (line 1)"),
        ("train.steps", "(line 1)"),
        ("train.steps = 'many'", "train.steps to 'many'"),
        ("train.seed = 0.5", "train.seed to 0.5"),
        ("ModelConfig.width = '32'", "ModelConfig.width to '32'"),
        ("muon.learning_rate = None", "muon.learning_rate to None"),
        ("Process.objective = @Y()", "'@Y()'"),
        ("Process.objective = 'y'", "Process.objective to 'y'"),
        ("UniformTime.power = 0.0", "UniformTime.power is 0.0"),
        (
            "SpectrogramConfig.decoder = @Process()",
            "SpectrogramConfig.decoder to @Process()",
        ),
        ("Process.schedule = @X0", "Process.schedule to @X0()"),
        ("MelError.every = 0", "MelError.every is 0"),
        ("SpectrogramTask.loader = 'disk'", "SpectrogramTask.loader to 'disk'"),
        ("Loader.threads = 0", "Loader.threads is 0"),
        ("train.evaluators = @MelError()", "train.evaluators to @MelError()"),
        ("train.optimizer = @sgd()", "'@sgd()'"),
        ("ModelConfig.compact_notes = False", "ModelConfig.compact_notes = True"),
        ("Mixture.data_dir = '/nope'", "'rendered' in /nope"),
        ("Mixture.weights = {'rendered': 'all'}", "Mixture.weights to {'rendered': 'all'}"),
        ("Mixture.weights = {'rendered': -1}", "-1 for 'rendered'"),
        ("Augmentation.sub_mix = 2.0\nSpectrogramTask.augmentation = @Augmentation()", "sub_mix is 2.0"),
    ],
)
def test_invalid_bindings_are_named(train_error, binding, message):
    assert message in train_error("--gin_file", ROOT / "configs/tiny.gin", "--gin_param", binding)


def test_missing_module_imported_by_a_config_is_named(train_error, folder):
    (folder / "mine.gin").write_text("import my_missing_parts\ninclude 'tiny.gin'\n")
    message = train_error("--gin_file", folder / "mine.gin")
    assert "my_missing_parts" in message
    assert message.count("\n") <= 1


def test_missing_config_lists_the_packaged_ones(train_error):
    message = train_error("--gin_file", "nope.gin")
    assert "nope.gin" in message
    assert "demo.gin" in message


def test_config_without_a_task_is_an_error(train_error, folder):
    (folder / "half.gin").write_text("train.steps = 3\n")
    assert "train.task" in train_error("--gin_file", folder / "half.gin")


def test_includes_resolve_in_working_folder_and_checkout(train_error, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "mine.gin").write_text("include 'configs/tiny.gin'\ninclude 'other.gin'\n")
    (folder / "other.gin").write_text("Mixture.data_dir = 'here'\n")
    assert "'rendered' in here " in train_error("--gin_file", "mine.gin")


def test_file_in_place_of_a_workdir_is_named(error_of, folder):
    arguments = ("--gin_file", ROOT / "configs/tiny.gin", "--workdir", folder / "song.mid")
    assert f"{folder}/song.mid" in error_of("train", *arguments)
    gin.clear_config()


# ---- prepare


@pytest.mark.parametrize("hours", ["0", "-1", "nan"])
def test_prepare_refuses_nonpositive_hours(error_of, folder, hours):
    assert f"hours is {hours}" in error_of("prepare", "rendered", "--data_dir", folder / "data", "--hours", hours)
