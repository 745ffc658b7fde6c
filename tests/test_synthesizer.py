"""Synthesis of audio from notes or MIDI files, whole or streamed. Window by window: see test_mel_sampler.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from inputs import jitted, random_notes

import spectrodiff
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes, read_midi, write_midi
from spectrodiff.synthesizer import Synthesizer

FAST = {"steps": 2, "sampler": "ddim", "guidance": 1.0}
PIECE = random_notes(0, seconds=12.0)  # with the second of ring-out, three windows


def hits(count: int, until: float) -> Notes:
    start = np.linspace(0.0, until, count, endpoint=False)
    whole = np.full(count, 40, np.int32)
    return Notes(start, start + 0.01, whole, whole, 0 * whole, np.ones(count, bool), total_time=until)


@pytest.fixture
def calls(synthesizer, monkeypatch):
    """A list that grows by one with every window; the sampling itself is replaced by a stub."""
    made = []

    def sample(weights, tokens, context, *_):
        made.append(len(tokens))
        return jnp.full_like(context, 0.01 * len(made))

    monkeypatch.setattr(synthesizer.mel_sampler, "_sample", sample)
    return made


def collect_mels(synthesizer, notes, **options):
    return list(synthesizer.mels(notes, **{**FAST, **options}))


def test_mels_match_the_mel_sampler(synthesizer):
    for ours, theirs in zip(
        collect_mels(synthesizer, PIECE, seed=3), synthesizer.mel_sampler.stream(PIECE, seed=3, **FAST), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_streamed_audio_equals_the_whole_audio(synthesizer):
    chunks = list(synthesizer.stream(PIECE, **FAST))
    assert len(chunks) > 3
    audio = synthesizer(PIECE, **FAST)
    np.testing.assert_array_equal(np.concatenate(chunks), audio)
    np.testing.assert_array_equal(audio, synthesizer.vocoder(np.concatenate(collect_mels(synthesizer, PIECE))))
    assert audio.dtype == np.float32


def test_stream_yields_before_all_windows_are_sampled(synthesizer, calls):
    next(synthesizer.stream(PIECE, **FAST))
    assert len(calls) == 1


def test_midi_path_and_notes_give_the_same_audio(synthesizer, tmp_path):
    path = tmp_path / "song.mid"
    write_midi(hits(9, 2.0), path)
    from_file = synthesizer(path, **FAST)
    np.testing.assert_array_equal(from_file, synthesizer(str(path), **FAST))
    np.testing.assert_array_equal(from_file, synthesizer(read_midi(path), **FAST))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"dither": 0.1}, r"\bdiffusion\b.*\bdither\b"),
    ],
)
def test_invalid_options_raise_input_error(synthesizer, calls, option, message):
    for render in (synthesizer, synthesizer.mels):
        with pytest.raises(InputError, match=message):
            render(PIECE, **option)
    assert calls == []


def test_options_are_checked_before_the_file(synthesizer, tmp_path):
    with pytest.raises(InputError, match="steps is 0"):
        synthesizer.mels(tmp_path / "nope.mid", steps=0)
    with pytest.raises(InputError, match=r"nope\.mid"):
        synthesizer.mels(tmp_path / "nope.mid")


def test_model_config_and_tokenizer_are_the_mel_samplers(synthesizer, our_model):
    sampler = synthesizer.mel_sampler
    assert synthesizer.model is sampler.model
    assert synthesizer.config is sampler.config
    assert synthesizer.tokenizer is sampler.tokenizer
    made = Synthesizer(our_model, synthesizer.config)
    assert made.model is our_model
    assert isinstance(made.vocoder, type(synthesizer.vocoder))


def test_public_api(synthesizer, tmp_path):
    path = tmp_path / "song.mid"
    write_midi(PIECE, path)
    tokens = spectrodiff.NoteTokenizer(synthesizer.config.tokenizer).encode_file(path)
    assert tokens.dtype == np.int32
    assert tokens.shape == (3, 2048)
    assert spectrodiff.NoteTokenizer().encode_file(path).shape == (3, 2048)

    context, z = jnp.zeros((1, 256, 128)), jnp.ones((1, 256, 128))
    call = jitted(lambda model, *arguments: model(*arguments))
    output = call(synthesizer.model, tokens[:1, :512], context, jnp.zeros((1, 256), bool), z, jnp.zeros(1))
    assert output.shape == z.shape

    audio = synthesizer.vocoder(np.asarray(output[0]))
    assert audio.shape == (256 * 320,)
    assert spectrodiff.log_mel(audio).shape == (256, 128)
