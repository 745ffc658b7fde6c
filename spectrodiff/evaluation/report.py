"""The results of an evaluation as tables, with footnotes that explain them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spectrodiff.evaluation.runs import named_settings
from spectrodiff.evaluation.systems import SYSTEMS
from spectrodiff.evaluation.transcription import DRUMS

UNDEFINED = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    `name` is the name of the figure in the results, `title` the column's heading, `digits` the number of decimals, and
    `better` an arrow in the direction of better values, empty where there is none.
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
    """Returns the columns of the table of systems, without those of transcription where no notes were transcribed."""
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
    Column("encoded_f1", "Encoded F1", 3, "↑"),
    Column("true_f1", "True F1", 3, "↑"),
    Column("ratio", "F1 / true", 2, "↑"),
)


def tables(results: dict[str, Any]) -> list[Table]:
    """Returns the table of systems, that of notes where notes were transcribed, and that of families for stems."""
    rows = [(SYSTEMS[name], figures) for name, figures in results["systems"].items()]
    found = [Table("systems", "System", columns(results), rows)]
    if results["transcriber"]:
        found.append(Table("notes", "Notes", _note_columns(results), rows))
    if results["families"]:
        found.append(Table("families", "Stems alone", _FAMILY_COLUMNS, list(results["families"].items())))
    return found


def songs_table(results: dict[str, Any]) -> Table:
    """Returns the table of synthesised songs."""
    sets = [Column(f"frechet/{model}", f"Fréchet ({model})", 1, "↓") for model in results["embeddings"]]
    shown = [Column("seconds", "Seconds", 1), *sets, *_paired(results)]
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
    """Returns lines that say what was evaluated, what the columns mean, and what is missing."""
    run, batches = named_settings(results.get("run", {})), ", ".join(map(str, results["batch"]))
    made = ", ".join(f"{name} {value}" for name, value in run.items() if value is not None)
    lines = [
        f"{results['songs']} songs, {results['seconds'] / 60:.1f} minutes; {results['dropped_notes']} notes dropped "
        f"of over-full windows. {made}".strip(),
        "Fréchet, FAD∞ and kernel distances are between all frames and those of the true audio; brackets hold 95 % "
        "intervals over songs. FAD∞ is extrapolated to endlessly many frames. All other columns compare each song with "
        "its own true audio.",
        "A song of other music has the distribution of music: it shows which columns measure that and no more.",
        f"s/s: seconds of work for a second of audio, {batches} songs at once, without each program's first window.",
    ]
    licences = [f"{name}: {model['licence']}" for name, model in results["embeddings"].items()]
    lines.append(f"Embeddings and licences of their weights: {', '.join(licences)}.")
    if transcriber := results["transcriber"]:
        lines.append(
            f"Notes as transcribed by {transcriber['name']}: onsets within 50 ms, offsets too or within a fifth of a "
            "note, drums by their attacks, among which a mix's others count as false ones. / true: as a share of the "
            "F1 of the true audio, which no transcriber gets wholly right."
        )
    return [*lines, f"{UNDEFINED}: not defined, or not measured.", *results["remarks"]]
