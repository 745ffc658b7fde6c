"""The figures of an evaluation to look at: a table, and one page that holds all it shows and plays."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import log_mel_on_host, scale_mel
from spectrodiff.data.recordings import to_flac
from spectrodiff.evaluation.systems import ENCODED, SYNTHESISED, SYSTEMS, TRUE
from spectrodiff.training.heldout import side_by_side

UNDEFINED = "\N{EN DASH}"
_PICTURED = 2048  # frames of a mel picture, 41 s: a pixel each

Audio = Float[np.ndarray, " _s"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure, how it is headed, its digits after the point, and an arrow to where it is better."""

    name: str
    title: str
    digits: int = 2
    better: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title} {self.better}".strip()

    def cell(self, figures: dict[str, Any]) -> str:
        value = figures.get(self.name)
        if value is None:
            return UNDEFINED
        interval = figures.get(self.name.replace("frechet/", "frechet_interval/", 1))
        shown = f"{value:.{self.digits}f}"
        if isinstance(interval, list):
            shown += f" [{interval[0]:.{self.digits}f}, {interval[1]:.{self.digits}f}]"
        return shown


def columns(results: dict[str, Any]) -> list[Column]:
    """Those of the table; of transcription there are none where nothing was transcribed."""
    models = list(results["embeddings"])
    sets = [
        column
        for model in models
        for column in (
            Column(f"frechet/{model}", f"Fréchet ({model})", 2, "↓"),
            Column(f"frechet_infinity/{model}", "FAD∞", 2, "↓"),
            Column(f"kernel/{model}", "Kernel", 2, "↓"),
        )
    ]
    speeds = [
        Column("spectrogram_speed", "Spectrogram s/s", 3, "↓"),
        Column("vocoder_speed", "Vocoder s/s", 3, "↓"),
    ]
    return sets + _paired(results) + speeds


def _paired(results: dict[str, Any]) -> list[Column]:
    paired = [Column(f"l2/{model}", f"L2 ({model})", 2, "↓") for model in results["embeddings"]]
    paired += [
        Column("mel", "Log-mel L1", 2, "↓"),
        Column("msd", "MR-STFT", 2, "↓"),
        Column("chroma", "Chroma", 2, "↑"),
        Column("onset", "Onsets", 2, "↑"),
    ]
    if "f1/onset" in results["systems"][SYNTHESISED]:
        paired += [Column("f1/onset", "Note F1", 3, "↑"), Column("ratio/onset", "F1 / true", 2, "↑")]
    return paired


def _song_columns(results: dict[str, Any]) -> list[Column]:
    sets = [Column(f"frechet/{model}", f"Fréchet ({model})", 1, "↓") for model in results["embeddings"]]
    return [Column("seconds", "Seconds", 1), *sets, *_paired(results)]


def markdown(results: dict[str, Any]) -> str:
    """The table, and below it what has to be said of it."""
    shown = columns(results)
    rows = [["", *(column.heading for column in shown)], ["---", *["---:"] * len(shown)]]
    rows += [[title, *(column.cell(results["systems"][name]) for column in shown)] for name, title in SYSTEMS.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n" + "\n".join(f"- {line}" for line in explained(results)) + "\n"


def explained(results: dict[str, Any]) -> list[str]:
    """What was evaluated, what the columns are, and what is missing."""
    run, batches = results.get("run", {}), ", ".join(map(str, results["batch"]))
    made = ", ".join(f"{name} {value}" for name, value in run.items() if value is not None)
    lines = [
        f"{results['songs']} songs, {results['seconds'] / 60:.1f} minutes; {results['dropped_notes']} notes dropped "
        f"of over-full windows. {made}".strip(),
        "Fréchet, FAD∞ and kernel distances are between all frames and those of the true audio; brackets hold 95 % "
        "intervals over songs. FAD∞ is extrapolated to endlessly many frames. All other columns compare each song with "
        "its own true audio.",
        "A song of other music has the distribution of music: it shows which columns hear that and no more.",
        f"s/s: seconds of work for a second of audio, {batches} songs at once, without each program's first window.",
    ]
    licences = [f"{name}: {model['licence']}" for name, model in results["embeddings"].items()]
    return [*lines, f"Embeddings and licences of their weights: {', '.join(licences)}.", *results["remarks"]]


@dataclasses.dataclass(frozen=True)
class Example:
    """A song to be seen and heard: audio by system, TRUE, ENCODED and SYNTHESISED, at SAMPLE_RATE."""

    name: str
    audio: dict[str, Audio]


def page(results: dict[str, Any], examples: Sequence[Example]) -> str:
    """One HTML document without any link: tables, and of examples mel pictures (PNG) and players (16 bit FLAC)."""
    shown = columns(results)
    systems = [(html.escape(title), results["systems"][name]) for name, title in SYSTEMS.items()]
    songs = [
        (html.escape(row["name"]) + (" <em>outlier</em>" if row.get("outlier") else ""), row)
        for row in results["per_song"]
    ]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        _table("systems", "System", shown, systems),
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in explained(results)),
        "</ul>",
        "<h2>Examples</h2>",
        *map(_example, examples),
        "<h2>Synthesised songs</h2>",
        _table("songs", "Song", _song_columns(results), songs),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.songs tr td:first-child { font-weight: normal; }
figure { margin: 0 0 1rem; }
img { display: block; height: 128px; max-width: none; }
em { color: #b00; }
"""


def _table(name: str, first: str, shown: Sequence[Column], rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """`rows` are what stands first, as HTML, and the figures."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in (first, *(column.heading for column in shown)))
    body = "\n".join(
        f"<tr><td>{title}</td>{''.join(f'<td>{column.cell(figures)}</td>' for column in shown)}</tr>"
        for title, figures in rows
    )
    return (
        f'<div class="wide"><table class="{name}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _example(example: Example) -> str:
    figures = []
    for system in (TRUE, ENCODED, SYNTHESISED):
        audio, title = example.audio[system], html.escape(SYSTEMS[system])
        sound = to_flac(audio / max(1.0, np.abs(audio).max(initial=0.0)))
        figures.append(
            f'<figure><figcaption>{title}</figcaption><audio controls src="{_inline("audio/flac", sound)}"></audio>'
            f'<div class="wide"><img alt="log-mel: {title}" src="{_inline("image/png", mel_picture(audio))}"></div>'
            "</figure>"
        )
    return f"<h3>{html.escape(example.name)}</h3>\n" + "\n".join(figures)


def mel_picture(audio: Audio) -> bytes:
    """PNG of the audio's log-mel, low frequencies at the bottom, a pixel a frame of a mel bin; its first 41 s."""
    from matplotlib.image import imsave  # without pyplot: no display is looked for

    file = io.BytesIO()
    imsave(file, side_by_side(scale_mel(log_mel_on_host(audio)[:_PICTURED])), format="png")
    return file.getvalue()


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
