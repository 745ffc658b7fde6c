"""The results of an evaluation as tables with footnotes, in Markdown and as an HTML page with pictures and sound."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectrodiff.audio.mel import log_mel_on_host, scale_mel
from spectrodiff.data.recordings import to_flac
from spectrodiff.evaluation.rendering import ENCODED, SYNTHESISED, SYSTEMS, TRUE, named_settings
from spectrodiff.evaluation.songs import Audio
from spectrodiff.evaluation.transcription import DRUMS
from spectrodiff.training.heldout import side_by_side

UNDEFINED = "\N{EN DASH}"
_PICTURED = 2048  # frames of a mel picture, 41 s: a pixel each


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    `name` is the name of the figure in the results, `title` the column's heading, `digits` the number of decimals, and
    `better` an arrow in the direction of better values, or empty if there is none.
    """

    name: str
    title: str
    digits: int = 2
    better: str = ""

    @property
    def heading(self) -> str:
        """The title, with the arrow."""
        return f"{self.title} {self.better}".strip()

    def cell(self, figures: dict[str, Any]) -> str:
        """Formats this column's figure, with its interval where there is one; UNDEFINED where there is no figure."""
        value = figures.get(self.name)
        if value is None:
            return UNDEFINED
        if isinstance(value, str):
            return value
        interval = figures.get(self.name.replace("frechet/", "frechet_interval/", 1))
        shown = f"{value:.{self.digits}f}"
        if isinstance(interval, list):
            shown += f" [{interval[0]:.{self.digits}f}, {interval[1]:.{self.digits}f}]"
        return shown


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. Each row is a title and the figures by name; `first` is the heading of the titles' column."""

    name: str
    first: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, dict[str, Any]]]


