"""Process settings that subcommands share: freed memory is kept on CPUs only, and compiled programs are cached."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import types

import jax
import pytest
from processes import finish, start_python

from spectrodiff.commands.common import computes_on_cpu, keep_compiled_programs, keep_freed_memory, set_xla_flags

FAULTS = """
import resource, statistics, sys
from spectrodiff.commands.common import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import jax, jax.numpy as jnp

step = jax.jit(lambda x: (x @ x.T) @ x)  # with a temporary of 64 MiB
x, counts = jnp.ones((4096, 128)), []
# The heap grows by further copies of the temporary for as long as other allocations split the one that was freed.
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(round(statistics.median(counts[20:])))
"""


@pytest.mark.trial
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_kept_memory_avoids_page_faults_of_temporaries():
    kept, given_back = (int(finish(start_python("-c", FAULTS, what))) for what in ("keep", "give back"))
    assert kept < 100
    assert given_back > 10_000


@pytest.mark.parametrize(
    ("platforms", "plugins", "modules", "expected"),
    [
        ("cpu", ["cuda"], ["jax_plugins", "libtpu"], True),
        ("cpu,cuda", ["cuda"], [], True),
        ("cuda,cpu", ["cuda"], [], False),
        ("tpu", [], [], False),
        (None, [], [], True),
        ("", [], [], True),
        ("", ["cuda"], [], False),
        (None, [], ["jax_plugins"], False),
        (None, [], ["libtpu"], False),
    ],
)
def test_computes_on_cpu_predicts_the_jax_backend(platforms, plugins, modules, expected, monkeypatch):
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins if group == "jax_plugins" else ["?"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    assert computes_on_cpu() == expected


@pytest.mark.parametrize(("asked", "kept"), [(None, 0.1), ("7", 0.25)])
def test_compilation_cache_threshold_respects_the_environment(asked, kept, monkeypatch):
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    monkeypatch.delenv(name.upper(), raising=False)
    if asked is not None:
        monkeypatch.setenv(name.upper(), asked)
    try:
        jax.config.update(name, 0.25)  # as if JAX had read it from the environment
        keep_compiled_programs()
        assert getattr(jax.config, name) == kept
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(("version", "flags"), [("0.10.2", "--ours=1 --theirs=2"), ("0.99.0", "--theirs=2")])
def test_xla_flags_are_set_for_known_versions_only(version, flags, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", "--theirs=2")
    set_xla_flags("--ours=1")
    assert os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize(("platforms", "settings"), [("cpu", 3), ("cuda", 0), ("tpu,cpu", 0)])
def test_malloc_settings_are_changed_on_cpu_only(platforms, settings, monkeypatch):
    made = []
    libc = types.SimpleNamespace(mallopt=lambda *setting: made.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    keep_freed_memory()
    assert len(made) == settings
