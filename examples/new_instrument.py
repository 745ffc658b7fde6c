"""Generates recordings, with MIDI files, of an instrument that is new to the weights: struck glass plates.

python examples/new_instrument.py --out glass --minutes 20
spectrodiff prepare folder --manual_dir glass --data_dir data --name glass
spectrodiff train --gin_file finetune.gin --workdir runs/glass
spectrodiff synthesize --midi glass/piece_07.mid --out glass.wav --checkpoint runs/glass/export --vocoder demo
"""

import argparse
import functools
import pathlib

import numpy as np

from spectrodiff.audio.files import write_audio
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.notes.midi import Notes, write_midi

PROGRAM = 98  # "crystal", the closest one of General MIDI
PITCHES = (55, 91)  # the lowest and highest: 196 Hz and 1568 Hz; each pitch has a plate
# Modes of a round plate with a free edge and Poisson's ratio 0.33: nodal diameters, frequency relative to the lowest,
# and amplitude at the edge when struck there. From the frequency equation; Leissa (1969) has the ratios within 1 %.
MODES = np.array([(2, 1.0, 5.39), (0, 1.723, 2.21), (3, 2.327, 6.51), (1, 3.898, 4.28), (4, 4.091, 7.48),
                  (5, 6.283, 8.35), (2, 6.698, 4.42), (0, 7.318, 2.05), (6, 8.896, 9.16), (3, 10.057, 4.63),
                  (1, 11.376, 4.12), (7, 11.923, 9.91), (4, 13.945, 4.85), (8, 15.361, 10.63)])  # fmt: skip
LOSS = 1e-3  # loss factor of glass: 196 Hz decays by 60 dB in 11 s, 1568 Hz in 1.4 s
DETUNING = 2e-3  # a mode of a real plate is two that beat, at most twice this apart
CONTACT = 0.8e-3  # seconds of contact of the hardest strike; proportional to speed^(-1/5) (Hertz)
DAMPING = 0.06  # seconds in which a note that is damped by felt decays to 1/e
RING = 2.0  # seconds after the last note
BLOCK = 400  # samples per block of the modes' computation
PEAK = 0.5  # of the loudest piece: -6 dB of full scale
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))  # major and minor
PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (5, 3, 0, 4), (0, 4, 5, 3), (1, 4, 0, 0), (0, 2, 3, 4))


@functools.cache
def plate(pitch: int, seed: int) -> np.ndarray:
    """Returns the impulse response of a plate until it has decayed by 60 dB, float64 [samples]."""
    rng = np.random.default_rng([seed, pitch])
    lowest = 440.0 * 2 ** ((pitch - 69) / 12)
    diameters, ratio, amplitude = MODES[MODES[:, 1] * lowest < 0.45 * SAMPLE_RATE].T
    angle = rng.uniform(0, 2 * np.pi)  # from the nodes to the strike, whose force excites both modes of a pair
    detuning = np.where(diameters > 0, rng.uniform(0, DETUNING, len(ratio)), 0.0)
    frequency = lowest * np.concatenate([ratio * (1 + detuning), ratio * (1 - detuning)])
    share = np.concatenate([np.cos(diameters * angle) ** 2, np.sin(diameters * angle) ** 2])
    samples = int(np.log(1000) / (np.pi * LOSS * lowest) * SAMPLE_RATE)
    turn = (2j - LOSS) * np.pi * frequency / SAMPLE_RATE  # exponent of each mode per sample
    blocks = np.exp(np.outer(np.arange(0, samples, BLOCK), turn)) * np.concatenate([amplitude, amplitude]) * share
    return (blocks @ np.exp(np.outer(turn, np.arange(BLOCK)))).real.ravel()[:samples]


def strike(pitch: int, velocity: int, seconds: float, seed: int) -> np.ndarray:
    """Returns a note struck with a half-sine force and damped after `seconds`, float64 [samples]."""
    speed = (velocity / 127) ** 2
    contact = max(2, round(CONTACT * speed**-0.2 * SAMPLE_RATE))
    force = np.sin(np.pi * (np.arange(contact) + 0.5) / contact)
    ringing = plate(pitch, seed)[: int((seconds + 10 * DAMPING) * SAMPLE_RATE)]
    sound = np.convolve(ringing, speed / force.sum() * force)
    late = np.arange(len(sound)) / SAMPLE_RATE - seconds
    return sound * np.exp(-np.maximum(late, 0) / DAMPING)