def columns(results: dict[str, Any]) -> list[Column]:
    """Returns the columns of the table of systems; those of notes only if notes were transcribed."""
    distances = [
        column
        for model in results["embeddings"]
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
    return distances + _paired_columns(results) + speeds


def _paired_columns(results: dict[str, Any]) -> list[Column]:
    """Returns the columns of figures that compare each song with its own true audio."""
    paired = [Column(f"l2/{model}", f"L2 ({model})", 2, "↓") for model in results["embeddings"]]
    paired += [
        Column("mel", "Log-mel L1", 2, "↓"),
        Column("roughness", "Roughness", 2),
        Column("msd", "MR-STFT", 2, "↓"),
        Column("chroma", "Chroma", 2, "↑"),
        Column("onset", "Onsets", 2, "↑"),
    ]
    if results["transcriber"]:
        paired += [Column("f1/onset", "Note F1", 3, "↑"), Column("ratio/onset", "F1 / true", 2, "↑")]
    return paired


def _note_columns(results: dict[str, Any]) -> list[Column]:
    shown = [Column("precision/onset", "Precision", 3, "↑"), Column("recall/onset", "Recall", 3, "↑")]
    kinds = {"onset": "F1", "offset": "Onset and offset F1", DRUMS: "Drum F1"}
    if results["transcriber"]["instruments"]:
        kinds |= {"onset/midi_class": "Family F1", "onset/full": "Program F1"}
    for kind, title in kinds.items():
        shown += [Column(f"f1/{kind}", title, 3, "↑"), Column(f"ratio/{kind}", "/ true", 2, "↑")]
    return shown


_FAMILY_COLUMNS = (
    Column("stems", "Stems", 0),
    Column("f1", "Synthesised F1", 3, "↑"),
    Column("encoded_f1", "Vocoder F1", 3, "↑"),
    Column("true_f1", "True F1", 3, "↑"),
    Column("ratio", "F1 / true", 2, "↑"),
)


def tables(results: dict[str, Any]) -> list[Table]:
    """Returns the table of systems, that of notes if notes were transcribed, and that of families if stems were."""
    rows = [(SYSTEMS[name], figures) for name, figures in results["systems"].items()]
    found = [Table("systems", "System", columns(results), rows)]
    if results["transcriber"]:
        found.append(Table("notes", "Notes", _note_columns(results), rows))
    if results["families"]:
        found.append(Table("families", "Stems alone", _FAMILY_COLUMNS, list(results["families"].items())))
    return found


def songs_table(results: dict[str, Any]) -> Table:
    """Returns the table of synthesised songs."""
    distances = [Column(f"frechet/{model}", f"Fréchet ({model})", 1, "↓") for model in results["embeddings"]]
    shown = [Column("seconds", "Seconds", 1), *distances, *_paired_columns(results)]
    return Table("songs", "Song", shown, [(row["name"], row) for row in results["per_song"]])


def markdown(results: dict[str, Any]) -> str:
    """Formats the results as Markdown: the tables, then the footnotes."""
    parts = [*map(markdown_table, tables(results)), "\n".join(f"- {line}" for line in footnotes(results))]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """Formats one table as Markdown."""
    rows = [[table.first, *(column.heading for column in table.columns)], ["---", *["---:"] * len(table.columns)]]
    rows += [[title, *(column.cell(figures) for column in table.columns)] for title, figures in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def footnotes(results: dict[str, Any]) -> list[str]:
    """Returns lines with the settings of the evaluation, the meaning of the columns, and the remarks of the results."""
    run, batches = named_settings(results.get("run", {})), ", ".join(map(str, results["batch"]))
    made = ", ".join(f"{name} {value}" for name, value in run.items() if value is not None)
    lines = [
        f"Songs: {results['songs']} ({results['seconds'] / 60:.1f} minutes). Notes dropped of over-full windows: "
        f"{results['dropped_notes']}. {made}".strip(),
        "Fréchet, FAD∞ and kernel distances are between all frames and those of the true audio; brackets hold 95 % "
        "intervals over songs. FAD∞ is extrapolated to endlessly many frames. All other columns compare each song with "
        "its own true audio.",
        '"True audio of another song" is real music, but the wrong song: a column in which it scores well measures '
        "only how much audio sounds like music.",
        f"s/s: seconds of work for a second of audio (songs at once: {batches}), without each program's first window.",
    ]
    licences = [f"{name}: {model['licence']}" for name, model in results["embeddings"].items()]
    lines.append(f"Embeddings and licences of their weights: {', '.join(licences)}.")
    if transcriber := results["transcriber"]:
        lines.append(
            f"Notes as transcribed by {transcriber['name']}: onsets within 50 ms, offsets too or within a fifth of a "
            "note. Drums are scored by attacks in the audio; attacks of other instruments count as false hits. / true: "
            "divided by the F1 of the true audio, which no transcriber gets wholly right."
        )
    return [*lines, f"{UNDEFINED}: not defined, or not measured.", *results["remarks"]]


_SETTINGS = (
    Column("parameters", "Parameters (M)", 1),
    Column("context", "Context"),
    Column("steps", "Steps", 0),
    Column("guidance", "Guidance", 2),
)


def joined(found: Sequence[dict[str, Any]]) -> str:
    """Formats results as one Markdown table.

    It has a row for the synthesised songs of each evaluation, then the rows of the other systems in the first one.
    """
    rows = [(results["run"]["checkpoint"], _settings(results) | results["systems"][SYNTHESISED]) for results in found]
    others = {name: figures for name, figures in found[0]["systems"].items() if name != SYNTHESISED}
    rows += [(SYSTEMS[name], figures) for name, figures in others.items()]
    table = Table("grid", "Checkpoint or system", [*_SETTINGS, *columns(found[0])], rows)
    remarks = dict.fromkeys(line for results in found for line in results["remarks"])
    notes = [line for line in footnotes({**found[0], "run": _common(found)}) if line not in remarks]
    return markdown_table(table) + "\n\n" + "\n".join(f"- {line}" for line in [*notes, *remarks]) + "\n"


def _settings(results: dict[str, Any]) -> dict[str, Any]:
    run, model = results["run"], results["model"]
    return {
        "parameters": model["parameters"] / 1e6,
        "context": "yes" if model["with_context"] else "none",
        "steps": run["sampling"].get("steps"),
        "guidance": run["sampling"].get("guidance"),
    }


def _common(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the settings that all runs have in common."""
    first, *others = (named_settings(results["run"]) for results in found)
    return {name: value for name, value in first.items() if all(name in run and run[name] == value for run in others)}


@dataclasses.dataclass(frozen=True)
class Example:
    """A song that the page shows and plays: its audio by the systems TRUE, ENCODED and SYNTHESISED, at SAMPLE_RATE."""

    name: str
    audio: dict[str, Audio]


def page(results: dict[str, Any], examples: Sequence[Example]) -> str:
    """Returns an HTML document of tables and, for each example, pictures of mels (PNG) and audio players (16-bit FLAC).

    Everything is embedded, so that the document needs no other files.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        *map(_table, tables(results)),
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in footnotes(results)),
        "</ul>",
        "<h2>Examples</h2>",
        *map(_example, examples),
        "<h2>Synthesised songs</h2>",
        _table(songs_table(results)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: 1rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 0 0 1rem; }
img { display: block; height: 128px; max-width: none; }
em { color: #b00; }
"""


def _table(table: Table) -> str:
    headings = (table.first, *(column.heading for column in table.columns))
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        f"<tr><td>{html.escape(title)}{' <em>outlier</em>' if figures.get('outlier') else ''}</td>"
        f"{''.join(f'<td>{column.cell(figures)}</td>' for column in table.columns)}</tr>"
        for title, figures in table.rows
    )
    return (
        f'<div class="wide"><table class="{table.name}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
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
    """Draws the log-mel of the first 41 s of audio as PNG: a pixel a frame and mel bin, low frequencies below."""
    from matplotlib.image import imsave  # without pyplot: no display is looked for

    file = io.BytesIO()
    imsave(file, side_by_side(scale_mel(log_mel_on_host(audio)[:_PICTURED])), format="png")
    return file.getvalue()


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
