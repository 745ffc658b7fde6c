"""A vocoder from an ONNX file, such as an export of the published spectrogram inverter."""

import os
import pathlib
import re

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.files import is_file
from spectrodiff.fingerprint import fingerprint_of_files
from spectrodiff.vocoder.published import PublishedVocoder

_LOCATION = re.compile(rb"\n\x08location\x12(?P<length>[\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)


class OnnxVocoder(PublishedVocoder):
    """A vocoder: unscaled log-mel [t, MEL_BINS] to audio [t * HOP] by onnxruntime on the CPU.

    The model has one input, float32 [1, frames, MEL_BINS], and one output, [1, frames * HOP], of any names.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises InputError as `open_session`, or if the model has other inputs or outputs."""
        session = open_session(path, "mel decoder")
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or not _accepts_mel(inputs[0]):
            raise InputError(
                f"{path} is not a mel decoder: its inputs are {_listed(inputs)} and its outputs {_listed(outputs)}, "
                f"not one input tensor(float)[1, frames, {MEL_BINS}] and one output [1, samples]"
            )
        name, frames = inputs[0].name, inputs[0].shape[1]
        frames = frames if isinstance(frames, int) else None
        super().__init__(path, lambda mel: session.run(None, {name: mel})[0], frames)
        self._fingerprint = fingerprint_of_files(_parts(pathlib.Path(path)))

    def identity(self) -> str:
        """Returns a fingerprint of the file when it was loaded, and of its files of weights, if any; see `Vocoder`."""
        return f"OnnxVocoder {self._fingerprint}"


def _parts(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns an ONNX file and the files with its weights, which models of over 2 GB have.

    A tensor names its file in an entry ("location", name) of `external_data` (onnx.proto), which protobuf writes as a
    tag, a length and the characters of each.
    """
    parts, content = {"": path}, path.read_bytes()
    for entry in _LOCATION.finditer(content):
        low, high = (*entry["length"], 0)[:2]  # seven bits a byte, the lowest first
        name = content[entry.end() : entry.end() + (low & 127 | high << 7)].decode(errors="replace")
        if (path.parent / name).is_file():
            parts[name] = path.parent / name
    return parts


def open_session(path: str | os.PathLike, what: str):
    """Returns an onnxruntime session of a file, on the CPU; error messages call it an ONNX `what`.

    Raises:
      InputError: there is no such file, it is not ONNX, or onnxruntime is not installed.
    """
    if not is_file(path):
        raise InputError(f"there is no file {path}; name an ONNX {what}")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f'{path} needs onnxruntime: pip install "spectrodiff[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise InputError(f"onnxruntime cannot load {path}, is it a whole ONNX file? {reason(error)}") from error


def _accepts_mel(node) -> bool:
    """Returns whether an input can be float32 [1, frames, MEL_BINS]; variable sizes are names or None."""
    if node.type != "tensor(float)" or len(node.shape) != 3:
        return False
    batch, _, bins = (size if isinstance(size, int) else None for size in node.shape)
    return batch in (1, None) and bins in (MEL_BINS, None)


def _listed(nodes) -> str:
    return ", ".join(f"{node.name} {node.type}{node.shape}" for node in nodes) or "nothing"
