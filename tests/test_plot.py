import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest
from inputs import random_notes

from spectrodiff.errors import InputError
from spectrodiff.plot import plot_piece

NOTES = random_notes(0, seconds=6.0)
MEL = np.linspace(-11.5, 4.0, 350 * 128, dtype=np.float32).reshape(350, 128)
AUDIO = np.sin(np.arange(350 * 320, dtype=np.float32))


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("PNG", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_suffix_selects_the_format(tmp_path, suffix, begins):
    plot_piece(tmp_path / f"a.{suffix}", NOTES, MEL, AUDIO)
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(begins)
    assert len(list(tmp_path.iterdir())) == 1


def test_picture_shows_notes_mel_and_waveform(tmp_path):
    plot_piece(tmp_path / "a.png", NOTES, MEL, AUDIO)
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[2] in (3, 4)
    for band in np.array_split(picture[..., :3], 4):
        assert band.std() > 0.05


@pytest.fixture
def plot_lines(tmp_path, monkeypatch):
    """A function that plots notes and returns (label, colour, starts) of every set of lines."""

    def draw(notes):
        calls, hlines = [], matplotlib.axes.Axes.hlines

        def spy(self, y, xmin, xmax, colour, **options):
            calls.append((options["label"], colour, np.asarray(xmin).tolist()))
            return hlines(self, y, xmin, xmax, colour, **options)

        monkeypatch.setattr(matplotlib.axes.Axes, "hlines", spy)
        plot_piece(tmp_path / "a.png", notes, MEL, AUDIO)
        return calls

    return draw


def test_each_instrument_has_its_own_colour_and_name(plot_lines):
    calls = plot_lines(random_notes(3, seconds=6.0, programs=(0, 10, 40)))
    assert [label for label, _, _ in calls] == ["Acoustic Grand Piano (0)", "Music Box (10)", "Violin (40)"]
    assert len({colour for _, colour, _ in calls}) == 3


def test_each_pitched_note_is_a_line(plot_lines):
    starts = sorted(start for _, _, starts in plot_lines(NOTES) for start in starts)
    assert starts == sorted(NOTES.start[~NOTES.is_drum].tolist())


@pytest.mark.parametrize("drums", [True, False])
def test_pieces_with_only_drums_or_no_drums_are_plotted(tmp_path, drums):
    plot_piece(tmp_path / "a.png", NOTES.select(NOTES.is_drum == drums), MEL, AUDIO)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_decimated_waveform_keeps_its_peaks(tmp_path, monkeypatch):
    bands = []
    fill_between = matplotlib.axes.Axes.fill_between

    def spy(self, x, low, high, **options):
        bands.append((len(x), low.min(), high.max()))
        return fill_between(self, x, low, high, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "fill_between", spy)
    audio = np.zeros(350 * 320, np.float32)
    audio[12345], audio[-1] = 0.75, -0.5
    plot_piece(tmp_path / "a.png", NOTES, MEL, audio)
    ((columns, low, high),) = bands
    assert columns < 4000
    assert (low, high) == (-0.5, 0.75)


@pytest.mark.parametrize(
    ("name", "message"), [("a.xyz", r"a\.xyz: .*\.png, \.pdf, \.svg"), ("nope/a.png", r"nope/a\.png: .*/nope ")]
)
def test_invalid_output_path_raises_input_error(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        plot_piece(tmp_path / name, NOTES, MEL, AUDIO)
    assert not list(tmp_path.iterdir())
