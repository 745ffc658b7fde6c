"""Songs of a dataset, rendered by a synthesizer."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE, log_mel_on_host
from spectrodiff.evaluation.runs import RenderedSong, Spent, song_seed
from spectrodiff.evaluation.songs import Audio, Songs, Stems
from spectrodiff.notes.midi import Notes
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.vocoder.streaming import Vocoder


def render(
    synthesizer: Synthesizer,
    songs: Songs | Stems,
    chosen: Sequence[int],
    *,
    seed: int,
    batch: int,
    **sampling: Any,
) -> Iterator[RenderedSong]:
    """Yields the `chosen` songs as they are finished, `batch` of them rendered at once, the longest begun first.

    Each has the mel that `synthesizer.mels` makes of it with `song_seed(seed, name)`, to rounding. Windows over the
    limit of tokens are thinned.

    Raises:
      InputError: a record is damaged, or the model's mel holds what is not a number.
    """
    order, begun = sorted(chosen, key=songs.windows, reverse=True), {}

    def pieces() -> Iterator[tuple[Notes, int]]:
        for place, index in enumerate(order):
            song = songs[index]
            notes, dropped = synthesizer.tokenizer.thin(song.notes)
            begun[place] = song, dropped
            yield notes, song_seed(seed, song.name)

    windows, vocoder = sum(map(songs.windows, order)), synthesizer.vocoder
    for place, (mel, *spent) in synthesizer.mel_sampler.songs(pieces(), batch=batch, windows=windows, **sampling):
        song, dropped = begun.pop(place)
        audio, audio_spent = _play(vocoder, mel)
        encoded, encoded_spent = _play(vocoder, log_mel_on_host(song.audio))
        yield RenderedSong(
            name=song.name,
            seed=song_seed(seed, song.name),
            seconds=len(song.audio) / SAMPLE_RATE,
            dropped=dropped,
            batch=min(batch, len(order)),
            spectrogram=tuple(spent),
            vocoder=(audio_spent[0] + encoded_spent[0], audio_spent[1] + encoded_spent[1]),
            silent=not audio.any(),
            mel=mel,
            audio=audio,
            encoded=encoded[: len(song.audio)],
        )


def _play(vocoder: Vocoder, mel: Float[np.ndarray, "_t m"]) -> tuple[Audio, Spent]:
    """The audio of a mel, and the seconds of work and of audio after the first piece, which waits for compilation."""
    stream = vocoder.stream([mel])
    pieces = [next(stream)]
    start = time.perf_counter()
    pieces += stream
    seconds = time.perf_counter() - start
    return np.concatenate(pieces), (seconds, sum(map(len, pieces[1:])) / SAMPLE_RATE)
