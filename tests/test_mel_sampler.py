"""Sampling of songs window by window, each conditioned on the one before, for one song or a batch of songs."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, random_notes

from spectrodiff.audio.mel import scale_mel
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.midi import Notes

FAST = {"steps": 2, "sampler": "ddim", "guidance": 1.0}
PIECE = random_notes(0, seconds=12.0)  # with the second of ring-out, three windows
FRAMES = dataclasses.replace(OURS, decoder=AutoregressiveConfig(mean=-0.3, std=0.375))


def hits(count: int, since: float, until: float) -> Notes:
    """Evenly spaced drum hits; each is encoded as a shift token and a drum token."""
    start = np.linspace(since, until, count, endpoint=False)
    whole = np.full(count, 40, np.int32)
    return Notes(start, start + 0.01, whole, whole, 0 * whole, np.ones(count, bool), total_time=until)


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return MelSampler.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def frame_sampler():
    """A sampler of an autoregressive model with context."""
    return MelSampler(SpectrogramModel(FRAMES, rngs=nnx.Rngs(0)), FRAMES)


@pytest.fixture
def sample_calls(sampler, monkeypatch):
    """The inputs of each call to `_sample`, which is replaced by a stub that returns a different mel each time."""
    calls = []

    def sample(weights, tokens, context, context_mask, keys, options):
        mel = jnp.broadcast_to(0.01 * len(calls) + 0.001 * jnp.arange(len(tokens))[:, None, None], context.shape)
        given = {"tokens": tokens, "context": context, "mask": context_mask, "keys": keys, "options": options}
        calls.append(SimpleNamespace(**given, mel=mel))
        return mel

    monkeypatch.setattr(sampler, "_sample", sample)
    return calls


def stream_mels(mel_sampler, notes, **options):
    return list(mel_sampler.stream(notes, **{**FAST, **options}))


# ---- one song


def test_context_of_each_window_is_the_previous_mel(sampler, sample_calls):
    stream_mels(sampler, PIECE)
    first, second, third = sample_calls
    assert not first.mask.any()
    assert second.mask.all()
    assert third.mask.all()
    np.testing.assert_array_equal(second.context, first.mel)
    np.testing.assert_array_equal(third.context, second.mel)


def test_earlier_notes_change_later_windows_but_not_vice_versa(sampler):
    original = stream_mels(sampler, PIECE)
    late = PIECE.start > 5.2
    later = PIECE.select(late | (PIECE.end > 5.1))
    np.testing.assert_array_equal(*(sampler.tokenizer.encode(notes)[1] for notes in (PIECE, later)))
    assert np.abs(stream_mels(sampler, later)[1] - original[1]).max() > 1e-3
    without_late = stream_mels(sampler, PIECE.select(~late))
    np.testing.assert_array_equal(without_late[0], original[0])


def test_seed_determines_the_mel(sampler):
    first, again, other = (np.concatenate(stream_mels(sampler, PIECE, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1e-3


def test_keys_differ_between_windows_and_seeds(sampler, sample_calls):
    for seed in (0, 1):
        stream_mels(sampler, PIECE, seed=seed)
    assert len({jax.random.key_data(call.keys).tobytes() for call in sample_calls}) == 6


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_key_of_a_window_is_the_seed_folded_with_its_index(sampler, sample_calls, seed):
    stream_mels(sampler, PIECE, seed=seed)
    expected = [jax.random.fold_in(jax.random.key(seed), window) for window in range(3)]
    assert [jax.random.key_data(call.keys)[0].tolist() for call in sample_calls] == [
        jax.random.key_data(key).tolist() for key in expected
    ]


def test_stream_yields_before_all_windows_are_sampled(sampler, sample_calls):
    next(sampler.stream(PIECE, **FAST))
    assert len(sample_calls) == 1


# 4.12 s plus 1 s is exactly one window; 34.84 s plus 1 s is exactly seven, but not in floating point.
@pytest.mark.parametrize("seconds", [0.5, 4.0, 4.12, 4.13, 5.12, 5.3, 9.24, 10.0, 13.99, 34.84])
def test_mel_ends_one_second_after_the_notes(sampler, sample_calls, seconds):
    frames = sum(len(mel) for mel in stream_mels(sampler, hits(5, 0.0, seconds)))
    assert frames == np.ceil(round(seconds * 50, 6)) + 50
    assert len(sample_calls) == np.ceil(frames / 256)


@pytest.mark.parametrize("seconds", [1.0, 4.12, 5.0, 9.0])
def test_ghost_ties_limit_the_mel_to_the_published_windows(our_model, monkeypatch, seconds):
    """A later window would list notes as tied that no longer sound."""
    config = dataclasses.replace(OURS, tokenizer=dataclasses.replace(OURS.tokenizer, ghost_ties=True))
    sampler = MelSampler(our_model, config)
    monkeypatch.setattr(sampler, "_sample", lambda weights, tokens, context, *_: jnp.asarray(context))
    windows = sampler.tokenizer.num_windows(seconds)
    assert sum(len(mel) for mel in stream_mels(sampler, hits(5, 0.0, seconds))) == min(seconds * 50 + 50, 256 * windows)


@pytest.mark.parametrize(("notes", "bucket"), [(100, 512), (300, 1024), (600, 2048), (1000, 2048)])
def test_tokens_are_padded_to_a_bucket(sampler, sample_calls, notes, bucket):
    stream_mels(sampler, hits(notes, 0.0, 4.0))
    assert [call.tokens.shape for call in sample_calls] == [(1, bucket)]


def test_bucket_grows_with_the_number_of_notes(our_model, monkeypatch):
    """With `tokens_per_note=4`, 600 notes of 2 tokens each do not fit the note places of the longest window."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, tokens_per_note=4))
    sampler, given = MelSampler(our_model, config), []
    notes = hits(600, 0.0, 4.0)
    monkeypatch.setattr(
        sampler, "_sample", lambda weights, tokens, context, *_: given.append(tokens) or jnp.asarray(context)
    )
    stream_mels(sampler, notes)
    expected = sampler.tokenizer.encode(dataclasses.replace(notes, total_time=5.0))[0]
    ((bucketed,),) = given
    assert len(bucketed) == 4096
    np.testing.assert_array_equal(bucketed[: len(expected)], expected)
    assert not bucketed[len(expected) :].any()


