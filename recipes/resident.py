"""Trains a spectrogram model with its whole corpus in the accelerator's memory: millions of examples in minutes.

Scores are packed where the MIDI is, a few megabytes; where the accelerator is, they are rendered and tokenized by all
cores, and nothing but a step number goes to the device after that.

python recipes/resident.py pack --dataset rendered --out scores.npz
python recipes/resident.py train --scores scores.npz --gin_file configs/demo.gin --workdir runs/resident --minutes 20
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, MEL_BINS, SAMPLE_RATE, log_mel, scale_mel
from spectrodiff.config import WINDOW_FRAMES, SpectrogramConfig, from_dict, to_dict
from spectrodiff.data.soundfont import play
from spectrodiff.diffusion.samplers import dpmpp
from spectrodiff.errors import InputError
from spectrodiff.files import replacing
from spectrodiff.models.sampling import window_sampler
from spectrodiff.notes.sequence import Notes, from_note_sequence
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.native import SPECTROGRAM, save
from spectrodiff.training import loop, optimizers, spectrogram  # noqa: F401 (configs refer to them)
from spectrodiff.training import state as states
from spectrodiff.training.heldout import mel_l1
from spectrodiff.training.steps import make_train_step

STRIDE = 8  # frames between the windows that a piece is cut into
FIRST_SHARE = 0.05  # of the examples are a piece's first window
CALL = 50  # steps a call of the device
COLUMNS = ("start", "end", "pitch", "velocity", "program", "is_drum")


# ---- pack


def pack(options) -> None:
    """Writes the notes and splits of a prepared dataset into one file."""
    from spectrodiff.data.dataset import open_dataset  # needs TFDS, which `train` does without

    dataset = open_dataset(options.data_dir, options.dataset)
    records = ((split, record["notes"]) for split in dataset.splits for record in dataset[split])
    pieces = [(split, from_note_sequence(notes)) for split, notes in tqdm(records, desc="packing", unit="piece")]
    columns = {name: np.concatenate([getattr(notes, name) for _, notes in pieces]) for name in COLUMNS}
    columns |= {name: columns[name].astype(np.uint8) for name in ("pitch", "velocity", "program")}
    with replacing(options.out) as temporary:
        np.savez_compressed(
            temporary,
            **columns,
            notes=[len(notes) for _, notes in pieces],
            total_time=[notes.total_time for _, notes in pieces],
            split=[split for split, _ in pieces],
        )


def unpack(path: pathlib.Path) -> list[tuple[str, Notes]]:
    """(split, notes) of every piece."""
    scores = np.load(path)
    columns = {name: np.split(scores[name], np.cumsum(scores["notes"])[:-1]) for name in COLUMNS}
    pieces = []
    for i, (split, total_time) in enumerate(zip(scores["split"], scores["total_time"], strict=True)):
        fields = {name: columns[name][i] for name in COLUMNS}
        fields |= {name: fields[name].astype(np.int32) for name in ("pitch", "velocity", "program")}
        pieces.append((str(split), Notes(**fields, total_time=float(total_time))))
    return pieces


# ---- corpus


def cut(job: tuple[int, Notes, dict, int, int, int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A piece's scaled mel, and the starts and tokens of its windows that are not over-full."""
    index, notes, config, tokens, room, stride, soundfont = job
    tokenizer = NoteTokenizer(from_dict(SpectrogramConfig, config).tokenizer)
    audio = play(notes, soundfont)
    padded = np.pad(audio, (0, -len(audio) % (10 * SAMPLE_RATE)))
    mel = np.asarray(scale_mel(log_mel(padded)), np.float16)[: -(-len(audio) // HOP)]
    timeline = tokenizer.timeline(notes)
    first = int(np.random.default_rng(index).integers(stride))
    starts, rows = [], []
    for start in [0, *range(first or stride, len(mel) - WINDOW_FRAMES // 4, stride)]:
        try:
            row = tokenizer.window(timeline, start)
        except InputError:  # over the tokenizer's own limit
            continue
        if len(row) <= tokens and tokenizer.vocabulary.count_notes(row) <= room:
            starts.append(start)
            rows.append(np.pad(row, (0, tokens - len(row))).astype(np.int16))
    return mel, np.array(starts, np.int32), np.array(rows, np.int16).reshape(-1, tokens)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Mels of all pieces end to end, silence between them, and where in it windows begin."""

    mel: np.ndarray  # float16 [frames, 128]
    tokens: np.ndarray  # int16 [windows, tokens]
    start: np.ndarray  # int32 [windows]: of the target in `mel`
    since: np.ndarray  # int32 [windows]: frames of its piece before it
    until: np.ndarray  # int32 [windows]: and from it on

    @classmethod
    def of(cls, jobs: list, workers: int) -> "Corpus":
        silence = np.full((WINDOW_FRAMES, MEL_BINS), -1.0, np.float16)
        mels, tokens, starts, sinces, untils, at = [silence], [], [], [], [], WINDOW_FRAMES
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for mel, begins, rows in tqdm(pool.imap(cut, jobs, chunksize=2), total=len(jobs), desc="rendering"):
                mels += [mel, silence]
                tokens.append(rows)
                starts.append(at + begins)
                sinces.append(begins)
                untils.append(len(mel) - begins)
                at += len(mel) + WINDOW_FRAMES
        return cls(*(np.concatenate(parts) for parts in (mels, tokens, starts, sinces, untils)))

    def pick(self, windows: np.ndarray) -> "Corpus":
        """The corpus with these windows alone."""
        return Corpus(self.mel, *(getattr(self, name)[windows] for name in ("tokens", "start", "since", "until")))


def examples(corpus: Corpus, windows: jax.Array) -> dict[str, jax.Array]:
    """A batch as `cut_window` makes it, on the device. `corpus` holds jax arrays."""

    def span(start):
        return jax.lax.dynamic_slice_in_dim(corpus.mel, start, WINDOW_FRAMES).astype(jnp.float32)

    start, since, until = corpus.start[windows], corpus.since[windows], corpus.until[windows]
    real = jnp.minimum(since, WINDOW_FRAMES)  # a short context stands at the beginning of its 256 frames
    frames = jnp.arange(WINDOW_FRAMES)
    context_mask, target_mask = frames < real[:, None], frames < until[:, None]
    context, target = jax.vmap(span)(start - real), jax.vmap(span)(start)
    return {
        "tokens": corpus.tokens[windows].astype(jnp.int32),
        "context": jnp.where(context_mask[..., None], context, -1.0),
        "context_mask": context_mask,
        "target": jnp.where(target_mask[..., None], target, -1.0),
        "target_mask": target_mask,
    }


# ---- train


def train(options) -> None:
    gin.parse_config_files_and_bindings(options.gin_file, options.gin_param)
    task = gin.get_configurable(spectrogram.SpectrogramTask)()
    optimizer = gin.query_parameter("train.optimizer").scoped_configurable_fn()
    batch = gin.query_parameter("batches.batch_size")
    tokens = gin.query_parameter("batches.tokens")
    model_config = task.config.model
    room = tokens // model_config.tokens_per_note if model_config.compact_notes else tokens

    # ---- data
    pieces = unpack(options.scores)
    config = to_dict(task.config)

    def corpus_of(split, stride):
        chosen = [(i, notes) for i, (s, notes) in enumerate(pieces) if s == split][: options.pieces]
        jobs = [(i, notes, config, tokens, room, stride, options.soundfont) for i, notes in chosen]
        return Corpus.of(jobs, options.workers)

    heldout = corpus_of("validation", WINDOW_FRAMES)
    heldout = heldout.pick(np.linspace(0, len(heldout.start) - 1, options.heldout).astype(int))
    corpus = corpus_of("train", STRIDE)
    print(f"{len(corpus.mel) / 180_000:.1f} hours, {len(corpus.start)} windows", flush=True)
    firsts = jnp.asarray(np.flatnonzero(corpus.since == 0))
    fields = [field.name for field in dataclasses.fields(Corpus)]
    resident = [jnp.asarray(getattr(corpus, name)) for name in fields]
    held = examples(Corpus(*(jnp.asarray(getattr(heldout, name)) for name in fields)), jnp.arange(len(heldout.start)))
    held = {name: np.asarray(value) for name, value in held.items()}

    # ---- state
    graph, params, buffers = states.split(task.build(nnx.Rngs(options.seed)))
    state = states.create(params, buffers, optimizer)
    print(f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters", flush=True)
    saved = options.workdir / "state.msgpack"
    if saved.is_file():
        leaves, structure = jax.tree.flatten(state)
        state = jax.tree.unflatten(structure, serialization.from_bytes(leaves, saved.read_bytes()))
        state = jax.tree.map(jnp.asarray, state)
        print(f"resuming at step {int(state.step)}", flush=True)
    options.workdir.mkdir(parents=True, exist_ok=True)

    # ---- steps
    key = jax.random.key(options.seed)
    step = make_train_step(
        functools.partial(nnx.merge, graph), task.loss, optimizer, key, average_decay=options.average_decay
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def many(state, *resident):
        corpus = Corpus(*resident)

        def one(state, _):
            key = jax.random.fold_in(jax.random.key(~options.seed), state.step)
            any_key, first_key, which_key = jax.random.split(key, 3)
            anywhere = jax.random.randint(any_key, (batch,), 0, len(corpus.start))
            first = firsts[jax.random.randint(first_key, (batch,), 0, len(firsts))]
            windows = jnp.where(jax.random.bernoulli(which_key, FIRST_SHARE, (batch,)), first, anywhere)
            state, metrics = step(state, examples(corpus, windows))
            return state, metrics["loss"]

        return jax.lax.scan(one, state, None, length=CALL)

    def leave():
        with replacing(saved) as temporary:
            temporary.write_bytes(serialization.to_bytes(jax.device_get(jax.tree.leaves(state))))
        average = nnx.merge(graph, state.average, state.frozen)
        card = {"steps": int(state.step), "batch_size": batch, "seed": options.seed, **figures}
        save(options.workdir / "export", SPECTROGRAM, average, task.config, card, dtype="float16")

    began = since = evaluated = time.monotonic()
    deadline, figures = began + 60 * options.minutes, {}
    while int(state.step) < options.steps and time.monotonic() < deadline:
        state, losses = many(state, *resident)
        loss, now = float(losses.mean()), time.monotonic()
        figures = {"step": int(state.step), "loss": loss, "examples_per_second": CALL * batch / (now - since)}
        since = now
        if now - evaluated > 60 * options.evaluate_minutes:
            figures["heldout_mel_l1"] = score(task, graph, state, held)
            leave()
            since = evaluated = time.monotonic()
        print(json.dumps(figures), flush=True)
    figures["heldout_mel_l1"] = score(task, graph, state, held)
    leave()
    print(json.dumps(figures), flush=True)


def score(task, graph, state, held) -> float:
    """Log-mel L1 in nats of held-out windows, sampled."""
    sample_window, sampled = window_sampler(graph, task.config.diffusion), []
    weights = (state.average, state.frozen)
    for i in range(0, len(held["tokens"]), 32):
        given = (held[name][i : i + 32] for name in ("tokens", "context", "context_mask"))
        sampled.append(
            sample_window(weights, *given, jax.random.key(i), step=dpmpp, steps=task.heldout_steps, guidance=1.0)
        )
    return mel_l1(np.concatenate(sampled), held["target"], held["target_mask"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--data_dir", default="data")
    packing.add_argument("--dataset", default="rendered")
    packing.add_argument("--out", type=pathlib.Path, required=True)
    packing.set_defaults(run=pack)
    training = commands.add_parser("train")
    training.add_argument("--scores", type=pathlib.Path, required=True)
    training.add_argument("--gin_file", action="append", required=True)
    training.add_argument("--gin_param", action="append", default=[])
    training.add_argument("--workdir", type=pathlib.Path, required=True)
    training.add_argument("--soundfont", default=render.SOUNDFONT)
    training.add_argument("--minutes", type=float, default=20.0, help="of training, after the corpus stands")
    training.add_argument("--steps", type=int, default=10**9)
    training.add_argument("--evaluate_minutes", type=float, default=2.0, help="between held-out figures, and saving")
    training.add_argument("--heldout", type=int, default=64)
    training.add_argument("--pieces", type=int, help="of a split, at most")
    training.add_argument("--workers", type=int, default=os.cpu_count())
    training.add_argument("--average_decay", type=float, default=0.999)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