def compose(rng: np.random.Generator, seconds: float) -> Notes:
    """Returns a melody over broken or block chords in one key, with dynamics and rests."""
    low, high = PITCHES
    scale = np.add.outer(12 * np.arange(11), rng.integers(12) + np.array(SCALES[rng.integers(2)])).ravel()
    scale = scale[(scale >= low) & (scale <= high)]
    root = int(np.argmin(np.abs(scale - rng.integers(low, low + 12))))  # index of the lowest chord's root
    beat = 60.0 / rng.uniform(66, 132)
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    rows = []  # start, end, pitch, velocity

    def add(start: float, length: float, degree: int, loud: float) -> None:
        velocity = int(np.clip(loud + rng.normal(0, 6), 12, 127))
        pitch = int(scale[np.clip(degree, 0, len(scale) - 1)])
        rows.append((start, start + length * rng.uniform(0.6, 1.05), pitch, velocity))

    tune, now = len(scale) * 2 // 3, 0.0
    for bar in range(int(seconds / (4 * beat))):
        start = 4 * beat * bar
        chord = root + progression[bar % 4] % 7 + np.array([0, 2, 4, 7])[: rng.integers(2, 5)]
        loud = rng.uniform(35, 75)
        style = rng.choice(["struck", "broken", "silent"], p=[0.4, 0.45, 0.15])
        if style == "struck":
            for degree in chord:
                add(start + rng.uniform(0, 0.02), rng.choice([2, 4]) * beat, degree, loud)
        elif style == "broken":
            for step in range(8):
                add(start + step * beat / 2, rng.choice([0.5, 1, 2]) * beat, chord[step % len(chord)], loud)
        swell = rng.uniform(45, 110) + rng.normal(0, 8) * np.arange(4)
        while now < start + 4 * beat:
            length = beat * rng.choice([0.25, 0.5, 1.0, 1.5, 2.0, 4.0], p=[0.1, 0.3, 0.3, 0.1, 0.15, 0.05])
            tune = int(np.clip(tune + rng.integers(-3, 4), 0, len(scale) - 1))
            if rng.random() < 0.8:  # else a rest
                add(now, length, tune, swell[int((now - start) / beat)])
            now += length
    rows.sort()
    following = {}  # start of each pitch's next note, which ends the one before: MIDI has one note per pitch
    for i in reversed(range(len(rows))):
        start, end, pitch, velocity = rows[i]
        rows[i] = start, min(end, following.get(pitch, end)), pitch, velocity
        following[pitch] = start
    rows = [row for row in rows if row[1] - row[0] > 0.05]
    start, end, pitch, velocity = (np.array(column) for column in zip(*rows, strict=True))
    return Notes(
        start=start,
        end=end,
        pitch=pitch.astype(np.int32),
        velocity=velocity.astype(np.int32),
        program=np.full(len(rows), PROGRAM, np.int32),
        is_drum=np.zeros(len(rows), bool),
        total_time=float(end.max()) + RING,
    )


def play(notes: Notes, seed: int) -> np.ndarray:
    """Returns the audio of the notes, not normalized, float64 [samples]."""
    audio = np.zeros(int(notes.total_time * SAMPLE_RATE))
    for start, end, pitch, velocity in zip(notes.start, notes.end, notes.pitch, notes.velocity, strict=True):
        at = round(start * SAMPLE_RATE)
        sound = strike(int(pitch), int(velocity), end - start, seed)[: len(audio) - at]
        audio[at : at + len(sound)] += sound
    return audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for NAME.wav, NAME.mid and splits.csv")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count = max(3, round(options.minutes * 60 / 50))
    pieces = [compose(np.random.default_rng([options.seed, i]), 60 * options.minutes / count) for i in range(count)]
    sounds = [play(notes, options.seed) for notes in pieces]
    gain = PEAK / max(np.abs(sound).max() for sound in sounds)  # the same for all, so that velocities are comparable
    lines = ["name,split"]
    for i, (notes, sound) in enumerate(zip(pieces, sounds, strict=True)):
        name = f"piece_{i:02d}"
        write_midi(notes, options.out / f"{name}.mid")
        write_audio(options.out / f"{name}.wav", (gain * sound).astype(np.float32))
        lines.append(f"{name},{ {1: 'validation', 7: 'test'}.get(i % 8, 'train') }")
    (options.out / "splits.csv").write_text("\n".join(lines) + "\n")
    seconds = sum(len(sound) for sound in sounds) / SAMPLE_RATE
    print(f"{options.out}: {count} pieces, {seconds / 60:.1f} minutes, {sum(map(len, pieces))} notes")


if __name__ == "__main__":
    main()