def test_overfull_window_raises_input_error_and_thinning_fixes_it(sampler, sample_calls):
    crowd = random_notes(1, seconds=10.0, voices=60, drums=3000)
    with pytest.raises(InputError, match=r"window at .*\b2048\b"):
        stream_mels(sampler, crowd)
    thinned, dropped = sampler.tokenizer.thin(crowd)
    assert dropped > 0
    stream_mels(sampler, thinned)
    assert len(sample_calls) == 3


# ---- overlap


@pytest.mark.parametrize("seconds", [0.5, 4.12, 4.13, 8.9, 8.94, 13.99, 34.84])
def test_overlapping_windows_cover_the_song(sampler, sample_calls, seconds):
    """Each window but the last yields 240 frames, and its context is what the windows before it yielded."""
    scaled = np.asarray(scale_mel(np.concatenate(mels := stream_mels(sampler, hits(5, 0.0, seconds), overlap=16))))
    assert len(scaled) == np.ceil(round(seconds * 50, 6)) + 50
    assert [len(mel) for mel in mels[:-1]] == [240] * (len(mels) - 1)
    assert len(mels) == len(sample_calls) == 1 + max(0, np.ceil((len(scaled) - 256) / 240))
    for index, call in enumerate(sample_calls):
        known = scaled[max(0, 240 * index - 256) : 240 * index]
        assert call.mask.sum() == len(known)
        np.testing.assert_allclose(call.context[0, : len(known)], known, atol=1e-5)


def test_overlapping_windows_are_cross_faded_over_the_second_half(sampler, sample_calls):
    """The stub's first window is 0 everywhere, and the second 0.01."""
    scaled = np.asarray(scale_mel(np.concatenate(stream_mels(sampler, hits(5, 0.0, 6.0), overlap=16))))[:, 0]
    np.testing.assert_allclose(scaled[:248], 0.0, atol=1e-6)
    np.testing.assert_allclose(scaled[248:256], 0.01 * (np.arange(8) + 0.5) / 8, atol=1e-6)
    np.testing.assert_allclose(scaled[256:], 0.01, atol=1e-6)


def test_overlapping_windows_have_the_notes_of_their_own_times(sampler, sample_calls):
    stream_mels(sampler, PIECE, overlap=56)
    timeline = sampler.tokenizer.timeline(dataclasses.replace(PIECE, total_time=PIECE.total_time + 1.0))
    for index, call in enumerate(sample_calls):
        tokens = np.asarray(call.tokens[0])
        np.testing.assert_array_equal(tokens[tokens > 0], sampler.tokenizer.window(timeline, 200 * index))


def test_thinning_fits_overlapping_windows(sampler, sample_calls):
    crowd = random_notes(1, seconds=10.0, voices=60, drums=3000)
    thinned, dropped = sampler.thin(crowd, overlap=100)
    assert dropped > 0
    assert thinned.total_time == crowd.total_time
    assert len(stream_mels(sampler, thinned, overlap=100)) == sampler.num_windows(thinned, overlap=100) == 4


