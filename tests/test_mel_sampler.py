"""Windows in order, each conditioned on the one before; what is asked for is what is sampled, one song or many."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, random_notes

from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.midi import Notes

FAST = {"steps": 2, "sampler": "ddim", "guidance": 1.0}
PIECE = random_notes(0, seconds=12.0)  # and a second of silence: three windows
FRAMES = dataclasses.replace(OURS, decoder=AutoregressiveConfig(mean=-0.3, std=0.375))


def hits(count: int, since: float, until: float) -> Notes:
    """Drum hits, evenly spread: at distinct times each is a shift token and a drum token."""
    start = np.linspace(since, until, count, endpoint=False)
    whole = np.full(count, 40, np.int32)
    return Notes(start, start + 0.01, whole, whole, 0 * whole, np.ones(count, bool), total_time=until)


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return MelSampler.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def frame_sampler():
    """Of an autoregressive model, which has context here."""
    return MelSampler(SpectrogramModel(FRAMES, rngs=nnx.Rngs(0)), FRAMES)


@pytest.fixture
def seen(sampler, monkeypatch):
    """What each batch of windows would be sampled from; the sampling itself is left out, and every result another."""
    calls = []

    def sample(weights, tokens, context, context_mask, keys, options):
        mel = jnp.broadcast_to(0.01 * len(calls) + 0.001 * jnp.arange(len(tokens))[:, None, None], context.shape)
        given = {"tokens": tokens, "context": context, "mask": context_mask, "keys": keys, "options": options}
        calls.append(SimpleNamespace(**given, mel=mel))
        return mel

    monkeypatch.setattr(sampler, "_sample", sample)
    return calls


def mels(mel_sampler, notes, **options):
    return list(mel_sampler.stream(notes, **{**FAST, **options}))


# ---- one song


def test_each_window_hears_the_one_before_and_the_first_hears_nothing(sampler, seen):
    mels(sampler, PIECE)
    first, second, third = seen
    assert not first.mask.any()
    assert second.mask.all()
    assert third.mask.all()
    np.testing.assert_array_equal(second.context, first.mel)
    np.testing.assert_array_equal(third.context, second.mel)


def test_the_past_changes_what_comes_and_the_future_does_not(sampler):
    original = mels(sampler, PIECE)
    late = PIECE.start > 5.2
    later = PIECE.select(late | (PIECE.end > 5.1))
    np.testing.assert_array_equal(*(sampler.tokenizer.encode(notes)[1] for notes in (PIECE, later)))
    assert np.abs(mels(sampler, later)[1] - original[1]).max() > 1e-3
    without_late = mels(sampler, PIECE.select(~late))
    np.testing.assert_array_equal(without_late[0], original[0])


def test_the_seed_decides(sampler):
    first, again, other = (np.concatenate(mels(sampler, PIECE, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1e-3


def test_every_window_of_every_seed_begins_from_noise_of_its_own(sampler, seen):
    for seed in (0, 1):
        mels(sampler, PIECE, seed=seed)
    assert len({jax.random.key_data(call.keys).tobytes() for call in seen}) == 6


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_windows_key_is_that_of_its_number_in_the_song(sampler, seen, seed):
    mels(sampler, PIECE, seed=seed)
    expected = [jax.random.fold_in(jax.random.key(seed), window) for window in range(3)]
    assert [jax.random.key_data(call.keys)[0].tolist() for call in seen] == [
        jax.random.key_data(key).tolist() for key in expected
    ]


def test_mels_come_before_the_piece_is_sampled(sampler, seen):
    next(sampler.stream(PIECE, **FAST))
    assert len(seen) == 1


# 4.12 s and a second are a window to the frame; 34.84 s and a second are seven, though not in floating point.
@pytest.mark.parametrize("seconds", [0.5, 4.0, 4.12, 4.13, 5.12, 5.3, 9.24, 10.0, 13.99, 34.84])
def test_a_second_to_ring_out_and_no_window_more(sampler, seen, seconds):
    frames = sum(len(mel) for mel in mels(sampler, hits(5, 0.0, seconds)))
    assert frames == np.ceil(round(seconds * 50, 6)) + 50
    assert len(seen) == np.ceil(frames / 256)


@pytest.mark.parametrize("seconds", [1.0, 4.12, 5.0, 9.0])
def test_with_ghost_ties_no_further_than_the_published_windows(our_model, monkeypatch, seconds):
    """What is after them would list as sounding what sounds no more."""
    config = dataclasses.replace(OURS, tokenizer=dataclasses.replace(OURS.tokenizer, ghost_ties=True))
    sampler = MelSampler(our_model, config)
    monkeypatch.setattr(sampler, "_sample", lambda weights, tokens, context, *_: jnp.asarray(context))
    windows = sampler.tokenizer.num_windows(seconds)
    assert sum(len(mel) for mel in mels(sampler, hits(5, 0.0, seconds))) == min(seconds * 50 + 50, 256 * windows)


@pytest.mark.parametrize(("notes", "bucket"), [(100, 512), (300, 1024), (600, 2048), (1000, 2048)])
def test_windows_are_padded_to_a_bucket(sampler, seen, notes, bucket):
    mels(sampler, hits(notes, 0.0, 4.0))
    assert [call.tokens.shape for call in seen] == [(1, bucket)]


def test_many_notes_get_the_room_they_need(our_model, monkeypatch):
    """At 4 tokens a note, 600 notes of 2 tokens each do not fit the places of the longest window."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, tokens_per_note=4))
    sampler, given = MelSampler(our_model, config), []
    notes = hits(600, 0.0, 4.0)
    monkeypatch.setattr(
        sampler, "_sample", lambda weights, tokens, context, *_: given.append(tokens) or jnp.asarray(context)
    )
    mels(sampler, notes)
    expected = sampler.tokenizer.encode(dataclasses.replace(notes, total_time=5.0))[0]
    ((bucketed,),) = given
    assert len(bucketed) == 4096
    np.testing.assert_array_equal(bucketed[: len(expected)], expected)
    assert not bucketed[len(expected) :].any()


