"""`spectrodiff app`: reading and rendering songs without a page, then the page in a headless browser."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request

import mido
import numpy as np
import pytest
import soundfile
from inputs import random_notes

import spectrodiff
from spectrodiff.app import rendering
from spectrodiff.app.rendering import load, render, sampling_controls
from spectrodiff.app.song import DRUMS, Limits, Song, arrange, general_midi, instruments, read_song, roll, title
from spectrodiff.audio.files import write_audio
from spectrodiff.cli import main
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig, SamplingConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.models.texture_decoder import TextureConfig
from spectrodiff.notes.midi import read_midi, write_midi

FAST = {"steps": 1, "guidance": 1.0}
PIECE = random_notes(0, seconds=12.0)  # programs 0, 5, 40 and drums; three windows with the added second of silence


@pytest.fixture
def midi(tmp_path):
    write_midi(PIECE, tmp_path / "my_piece.mid")
    return tmp_path / "my_piece.mid"


def rows_with(**choices):
    """The instrument rows of PIECE, updated by program: `p0`, `p5`, `p40` or `drums`."""
    rows = instruments(PIECE)
    for row in rows:
        row.update(choices.get("drums" if row["program"] == DRUMS else f"p{row['program']}", {}))
    return rows


def test_read_song_lists_notes_by_instrument(midi):
    song = read_song(midi, Limits())
    assert song.name == "my_piece"
    assert title(midi) == "My piece"
    rows = instruments(song.notes)
    assert [row["program"] for row in rows] == [0, 5, 40, DRUMS]
    for row in rows:
        these = PIECE.is_drum if row["program"] == DRUMS else ~PIECE.is_drum & (PIECE.program == row["program"])
        assert row["notes"] == these.sum()
    assert len({row["colour"] for row in rows}) == 4
    drawn = roll(song)
    assert sorted(zip(drawn["pitch"], drawn["program"], strict=True)) == sorted(
        zip(PIECE.pitch, np.where(PIECE.is_drum, DRUMS, PIECE.program), strict=True)
    )
    assert drawn["seconds"] == pytest.approx(song.notes.total_time + 1.0, abs=0.01)


def test_channel_volume_applies_only_to_models_that_use_it(tmp_path):
    track = mido.MidiTrack([mido.Message("control_change", control=7, value=50)])
    track += [mido.Message("note_on", note=60, velocity=100), mido.Message("note_off", note=60, time=480)]
    mido.MidiFile(tracks=[track]).save(tmp_path / "quiet.mid")
    song = read_song(tmp_path / "quiet.mid", Limits())
    for heeded in (False, True):
        expected = read_midi(tmp_path / "quiet.mid", channel_volume=heeded)
        np.testing.assert_array_equal(song.notes_for(heeded).velocity, expected.velocity)
    assert song.notes_for(True).velocity[0] < song.notes_for(False).velocity[0] == 100


def test_arrange_changes_programs_and_drops_muted_instruments():
    notes = arrange(PIECE, rows_with(p0={"target": 73}, p5={"muted": True}, drums={"muted": True}))
    kept = ~PIECE.is_drum & (PIECE.program != 5)
    np.testing.assert_array_equal(notes.program, np.where(PIECE.program[kept] == 0, 73, PIECE.program[kept]))
    for name in ("start", "end", "pitch", "velocity", "is_drum"):
        np.testing.assert_array_equal(getattr(notes, name), getattr(PIECE, name)[kept])
    assert notes.total_time == PIECE.total_time


def test_arrange_swaps_two_programs():
    notes = arrange(PIECE, rows_with(p0={"target": 40}, p40={"target": 0}))
    swapped = np.select([PIECE.program == 0, PIECE.program == 40], [40, 0], PIECE.program)
    np.testing.assert_array_equal(notes.program, np.where(PIECE.is_drum, PIECE.program, swapped))


@pytest.mark.parametrize(
    "rows",
    [
        [{**row, "muted": True} for row in instruments(PIECE)],
        rows_with(p0={"target": 128}),
        rows_with(p0={"target": -1}),
        rows_with(p0={"target": "0"}),
        rows_with(p0={"target": None}),
        rows_with(p0={"program": 1}),
        rows_with(p0={"muted": "yes"}),
        rows_with(drums={"target": 0}),
        [{}],
    ],
)
def test_invalid_instrument_rows_raise_input_error(rows):
    with pytest.raises(InputError):
        arrange(PIECE, rows)


def test_general_midi_has_16_families_of_8_programs():
    families = general_midi()
    assert [len(names) for _, names in families] == [8] * 16
    assert families[0][1][0] == "Acoustic Grand Piano"
    assert families[9][1][1] == "Flute"


def test_unplayable_files_are_refused_by_name(tmp_path, midi):
    (tmp_path / "words.mid").write_text("hello")
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(tmp_path / "empty.mid")
    limits = {"words": Limits(), "empty": Limits(), "gone": Limits()}
    limits["my_piece"] = Limits(minutes=0.1)
    for name, limit in limits.items():
        with pytest.raises(InputError, match=rf"^{name}\.mid ") as raised:
            read_song(tmp_path / f"{name}.mid", limit)
        assert str(tmp_path) not in str(raised.value)
    with pytest.raises(InputError, match="MB"):
        read_song(midi, Limits(megabytes=1e-4))


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_must_be_positive_and_finite(wrong):
    for name in ("megabytes", "minutes"):
        with pytest.raises(InputError):
            Limits(**{name: wrong})


def read_pcm(folder, chunks):
    return np.concatenate([np.frombuffer((folder / f"{i}.pcm").read_bytes(), "<i2") for i in range(chunks)])


def test_render_streams_the_audio_and_then_writes_files(synthesizer, tmp_path):
    folder = tmp_path / "visitor" / "run"
    steps = list(render(synthesizer, PIECE, folder, "piece", seed=3, **FAST))
    whole = synthesizer(PIECE, seed=3, **FAST)
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    assert steps[0].mels == 1
    assert steps[0].seconds < 6.0
    last = steps[-1]
    assert last.seconds == last.total == pytest.approx(len(whole) / 16000)
    np.testing.assert_allclose(read_pcm(folder, last.chunks), 32767 * whole.clip(-1, 1), atol=1.0)
    assert last.mels == 3
    assert sorted(path.suffix for path in last.files) == [".flac", ".mid", ".wav"]
    assert not any(step.files for step in steps[:-1])
    write_audio(tmp_path / "expected.wav", whole, level="loudness")
    expected, _ = soundfile.read(tmp_path / "expected.wav")
    for path in last.files[:2]:
        heard, rate = soundfile.read(path)
        assert rate == 16000
        np.testing.assert_allclose(heard, expected, atol=1e-4)
    assert len(read_midi(last.files[2])) == len(PIECE)


@pytest.fixture
def sampled_windows(monkeypatch):
    """A list that grows with every sampled window; sampling is slowed down to 0.3 seconds or more per window."""
    made = []
    start = MelSampler._start

    def slow_start(self, *arguments):
        made.append(time.monotonic())
        time.sleep(0.3)
        return start(self, *arguments)

    monkeypatch.setattr(MelSampler, "_start", slow_start)
    return made


def test_closing_render_stops_sampling_and_removes_files(synthesizer, sampled_windows, tmp_path):
    steps = render(synthesizer, PIECE, tmp_path / "run", "piece", **FAST)
    next(steps)
    assert (tmp_path / "run").is_dir()
    steps.close()
    assert len(sampled_windows) == 1
    assert not list(tmp_path.iterdir())


def test_render_stops_when_its_folder_is_removed(synthesizer, sampled_windows, tmp_path):
    steps = render(synthesizer, PIECE, tmp_path / "run", "piece", **FAST)
    next(steps)
    shutil.rmtree(tmp_path / "run")
    assert not list(steps)
    assert len(sampled_windows) <= 3


def test_failed_render_leaves_no_files(synthesizer, tmp_path):
    with pytest.raises(InputError):
        list(render(synthesizer, PIECE, tmp_path / "run", "piece", steps=-1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "decoder",
    [
        *(DiffusionConfig(), DiffusionConfig(sampling=SamplingConfig(steps=1000)), TextureConfig()),
        AutoregressiveConfig(),
    ],
)
def test_sliders_follow_the_sampling_options_of_the_decoder(monkeypatch, decoder):
    checkpoint = types.SimpleNamespace(config=SpectrogramConfig(decoder=decoder))
    monkeypatch.setattr(rendering, "open_checkpoint", lambda folder: checkpoint)
    for name, slider in zip(("steps", "guidance"), sampling_controls("demo"), strict=True):
        assert slider["visible"] == hasattr(decoder.sampling, name)
        if slider["visible"]:
            assert slider["minimum"] <= slider["value"] == getattr(decoder.sampling, name) <= slider["maximum"]
            for end in ("minimum", "maximum", "value"):
                decoder.sampled(**{name: slider[end]})
    assert sampling_controls("demo")[0]["minimum"] == (not isinstance(decoder, TextureConfig))


def test_loaded_synthesizers_are_cached(checkpoint):
    assert load(str(checkpoint), None) is load(str(checkpoint), None)


def test_song_duration_includes_a_second_of_silence():
    assert Song("piece", PIECE, PIECE).seconds == PIECE.total_time + 1.0


def test_missing_gradio_is_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stopped:
        main(["app"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install" in said


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Records when each audio buffer starts to play, its length and its peak.
LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  const samples = this.buffer.getChannelData(0);
  heard.push({when, length: samples.length, peak: samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0)});
  return start.call(this, when, offset);
};
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    options = ["--no-sandbox", "--disable-gpu", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(checkpoint):
    pytest.importorskip("gradio")
    from spectrodiff.app.page import Options, Page
    from spectrodiff.files import packaged

    examples = tuple(sorted(packaged("examples").glob("*.mid")))
    temporary = os.environ.get("GRADIO_TEMP_DIR")
    page = Page(Options(checkpoints=(str(checkpoint),), examples=examples, limits=Limits(megabytes=0.1, minutes=2.0)))
    _, page.address, _ = page.launch(server_port=None, prevent_thread_lock=True)
    yield page
    page.close()
    os.environ.pop("GRADIO_TEMP_DIR")
    if temporary is not None:
        os.environ["GRADIO_TEMP_DIR"] = temporary


@pytest.fixture
def open_page(browser, site):
    """Opens the page with 1 sampling step; requests to other hosts and script errors fail the test."""
    visitors, wrong = [], []

    def new_visitor():
        visitor = browser.new_context().new_page()
        visitors.append(visitor)
        visitor.set_default_timeout(30_000)
        visitor.add_init_script(LISTEN)
        visitor.on("request", lambda request: wrong.append(request.url) if is_elsewhere(request.url) else None)
        visitor.on("pageerror", lambda error: wrong.append(str(error)))
        visitor.goto(site.address)
        visitor.get_by_label("number input for Steps").fill("1")
        visitor.get_by_label("number input for Steps").press("Tab")
        return visitor

    def is_elsewhere(url):
        return not url.startswith((site.address, "data:", "blob:"))

    yield new_visitor
    for visitor in visitors:
        visitor.context.close()
    assert not wrong


def session_files(site):
    # `os.walk` passes over folders that are removed meanwhile.
    return [pathlib.Path(folder, name) for folder, _, names in os.walk(site._folder.name) for name in names]


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def upload(visitor, path):
    visitor.set_input_files("#file input[type=file]", path)


def drop(visitor, name, text):
    files = visitor.evaluate_handle(
        """([name, text]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], name));
            return carried;
        }""",
        [name, text],
    )
    visitor.dispatch_event("#view .plot", "drop", {"dataTransfer": files})


def press_render(visitor):
    visitor.locator("#render:not([disabled])").click()


def test_page_uploads_plays_and_downloads_a_song(open_page, site, midi, sampled_windows, tmp_path):
    visitor = open_page()
    upload(visitor, midi)
    visitor.locator("#instruments tr").nth(3).wait_for()
    assert [line.split("\t")[0].strip() for line in visitor.locator("#instruments tr").all_inner_texts()] == [
        *("Acoustic Grand Piano", "Electric Piano 2", "Violin", "Drums")
    ]
    assert visitor.inner_text("#view .title strong") == "My piece"
    wait_until(lambda: not session_files(site))  # the upload has been read
    visitor.locator("#instruments select").nth(0).select_option("Flute")
    visitor.locator("#instruments button").nth(3).click()

    press_render(visitor)
    visitor.wait_for_function("window.heard.length > 0")
    assert len(sampled_windows) < 3  # playback starts before all windows are rendered
    visitor.locator("#downloads").get_by_text("MIDI").wait_for()
    total = float(visitor.evaluate("heard.reduce((sum, chunk) => sum + chunk.length, 0)"))
    assert total == pytest.approx(16000 * (read_midi(midi).total_time + 1.0), abs=320)
    assert visitor.evaluate("Math.max(...heard.map((chunk) => chunk.peak))") > 0.01
    assert visitor.get_attribute("#view .play", "aria-label") == "Pause"
    position = visitor.inner_text("#view .time")
    visitor.wait_for_function("(before) => document.querySelector('#view .time').innerText !== before", arg=position)
    visitor.locator("#view .play").click()
    assert visitor.get_attribute("#view .play", "aria-label") == "Play"
    box = visitor.locator("#view .plot").bounding_box()
    visitor.locator("#view .plot").click(position={"x": 0.75 * box["width"], "y": 20})
    assert visitor.inner_text("#view .time").startswith("0:09 / 0:1")  # of about 12.5 seconds

    expected = arrange(PIECE, rows_with(p0={"target": 73}, drums={"muted": True}))
    got = {}
    for name in ("WAV", "FLAC", "MIDI"):
        with visitor.expect_download() as download:
            visitor.locator("#downloads").get_by_text(name).click()
        got[name] = tmp_path / "got" / download.value.suggested_filename
        download.value.save_as(got[name])
    assert [path.name for path in got.values()] == ["my_piece.wav", "my_piece.flac", "my_piece.mid"]
    assert soundfile.info(got["WAV"]).frames == soundfile.info(got["FLAC"]).frames == total
    notes = read_midi(got["MIDI"])
    assert sorted(zip(notes.pitch, notes.program, strict=True)) == sorted(
        zip(expected.pitch, expected.program, strict=True)
    )
    picture = visitor.evaluate("""() => {
        const mel = document.querySelector("#view .mel");
        const pixels = mel.getContext("2d").getImageData(0, 0, mel.width, mel.height).data;
        return [0.1, 0.5, 0.95].map((x) => pixels[4 * (mel.width * (mel.height >> 1) + Math.round(x * mel.width)) + 3]);
    }""")
    assert picture == [255, 255, 255]  # the mel is drawn over the whole width

    assert session_files(site)
    visitor.context.close()
    wait_until(lambda: not session_files(site))


def test_page_keeps_warnings_of_ignored_midi_events(open_page, site, tmp_path):
    track = mido.MidiTrack([mido.Message("pitchwheel", pitch=1000), mido.Message("program_change", program=42)])
    track += [mido.Message("note_on", note=60, velocity=100), mido.Message("note_off", note=60, time=480)]
    mido.MidiFile(tracks=[track]).save(tmp_path / "bent.mid")
    visitor = open_page()
    upload(visitor, tmp_path / "bent.mid")
    remarks = visitor.locator("#view .remarks")
    visitor.locator("#view .remarks", has_text="pitch bend (1)").wait_for()
    press_render(visitor)
    visitor.locator("#downloads").get_by_text("MIDI").wait_for(timeout=180_000)
    assert "s of audio" in visitor.inner_text("#view .status")
    assert "pitch bend (1)" in remarks.inner_text()
    visitor.get_by_role("button", name="Bach prelude").click()
    visitor.locator("#view .title strong", has_text="Bach prelude").wait_for()
    assert not remarks.inner_text()


def test_page_shows_errors_and_accepts_the_next_song(open_page, site, tmp_path, midi):
    visitor = open_page()
    drop(visitor, "words.mid", "<b>hello</b>")
    visitor.locator("#view .status.failed", has_text="words.mid is not").wait_for()
    assert visitor.locator("#render").is_disabled()

    long = dataclasses.replace(PIECE, start=PIECE.start + 600, end=PIECE.end + 600, total_time=PIECE.total_time + 600)
    write_midi(long, tmp_path / "long.mid")
    upload(visitor, tmp_path / "long.mid")
    visitor.locator("#view .status.failed", has_text="long.mid lasts").wait_for()

    (tmp_path / "big.mid").write_bytes(b"MThd" + bytes(200_000))
    upload(visitor, tmp_path / "big.mid")
    visitor.locator("[data-testid=toast-body]").wait_for()
    assert not session_files(site)

    visitor.get_by_role("button", name="Corelli grave").click()
    visitor.locator("#instruments tr").first.wait_for()
    assert not visitor.locator("#view .status.failed").count()
    for mute in visitor.locator("#instruments button").all():
        mute.click()
    press_render(visitor)
    visitor.locator("#view .status.failed", has_text="muted").wait_for()
    visitor.locator("#render:not([disabled])").wait_for()


def test_cancelling_or_leaving_the_page_stops_rendering(open_page, site, sampled_windows):
    first, second = open_page(), open_page()
    (path,) = (path for path in site._options.examples if path.stem == "freedoom_e1m1")
    whole = (read_midi(path).total_time + 1.0) / 5.12
    for visitor in (first, second):
        visitor.get_by_role("button", name="Freedoom e1m1").click()
        visitor.locator("#instruments tr").first.wait_for()
    press_render(first)
    first.wait_for_function("window.heard.length > 0")
    press_render(second)
    second.locator("#view .status", has_text="Waiting").wait_for()
    first.locator("#cancel").click()
    first.locator("#render").wait_for()
    first.locator("#view .status", has_text="Cancelled").wait_for()
    second.wait_for_function("window.heard.length > 0")
    second.context.close()
    wait_until(lambda: not session_files(site))
    time.sleep(1.0)
    stopped = len(sampled_windows)
    time.sleep(1.0)
    assert len(sampled_windows) == stopped < whole  # both renderings together sampled less than one song


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_hosted_space_serves_the_same_page(tmp_path):
    """The file runs by itself, as the app.py of a space does; the host sets gradio's port."""
    pytest.importorskip("gradio")
    shutil.copy(pathlib.Path(spectrodiff.__file__).with_name("space.py"), tmp_path / "app.py")
    port = free_port()
    paths = {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), "GRADIO_SERVER_PORT": str(port)}
    with subprocess.Popen([sys.executable, tmp_path / "app.py"], env={**os.environ, **paths}) as served:

        def answers():
            assert served.poll() is None
            with contextlib.suppress(urllib.error.URLError):
                return b"MIDI in, music out" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).read()

        try:
            wait_until(answers, seconds=60)
        finally:
            served.terminate()


def test_app_command_serves_until_terminated(tmp_path):
    pytest.importorskip("gradio")
    port = free_port()
    command = [sys.executable, "-m", "spectrodiff", "app", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        address = f"http://127.0.0.1:{port}/"
        assert address in served.stdout.readline()
        assert b"spectrodiff" in urllib.request.urlopen(address, timeout=20).read()
        assert list(tmp_path.glob("spectrodiff-app-*"))
        served.terminate()
        assert served.wait(20) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


WRONG = ("--checkpoint none", "--vocoder none", "--max_minutes 0", "--concurrency 0")


@pytest.mark.parametrize("options", ["--port TAKEN", "--port 0", "--port 70000", "--host no.such.host", *WRONG])
def test_invalid_app_options_are_one_line_errors(site, capsys, monkeypatch, options):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # which the page sets; monkeypatch restores it
    taken = site.address.rstrip("/").rsplit(":", 1)[1]
    with pytest.raises(SystemExit) as stopped:
        main(["app", *options.replace("TAKEN", taken).split()])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
