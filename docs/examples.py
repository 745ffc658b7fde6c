"""Renders the sounds and the picture of README.md and docs/vocoders.md: docs/audio/*.ogg and docs/images/example.png.

For each of three example files, NAME.ogg is the first seconds as the demo weights play them, and NAME_soundfont.ogg the
same notes by FluidSynth and a General MIDI SoundFont. For one of them, NAME_VOCODER.ogg is the SoundFont's audio after
it has been converted to a log-mel and back by a vocoder. All files of an example are equally loud.
`python docs/examples.py`, or `make examples`.
"""

import pathlib
import sys

import numpy as np

from spectrodiff import InputError, Synthesizer
from spectrodiff.audio.files import write_audio
from spectrodiff.audio.loudness import integrated_loudness, loudness_gain, true_peak
from spectrodiff.audio.mel import log_mel_on_host
from spectrodiff.data.soundfont import play
from spectrodiff.mel_sampler import RELEASE_SECONDS
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.sequence import Notes
from spectrodiff.plot import plot_piece
from spectrodiff.pretrained.vocoders import find_vocoder

DOCS = pathlib.Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
NAMES = ("bach_prelude", "corelli_grave", "band")
SHOWN = "band"  # in the picture and through all vocoders: it has several instruments, and drums
VOCODERS = ("griffin_lim", "refiner", "melgan")
SECONDS = 16.0  # of music, after which sounds decay for RELEASE_SECONDS


def beginning(notes: Notes) -> Notes:
    """Returns the first SECONDS of a piece; notes that sound on are released there."""
    kept = notes.select(notes.start < SECONDS)
    columns = {name: getattr(kept, name) for name in ("start", "pitch", "velocity", "program", "is_drum")}
    return Notes(**columns, end=np.minimum(kept.end, SECONDS), total_time=SECONDS)


def equally_loud(*signals: np.ndarray) -> list[np.ndarray]:
    """Returns the signals at the same integrated loudness: the highest that suits them all, and at most -16 LUFS."""
    levels = [integrated_loudness([signal]) for signal in signals]
    reached = [
        level + 20 * np.log10(loudness_gain(level, true_peak([signal])))
        for level, signal in zip(levels, signals, strict=True)
    ]
    return [signal * 10 ** ((min(reached) - level) / 20) for level, signal in zip(levels, signals, strict=True)]


def main() -> None:
    synthesizer = Synthesizer.from_pretrained("demo")
    for folder in ("audio", "images"):
        (DOCS / folder).mkdir(exist_ok=True)
    for name in NAMES:
        volume = synthesizer.config.tokenizer.channel_volume
        notes = beginning(read_midi(EXAMPLES / f"{name}.mid", channel_volume=volume))
        mels = list(synthesizer.mels(notes, progress=True))
        signals = {
            name: np.concatenate(list(synthesizer.vocoder.stream(mels))),
            f"{name}_soundfont": (recorded := play(notes, tail=RELEASE_SECONDS)),
        }
        if name == SHOWN:
            true_mel = log_mel_on_host(recorded)
            signals |= {f"{name}_{vocoder}": find_vocoder(vocoder)(true_mel) for vocoder in VOCODERS}
        signals = dict(zip(signals, equally_loud(*signals.values()), strict=True))
        for stem, signal in signals.items():
            write_audio(DOCS / "audio" / f"{stem}.ogg", signal)
        if name == SHOWN:
            plot_piece(DOCS / "images" / "example.png", notes, np.concatenate(mels), signals[name])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"examples.py: {error}", file=sys.stderr)
        sys.exit(2)
