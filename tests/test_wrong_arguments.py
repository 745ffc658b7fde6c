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
        ({"seed": 0.5}, "seed is 0.5.* 4294967295"),
        ({"seed": None}, "seed is None"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance": "strong"}, "guidance is 'strong'"),
        ({"sampler": 3}, "sampler is 3"),
        ({"speed": 2}, r"\bspeed\b"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "stream", "mels"])
def test_invalid_synthesis_options_raise_input_error(synthesizer, method, options, message):
    with pytest.raises(InputError, match=message):
        list(getattr(synthesizer, method)(NOTES, **options))


@pytest.mark.parametrize("midi", [None, 5, b"song.mid", ["song.mid"], TOKENS])
def test_invalid_midi_argument_raises_input_error(synthesizer, midi):
    with pytest.raises(InputError, match=rf"\bos\.PathLike\b.* {type(midi).__name__}$"):
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
    with pytest.raises(InputError, match=rf"\bos\.PathLike\b.* {type(path).__name__}$"):
        call(path)


@pytest.mark.parametrize("method", ["encode", "thin", "timeline"])
@pytest.mark.parametrize("notes", ["x.mid", None, TOKENS])
def test_invalid_tokenizer_notes_raise_input_error(method, notes):
    with pytest.raises(InputError, match=f"^notes .* {type(notes).__name__}; .*read_midi$"):
        getattr(tokenizer, method)(notes)


@pytest.mark.parametrize(
    ("pieces", "options", "message"),
    [
        ([("song.mid", 0)], {}, r"^notes .* str; .*read_midi"),
        (["song.mid"], {}, r"^pieces .* str$"),
        ([NOTES], {}, r"^pieces .* Notes$"),
        ([(NOTES, 0.5)], {}, "seed is 0.5"),
        ([(NOTES, 0)], {"batch": 2.5}, "batch is 2.5"),
    ],
)
def test_invalid_sampler_pieces_raise_input_error(synthesizer, pieces, options, message):
    with pytest.raises(InputError, match=message):
        next(synthesizer.mel_sampler.songs(pieces, **options))


def test_invalid_sampler_notes_raise_input_error(synthesizer):
    with pytest.raises(InputError, match=r"^notes .* str; .*read_midi"):
        synthesizer.mel_sampler.stream("song.mid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "full"}, "config is 'full'.*TokenizerConfig"),
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
        ("x.mid", r"\[windows, tokens\].*\[\] of <U5"),
        (TOKENS[0], r"\[windows, tokens\].*\[2048\] of int32"),
        (TOKENS.astype(float), r"\[windows, tokens\].* float64"),
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
        ("song.wav", r"spectrodiff\.read_audio"),
        (None, r"\[samples\].* object"),
        (np.zeros((2, 3200), np.float32), r"\[samples\].* \[2, 3200\]: .*audio\.mean\(axis=0\)$"),
        (np.zeros((3200, 2), np.float32), r"\[samples\].* \[3200, 2\]: .*audio\.mean\(axis=1\)$"),
        (np.zeros((1, 2, 3200), np.float32), r"\[samples\].* \[1, 2, 3200\]$"),
        (np.float32(0), r"\[samples\].* \[\]$"),
        (np.zeros(3200, np.int16), r"\bint16\b.*\b32768\b"),
        (np.zeros(3200, np.uint8), r"\buint8\b.*-1 .*1$"),
        (MONO * 1j, r"\[samples\].* complex64"),
        (np.where(np.arange(3200) == 7, np.nan, MONO), r"\bsample 7\b"),
        (np.where(np.arange(3200) == 8, np.inf, MONO), r"\bsample 8\b"),
        ([[0.0], [0.0, 0.0]], r"\[samples\].* \(2,\)"),
    ],
)
def test_invalid_audio_raises_input_error(audio, message, tmp_path):
    with pytest.raises(InputError, match=message):
        spectrodiff.log_mel(audio)
    with pytest.raises(InputError, match=rf"a\.wav: .*{message}"):
        write_audio(tmp_path / "a.wav", audio)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        ("song.npz", r"\[frames, 128\].* 'song\.npz'"),
        (None, r"\[frames, 128\].* \[\]"),
        (MONO, r"\[frames, 128\].* \[3200\]"),
        (np.full((128, 20), -5.0), r"\[frames, 128\].* \[128, 20\]"),
    ],
)
def test_invalid_vocoder_mel_raises_input_error(synthesizer, mel, message):
    with pytest.raises(InputError, match=message):
        synthesizer.vocoder(mel)
