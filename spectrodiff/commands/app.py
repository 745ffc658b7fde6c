"""`app`: a local web page to hear a MIDI file."""

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from spectrodiff.commands.common import keep_compiled_programs
from spectrodiff.errors import InputError
from spectrodiff.files import packaged

if TYPE_CHECKING:
    from spectrodiff.app.page import Page


def add(commands) -> None:
    parser = commands.add_parser(
        "app", help="open a local web page to hear a MIDI file", examples=["app", "app --port 8000 --max_minutes 5"]
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1, to this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to serve at (default: 7860)")
    parser.add_argument("--checkpoint", nargs="+", default=[], help="more weights to choose from, as for synthesize")
    parser.add_argument("--vocoder", nargs="+", default=[], help="more vocoders to choose from, as for synthesize")
    parser.add_argument("--max_minutes", type=float, default=10.0, help="refuse longer songs (default: 10)")
    parser.add_argument("--max_megabytes", type=float, default=2.0, help="refuse larger files (default: 2)")
    parser.add_argument("--concurrency", type=int, default=1, help="songs to render at once; others wait (default: 1)")
    parser.set_defaults(run=_app)


def page(
    checkpoints: tuple[str, ...] = (),
    vocoders: tuple[str, ...] = (),
    max_minutes: float = 10.0,
    max_megabytes: float = 2.0,
    concurrency: int = 1,
) -> "Page":
    """Returns the page with the packaged examples; its method `launch` serves it.

    Raises:
      InputError: gradio is not installed, an option is out of range, or a checkpoint cannot be read.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError('the page needs gradio: pip install "spectrodiff[app]"') from error
    from spectrodiff.app.page import Options, Page
    from spectrodiff.app.song import Limits

    examples = tuple(sorted(packaged("examples").glob("*.mid")))
    limits = Limits(megabytes=max_megabytes, minutes=max_minutes)
    return Page(Options(checkpoints, vocoders, examples, limits, concurrency))


def _app(options) -> None:
    if not 1 <= options.port <= 65535:
        raise InputError(f"port is {options.port}; choose 1 to 65535")
    keep_compiled_programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    choices = tuple(options.checkpoint), tuple(options.vocoder)
    served = page(*choices, options.max_minutes, options.max_megabytes, options.concurrency)
    try:
        _, address, _ = served.launch(server_name=options.host, server_port=options.port, prevent_thread_lock=True)
    except OSError as error:
        raise InputError(f"cannot serve at {options.host}, port {options.port}: {error}") from error
    print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
    with contextlib.closing(served):
        served.block_thread()
