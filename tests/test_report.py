"""A table without a number that is none, and a page that holds all it shows."""

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
from measured import NO_NOTES, WITHOUT, Fixed, Levels, noise, rendered, two_songs

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.evaluation.measurements import Measurements, measure, read_measured, results
from spectrodiff.evaluation.rendering import ENCODED, SYNTHESISED, TRUE, system_audio
from spectrodiff.evaluation.report import Example, columns, markdown, mel_picture, page
from spectrodiff.evaluation.songs import Song
from spectrodiff.evaluation.transcription import DRUMS, Matches


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return two_songs(tmp_path_factory.mktemp("measured"))


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
