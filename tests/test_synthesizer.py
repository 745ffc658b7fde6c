"""Windows in order, each hearing the one before; what is asked for is what is sampled."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import OURS, jitted, random_notes

import spectrodiff
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.models import sampling
from spectrodiff.notes.midi import Notes, write_midi
from spectrodiff.synthesizer import Synthesizer

FAST = {"steps": 2, "sampler": "ddim", "guidance": 1.0}
PIECE = random_notes(0, seconds=12.0)  # and a second of silence: three windows


def hits(count: int, since: float, until: float) -> Notes:
    """Drum hits, evenly spread: at distinct times each is a shift token and a drum token."""
    start = np.linspace(since, until, count, endpoint=False)
    whole = np.full(count, 40, np.int32)
    return Notes(start, start + 0.01, whole, whole, 0 * whole, np.ones(count, bool), total_time=until)


@pytest.fixture
def seen(synthesizer, monkeypatch):
    """What each window would be sampled from; the sampling itself is left out, and every result another."""
    calls = []

    def sample_window(weights, tokens, context, context_mask, key, **options):
        mel = jnp.full_like(context, 0.01 * len(calls))
        given = {"tokens": tokens, "context": context, "mask": context_mask, "key": key}
        calls.append(SimpleNamespace(**given, **options, mel=mel))
        return mel

    monkeypatch.setattr(synthesizer, "_sample_window", sample_window)
    return calls


@pytest.fixture
def compilations(monkeypatch):
    """The options of every sampling that is compiled."""
    compiled, sample_mel = [], sampling.sample_mel

    def counted(*args, **kwargs):
        compiled.append(kwargs)
        return sample_mel(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample_mel", counted)
    return compiled


def mels(synthesizer, notes, **options):
    return list(synthesizer.mels(notes, **{**FAST, **options}))


def test_each_window_hears_the_one_before_and_the_first_hears_nothing(synthesizer, seen):
    mels(synthesizer, PIECE)
    first, second, third = seen
    assert not first.mask.any()
    assert second.mask.all()
    assert third.mask.all()
    np.testing.assert_array_equal(second.context, first.mel)
    np.testing.assert_array_equal(third.context, second.mel)


def test_the_past_changes_what_comes_and_the_future_does_not(synthesizer):
    original = mels(synthesizer, PIECE)
    late = PIECE.start > 5.2
    later = PIECE.select(late | (PIECE.end > 5.1))
    np.testing.assert_array_equal(*(synthesizer.tokenizer.encode(notes)[1] for notes in (PIECE, later)))
    assert np.abs(mels(synthesizer, later)[1] - original[1]).max() > 1e-3
    without_late = mels(synthesizer, PIECE.select(~late))
    np.testing.assert_array_equal(without_late[0], original[0])


def test_streamed_audio_is_the_audio(synthesizer):
    chunks = list(synthesizer.stream(PIECE, **FAST))
    assert len(chunks) > 3
    audio = synthesizer(PIECE, **FAST)
    np.testing.assert_array_equal(np.concatenate(chunks), audio)
    np.testing.assert_array_equal(audio, synthesizer.vocoder(np.concatenate(mels(synthesizer, PIECE))))
    assert audio.dtype == np.float32


def test_sound_comes_before_the_piece_is_rendered(synthesizer, seen):
    next(synthesizer.stream(PIECE, **FAST))
    assert len(seen) == 1


def test_the_seed_decides(synthesizer):
    first, again, other = (np.concatenate(mels(synthesizer, PIECE, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1e-3


def test_every_window_of_every_seed_begins_from_noise_of_its_own(synthesizer, seen):
    for seed in (0, 1):
        mels(synthesizer, PIECE, seed=seed)
    assert len({jax.random.key_data(call.key).tobytes() for call in seen}) == 6


@pytest.mark.parametrize("seconds", [0.5, 4.0, 5.12, 5.3, 10.0, 13.99])
def test_a_second_to_ring_out(synthesizer, seen, seconds):
    frames = sum(len(mel) for mel in synthesizer.mels(hits(5, 0.0, seconds)))
    assert frames == np.ceil(seconds * 50) + 50


def test_options_not_given_are_the_checkpoints(synthesizer, seen):
    mels_with_defaults = synthesizer.mels(hits(5, 0.0, 1.0))
    next(mels_with_defaults)
    recommended = synthesizer.config.sampling
    assert (seen[0].steps, seen[0].guidance) == (recommended.steps, recommended.guidance)
    assert seen[0].step is STEPS[recommended.sampler]


def test_guidance_of_1_is_none(synthesizer):
    """A weight of 1 is evaluated without the unconditional half; with it, it comes to the same."""
    plain, guided = (mels(synthesizer, PIECE, guidance=guidance)[0] for guidance in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(guided, plain, atol=1e-3)


def test_longer_songs_and_more_guidance_are_no_new_programs(synthesizer, compilations):
    for notes, seconds, guidance in ((40, 3.0, 2.0), (400, 14.0, 3.0)):
        mels(synthesizer, hits(notes, 0.0, seconds), steps=3, guidance=guidance)  # no other test asks for 3 steps
    assert len(compilations) == 1
    mels(synthesizer, hits(300, 0.0, 5.0), steps=3, guidance=2.0)  # the next bucket
    assert len(compilations) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0; choose 1 to 1000"),
        ({"steps": 1001}, "steps is 1001"),
        ({"guidance": -0.1}, r"guidance is -0.1; choose 0 to 20 \(1 is none\)"),
        ({"guidance": 20.5}, "guidance is 20.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1; choose 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"sampler": "euler"}, "sampler is 'euler'; choose one of ddpm, ddim, dpmpp"),
    ],
)
def test_options_out_of_range(synthesizer, option, message):
    with pytest.raises(InputError, match=message):
        synthesizer(PIECE, **option)


@pytest.mark.parametrize(("notes", "bucket"), [(100, 512), (300, 1024), (600, 2048), (1000, 2048)])
def test_windows_are_padded_to_a_bucket(synthesizer, seen, notes, bucket):
    mels(synthesizer, hits(notes, 0.0, 4.0))
    assert [call.tokens.shape for call in seen] == [(1, bucket)]


def test_many_notes_get_the_room_they_need(our_model):
    """At 4 tokens a note, 600 notes of 2 tokens each do not fit the places of the longest window."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, tokens_per_note=4))
    tokens = Synthesizer(our_model, config).tokenizer.encode(hits(600, 0.0, 5.0))[0]
    bucketed = Synthesizer(our_model, config)._bucketed(tokens)
    assert len(bucketed) == 4096
    np.testing.assert_array_equal(bucketed[: len(tokens)], tokens)
    assert not bucketed[len(tokens) :].any()


def test_over_full_windows_are_named_and_can_be_thinned(synthesizer, seen):
    crowd = random_notes(1, seconds=10.0, voices=60, drums=3000)
    with pytest.raises(InputError, match=r"^window \d at (0\.00|5\.12) s needs \d{4} tokens, over the limit of 2048; "):
        mels(synthesizer, crowd)
    thinned, dropped = synthesizer.tokenizer.thin(crowd)
    assert dropped > 0
    mels(synthesizer, thinned)
    assert len(seen) == 3


def test_a_file_is_its_notes(synthesizer, tmp_path):
    path = tmp_path / "song.mid"
    write_midi(hits(9, 0.0, 2.0), path)
    from_file = synthesizer(path, **FAST)
    np.testing.assert_array_equal(from_file, synthesizer(str(path), **FAST))
    np.testing.assert_array_equal(from_file, synthesizer(spectrodiff.notes.midi.read_midi(path), **FAST))


def test_the_public_face(synthesizer, tmp_path):
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