@pytest.mark.parametrize("overlap", [1, 15, 128])
def test_songs_in_a_batch_overlap_as_in_a_stream(sampler, overlap):
    pieces = [random_notes(seed, seconds=seconds) for seed, seconds in enumerate((12.0, 3.0, 7.0))]
    for index, song in sampler.songs([(notes, 5) for notes in pieces], batch=2, overlap=overlap, **FAST):
        streamed = np.concatenate(stream_mels(sampler, pieces[index], seed=5, overlap=overlap))
        np.testing.assert_allclose(song.mel, streamed, atol=1e-3)


def test_ghost_ties_limit_overlapping_windows_too(our_model, monkeypatch):
    config = dataclasses.replace(OURS, tokenizer=dataclasses.replace(OURS.tokenizer, ghost_ties=True))
    sampler = MelSampler(our_model, config)
    monkeypatch.setattr(sampler, "_sample", lambda weights, tokens, context, *_: jnp.asarray(context))
    for seconds, frames in ((1.0, 100), (5.0, 256), (9.0, 496)):
        assert sum(len(mel) for mel in stream_mels(sampler, hits(5, 0.0, seconds), overlap=16)) == frames


@pytest.mark.parametrize(("name", "overlap"), [("demo", 16), ("demo_student", 16), ("demo_diffusion", 0)])
def test_packaged_weights_have_their_overlap(name, overlap):
    assert MelSampler.from_pretrained(name).sampling().overlap == overlap


@pytest.mark.parametrize("overlap", [-1, 129, 1.5, True])
def test_impossible_overlap_raises_input_error(sampler, overlap):
    with pytest.raises(InputError, match=f"overlap is {overlap}"):
        sampler.stream(PIECE, overlap=overlap)


# ---- options


def test_default_options_come_from_the_checkpoint(sampler, sample_calls):
    next(sampler.stream(hits(5, 0.0, 1.0)))
    next(sampler.stream(hits(5, 0.0, 1.0), steps=None, sampler=None, guidance=None))
    recommended = sampler.config.decoder.sampling
    for call in sample_calls:
        assert call.options.step.func is STEPS[recommended.sampler]
        assert len(call.options.logsnrs) == recommended.steps
        assert float(call.options.guidance) == recommended.guidance


def test_guidance_1_equals_no_guidance(sampler):
    """A weight of 1 skips the unconditional half of the batch; evaluating it gives the same mel."""
    plain, guided = (stream_mels(sampler, PIECE, guidance=guidance)[0] for guidance in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(guided, plain, atol=1e-3)


def test_song_length_and_guidance_do_not_recompile(sampler):
    compiled, before = sampler._sample._cache_size, sampler._sample._cache_size()
    for notes, seconds, guidance in ((40, 3.0, 2.0), (400, 14.0, 3.0)):
        stream_mels(sampler, hits(notes, 0.0, seconds), steps=3, guidance=guidance)  # no other test uses 3 steps
    assert compiled() == before + 1
    stream_mels(sampler, hits(300, 0.0, 5.0), steps=3, guidance=2.0)  # the next bucket
    assert compiled() == before + 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"steps": 2.5}, r"steps is 2\.5.* int"),
        ({"guidance": -0.1}, r"guidance is -0.1"),
        ({"guidance": 20.5}, "guidance is 20.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"dither": 0.1}, r"\bdiffusion\b.*\bdither\b"),
    ],
)
def test_invalid_options_raise_input_error(sampler, sample_calls, option, message):
    """The error comes before anything is sampled; from `stream`, even before the first mel is requested."""
    with pytest.raises(InputError, match=message):
        sampler.stream(PIECE, **option)
    songs = sampler.songs([(PIECE, option.get("seed", 0))], **{k: v for k, v in option.items() if k != "seed"})
    with pytest.raises(InputError, match=message):
        next(songs)
    assert sample_calls == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 20}, r"\bautoregressive\b.*\bsteps\b"),
        (
            {"steps": 20, "guidance": 2.0},
            r"\bautoregressive\b.*\bguidance\b.*\bsteps\b",
        ),
        ({"dither": -0.1}, r"^options: dither is -0\.1"),
        ({"dither": "much"}, r"^options\.dither is 'much'.* float$"),
    ],
)
def test_autoregressive_decoder_rejects_diffusion_options(frame_sampler, option, message):
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


def sample_songs(mel_sampler, songs, **options):
    """The mels of `MelSampler.songs` in the order of the input."""
    found = dict(mel_sampler.songs(songs, **options))
    assert sorted(found) == list(range(len(songs)))
    return [found[place].mel for place in range(len(songs))]


