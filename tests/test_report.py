"""The evaluation report: a Markdown table without NaN, and a self-contained HTML page."""

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
def two_measured_songs(tmp_path_factory):
    return two_songs(tmp_path_factory.mktemp("measured"))


def test_note_f1_is_reported_relative_to_the_true_audio(two_measured_songs):
    songs, measured, _ = two_measured_songs

    def with_note_matches(song, found, of_true):
        notes = {system: {"onset": Matches(0, 9, 10)} for system in WITHOUT}
        notes |= {SYNTHESISED: {"onset": Matches(found, 10, 10)}, TRUE: {"onset": Matches(of_true, 10, 10)}}
        return Measurements(song.name, song.scores, notes, song.embedded)

    both = [with_note_matches(measured[0], 2, 8), with_note_matches(measured[1], 6, 8)]
    found = results(songs, both, [Levels()], [], Fixed())
    ours = found["systems"][SYNTHESISED]
    assert (ours["f1/onset"], ours["true_f1/onset"]) == (0.4, 0.8)
    assert ours["ratio/onset"] == pytest.approx(0.5)
    assert [row["ratio/onset"] for row in found["per_song"]] == pytest.approx([0.25, 0.75])
    assert "| 0.400 | 0.50 |" in markdown(found)
    assert "| Synthesised | 0.400 | 0.400 | 0.400 | 0.50 |" in markdown(found)
    assert "Notes as transcribed by fixed" in markdown(found)
    assert "Note F1" not in markdown(two_measured_songs[2])
    assert "Precision" not in markdown(two_measured_songs[2])


def test_stem_scores_are_pooled_by_family(two_measured_songs):
    """Pitched families are scored by note onsets and drums by hits; counts are summed over stems."""
    songs, measured, _ = two_measured_songs

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


def test_silent_song_gives_dashes_instead_of_nan(tmp_path):
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


def test_table_rows_have_all_columns(two_measured_songs):
    lines = markdown(two_measured_songs[2]).splitlines()
    width = len(columns(two_measured_songs[2])) + 2  # one more cell for the row's name
    assert [line.count("|") for line in lines[: len(WITHOUT) + 2]] == [width] * (len(WITHOUT) + 2)
    assert lines[-1] == "- No notes were transcribed."


class PageParser(html.parser.HTMLParser):
    """Collects cells by table and sources by tag, and checks that elements are closed in order."""

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


def test_page_embeds_its_audio_and_pictures(two_measured_songs):
    songs, _, found = two_measured_songs
    loud = {system: scale * noise(3) for system, scale in ((TRUE, 20.0), (ENCODED, 0.5), (SYNTHESISED, 1.0))}
    page_parser = PageParser()
    page_parser.feed(page(found, [Example(songs[0].name, loud)]))
    assert not page_parser.open
    assert page_parser.tables["systems"] == [len(columns(found)) + 1] * (1 + len(WITHOUT))
    assert len(set(page_parser.tables["songs"])) == 1
    assert len(page_parser.tables["songs"]) == 3
    assert page_parser.text.count("one & <only>") == 2  # escaped, in the table and above the players
    players, pictures = page_parser.sources["audio"], page_parser.sources["img"]
    for source, (system, audio) in zip(players, loud.items(), strict=True):
        prefix, data = source.split(",")
        assert prefix == "data:audio/flac;base64"
        decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == SAMPLE_RATE
        np.testing.assert_allclose(decoded, audio / max(1, np.abs(audio).max()), atol=1e-4, err_msg=system)
    assert len(pictures) == 3
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(pictures[0].split(",")[1])))
    assert picture.shape[:2] == (128, 100)


def test_mel_picture_width_is_limited():
    picture = matplotlib.image.imread(io.BytesIO(mel_picture(noise(0, 60.0))))
    assert picture.shape[:2] == (128, 2048)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# A script that writes what is shown into the page, once every audio player has loaded its metadata.
INSPECTION_SCRIPT = """<script>addEventListener("load", async () => {
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
    """The output of headless Chromium for a page opened from a file."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *CHROMIUM_OPTIONS, profile, "--window-size=1200,1600", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_browser_shows_tables_and_pictures_and_loads_audio(two_measured_songs, tmp_path):
    songs, _, found = two_measured_songs
    sounds = {TRUE: noise(3, 4.0), ENCODED: noise(4, 4.0), SYNTHESISED: noise(5, 3.0)}
    whole = page(found, [Example(songs[0].name, sounds)])
    dom = browse(whole.replace("</body>", INSPECTION_SCRIPT), tmp_path, "--virtual-time-budget=60000", "--dump-dom")
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))
    systems, (header, *of_songs) = seen["rows"][: 1 + len(WITHOUT)], seen["rows"][1 + len(WITHOUT) :]
    assert [row[0] for row in systems] == ["System", *WITHOUT.values()]
    assert {len(row) for row in systems} == {1 + len(columns(found))}
    assert header[0] == "Song"
    assert [row[0].split()[0] for row in of_songs] == ["one", "set/two"]
    assert seen["wide"] <= 0  # the page itself does not scroll sideways
    assert seen["pictures"] == [[200, 128, 128], [200, 128, 128], [150, 128, 128]]
    assert seen["seconds"] == pytest.approx([4.0, 4.0, 3.0], abs=0.05)
    assert not seen["outside"]

    browse(whole, tmp_path, "--screenshot=page.png")
    screen = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert screen.shape == (1600, 1200, 3)
    colourful = np.ptp(screen, axis=-1) > 0.2
    assert 0.5 * 550 * 128 < colourful.sum() < 3 * 550 * 128  # of mel pictures, 550 by 128 in all
