"""The page: what a visitor sees, and what happens when they choose a song, render it or leave."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, no_type_check

import gradio as gr

from spectrodiff.app.rendering import Progress, load, render, sampling_controls
from spectrodiff.app.song import Limits, Song, arrange, general_midi, instruments, read_song, roll, title
from spectrodiff.errors import InputError
from spectrodiff.notes.instruments import replacements
from spectrodiff.pretrained.hub import packaged_weights
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.vocoders import GRIFFIN_LIM, find_vocoder, packaged_vocoders

_HERE = pathlib.Path(__file__).parent
_OWN = "of the checkpoint"
_NO_FILE = gr.DownloadButton(visible=False, render=False)
_MAX_WAITING = 32  # visitors in the queue; the next one is told to come back


@dataclasses.dataclass(frozen=True)
class Options:
    """What the page offers.

    `checkpoints` and `vocoders` are names and paths to choose from besides those of the package; visitors can name no
    others. `concurrency` is the number of songs that are rendered at once; other visitors wait.
    """

    checkpoints: tuple[str, ...] = ()
    vocoders: tuple[str, ...] = ()
    examples: tuple[pathlib.Path, ...] = ()
    limits: Limits = Limits()
    concurrency: int = 1

    def __post_init__(self):
        if self.concurrency < 1:
            raise InputError(f"concurrency is {self.concurrency}; choose 1 or more")

    @property
    def checkpoint_choices(self) -> list[str]:
        packaged = (name for name, folder in packaged_weights().items() if SPECTROGRAM.exists_in(folder))
        return list(dict.fromkeys((*self.checkpoints, *packaged)))

    @property
    def vocoder_choices(self) -> list[str]:
        packaged = (name for name in packaged_vocoders() if name != "melgan")  # another name of that of the demo
        return list(dict.fromkeys((_OWN, *self.vocoders, *packaged, GRIFFIN_LIM)))


class Page(gr.Blocks):
    """The page. Its temporary files are in a folder of its own, which is removed when the process ends."""

    def __init__(self, options: Options):
        """Builds the page; `launch` serves it.

        Raises:
          InputError: a checkpoint or vocoder does not exist or cannot be read.
        """
        for vocoder in options.vocoders:
            find_vocoder(vocoder)  # its error belongs here, not on the page
        # gradio reads this variable when blocks are made, and when they are launched.
        self._folder = tempfile.TemporaryDirectory(prefix="spectrodiff-app-", ignore_cleanup_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = self._folder.name
        super().__init__(title="spectrodiff", analytics_enabled=False)
        self._options = options
        with self:
            self._lay_out()
            self._connect()

    def launch(self, **options: Any) -> tuple:
        """Serves the page, to this machine only unless the options name another host.

        The options are those of gradio's Blocks.launch, as is what is returned.
        """
        system = ["system-ui", "sans-serif"]  # gradio's own fonts come from another host
        ours = {
            "share": False,
            "quiet": True,
            "max_file_size": int(1e6 * self._options.limits.megabytes),
            "theme": gr.themes.Base(primary_hue="indigo", font=system, font_mono=["ui-monospace", "monospace"]),
            "css_paths": _HERE / "page.css",
            "footer_links": [],
            "run_history": False,
            "ssr_mode": False,
            "enable_monitoring": False,
        }
        self.queue(max_size=_MAX_WAITING)
        return super().launch(**ours | options)

    def _lay_out(self) -> None:
        options = self._options
        names = options.checkpoint_choices
        controls = [sampling_controls(name) for name in names]  # of all of them, so that their errors are raised here
        self._song, self._run_folder = gr.State(), gr.State()
        gr.HTML("<h1>spectrodiff</h1><p>MIDI in, music out</p>", elem_id="heading")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self._file = gr.File(label="MIDI file", file_types=[".mid", ".midi"], height=130, elem_id="file")
                with gr.Row(elem_id="examples"):
                    self._examples = {
                        path: gr.Button(title(path), size="sm", min_width=80) for path in options.examples
                    }
                self._checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint")
                self._vocoder = gr.Dropdown(options.vocoder_choices, value=_OWN, label="Vocoder")
                self._steps, self._guidance = (gr.Slider(**slider) for slider in controls[0])
                self._seed = gr.Number(
                    0, label="Seed", info="the same seed gives the same audio again", precision=0, minimum=0
                )
                self._start = gr.Button("Render", variant="primary", interactive=False, elem_id="render")
                self._cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
            with gr.Column(scale=3, min_width=480):
                self._view = gr.HTML(
                    html_template=(_HERE / "view.html").read_text(),
                    js_on_load=(_HERE / "view.js").read_text(),
                    apply_default_css=False,
                    song=None,
                    elem_id="view",
                )
                with gr.Row(elem_id="downloads"):
                    self._downloads = [
                        gr.DownloadButton(f"\u2193 {label}", size="sm", visible=False, min_width=80)
                        for label in ("WAV", "FLAC", "MIDI")
                    ]
                self._instruments = gr.HTML(
                    [],
                    html_template="<table></table>",
                    js_on_load=(_HERE / "instruments.js").read_text(),
                    apply_default_css=False,
                    families=general_midi(),
                    elem_id="instruments",
                )

    def _connect(self) -> None:
        buttons = [self._start, self._cancel]
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        clicked = self._start.click(self._begin, None, [*buttons, self._view, self._run_folder], **at_once)
        rendering_song = clicked.then(
            self._render_song,
            [
                *(self._song, self._instruments, self._checkpoint, self._vocoder),
                *(self._steps, self._guidance, self._seed, self._run_folder),
            ],
            [self._view, *self._downloads],
            concurrency_limit=self._options.concurrency,
            show_progress="hidden",
            api_visibility="private",
        )
        rendering_song.then(lambda: _buttons(working=False), None, buttons, **at_once)
        self._cancel.click(lambda: _buttons(working=False), None, buttons, cancels=rendering_song, **at_once)

        shown = [self._song, self._view, self._instruments, *buttons, *self._downloads, self._file]
        choosing = {"cancels": rendering_song, "show_progress": "hidden", "api_visibility": "private"}
        # Without preprocessing, which would leave an empty file for each upload. gradio checks the path all the same.
        self._file.upload(self._show_upload, self._file, shown, preprocess=False, **choosing)
        for path, button in self._examples.items():
            button.click(functools.partial(self._show, path), None, shown, **choosing)
        self._checkpoint.change(_sliders, self._checkpoint, [self._steps, self._guidance], **at_once)
        self.unload(self._leave)

    def _show(self, path: str | os.PathLike) -> dict[Any, Any]:
        """Returns the page's new state when a visitor has chosen a file."""
        try:
            song = read_song(path, self._options.limits)
        except InputError as error:
            song, drawn, rows, message = None, None, [], _message(error, failed=True) | {"remarks": ""}
        else:
            drawn, rows, message = roll(song), instruments(song.notes), _message("") | {"remarks": song.remarks}
        return {
            self._song: song,
            self._view: gr.HTML(value=message, song=drawn),
            self._instruments: rows,
            self._start: gr.Button(visible=True, interactive=song is not None),
            self._cancel: gr.Button(visible=False),
            self._file: None,
        } | dict.fromkeys(self._downloads, _NO_FILE)

    def _show_upload(self, uploaded: dict[str, Any]) -> dict[Any, Any]:
        path = pathlib.Path(uploaded["path"])
        try:
            return self._show(path)
        finally:
            path.unlink(missing_ok=True)

    def _begin(self, request: gr.Request) -> tuple:
        """Removes the visitor's last song, and names a folder for the next one, which may have to wait for its turn."""
        self._leave(request)
        folder = self._visitors_folder(request) / secrets.token_hex(8)
        return *_buttons(working=True), _message("Waiting for other songs", folder), folder

    @no_type_check  # a wrapper would hide from gradio that this is a generator
    def _render_song(
        self,
        song: Song | None,
        rows: list[dict[str, Any]],
        checkpoint: str,
        vocoder: str,
        steps: int | float,
        guidance: int | float,
        seed: int | None,
        folder: pathlib.Path,
    ) -> Iterator[tuple]:
        """Yields the progress, and at the end the files. When it is closed, the song's rendering ends."""
        no_files = [_NO_FILE] * len(self._downloads)
        try:
            if song is None:
                raise InputError("choose a song first")
            yield _message("Loading the weights", folder), *no_files
            synthesizer = load(checkpoint, None if vocoder == _OWN else vocoder)
            notes = arrange(song.notes_for(synthesizer.config.tokenizer.channel_volume), rows)
            notes, dropped = synthesizer.mel_sampler.thin(notes)
            thinned = f"dropped the {dropped} quietest notes of over-full windows" if dropped else ""
            remarks = filter(None, (song.remarks, replacements(notes, synthesizer.tokenizer), thinned))
            said = {"remarks": "; ".join(remarks)}
            yield _message("Rendering the first seconds", folder) | said, *no_files
            possible = synthesizer.config.decoder.sampling
            chosen = {"steps": int(steps), "guidance": guidance}
            options = {name: value for name, value in chosen.items() if hasattr(possible, name)}
            for progress in render(synthesizer, notes, folder, song.name, seed=seed or 0, **options):
                files = [gr.DownloadButton(value=path, visible=True) for path in progress.files]
                yield _progress(folder, progress) | said, *(files or no_files)
        except InputError as error:
            yield _message(error, folder, failed=True), *no_files

    def _leave(self, request: gr.Request) -> None:
        shutil.rmtree(self._visitors_folder(request), ignore_errors=True)

    def _visitors_folder(self, request: gr.Request) -> pathlib.Path:
        """Returns the folder of one visitor's songs. The session's name is the browser's choice, so it is hashed."""
        return pathlib.Path(self._folder.name, hashlib.sha256(str(request.session_hash).encode()).hexdigest())


def _buttons(working: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(visible=not working), gr.Button(visible=working)


def _sliders(checkpoint: str) -> tuple[gr.Slider, ...]:
    return tuple(gr.Slider(**slider) for slider in sampling_controls(checkpoint))


def _message(text: object, folder: pathlib.Path | None = None, failed: bool = False) -> dict[str, Any]:
    """Returns what view.js shows above the plot; `folder` tells the messages of one rendering from another's.

    What is added as "remarks" is shown in a line of its own, which stays until there are other remarks.
    """
    running = folder is not None and not failed
    return {
        "message": str(text),
        "failed": failed,
        "running": running,
        "folder": None if folder is None else str(folder),
    }


def _progress(folder: pathlib.Path, progress: Progress) -> dict[str, Any]:
    pace = progress.seconds / max(progress.spent, 1e-6)
    finished = bool(progress.files)
    if finished:
        said = f"{progress.seconds:.1f} s of audio in {progress.spent:.1f} s ({pace:.1f}x real time)"
    else:
        said = f"{progress.seconds:.0f} of {progress.total:.0f} s ({pace:.1f}x real time)"
    counts = {"chunks": progress.chunks, "mels": progress.mels, "running": not finished}
    return _message(said, folder) | counts