def test_over_full_windows_are_named_and_can_be_thinned(sampler, seen):
    crowd = random_notes(1, seconds=10.0, voices=60, drums=3000)
    with pytest.raises(InputError, match=r"window \d .*\b2048\b"):
        mels(sampler, crowd)
    thinned, dropped = sampler.tokenizer.thin(crowd)
    assert dropped > 0
    mels(sampler, thinned)
    assert len(seen) == 3


# ---- options


def test_options_not_given_are_the_checkpoints(sampler, seen):
    next(sampler.stream(hits(5, 0.0, 1.0)))
    next(sampler.stream(hits(5, 0.0, 1.0), steps=None, sampler=None, guidance=None))
    recommended = sampler.config.decoder.sampling
    for call in seen:
        assert call.options.step.func is STEPS[recommended.sampler]
        assert len(call.options.logsnrs) == recommended.steps
        assert float(call.options.guidance) == recommended.guidance


def test_guidance_of_1_is_none(sampler):
    """A weight of 1 is evaluated without the unconditional half; with it, it comes to the same."""
    plain, guided = (mels(sampler, PIECE, guidance=guidance)[0] for guidance in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(guided, plain, atol=1e-3)


def test_longer_songs_and_more_guidance_are_no_new_programs(sampler):
    compiled, before = sampler._sample._cache_size, sampler._sample._cache_size()
    for notes, seconds, guidance in ((40, 3.0, 2.0), (400, 14.0, 3.0)):
        mels(sampler, hits(notes, 0.0, seconds), steps=3, guidance=guidance)  # no other test asks for 3 steps
    assert compiled() == before + 1
    mels(sampler, hits(300, 0.0, 5.0), steps=3, guidance=2.0)  # the next bucket
    assert compiled() == before + 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"steps": 2.5}, r"steps is 2\.5, which is no int"),
        ({"guidance": -0.1}, r"guidance is -0.1"),
        ({"guidance": 20.5}, "guidance is 20.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"dither": 0.1}, "the diffusion decoder has no dither"),
    ],
)
def test_options_out_of_range_or_unknown(sampler, seen, option, message):
    """Before anything is sampled, and before the first mel is asked for."""
    with pytest.raises(InputError, match=message):
        sampler.stream(PIECE, **option)
    songs = sampler.songs([(PIECE, option.get("seed", 0))], **{k: v for k, v in option.items() if k != "seed"})
    with pytest.raises(InputError, match=message):
        next(songs)
    assert seen == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 20}, r"^the autoregressive decoder has no steps"),
        (
            {"steps": 20, "guidance": 2.0},
            r"^the autoregressive decoder has no guidance or steps",
        ),
        ({"dither": -0.1}, r"^options: dither is -0\.1"),
        ({"dither": "much"}, r"^options\.dither is 'much', which is no float$"),
    ],
)
def test_options_of_an_autoregressive_decoder(frame_sampler, option, message):
    with pytest.raises(InputError, match=message):
        frame_sampler.stream(PIECE, **option)
    assert frame_sampler.sampling(steps=None, dither=0.2).dither == 0.2


# ---- many songs

SONGS = [
    (random_notes(1, seconds=11.0), 3),  # three windows
    (random_notes(2, seconds=2.0, voices=3, drums=2), 4),  # one
    (hits(400, 0.0, 5.0), 5),  # two, and another bucket
    (random_notes(3, seconds=2.0, voices=2), 3),
    (random_notes(2, seconds=2.0, voices=3, drums=2), 6),  # the second song by another seed
]


