"""A mel decoder in ONNX, such as the published spectrogram inverter's export, as a vocoder."""

import os
import pathlib

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.errors import InputError, reason
from spectrodiff.vocoder.published import PublishedVocoder


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
