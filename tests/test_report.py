"""Figures put together from songs, a table without a number that is none, and a page that holds all it shows."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
import soundfile
from inputs import make_recording

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.soundfont import SOUNDFONT as SOUNDFONT_FILE
from spectrodiff.data.soundfont import require_fluidsynth
from spectrodiff.errors import InputError
from spectrodiff.evaluation.frechet import Gaussian, frechet_distance
from spectrodiff.evaluation.page import Example, mel_picture, page
from spectrodiff.evaluation.report import columns, markdown
from spectrodiff.evaluation.results import results
from spectrodiff.evaluation.runs import RenderedSong
from spectrodiff.evaluation.songs import Song
from spectrodiff.evaluation.systems import (
    ENCODED,
    NOISE,
    SOUNDFONT,
    SYNTHESISED,
    SYSTEMS,
    TRUE,
    WRONG,
    Measurements,
    is_measured,
    measure,
    read_measured,
    system_audio,
)
from spectrodiff.evaluation.transcription import DRUMS, Matches
from spectrodiff.notes.midi import Notes

WITHOUT = {name: title for name, title in SYSTEMS.items() if name != SOUNDFONT}  # that of rendered data
NO_NOTES = Notes(*(np.zeros(0) for _ in range(2)), *(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, bool), 1.0)


class Levels:
    """An embedding in two dimensions: mean and deviation of each tenth of a second."""

    name, rate, hop, dims, licence = "levels", SAMPLE_RATE, 0.1, 2, "none"

    def __call__(self, audio):
        frames = audio[: len(audio) // 1600 * 1600].reshape(-1, 1600)
        return np.stack([frames.mean(axis=1), frames.std(axis=1)], axis=1)


class Fixed:
    """A transcriber that hears nothing."""

    name, instruments = "fixed", False

    def __call__(self, audio):
        return NO_NOTES


try:
    require_fluidsynth()
    installed = True
except InputError:
    installed = False
needs_synth = pytest.mark.skipif(not installed, reason="FluidSynth and its SoundFont are optional")


def rendered(name, audio, seed=0):
    spent = (1.0, 4.0)
    facts = (name, seed, len(audio) / SAMPLE_RATE, 2, 4, spent, spent, not audio.any())
    return RenderedSong(*facts, np.zeros((5, 128)), audio, audio / 2)


def noise(seed, seconds=2.0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two songs, measured, without transcription."""
    workdir = tmp_path_factory.mktemp("measured")
    songs, measured = [], []
    for index, name in enumerate(("one & <only>", "set/two")):
        song = Song(name, noise(index), NO_NOTES)
        songs.append(rendered(name, noise(index, 1.9) + noise(10 + index, 1.9, 0.02)))
        measure(workdir, song, system_audio(song, songs[-1], noise(1 - index)), [Levels()], None)
        measured.append(read_measured(workdir, name, [Levels()], None))
    return songs, measured, results(songs, measured, [Levels()], ["No notes were transcribed."])


def test_systems_are_as_long_and_as_loud_as_each_other():
    true = np.float32(0.3) * noise(0)
    audio = system_audio(Song("a", true, NO_NOTES), rendered("a", noise(1, 1.5)), noise(2, 1.0))
    assert {name: len(sound) for name, sound in audio.items()} == {
        **dict.fromkeys(WITHOUT, 24000),
        WRONG: 16000,
    }
    assert audio[NOISE].std() == pytest.approx(true.std(), rel=0.02)
    assert WRONG not in system_audio(Song("a", true, NO_NOTES), rendered("a", true), None)


@needs_synth
def test_a_soundfont_plays_the_notes_as_loud_as_the_true_audio():
    tones = make_recording(1, 2.0)
    song = Song("a", tones.audio, tones.notes)
    audio = system_audio(song, rendered("a", tones.audio), None, SOUNDFONT_FILE)
    assert list(audio) == [name for name in SYSTEMS if name != WRONG]
    played = audio[SOUNDFONT]
    assert len(played) == len(tones.audio)
    assert played.std() == pytest.approx(tones.audio.std(), rel=0.02)
    silent = system_audio(Song("a", tones.audio, NO_NOTES), rendered("a", tones.audio), None, SOUNDFONT_FILE)
    assert not silent[SOUNDFONT].any()


def test_figures_are_those_of_all_songs(two):
    _, measured, found = two
    frames = {system: np.concatenate([song.embedded["levels"][system] for song in measured]) for system in WITHOUT}
    expected = frechet_distance(Gaussian.of(frames[TRUE]), Gaussian.of(frames[SYNTHESISED]))
    ours = found["systems"][SYNTHESISED]
    assert ours["frechet/levels"] == pytest.approx(expected)
    low, high = ours["frechet_interval/levels"]
    assert 0 <= low <= expected <= high
    gaps = np.linalg.norm(frames[TRUE] - frames[SYNTHESISED], axis=1)
    assert ours["l2/levels"] == pytest.approx(gaps.mean())
    assert ours["mel"] == pytest.approx(np.mean([song.scores[SYNTHESISED]["mel"] for song in measured]))
    assert ours["spectrogram_speed"] == ours["vocoder_speed"] == 0.25
    assert found["systems"][TRUE]["frechet/levels"] == pytest.approx(0, abs=1e-9)
    assert found["systems"][TRUE]["mel"] == 0
    assert found["systems"][ENCODED]["mel"] > ours["mel"] > 0
    assert found["dropped_notes"] == 4