def sampled(mel_sampler, songs, **options):
    """Mels in the order of `songs`."""
    found = dict(mel_sampler.songs(songs, **options))
    assert sorted(found) == list(range(len(songs)))
    return [found[place].mel for place in range(len(songs))]


def test_many_songs_at_once_are_what_one_at_a_time_is(sampler):
    """And so a song does not depend on its neighbours, on its place, or on where windows of others end."""
    options = {"steps": 2, "sampler": "ddpm", "guidance": 2.0}
    together = sampled(sampler, SONGS, batch=2, **options)
    for (notes, seed), mel in zip(SONGS, together, strict=True):
        alone = np.concatenate(mels(sampler, notes, seed=seed, **options))
        assert mel.shape == alone.shape
        assert mel.dtype == np.float32
        np.testing.assert_allclose(mel, alone, atol=1e-4)
    assert np.abs(together[1] - together[4]).mean() > 1e-3


def test_many_songs_of_an_autoregressive_model(frame_sampler):
    songs = [SONGS[1], SONGS[4], (hits(100, 0.0, 3.0), 7)]
    together = sampled(frame_sampler, songs, batch=3, dither=0.1)
    for (notes, seed), mel in zip(songs, together, strict=True):
        alone = np.concatenate(list(frame_sampler.stream(notes, seed=seed, dither=0.1)))
        np.testing.assert_allclose(mel, alone, atol=1e-3)
    assert np.abs(together[0] - together[1]).mean() > 1e-3


def test_songs_are_yielded_as_they_are_finished_and_taken_up_as_there_is_room(sampler, seen):
    taken = []

    def pieces():
        for place, song in enumerate(SONGS):
            taken.append(place)
            yield song

    songs = sampler.songs(pieces(), batch=2, **FAST)
    place, first = next(songs)
    assert (place, taken, len(seen)) == (1, [0, 1], 1)
    assert [place for place, _ in songs] == [0, 2, 3, 4]
    assert all(len(call.tokens) == 2 for call in seen)  # one shape to the end
    assert first.mel.shape == (200, 128)


def test_rows_of_a_batch_keep_their_own_context_and_key(sampler, seen):
    dict(sampler.songs(SONGS[:2], batch=2, **FAST))
    first, second, third = seen
    assert first.mask.sum() == 0
    np.testing.assert_array_equal(second.context[0], first.mel[0])
    np.testing.assert_array_equal(third.context[0], second.mel[0])
    for row, (_, seed) in enumerate(SONGS[:2]):
        expected = jax.random.fold_in(jax.random.key(seed), 0)
        np.testing.assert_array_equal(jax.random.key_data(first.keys[row]), jax.random.key_data(expected))


def test_a_batch_has_a_row_for_each_device(sampler, seen, monkeypatch):
    """A song's copies fill those that are too many, and are thrown away."""
    monkeypatch.setattr(sampler, "_devices", 4)
    assert sorted(dict(sampler.songs(SONGS, batch=2, **FAST))) == [*range(5)]
    assert {len(call.tokens) for call in seen} == {4}
    ((_, alone),) = sampler.songs(SONGS[1:2], batch=1, **FAST)
    assert alone.mel.shape == (200, 128)
    filled = seen[-1].tokens
    np.testing.assert_array_equal(filled, np.broadcast_to(filled[0], (4, 512)))


def test_work_is_timed_once_there_is_a_program(sampler, seen):
    """Of three windows in one bucket, the first may have been compiled; of one window, nothing is known."""
    found = dict(sampler.songs([SONGS[0]], batch=1, **FAST))
    assert found[0].music_seconds == pytest.approx(2 * 5.12)
    assert found[0].compute_seconds > 0
    (_, short), *_ = sampler.songs([SONGS[1]], batch=1, **FAST)
    assert (short.compute_seconds, short.music_seconds) == (0.0, 0.0)


def test_progress_goes_to_its_end_where_the_number_of_windows_was_an_estimate(sampler, seen, capsys):
    list(sampler.songs([(random_notes(0, 12.0), 0)], windows=1))
    assert len(seen) == 3
    assert "3/3" in capsys.readouterr().err


def test_of_no_songs_there_are_none(sampler, seen):
    assert list(sampler.songs([], batch=4, windows=0, **FAST)) == []
    assert seen == []


def test_sampled_again_without_a_vocoder(checkpoint, sampler):
    """A sampler of the same checkpoint, or of its network, says the same."""
    notes = hits(5, 0.0, 1.0)
    expected = np.concatenate(mels(sampler, notes))
    for other in (MelSampler.from_pretrained(str(checkpoint)), MelSampler(sampler.model, sampler.config)):
        np.testing.assert_array_equal(np.concatenate(mels(other, notes)), expected)
    with pytest.raises(InputError, match="no checkpoint 'nope'"):
        MelSampler.from_pretrained("nope")
