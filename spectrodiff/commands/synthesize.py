"""`synthesize` and `demo`: MIDI to audio."""

import argparse
import contextlib
import pathlib

from spectrodiff.commands.common import ROOT, keep_compiled_programs
from spectrodiff.errors import InputError


def add(commands) -> None:
    _add_synthesize(commands)
    _add_demo(commands)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="demo", help="name or folder of the weights, or hf://owner/name (default: demo)"
    )
    parser.add_argument(
        "--vocoder",
        help="griffin_lim, demo, a folder that training exported, an .onnx file or the folder of a SavedModel "
        "(default: the checkpoint's)",
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the checkpoint's)")
    parser.add_argument("--sampler", help="ddpm, ddim or dpmpp (default: the checkpoint's)")
    parser.add_argument("--guidance", type=float, help="weight of the notes, 1 is plain (default: the checkpoint's)")
    parser.add_argument("--dither", type=float, help="noise on an autoregressive decoder's frames (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same audio (default: 0)")
    parser.add_argument(
        "--on_overflow",
        choices=("error", "thin"),
        default="error",
        help="what to do with a window of too many notes: refuse, or drop its quietest (default: error)",
    )
    parser.add_argument("--normalize", action="store_true", help="scale the audio to a peak of 0.9")
    parser.add_argument("--max_minutes", type=float, default=60.0, help="refuse longer pieces (default: 60)")


def _add_synthesize(commands) -> None:
    parser = commands.add_parser("synthesize", help="turn a MIDI file into audio")
    parser.add_argument("--midi", required=True, help="the MIDI file")
    parser.add_argument("--out", required=True, help="the audio file to write: .wav, .flac or .ogg")
    parser.add_argument("--plot", help="also draw notes, mel and waveform into this picture (.png, .pdf, .svg)")
    parser.add_argument("--mel_out", help="also write the unscaled log-mel into this .npz, as `mel` [frames, 128]")
    _add_sampling(parser)
    parser.set_defaults(run=_synthesize)


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="turn the examples into audio")
    parser.add_argument("--midi", nargs="+", default=None, help="other MIDI files (default: the examples)")
    parser.add_argument("--out", default="out", help="folder for audio and pictures, made if need be (default: out)")
    _add_sampling(parser)
    parser.set_defaults(run=_demo)


def _synthesize(options) -> None:
    from spectrodiff.audio.files import check_audio_path
    from spectrodiff.files import check_writable
    from spectrodiff.plot import check_plot_path

    check_audio_path(options.out)
    if options.plot:
        check_plot_path(options.plot)
    if options.mel_out:
        if pathlib.Path(options.mel_out).suffix != ".npz":
            raise InputError(f"cannot write {options.mel_out}: give it the suffix .npz")
        check_writable(options.mel_out)
    _render(options, _load(options), options.midi, options.out, options.plot, options.mel_out)


def _demo(options) -> None:
    midis = sorted((ROOT / "examples").glob("*.mid")) if options.midi is None else options.midi
    if not midis:
        raise InputError("the examples are only in a checkout of spectrodiff; name your own with --midi")
    from spectrodiff.audio.files import check_audio_path
    from spectrodiff.files import local_path

    folder = local_path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    by_name = {}
    for midi in map(pathlib.Path, midis):
        other = by_name.setdefault(midi.stem, midi)
        if other != midi:
            raise InputError(f"{other} and {midi} would both become {folder / midi.stem}.wav; render one at a time")
        check_audio_path(folder / f"{midi.stem}.wav")
    synthesizer = _load(options)
    for name, midi in by_name.items():
        _render(options, synthesizer, midi, folder / f"{name}.wav", folder / f"{name}.png", None)


def _load(options):
    keep_compiled_programs()
    from spectrodiff.mel_sampler import check_seed
    from spectrodiff.synthesizer import Synthesizer

    synthesizer = Synthesizer.from_pretrained(options.checkpoint, options.vocoder)
    synthesizer.mel_sampler.sampling(**_sampling(options))
    check_seed(options.seed)
    return synthesizer


def _sampling(options) -> dict:
    return {name: getattr(options, name) for name in ("sampler", "steps", "guidance", "dither")}


def _render(options, synthesizer, midi, out, plot, mel_out) -> None:
    """Renders one piece and writes it: nothing is written unless all of it succeeds."""
    import time

    import numpy as np
    from tqdm import tqdm

    from spectrodiff.audio.files import check_audio_path, write_audio
    from spectrodiff.audio.mel import HOP, SAMPLE_RATE
    from spectrodiff.files import replacing
    from spectrodiff.notes.midi import read_midi
    from spectrodiff.plot import plot_piece

    notes = read_midi(midi)
    if notes.total_time > 60 * options.max_minutes:
        raise InputError(
            f"{midi} lasts {notes.total_time / 60:.0f} minutes, over the limit of {options.max_minutes:g}; "
            "raise --max_minutes"
        )
    check_audio_path(out, notes.total_time)
    if options.on_overflow == "thin":
        notes, dropped = synthesizer.tokenizer.thin(notes)
        if dropped:
            print(f"{midi}: dropped the {dropped} quietest notes of over-full windows", flush=True)
    start = time.perf_counter()
    mel = np.concatenate(list(synthesizer.mels(notes, seed=options.seed, progress=True, **_sampling(options))))
    after_mel = time.perf_counter()
    chunks = []
    with tqdm(total=len(mel), desc="vocoding", unit="frame") as bar:
        for chunk in synthesizer.vocoder.stream([mel]):
            chunks.append(chunk)
            bar.update(len(chunk) // HOP)
    audio = np.concatenate(chunks)
    if options.normalize:
        audio = audio * (0.9 / max(float(np.abs(audio).max()), 1e-6))
    end = time.perf_counter()
    with contextlib.ExitStack() as files:  # each is complete before any takes its name
        if mel_out:
            np.savez_compressed(files.enter_context(replacing(mel_out)), mel=mel)
        if plot:
            plot_piece(files.enter_context(replacing(plot)), notes, mel, audio)
        write_audio(files.enter_context(replacing(out)), audio)
    length = len(audio) / SAMPLE_RATE
    print(
        f"{out}: {length:.1f} s of audio in {end - start:.1f} s ({length / (end - start):.1f}x realtime; "
        f"spectrogram {after_mel - start:.1f} s, vocoder {end - after_mel:.1f} s)",
        flush=True,
    )
