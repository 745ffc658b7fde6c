"""`synthesize` and `demo`: turn MIDI files into audio."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator

from spectrodiff.commands.common import keep_compiled_programs, say
from spectrodiff.commands.options import add_rendering_options, sampling_of
from spectrodiff.errors import InputError
from spectrodiff.files import check_writable, is_folder, local_path, packaged, replacing


def add(commands) -> None:
    _add_synthesize(commands)
    _add_demo(commands)


def _add_synthesize(commands) -> None:
    parser = commands.add_parser(
        "synthesize",
        help="turn a MIDI file, or a folder of them, into audio",
        examples=["synthesize --midi song.mid --out song.wav", "synthesize --midi songs/ --out rendered/ --format mp3"],
        usage="%(prog)s --midi MIDI --out OUT [options]",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--midi", required=True, help="a MIDI file, or a folder of MIDI files")
    files.add_argument(
        "--out",
        required=True,
        help="the audio file to write: .wav, .flac, .ogg or .mp3; for a folder of MIDI files a folder, in which "
        "existing files are not rendered again",
    )
    files.add_argument("--plot", help="also write a plot of notes, mel and waveform (.png, .pdf or .svg)")
    files.add_argument("--mel_out", help="also write the unscaled log-mel into an .npz file, as `mel` [frames, 128]")
    folders = parser.add_argument_group("folders of MIDI files")
    folders.add_argument(
        "--batch",
        type=int,
        default=4,
        help="songs of a folder to render at once; the audio differs slightly with it (default: 4)",
    )
    folders.add_argument(
        "--format",
        choices=("wav", "flac", "ogg", "mp3"),
        help="format of the audio files of a folder (default: wav)",
    )
    add_rendering_options(parser)
    parser.set_defaults(run=_synthesize)


def _add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="turn the examples into audio",
        examples=["demo", "demo --midi song.mid --out rendered"],
        usage="%(prog)s [options]",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--midi", nargs="+", default=None, help="MIDI files (default: the examples)")
    files.add_argument("--out", default="out", help="folder for audio and plots (default: out)")
    add_rendering_options(parser)
    parser.set_defaults(run=_demo)


def _synthesize(options) -> None:
    from spectrodiff.audio.files import check_audio_path
    from spectrodiff.notes.midi import read_midi
    from spectrodiff.plot import check_plot_path

    if options.batch < 1:
        raise InputError(f"batch is {options.batch}; choose 1 or more")
    if is_folder(local_path(options.midi)):
        with _folder(options.out) as folder:
            _synthesize_folder(options, folder)
        return
    if options.format:
        raise InputError("--format is for a folder of MIDI files; for one file, the suffix of --out chooses the format")
    check_audio_path(options.out)
    if options.plot:
        check_plot_path(options.plot)
    if options.mel_out:
        if pathlib.Path(options.mel_out).suffix != ".npz":
            raise InputError(f"cannot write {options.mel_out}: give it the suffix .npz")
        check_writable(options.mel_out)
    read_midi(options.midi)  # before the weights, which take seconds
    _render(options, _load(options), options.midi, options.out, options.plot, options.mel_out)


def _demo(options) -> None:
    from spectrodiff.notes.midi import read_midi

    midis = sorted(packaged("examples").glob("*.mid")) if options.midi is None else options.midi
    with _folder(options.out) as folder:
        by_name = _outputs(map(pathlib.Path, midis), folder, ".wav")
        for midi in midis:
            read_midi(midi)  # before the weights, which take seconds
        synthesizer = _load(options)
        for out, midi in by_name.items():
            _render(options, synthesizer, midi, out, out.with_suffix(".png"), None)


def _synthesize_folder(options, folder: pathlib.Path) -> None:
    """Renders MIDI files into `folder`, several at once; files that fail are reported and do not stop the others."""
    if options.plot or options.mel_out:
        raise InputError("--plot and --mel_out are for one MIDI file; leave them out for a folder")
    from tqdm import tqdm

    from spectrodiff.audio.mel import SAMPLE_RATE
    from spectrodiff.audio.spool import AudioSpool
    from spectrodiff.data.builders.folder import MIDI

    inside = sorted(pathlib.Path(options.midi).iterdir())
    midis = [path for path in inside if path.suffix.lower() in MIDI]
    if not midis:
        raise InputError(f"{options.midi} holds no MIDI files ({', '.join(MIDI)})")
    if folders := sum(path.is_dir() for path in inside):
        print(f"{options.midi}: not searched for MIDI files: folders in it ({folders})", file=sys.stderr, flush=True)
    wanted = _outputs(midis, folder, f".{options.format or 'wav'}")
    missing = {out: midi for out, midi in wanted.items() if not out.exists()}
    if len(missing) < len(wanted):
        print(f"already in {options.out}: {len(wanted) - len(missing)} of {len(wanted)} files", flush=True)
    synthesizer, windows = _load(options), {}
    for out, midi in tqdm(missing.items(), "reading", unit="file", delay=2.0, leave=False):
        try:
            notes = _read(options, synthesizer, midi, out)
            try:
                windows[out] = synthesizer.mel_sampler.num_windows(notes, **sampling_of(options))
            except InputError as error:
                raise InputError(f"{midi}: {error}") from error
        except InputError as error:
            say(f"spectrodiff: {error}", sys.stderr)
    # They are read again when they are rendered, as the notes of thousands of files would fill the memory.
    pieces = ((_read(options, synthesizer, missing[out], out, again=True), options.seed) for out in windows)
    total, order = sum(windows.values()), list(windows)
    songs = synthesizer.mel_sampler.songs(pieces, batch=options.batch, windows=total, **sampling_of(options))
    with contextlib.closing(songs):  # ends the progress bar before an error is printed
        for place, song in songs:
            out = order[place]
            with AudioSpool(out.parent) as spool:
                for chunk in synthesizer.vocoder.stream([song.mel]):
                    spool.write(chunk)
                with replacing(out) as temporary:
                    spool.save(temporary, options.level)
            say(f"{out}: {spool.samples / SAMPLE_RATE:.1f} s of audio")
    if failed := len(missing) - len(windows):
        raise InputError(f"could not render {failed} of {len(wanted)} files; the lines above say why")


@contextlib.contextmanager
def _folder(path: str) -> Iterator[pathlib.Path]:
    """Provides the folder at `path`, which is made if it does not exist, and removed again if it stays empty."""
    from spectrodiff.audio.files import FORMATS

    folder = local_path(path)
    if folder.suffix.lower() in FORMATS and not folder.is_dir():
        raise InputError(f"{folder} would become a folder of audio files; give --out a name without {folder.suffix}")
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for each in made:
                each.rmdir()


def _outputs(midis: Iterable[pathlib.Path], folder: pathlib.Path, suffix: str) -> dict[pathlib.Path, pathlib.Path]:
    """Returns MIDI files by their audio files; raises InputError if two would have the same one."""
    from spectrodiff.audio.files import check_audio_path

    outputs = {}
    for midi in midis:
        out = folder / f"{midi.stem}{suffix}"
        if (other := outputs.setdefault(out, midi)) != midi:
            raise InputError(f"{other} and {midi} would both become {out}; render one at a time")
        check_audio_path(out)
    return outputs


def _load(options):
    keep_compiled_programs()
    from spectrodiff.mel_sampler import check_seed
    from spectrodiff.synthesizer import Synthesizer

    check_seed(options.seed)
    synthesizer = Synthesizer.from_pretrained(options.checkpoint, options.vocoder)
    synthesizer.mel_sampler.sampling(**sampling_of(options))
    return synthesizer


def _read(options, synthesizer, midi, out, again: bool = False):
    """Returns the notes of a file, having checked the limits and thinned windows with too many.

    It says what the file holds that is not played, and which instruments play in place of others; not if it is read
    `again`.
    """
    from spectrodiff.audio.files import check_audio_path
    from spectrodiff.notes.instruments import replacements
    from spectrodiff.notes.midi import read_midi

    def tell(line: str, file=sys.stderr) -> None:
        if not again:
            say(line, file)

    notes = read_midi(midi, channel_volume=synthesizer.config.tokenizer.channel_volume, tell=tell)
    if notes.total_time > 60 * options.max_minutes:
        raise InputError(
            f"{midi} lasts {notes.total_time / 60:.1f} min, over the limit of {options.max_minutes:g} min; "
            "raise --max_minutes"
        )
    check_audio_path(out, notes.total_time)
    if replaced := replacements(notes, synthesizer.tokenizer):
        tell(f"{midi}: {replaced}")
    if options.on_overflow == "thin":
        notes, dropped = synthesizer.mel_sampler.thin(notes, **sampling_of(options))
        if dropped:
            tell(f"{midi}: dropped the {dropped} quietest notes of over-full windows", sys.stdout)
    return notes


def _render(options, synthesizer, midi, out, plot, mel_out) -> None:
    """Renders a piece and writes its files, all of them or none.

    Audio is kept on disk while it is generated, so that memory does not grow with the length, unless there is a plot or
    a mel to write.
    """
    import numpy as np

    from spectrodiff.audio.mel import SAMPLE_RATE
    from spectrodiff.audio.spool import AudioSpool
    from spectrodiff.plot import plot_piece

    notes = _read(options, synthesizer, midi, out)
    start, kept = time.perf_counter(), []

    def mels() -> Iterator:
        windows = synthesizer.mels(notes, seed=options.seed, progress=True, **sampling_of(options))
        with contextlib.closing(windows):
            for mel in windows:
                if plot or mel_out:
                    kept.append(mel)
                yield mel

    # Closing ends the progress bar before an error is printed.
    with AudioSpool(pathlib.Path(out).parent) as spool, contextlib.closing(mels()) as sampled:
        for chunk in synthesizer.vocoder.stream(sampled):
            spool.write(chunk)
        seconds = time.perf_counter() - start
        with contextlib.ExitStack() as files:  # all are complete before the first is renamed
            if mel_out:
                np.savez_compressed(files.enter_context(replacing(mel_out)), mel=np.concatenate(kept))
            if plot:
                audio = spool.gain(options.level) * np.concatenate(list(spool.blocks()))
                plot_piece(files.enter_context(replacing(plot)), notes, np.concatenate(kept), audio)
            spool.save(files.enter_context(replacing(out)), options.level)
    length = spool.samples / SAMPLE_RATE
    print(f"{out}: {length:.1f} s of audio in {seconds:.1f} s ({length / seconds:.1f}x realtime)", flush=True)
