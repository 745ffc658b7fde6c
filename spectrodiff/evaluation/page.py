"""The results of an evaluation as one HTML page, with pictures and sound in it."""

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
from spectrodiff.evaluation.report import Table, footnotes, songs_table, tables
from spectrodiff.evaluation.systems import ENCODED, SYNTHESISED, SYSTEMS, TRUE
from spectrodiff.training.heldout import side_by_side

_PICTURED = 2048  # frames of a mel picture, 41 s: a pixel each

Audio = Float[np.ndarray, " _s"]


@dataclasses.dataclass(frozen=True)
class Example:
    """A song that the page shows and plays: its audio by the systems TRUE, ENCODED and SYNTHESISED, at SAMPLE_RATE."""

    name: str
    audio: dict[str, Audio]


def page(results: dict[str, Any], examples: Sequence[Example]) -> str:
    """Returns an HTML document that loads nothing: tables, and for each example mel pictures (PNG) and audio players.

    The players' audio is FLAC of 16 bits.
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
