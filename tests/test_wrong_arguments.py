"""Wrong types, shapes and ranges of arguments of public functions raise one-line errors."""

import jaxtyping
import numpy as np
import pytest
from inputs import random_notes

import spectrodiff
from spectrodiff.audio.files import read_audio, write_audio
from spectrodiff.config import TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi

NOTES = random_notes(0, seconds=4.0)
TOKENS = spectrodiff.NoteTokenizer().encode(NOTES)
MONO = np.zeros(3200, np.float32)
load, tokenizer = spectrodiff.Synthesizer.from_pretrained, spectrodiff.NoteTokenizer()


@pytest.fixture(autouse=True)
def disable_type_checks():
    """Disables the runtime type checks that are active in tests only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 0.5}, "seed is 0.5; choose an integer from 0 to 4294967295"),
        ({"seed": None}, "seed is None; choose an integer"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance": "strong"}, "guidance is 'strong'"),
        ({"sampler": 3}, "sampler is 3"),
        ({"speed": 2}, "no speed; its options are"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "stream", "mels"])
def test_invalid_synthesis_options_raise_input_error(synthesizer, method, options, message):
    with pytest.raises(InputError, match=message):
        list(getattr(synthesizer, method)(NOTES, **options))


@pytest.mark.parametrize("midi", [None, 5, b"song.mid", ["song.mid"], TOKENS])
def test_invalid_midi_argument_raises_input_error(synthesizer, midi):
    with pytest.raises(InputError, match=f"a path is a str .* of the type {type(midi).__name__}$"):
        synthesizer(midi)


@pytest.mark.parametrize(
    "call",
    [
        *(load, spectrodiff.MelSampler.from_pretrained, tokenizer.encode_file, read_midi, read_audio),
        *(lambda path: load("demo", vocoder=path), lambda path: write_audio(path, MONO)),
    ],
)
@pytest.mark.parametrize("path", [5, NOTES, b"demo"])
def test_invalid_path_argument_raises_input_error(call, path):
    with pytest.raises(InputError, match=f"a path is a str .* of the type {type(path).__name__}$"):
        call(path)


@pytest.mark.parametrize("method", ["encode", "thin", "timeline"])
@pytest.mark.parametrize("notes", ["x.mid", None, TOKENS])
def test_invalid_tokenizer_notes_raise_input_error(method, notes):
    with pytest.raises(InputError, match=f"notes are wanted.* of the type {type(notes).__name__}; .*read_midi$"):
        getattr(tokenizer, method)(notes)


@pytest.mark.parametrize(
    ("pieces", "options", "message"),
    [
        ([("song.mid", 0)], {}, "notes are wanted"),
        (["song.mid"], {}, "pieces are pairs of notes and seed, but one is a str"),
        ([NOTES], {}, "pieces are pairs of notes and seed, but one is a Notes"),
        ([(NOTES, 0.5)], {}, "seed is 0.5"),
        ([(NOTES, 0)], {"batch": 2.5}, "batch is 2.5"),
    ],
)
def test_invalid_sampler_pieces_raise_input_error(synthesizer, pieces, options, message):
    with pytest.raises(InputError, match=message):
        next(synthesizer.mel_sampler.songs(pieces, **options))


def test_invalid_sampler_notes_raise_input_error(synthesizer):
    with pytest.raises(InputError, match="notes are wanted"):
        synthesizer.mel_sampler.stream("song.mid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "full"}, "config is 'full'; give a TokenizerConfig"),
        ({"on_overflow": 3}, "on_overflow is 3"),
    ],
)
def test_invalid_tokenizer_options_raise_input_error(options, message):
    with pytest.raises(InputError, match=message):
        spectrodiff.NoteTokenizer(**options)
    with pytest.raises(InputError, match="program_map is 'drums'"):
        TokenizerConfig(program_map="drums")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("x.mid", r"tokens are integers \[windows, tokens\], but these are \[\] of <U5"),
        (TOKENS[0], r"but these are \[2048\] of int32"),
        (TOKENS.astype(float), "of float64"),
    ],
)
def test_invalid_tokens_raise_input_error(tokens, message):
    with pytest.raises(InputError, match=message):
        tokenizer.decode(tokens)


def test_tokens_may_be_nested_lists():
    assert len(tokenizer.decode(TOKENS.tolist())) == len(tokenizer.decode(TOKENS))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("song.wav", "not a path: read the file by spectrodiff.read_audio"),
        (None, "of floats, but this one is of object"),
        (np.zeros((2, 3200), np.float32), r"one channel, but this one is \[2, 3200\]: .*audio\.mean\(axis=0\)$"),
        (np.zeros((3200, 2), np.float32), r"one channel, but this one is \[3200, 2\]: .*audio\.mean\(axis=1\)$"),
        (np.zeros((1, 2, 3200), np.float32), r"one channel, but this one is \[1, 2, 3200\]$"),
        (np.float32(0), r"one channel, but this one is \[\]$"),
        (np.zeros(3200, np.int16), r"int16: convert to float between -1 and 1 \(divide by 32768\)$"),
        (np.zeros(3200, np.uint8), "uint8: convert to float between -1 and 1$"),
        (MONO * 1j, "of floats, but this one is of complex64"),
        (np.where(np.arange(3200) == 7, np.nan, MONO), r"not numbers \(first at sample 7\)"),
        (np.where(np.arange(3200) == 8, np.inf, MONO), r"not numbers \(first at sample 8\)"),
        ([[0.0], [0.0, 0.0]], r"an array \[samples\], but this is none"),
    ],
)
def test_invalid_audio_raises_input_error(audio, message, tmp_path):
    with pytest.raises(InputError, match=message):
        spectrodiff.log_mel(audio)
    with pytest.raises(InputError, match=f"^cannot write .*a.wav: .*{message}"):
        write_audio(tmp_path / "a.wav", audio)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        ("song.npz", r"an array \[frames, 128\], but this is none"),
        (None, r"an array \[frames, 128\], but this one is \[\]"),
        (MONO, r"an array \[frames, 128\], but this one is \[3200\]"),
        (np.full((128, 20), -5.0), r"an array \[frames, 128\], but this one is \[128, 20\]"),
    ],
)
def test_invalid_vocoder_mel_raises_input_error(synthesizer, mel, message):
    with pytest.raises(InputError, match=message):
        synthesizer.vocoder(mel)
