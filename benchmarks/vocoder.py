"""Quality and speed of vocoders on recordings, given their true mels, by several metrics.

`tone leak` and `frame rate leak` are not of recordings: steady sinusoids halfway between multiples of the frame rate
(50 Hz) are decoded from their mels. They are the shares of the energy that is farther than 12.5 Hz from the sinusoid,
and nearer than 12.5 Hz to a multiple of 50 Hz; see `evaluation.steady_tones`.

python benchmarks/vocoder.py --vocoder griffin_lim runs/refiner/export runs/melgan/export --plot vocoders.png
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from spectrodiff.audio.mel import HOP, MEL_BINS, SAMPLE_RATE, WINDOW, log_mel
from spectrodiff.commands.evaluate import find_transcriber
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import Recording, decode
from spectrodiff.evaluation.frechet import Gaussian, frechet_distance, pool
from spectrodiff.evaluation.musicnn import Musicnn
from spectrodiff.evaluation.reconstruction import compare, embedding_distance, magnitudes, mean_scores
from spectrodiff.evaluation.steady_tones import FREQUENCIES, energy_shares, steady_tone, tone_leaks
from spectrodiff.evaluation.transcription import add_scores, score_audio
from spectrodiff.pretrained.vocoders import find_vocoder
from spectrodiff.vocoder.griffin_lim import BEFORE, GriffinLim, invert
from spectrodiff.vocoder.stft import FINE, FINE_HOP, stft

TRUE = "true audio"
FIXED = "griffin_lim, fixed magnitudes"
CEILING = "true magnitudes, Griffin-Lim"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocoder", nargs="+", default=["griffin_lim"], help="as for synthesize")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", nargs="+", default=["rendered"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--pieces", type=int, default=12)
    parser.add_argument(
        "--plot", help="picture of five seconds of a piece, as recorded and as reconstructed by each vocoder"
    )
    options = parser.parse_args()

    parts = Mixture(options.data_dir, options.dataset).heldout(options.split)
    records = [(part, index) for part in parts for index in range(len(part))]
    chosen = np.linspace(0, len(records) - 1, min(len(records), options.pieces)).astype(int)
    recordings = [decode(part[index]) for part, index in (records[i] for i in chosen)]
    seconds = sum(len(recording.audio) for recording in recordings) / SAMPLE_RATE
    mels = [np.asarray(log_mel(recording.audio)) for recording in recordings]
    where = f"{len(os.sched_getaffinity(0))} cores" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    print(f"{len(recordings)} pieces of the {options.split} split, {seconds / 60:.1f} min; {where}")

    embed, transcriber = Musicnn(), find_transcriber()
    reference = [embed(recording.audio) for recording in recordings]
    audios = {TRUE: [recording.audio for recording in recordings]}
    true_tones = mean_scores([energy_shares(steady_tone(hz), hz) for hz in FREQUENCIES])
    rows = {TRUE: judge(audios[TRUE], recordings, reference, embed, transcriber) | true_tones}
    vocoders = {name: find_vocoder(name) for name in options.vocoder} | {FIXED: GriffinLim(freedom=0.0)}
    for name, vocoder in vocoders.items():
        vocoder(mels[0])  # compiles
        start = time.perf_counter()
        audios[name] = [vocoder(mel) for mel in mels]
        spent = time.perf_counter() - start
        rows[name] = judge(audios[name], recordings, reference, embed, transcriber) | tone_leaks(vocoder)
        rows[name]["x realtime"] = seconds / spent
    audios[CEILING] = phases_alone(recordings)
    rows[CEILING] = judge(audios[CEILING], recordings, reference, embed, transcriber)
    columns = list(rows[options.vocoder[-1]])
    print(f"| vocoder | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join('' if row.get(c) is None else f'{row[c]:.3g}' for c in columns)} |")
    if options.plot:
        plot(options.plot, {name: made[len(made) // 2] for name, made in audios.items()})


def phases_alone(recordings: list[Recording]) -> list[np.ndarray]:
    """Reconstructs recordings from true magnitudes by Griffin-Lim, an upper bound for what a refiner can achieve."""
    samples = -(-max(len(recording.audio) for recording in recordings) // FINE_HOP) * FINE_HOP
    settings, before = GriffinLim(), BEFORE * HOP
    nothing = np.zeros(before, np.float32)  # no audio precedes the first frame

    def rebuild(audio):
        padded = np.pad(audio, (before, samples - len(audio) + WINDOW))
        magnitude = jnp.abs(stft(jnp.asarray(padded)))
        mel = jnp.zeros((len(magnitude) // FINE, MEL_BINS))  # not used, since the magnitudes are fixed
        made = invert(magnitude, mel, nothing, nothing, settings.iterations, settings.momentum, 0.0)
        return np.asarray(made)[before:][: len(audio)]

    return [rebuild(recording.audio) for recording in recordings]


def judge(audios: list, recordings: list[Recording], reference: list, embed, transcriber) -> dict[str, float | None]:
    """Returns the columns of the table. With the recordings' own audio, they are the best possible values."""
    embedded = [embed(audio) for audio in audios]
    row = mean_scores([
        compare(audio, recording.audio) | {"musicnn L2": embedding_distance(ours, theirs)}
        for audio, recording, ours, theirs in zip(audios, recordings, embedded, reference, strict=True)
    ])  # fmt: skip
    ours, theirs = (pool([Gaussian.of(frames) for frames in songs]) for songs in (embedded, reference))
    row["musicnn FD"] = frechet_distance(theirs, ours)
    if transcriber is not None:
        scores = [score_audio(transcriber, audio, r.notes) for audio, r in zip(audios, recordings, strict=True)]
        row["note F1"] = add_scores(scores)["onset"].f1
    return row


def plot(path: str, audios: dict[str, np.ndarray]) -> None:
    figure = Figure(figsize=(13, 2.6 * len(audios)), layout="constrained")
    for axis, (name, audio) in zip(np.atleast_1d(figure.subplots(len(audios), 1)), audios.items(), strict=True):
        start = len(audio) // 3
        levels = 20 * np.log10(magnitudes(audio[start : start + 5 * SAMPLE_RATE], 1024, 128).T + 1e-5)
        axis.imshow(levels, origin="lower", aspect="auto", extent=(0, 5, 0, 8), cmap="magma", vmin=-95, vmax=-25)
        axis.set_title(name, fontsize="small")
    figure.supxlabel("seconds")
    figure.supylabel("kHz")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
