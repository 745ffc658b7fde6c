"""Our network compared with diffusers' with the same weights, and with the published one where diffusers differs."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted
from network_oracle import PublishedNetwork

from spectrodiff.cli import main
from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.vocabulary import EOS
from spectrodiff.pretrained.native import flatten
from spectrodiff.synthesizer import Synthesizer

pytestmark = pytest.mark.slow  # PyTorch and its libraries take seconds to import

TOKENS, FRAMES, HEADS = 128, 256, 3  # as in peer.py
MODULES = ("note_memory", "context_memory", "eps")


class Case(NamedTuple):
    """The numbers of unpadded tokens and context frames, and the noise time."""

    tokens: int
    context: int
    time: float

    def __str__(self):
        return f"{self.tokens}-{self.context}-{self.time}"


TIMES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.999)
SAME_AS_PEER = [Case(tokens, context, time) for tokens in (41, TOKENS) for context in (0, FRAMES) for time in TIMES]
SAME_AS_PEER.append(Case(0, FRAMES, 0.5))
# In diffusers, frames of a short context get the positions of the first frames (published: of the last), and without
# anything to attend to, attention covers everything (published: nothing).
DIFFERENT_FROM_PEER = [Case(41, context, 0.5) for context in (1, 100, 255)] + [Case(0, 0, 0.5)]
CASES = SAME_AS_PEER + DIFFERENT_FROM_PEER


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    """A folder with random weights in the subfolders `safetensors` and `bin`."""
    folder = tmp_path_factory.mktemp("peer")
    peer("make", folder)
    return folder


@pytest.fixture(scope="module")
def inputs():
    """A batch of all cases; padded context is not zero, so that attending to it would change the output."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 1388, (len(CASES), TOKENS))
    for row, case in zip(tokens, CASES, strict=True):
        row[case.tokens - 1 :] = EOS
        row[case.tokens :] = 0
    return {
        "tokens": tokens,
        "context": rng.uniform(-1, 1, (len(CASES), FRAMES, 128)).astype(np.float32),
        "context_mask": np.arange(FRAMES) < np.array([[case.context] for case in CASES]),
        "z": rng.normal(size=(len(CASES), FRAMES, 128)).astype(np.float32),
        "time": np.array([case.time for case in CASES], np.float32),
    }


@pytest.fixture(scope="module")
def run_peer(peer, inputs, tmp_path_factory):
    """A function that returns the outputs of the peer's modules for `inputs`, with the weights in a folder."""

    def run(folder):
        path = tmp_path_factory.mktemp("run")
        np.savez(path / "inputs.npz", **inputs)
        peer("run", folder, path / "inputs.npz", path / "outputs.npz")
        return dict(np.load(path / "outputs.npz"))

    return run


@pytest.fixture(scope="module")
def theirs(run_peer, folder):
    return run_peer(folder / "safetensors")


@pytest.fixture(scope="module")
def model(folder):
    return Synthesizer.from_pretrained(folder / "safetensors").model


@pytest.fixture(scope="module")
def ours(model, inputs):
    @jitted
    def run(model, tokens, context, mask, z, time):
        notes, _, _ = model.note_encoder(tokens)
        memory = model.context_encoder(context, mask)
        return notes, memory, SpectrogramModel.__call__(model, tokens, context, mask, z, logsnr_at(time))

    return dict(zip(MODULES, map(np.asarray, run(model, *map(jnp.asarray, inputs.values()))), strict=True))


@pytest.fixture(scope="module")
def published(model, inputs):
    network = PublishedNetwork(flatten(nnx.state(model, nnx.Any(nnx.Param, Buffer))), HEADS)
    outputs = {name: [] for name in MODULES}
    for i, case in enumerate(CASES):
        notes = network.note_memory(inputs["tokens"][i, : case.tokens])
        context = network.context_memory(inputs["context"][i, : case.context].astype(np.float64))
        time = float(inputs["time"][i])
        eps = network.eps(inputs["z"][i].astype(np.float64), time, np.concatenate([notes, context]))
        for name, output in zip(MODULES, (notes, context, eps), strict=True):
            outputs[name].append(output)
    return outputs


def errors(outputs, expected, case):
    """max |a - b| / max |b| over the unpadded positions of a case by module; None if there are none."""
    i = CASES.index(case)
    found = {}
    for name, real in zip(MODULES, (case.tokens, case.context, FRAMES), strict=True):
        a, b = outputs[name][i][:real], expected[name][i][:real]
        found[name] = np.abs(a - b).max() / np.abs(b).max() if real else None
    return found


@pytest.fixture(scope="module", autouse=True)
def parity(ours, theirs, published, table):
    """Fills the table that is printed at the end."""
    table.append(("a, b", "tokens", "context", "time", *(name.replace("_", " ") for name in MODULES)))
    for cases, pairs in (
        (SAME_AS_PEER, {"ours, theirs": (ours, theirs)}),
        (DIFFERENT_FROM_PEER, {"ours, published": (ours, published), "theirs, published": (theirs, published)}),
    ):
        for case, (name, pair) in itertools.product(cases, pairs.items()):
            cells = ("-" if error is None else f"{error:.1e}" for error in errors(*pair, case).values())
            table.append((name, *map(str, case), *cells))


@pytest.mark.parametrize("case", SAME_AS_PEER, ids=str)
def test_modules_match_the_peer(case, ours, theirs):
    for name, error in errors(ours, theirs, case).items():
        assert error is None or error < 1e-4, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_modules_match_the_published_network(case, ours, published):
    for name, error in errors(ours, published, case).items():
        assert error is None or error < 1e-4, name


@pytest.mark.parametrize("case", DIFFERENT_FROM_PEER, ids=str)
def test_peer_differs_from_the_published_network(case, theirs, published):
    found = errors(theirs, published, case)
    assert found["eps"] > 0.01
    assert found["context_memory"] is None or found["context_memory"] > 0.1


def test_safetensors_and_bin_give_the_same_arrays(model, folder):
    other = Synthesizer.from_pretrained(folder / "bin").model
    arrays, others = (flatten(nnx.state(each, nnx.Any(nnx.Param, Buffer))) for each in (model, other))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_converted_weights_give_the_same_peer_outputs(folder, run_peer, theirs, tmp_path):
    """Weights are converted from diffusers' format to ours and back."""
    main(["convert", str(folder / "safetensors"), str(tmp_path / "ours"), "--to", "spectrodiff"])
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "diffusers"])
    again = run_peer(tmp_path / "theirs")
    for name in MODULES:
        np.testing.assert_array_equal(again[name], theirs[name], err_msg=name)
