"""`Process` (objective, noise levels and schedule), compared with the exact denoiser of Gaussian data."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.config import from_dict, to_dict
from spectrodiff.diffusion.objective import X0, Eps, Preconditioned, V
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.samplers import STEPS, sample
from spectrodiff.diffusion.schedule import EvenLogSNR, EvenTime, Karras, LogNormal, NoiseLevel, UniformTime
from spectrodiff.errors import InputError

KEY = jax.random.key(3)
DATA, SKETCH = (jax.random.normal(key, (4, 6, 5)) for key in jax.random.split(jax.random.key(0), 2))
LOGSNR = jnp.array([-6.0, -1.0, 0.5, 6.0])
ALL = jnp.ones((4, 6), bool)
OBJECTIVES = [Eps(), V(), X0(), Preconditioned(), Preconditioned(std=1.3)]


def perfect_network(objective, prior):
    """A network that returns the exact target, as it knows the data."""

    def network(inputs, logsnr):
        level = NoiseLevel(jnp.reshape(logsnr, (-1, 1, 1)))
        z = inputs
        if objective.kind == "preconditioned":
            total = jnp.sqrt((level.alpha * objective.std) ** 2 + level.sigma**2)
            z = inputs * total + level.alpha * prior
        return objective.target(DATA, (z - level.alpha * DATA) / level.sigma, level, prior)

    return network


@pytest.mark.parametrize("prior", [0.0, SKETCH], ids=["", "prior"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_perfect_network_has_zero_loss_and_denoises_exactly(objective, prior):
    process, network = Process(objective), perfect_network(objective, prior)
    np.testing.assert_allclose(process.loss(network, DATA, ALL, LOGSNR, KEY, prior), np.zeros(4), atol=1e-4)
    denoise = process.denoiser(network, prior)
    for logsnr in LOGSNR:
        level = NoiseLevel(logsnr)
        z = level.alpha * DATA + level.sigma * jax.random.normal(KEY, DATA.shape)
        np.testing.assert_allclose(denoise(z, logsnr), DATA, atol=1e-4)


def test_loss_of_zero_output_matches_its_expectation():
    """The mean of |eps| is sqrt(2 / pi), and the mean square of a preconditioned target is 1."""
    data, mask = jnp.zeros((2, 256, 128)), jnp.ones((2, 256), bool)
    zero_network = lambda z, logsnr: jnp.zeros_like(z)  # noqa: E731
    losses = Process().loss(zero_network, data, mask, LOGSNR[:2], KEY)
    np.testing.assert_allclose(losses, np.full(2, np.sqrt(2 / np.pi)), atol=0.02)
    prior = jax.random.normal(jax.random.key(1), data.shape)
    data = prior + 0.5 * jax.random.normal(jax.random.key(2), data.shape)
    losses = Process(Preconditioned(0.5)).loss(zero_network, data, mask, LOGSNR[:2], KEY, prior)
    np.testing.assert_allclose(losses, np.ones(2), atol=0.03)


def test_loss_matches_a_manual_computation():
    """The network receives alpha x0 + sigma eps and the log-SNR; the loss is the weighted error of its output."""
    objective, level = V(), NoiseLevel(LOGSNR[:, None, None])
    eps = jax.random.normal(KEY, DATA.shape)
    z, v = level.alpha * DATA + level.sigma * eps, level.alpha * eps - level.sigma * DATA
    network = lambda z, logsnr: jnp.tanh(z) * logsnr[:, None, None]  # noqa: E731
    error = ((np.tanh(z) * LOGSNR[:, None, None] - v) ** 2).mean((1, 2))
    snr = np.exp(LOGSNR)
    expected = np.minimum(snr, 5.0) / (snr + 1) * error
    np.testing.assert_allclose(Process(objective).loss(network, DATA, ALL, LOGSNR, KEY), expected, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_teacher_estimate_replaces_the_data_in_the_loss(objective):
    process, data = Process(objective), 2.0 * DATA + 5.0
    loss_inputs = perfect_network(objective, SKETCH), data, ALL, LOGSNR[:3].repeat(2)[:4], KEY, SKETCH
    np.testing.assert_allclose(process.loss(*loss_inputs, teacher=lambda z: DATA), np.zeros(4), atol=1e-4)
    assert float(process.loss(*loss_inputs).min()) > 0.01


def test_padded_frames_are_excluded_from_the_loss():
    mask, process = ALL.at[0, 2:].set(False).at[1].set(False), Process(X0())
    off_by_one = process.loss(lambda z, logsnr: DATA + 1.0, DATA, mask, LOGSNR, KEY)
    np.testing.assert_allclose(off_by_one, [1.0, 0.0, 1.0, 1.0], atol=1e-6)
    wild = jnp.where(mask[..., None], DATA, 1e6)
    np.testing.assert_allclose(
        process.loss(lambda z, logsnr: jnp.zeros_like(z), wild, mask, LOGSNR, KEY),
        jnp.where(mask, jnp.abs(DATA).mean(-1), 0).sum(-1) / jnp.maximum(mask.sum(-1), 1),
        rtol=1e-5,
    )


# ---- sampling from a starting log-SNR at which z still contains signal

MEAN, STD = 1.5, 0.4


@pytest.mark.parametrize("schedule", [EvenLogSNR(-4.0, 9.0), Karras(-4.0, 9.0)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_sampling_reproduces_gaussian_data_around_the_prior(name, schedule):
    """A network that returns zero is the exact denoiser of such data (see test_objective.py)."""
    process = Process(Preconditioned(STD), schedule=schedule)
    prior = MEAN * jnp.where(jnp.arange(128) < 64, -1.0, 1.0) * jnp.ones((2, 64, 128))
    logsnrs, keys = schedule(200), jax.random.split(KEY, 2)
    start = process.objective.start(jax.random.normal(jax.random.key(1), prior.shape), NoiseLevel(logsnrs[0]), prior)
    denoise = process.denoiser(lambda z, logsnr: jnp.zeros_like(z), prior)
    rest = sample(denoise, STEPS[name], logsnrs, start, keys) - prior
    assert float(jnp.abs(rest.mean((0, 1)).reshape(2, 64).mean(1)).max()) < 0.02
    assert float(rest.std()) == pytest.approx(STD, rel=0.03)
    assert float(jnp.abs(start - prior).mean()) > MEAN / 2  # the start is far from the prior


# ---- JSON

PROCESSES = [
    Process(objective, levels, schedule)
    for objective, levels, schedule in itertools.product(
        (*OBJECTIVES, V(gamma=2.0)), (UniformTime(0.5), LogNormal(1.0, 2.0)), (EvenTime(), EvenLogSNR(-7.0), Karras())
    )
]


@pytest.mark.parametrize("process", PROCESSES, ids=range(len(PROCESSES)))
def test_process_round_trips_through_json(process):
    found = from_dict(Process, json.loads(json.dumps(to_dict(process))))
    assert found == process
    assert [type(part) for part in dataclasses.astuple(found)] == [type(part) for part in dataclasses.astuple(process)]


def test_default_process_is_the_papers():
    assert from_dict(Process, {}) == Process() == Process(Eps(), UniformTime(), EvenTime())


def test_kind_distinguishes_classes_with_the_same_fields():
    assert from_dict(Process, {"schedule": {"kind": "even_logsnr", "low": -5}}).schedule == EvenLogSNR(-5.0)
    assert from_dict(Process, {"schedule": {"kind": "karras", "low": -5}}).schedule == Karras(-5.0)
    assert len({*PROCESSES}) == len(PROCESSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"kind": "y"}}, r"\.objective .*\bkind 'y'"),
        ({"objective": {"gamma": 5.0}}, r"\.objective .*\bkind None"),
        ({"objective": {"kind": ["v"]}}, r"\.objective .*\bkind \['v'\]"),
        ({"objective": "v"}, r"\.objective is 'v'"),
        ({"objective": {"kind": "eps", "gamma": 5.0}}, r"\.objective .*'gamma'"),
        ({"objective": {"kind": "preconditioned", "std": "a"}}, r"\.objective\.std is 'a'.* float"),
        ({"objective": {"kind": "preconditioned", "std": 0}}, r"\.objective: Preconditioned\.std is 0\.0"),
        ({"levels": {"kind": "karras"}}, r"\.levels .*\bkind 'karras'"),
        ({"schedule": {"kind": "eps"}}, r"\.schedule .*\bkind 'eps'"),
        ({"schedule": {"kind": "karras", "low": 9.0}}, r"\.schedule: .*log-SNR 9\.0 .*8\.0"),
    ],
)
def test_invalid_process_raises_one_line_input_error(values, message):
    with pytest.raises(InputError, match=rf"^weights\.json{message}") as error:
        from_dict(Process, values, "weights.json")
    assert "\n" not in str(error.value)


def test_user_defined_objective_is_registered_by_kind():
    """Defining a subclass with a `kind` is enough to register it."""

    @dataclasses.dataclass(frozen=True)
    class Halfway(X0):
        kind = "halfway"
        share: float = 0.5

        def to_x0(self, output, z, level, prior):
            return self.share * output

    process = Process(Halfway(0.25))
    assert to_dict(process)["objective"] == {"kind": "halfway", "share": 0.25}
    assert from_dict(Process, to_dict(process)) == process
    np.testing.assert_array_equal(process.denoiser(lambda z, logsnr: z)(DATA, jnp.array(0.0)), 0.25 * DATA)