def test_batched_songs_match_songs_sampled_alone(sampler):
    """A song therefore does not depend on its neighbours or on its row in the batch."""
    options = {"steps": 2, "sampler": "ddpm", "guidance": 2.0}
    together = sample_songs(sampler, SONGS, batch=2, **options)
    for (notes, seed), mel in zip(SONGS, together, strict=True):
        alone = np.concatenate(stream_mels(sampler, notes, seed=seed, **options))
        assert mel.shape == alone.shape
        assert mel.dtype == np.float32
        np.testing.assert_allclose(mel, alone, atol=1e-4)
    assert np.abs(together[1] - together[4]).mean() > 1e-3


def test_batched_songs_match_alone_in_an_autoregressive_model(frame_sampler):
    songs = [SONGS[1], SONGS[4], (hits(100, 0.0, 3.0), 7)]
    together = sample_songs(frame_sampler, songs, batch=3, dither=0.1)
    for (notes, seed), mel in zip(songs, together, strict=True):
        alone = np.concatenate(list(frame_sampler.stream(notes, seed=seed, dither=0.1)))
        np.testing.assert_allclose(mel, alone, atol=1e-3)
    assert np.abs(together[0] - together[1]).mean() > 1e-3


def test_songs_are_yielded_when_done_and_read_when_a_row_is_free(sampler, sample_calls):
    taken = []

    def pieces():
        for place, song in enumerate(SONGS):
            taken.append(place)
            yield song

    songs = sampler.songs(pieces(), batch=2, **FAST)
    place, first = next(songs)
    assert (place, taken, len(sample_calls)) == (1, [0, 1], 1)
    assert [place for place, _ in songs] == [0, 2, 3, 4]
    assert all(len(call.tokens) == 2 for call in sample_calls)  # the batch shape stays the same
    assert first.mel.shape == (200, 128)


def test_batch_rows_keep_their_own_context_and_key(sampler, sample_calls):
    dict(sampler.songs(SONGS[:2], batch=2, **FAST))
    first, second, third = sample_calls
    assert first.mask.sum() == 0
    np.testing.assert_array_equal(second.context[0], first.mel[0])
    np.testing.assert_array_equal(third.context[0], second.mel[0])
    for row, (_, seed) in enumerate(SONGS[:2]):
        expected = jax.random.fold_in(jax.random.key(seed), 0)
        np.testing.assert_array_equal(jax.random.key_data(first.keys[row]), jax.random.key_data(expected))


def test_batch_size_is_at_least_the_device_count(sampler, sample_calls, monkeypatch):
    """Surplus rows are filled with copies of a song, whose results are discarded."""
    monkeypatch.setattr(sampler, "_devices", 4)
    assert sorted(dict(sampler.songs(SONGS, batch=2, **FAST))) == [*range(5)]
    assert {len(call.tokens) for call in sample_calls} == {4}
    ((_, alone),) = sampler.songs(SONGS[1:2], batch=1, **FAST)
    assert alone.mel.shape == (200, 128)
    filled = sample_calls[-1].tokens
    np.testing.assert_array_equal(filled, np.broadcast_to(filled[0], (4, 512)))


def test_timing_excludes_the_first_window_of_each_program(sampler, sample_calls):
    """The first window of a bucket may include compilation, so three windows give two timings and one gives none."""
    found = dict(sampler.songs([SONGS[0]], batch=1, **FAST))
    assert found[0].music_seconds == pytest.approx(2 * 5.12)
    assert found[0].compute_seconds > 0
    (_, short), *_ = sampler.songs([SONGS[1]], batch=1, **FAST)
    assert (short.compute_seconds, short.music_seconds) == (0.0, 0.0)


def test_progress_bar_corrects_a_wrong_window_estimate(sampler, sample_calls, capsys):
    list(sampler.songs([(random_notes(0, 12.0), 0)], windows=1))
    assert len(sample_calls) == 3
    assert "3/3" in capsys.readouterr().err


def test_empty_list_of_songs_yields_nothing(sampler, sample_calls):
    assert list(sampler.songs([], batch=4, windows=0, **FAST)) == []
    assert sample_calls == []


def test_samplers_of_the_same_checkpoint_agree(checkpoint, sampler):
    """This holds for a sampler loaded from the checkpoint and for one built from its network and config."""
    notes = hits(5, 0.0, 1.0)
    expected = np.concatenate(stream_mels(sampler, notes))
    for other in (MelSampler.from_pretrained(str(checkpoint)), MelSampler(sampler.model, sampler.config)):
        np.testing.assert_array_equal(np.concatenate(stream_mels(other, notes)), expected)
    with pytest.raises(InputError, match="checkpoint 'nope'"):
        MelSampler.from_pretrained("nope")
