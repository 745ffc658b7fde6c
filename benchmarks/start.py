"""Time from the shell to the first second of audio, by phase, with an empty and with a filled cache of programs.

python benchmarks/start.py [--checkpoint demo] [--midi examples/band.mid] [--repeats 3]

Each run is a new process that does what `spectrodiff synthesize` does until the vocoder has made a second of audio. The
first has an empty compilation cache ("cold"); the others use the cache that it filled ("warm", medians). Both wall and
CPU seconds are given; the latter, of all threads, hardly depend on what else the machine does.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
PHASES = ("interpreter", "imports", "weights", "notes", "first window", "vocoder")
WITHIN = {  # what JAX reports, in either of the last two phases
    "traced": "/jax/core/compile/jaxpr_trace_duration",
    "lowered": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiled or loaded": "/jax/core/compile/backend_compile_duration",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--vocoder", help="as for synthesize")
    parser.add_argument("--midi", default=str(ROOT / "examples" / "bach_prelude.mid"))
    parser.add_argument("--repeats", type=int, default=3, help="warm runs (default: 3)")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begun is not None:
        work(options)
        return
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (measure(options, cache) for _ in range(options.repeats + 1))
    print("| seconds | cold | CPU | warm | CPU |\n|---|---|---|---|---|")
    for phase in (*PHASES, "in all", *WITHIN):
        columns = [*cold[phase], *map(statistics.median, zip(*(run[phase] for run in warm), strict=True))]
        print(f"| {phase} | " + " | ".join(f"{x:.2f}" for x in columns) + " |")


def measure(options: argparse.Namespace, cache: str) -> dict[str, tuple[float, float]]:
    """Returns wall and CPU seconds of each phase of a new process."""
    command = [sys.executable, __file__, "--checkpoint", options.checkpoint, "--midi", options.midi]
    command += ["--vocoder", options.vocoder] if options.vocoder else []
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    process = subprocess.run(
        [*command, "--begun", str(time.monotonic())], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def work(options: argparse.Namespace) -> None:
    """Does what `synthesize` does, and prints the seconds of its phases."""
    seconds, wall, cpu = {}, options.begun, 0.0

    def done(phase: str) -> None:
        nonlocal wall, cpu
        now = time.monotonic(), time.process_time()
        seconds[phase] = now[0] - wall, now[1] - cpu
        wall, cpu = now

    done("interpreter")
    sys.path.insert(0, str(ROOT))
    from spectrodiff.commands.common import keep_compiled_programs

    keep_compiled_programs()
    import jax

    from spectrodiff.audio.mel import SAMPLE_RATE
    from spectrodiff.audio.spool import AudioSpool
    from spectrodiff.notes.midi import read_midi
    from spectrodiff.synthesizer import Synthesizer

    done("imports")
    within = dict.fromkeys(WITHIN, 0.0)

    def note(event: str, duration: float, **_) -> None:
        for name, wanted in WITHIN.items():
            within[name] += duration * (event == wanted)

    jax.monitoring.register_event_duration_secs_listener(note)
    synthesizer = Synthesizer.from_pretrained(options.checkpoint, options.vocoder)
    done("weights")
    notes = read_midi(options.midi, channel_volume=synthesizer.config.tokenizer.channel_volume)
    mels = synthesizer.mels(notes)
    done("notes")

    def timed():
        first = next(mels)
        done("first window")
        yield first
        yield from mels

    with AudioSpool() as spool, contextlib.closing(timed()) as windows:
        for chunk in synthesizer.vocoder.stream(windows):
            spool.write(chunk)
            if spool.samples >= SAMPLE_RATE:
                break
    done("vocoder")
    in_all = time.monotonic() - options.begun, time.process_time()
    print(json.dumps({**seconds, "in all": in_all, **{name: (value, value) for name, value in within.items()}}))


if __name__ == "__main__":
    main()
