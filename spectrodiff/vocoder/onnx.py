"""A mel decoder in ONNX, such as the published spectrogram inverter's export, as a vocoder."""

import os
import pathlib
import re

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.fingerprint import fingerprint_of_files
from spectrodiff.vocoder.published import PublishedVocoder

_LOCATION = re.compile(rb"\n\x08location\x12(?P<length>[\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)


class OnnxVocoder(PublishedVocoder):
    """Unscaled log-mel [t, MEL_BINS] to audio [t * HOP] by onnxruntime on the CPU, with its default threads.

    The file has one input, float32 [1, frames, MEL_BINS], and one output, [1, frames * HOP]; their names do not matter.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises InputError as `open_session`, and where it is not such a decoder."""
        session = open_session(path, "mel decoder")
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or not _takes_mel(inputs[0]):
            raise InputError(
                f"{path} is no mel decoder: it takes {_listed(inputs)} and gives {_listed(outputs)}, where one input "
                f"tensor(float)[1, frames, {MEL_BINS}] and one output [1, samples] are needed"
            )
        name, frames = inputs[0].name, inputs[0].shape[1]
        frames = frames if isinstance(frames, int) else None
        super().__init__(path, lambda mel: session.run(None, {name: mel})[0], frames)
        self._fingerprint = fingerprint_of_files(_parts(pathlib.Path(path)))

    def identity(self) -> str:
        """As `Vocoder` has it, of the file as it was when it was loaded, and of those that hold its weights, if any."""
        return f"OnnxVocoder {self._fingerprint}"


def _parts(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """An ONNX file, and the files beside it that hold its weights where it does not, as of models over 2 GB.

    A tensor names its file in an entry ("location", name) of `external_data` (onnx.proto), which protobuf writes as a
    tag, a length and the characters of either.
    """
    parts, content = {"": path}, path.read_bytes()
    for entry in _LOCATION.finditer(content):
        low, high = (*entry["length"], 0)[:2]  # seven bits a byte, the lowest first
        name = content[entry.end() : entry.end() + (low & 127 | high << 7)].decode(errors="replace")
        if (path.parent / name).is_file():
            parts[name] = path.parent / name
    return parts


def open_session(path: str | os.PathLike, what: str):
    """onnxruntime's session for a file, on the CPU; `what` the file should be is for messages.

    Raises:
      InputError: there is no such file, or it is not ONNX; or no onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f'{path} needs onnxruntime: pip install "spectrodiff[onnx]"') from error

    if not pathlib.Path(path).is_file():
        raise InputError(f"there is no file {path}; name an ONNX {what}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well, and said once
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's share no class
        raise InputError(f"onnxruntime cannot load {path}, is it a whole ONNX file? {reason(error)}") from error


def _takes_mel(node) -> bool:
    """Whether an input can be float32 [1, frames, MEL_BINS]; a size that may vary is a name or None."""
    if node.type != "tensor(float)" or len(node.shape) != 3:
        return False
    batch, _, bins = (size if isinstance(size, int) else None for size in node.shape)
    return batch in (1, None) and bins in (MEL_BINS, None)


def _listed(nodes) -> str:
    return ", ".join(f"{node.name} {node.type}{node.shape}" for node in nodes) or "nothing"