def test_what_was_measured_is_not_measured_again(two, tmp_path):
    song, audio = Song("a", noise(0), NO_NOTES), noise(1)
    systems = system_audio(song, rendered("a", audio), None)
    assert not is_measured(tmp_path, "a", [Levels()], None)
    measure(tmp_path, song, systems, [Levels()], None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert is_measured(tmp_path, "a", [Levels()], None)
    assert not is_measured(tmp_path, "a", [Levels()], Fixed())
    measure(tmp_path, song, systems, [Levels()], Fixed())
    assert is_measured(tmp_path, "a", [Levels()], Fixed())
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_an_embedding_hears_at_its_own_rate(tmp_path):
    class Long(Levels):
        name, rate = "long", 48000

    song = Song("a", noise(0), NO_NOTES)
    measure(tmp_path, song, system_audio(song, rendered("a", noise(1))), [Levels(), Long()], None)
    found = read_measured(tmp_path, "a", [Levels(), Long()], None).embedded
    assert [len(found[name][TRUE]) for name in ("levels", "long")] == [20, 60]


def test_notes_are_counted_and_held_beside_those_of_the_true_audio(two):
    songs, measured, _ = two

    def noted(song, found, of_true):
        notes = {system: {"onset": Matches(0, 9, 10)} for system in WITHOUT}
        notes |= {SYNTHESISED: {"onset": Matches(found, 10, 10)}, TRUE: {"onset": Matches(of_true, 10, 10)}}
        return Measurements(song.name, song.scores, notes, song.embedded)

    both = [noted(measured[0], 2, 8), noted(measured[1], 6, 8)]
    found = results(songs, both, [Levels()], [], Fixed())
    ours = found["systems"][SYNTHESISED]
    assert (ours["f1/onset"], ours["true_f1/onset"]) == (0.4, 0.8)
    assert ours["ratio/onset"] == pytest.approx(0.5)
    assert [row["ratio/onset"] for row in found["per_song"]] == pytest.approx([0.25, 0.75])
    assert "| 0.400 | 0.50 |" in markdown(found)
    assert "| Synthesised | 0.400 | 0.400 | 0.400 | 0.50 |" in markdown(found)
    assert "Notes as transcribed by fixed" in markdown(found)
    assert "Note F1" not in markdown(two[2])
    assert "Precision" not in markdown(two[2])


def test_stems_are_scored_by_family(two):
    """Notes of pitched families, hits of drums; counts of stems add up."""
    songs, measured, _ = two

    def stem(ours, true, kind="onset"):
        counts = dict.fromkeys(("onset", "offset", DRUMS), Matches())
        counted = {SYNTHESISED: ours, ENCODED: true, TRUE: true}
        return {system: counts | {kind: Matches(found, 10, 10)} for system, found in counted.items()}

    stems = [("piano", stem(4, 9)), (DRUMS, stem(5, 5, DRUMS)), ("piano", stem(4, 7))]
    found = results(songs, measured, [Levels()], [], Fixed(), stems)
    piano, drums = found["families"]["piano"], found["families"][DRUMS]
    assert (piano["stems"], piano["f1"], piano["true_f1"]) == (2, 0.4, 0.8)
    assert (drums["stems"], drums["f1"], drums["ratio"]) == (1, 0.5, 1.0)
    assert "| piano | 2 | 0.400 | 0.800 | 0.800 | 0.50 |" in markdown(found)
    assert '<table class="families">' in page(found, [])


def test_silence_leaves_a_dash_and_never_a_nan(tmp_path):
    song = Song("silent", np.zeros(8000, np.float32), NO_NOTES)
    ours = rendered("silent", np.zeros(16000, np.float32))
    measure(tmp_path, song, system_audio(song, ours, None), [Levels()], Fixed())
    measured = [read_measured(tmp_path, "silent", [Levels()], Fixed())]
    found = results([ours], measured, [Levels()], [], Fixed())
    json.dumps(found, allow_nan=False)
    figures = found["systems"][SYNTHESISED]
    undefined = ("onset", "f1/onset", "precision/onset", "frechet/levels", "kernel/levels")
    assert {figures.get(name) for name in undefined} == {None}
    assert "The true audio of silent is silent." in found["remarks"]
    assert "What was synthesised of silent is silent." in found["remarks"]
    assert any("no two different frames of levels" in line for line in found["remarks"])
    text = markdown(found)
    assert "nan" not in text.lower().replace("resonan", "")
    wrong = next(line for line in text.splitlines() if line.startswith("| True audio of another song"))
    assert set(wrong.split("|")[2:-1]) == {" – "}  # noqa: RUF001
    assert "None" not in page(found, [])


def test_the_table_has_a_cell_for_every_column(two):
    lines = markdown(two[2]).splitlines()
    width = len(columns(two[2])) + 2  # bars of one more cell
    assert [line.count("|") for line in lines[: len(WITHOUT) + 2]] == [width] * (len(WITHOUT) + 2)
    assert lines[-1] == "- No notes were transcribed."


def test_few_frames_are_warned_of(two, monkeypatch):
    monkeypatch.setattr("spectrodiff.evaluation.results._RESAMPLES", 2)

    class Wide(Levels):
        dims = 60

    songs, measured, _ = two
    frames = {system: np.random.default_rng(0).normal(size=(20, 60)) for system in WITHOUT}
    wide = [Measurements(song.name, song.scores, {}, {"levels": frames}) for song in measured]
    found = results(songs, wide, [Wide()], [])
    assert [line for line in found["remarks"] if "60 dimensions from 40 frames" in line]
    assert len(found["remarks"]) == 1  # once, not once a system


class Reader(html.parser.HTMLParser):
    """Cells by table, sources by tag; and that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.tables, self.sources, self.open, self.text = {}, {}, [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["class"], [])
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1
        if "src" in attributes:
            self.sources.setdefault(tag, []).append(attributes["src"])
        assert "href" not in attributes
        assert tag not in ("script", "link")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_all_it_shows_and_plays(two):
    songs, _, found = two
    loud = {system: scale * noise(3) for system, scale in ((TRUE, 20.0), (ENCODED, 0.5), (SYNTHESISED, 1.0))}
    reader = Reader()
    reader.feed(page(found, [Example(songs[0].name, loud)]))
    assert not reader.open
    assert reader.tables["systems"] == [len(columns(found)) + 1] * (1 + len(WITHOUT))
    assert len(set(reader.tables["songs"])) == 1
    assert len(reader.tables["songs"]) == 3
    assert reader.text.count("one & <only>") == 2  # escaped, in the table and above the players
    players, pictures = reader.sources["audio"], reader.sources["img"]
    for source, (system, audio) in zip(players, loud.items(), strict=True):
        prefix, data = source.split(",")
        assert prefix == "data:audio/flac;base64"
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == SAMPLE_RATE
        np.testing.assert_allclose(heard, audio / max(1, np.abs(audio).max()), atol=1e-4, err_msg=system)
    assert len(pictures) == 3
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(pictures[0].split(",")[1])))
    assert picture.shape[:2] == (128, 100)


def test_a_picture_is_no_longer_than_can_be_seen():
    picture = matplotlib.image.imread(io.BytesIO(mel_picture(noise(0, 60.0))))
    assert picture.shape[:2] == (128, 2048)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIETLY = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# What a reader's eyes and ears would meet, written into the page once every player knows its sound.
LOOK = """<script>addEventListener("load", async () => {
  const all = (selector, look) => [...document.querySelectorAll(selector)].map(look);
  const known = (player) => player.readyState ? 0 : new Promise((then) => {
    player.onloadedmetadata = player.onerror = then;
  });
  await Promise.all(all("audio", known));
  const seen = {
    rows: all("tr", (row) => row.innerText.split("\\t")),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    pictures: all("img", (image) => [image.naturalWidth, image.naturalHeight, image.offsetHeight]),
    seconds: all("audio", (player) => player.duration),
    outside: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^data:/.test(name)),
  };
  document.body.append(Object.assign(document.createElement("pre"), {id: "seen", innerText: JSON.stringify(seen)}));
});</script></body>"""


def browse(page, tmp_path, *options):
    """What headless Chromium prints of a page that lies in a file."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIETLY, profile, "--window-size=1200,1600", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_tables_and_pictures_and_can_play_the_sound(two, tmp_path):
    songs, _, found = two
    sounds = {TRUE: noise(3, 4.0), ENCODED: noise(4, 4.0), SYNTHESISED: noise(5, 3.0)}
    whole = page(found, [Example(songs[0].name, sounds)])
    dom = browse(whole.replace("</body>", LOOK), tmp_path, "--virtual-time-budget=60000", "--dump-dom")
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))
    systems, (header, *of_songs) = seen["rows"][: 1 + len(WITHOUT)], seen["rows"][1 + len(WITHOUT) :]
    assert [row[0] for row in systems] == ["System", *WITHOUT.values()]
    assert {len(row) for row in systems} == {1 + len(columns(found))}
    assert header[0] == "Song"
    assert [row[0].split()[0] for row in of_songs] == ["one", "set/two"]
    assert seen["wide"] <= 0  # tables and pictures scroll by themselves, the page does not
    assert seen["pictures"] == [[200, 128, 128], [200, 128, 128], [150, 128, 128]]
    assert seen["seconds"] == pytest.approx([4.0, 4.0, 3.0], abs=0.05)
    assert not seen["outside"]

    browse(whole, tmp_path, "--screenshot=page.png")
    screen = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert screen.shape == (1600, 1200, 3)
    colourful = np.ptp(screen, axis=-1) > 0.2
    assert 0.5 * 550 * 128 < colourful.sum() < 3 * 550 * 128  # of mel pictures, 550 by 128 in all
