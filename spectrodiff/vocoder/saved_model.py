"""A mel decoder as a TensorFlow SavedModel, such as TensorFlow Hub's of the published inverter, as a vocoder."""

import contextlib
import os
import pathlib
from collections.abc import Callable

from spectrodiff.errors import InputError, reason
from spectrodiff.fingerprint import fingerprint_of_files
from spectrodiff.vocoder.published import PublishedVocoder

FILE = "saved_model.pb"  # what makes a folder a SavedModel
_PARTS = ("variables", "assets")  # folders in it; whatever else lies there, TensorFlow does not read


class SavedModelVocoder(PublishedVocoder):
    """Unscaled log-mel [t, MEL_BINS] to audio [t * HOP] by TensorFlow on the CPU.

    The model is called with a float32 tensor [1, frames, MEL_BINS], any number of frames, and gives [1, frames * HOP].
    """

    def __init__(self, path: str | os.PathLike):
        """Raises InputError as `load_model`, and where it is not such a decoder."""
        super().__init__(path, load_model(path, "mel decoder"))
        folder = pathlib.Path(path)
        parts = [folder / FILE, *(at for part in _PARTS for at in (folder / part).rglob("*") if at.is_file())]
        self._fingerprint = fingerprint_of_files({str(at.relative_to(folder)): at for at in parts})

    def identity(self) -> str:
        """As `Vocoder` has it, of the program, variables and assets in the folder when it was loaded."""
        return f"SavedModelVocoder {self._fingerprint}"


def load_model(path: str | os.PathLike, what: str) -> Callable:
    """The function that the SavedModel in a folder is, for TensorFlow on the CPU; `what` it should be is for messages.

    A SavedModel is a program, which can read and write files: load only one you trust.

    Raises:
      InputError: there is no such folder, it is damaged, or what it holds cannot be called; or no TensorFlow.
    """
    if not (pathlib.Path(path) / FILE).is_file():
        raise InputError(f"there is no {FILE} in {path}; name the folder of an unpacked SavedModel")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # JAX sets 1, at which having no GPU is told as an error
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(f'{path} needs TensorFlow: pip install "spectrodiff[tf]"') from error

    with contextlib.suppress(RuntimeError):  # too late where the caller has used TensorFlow before
        tf.config.set_visible_devices([], "GPU")  # else it takes all the memory that JAX leaves
    try:
        model = tf.saved_model.load(os.fspath(path))
    except Exception as error:  # OSError, ValueError, and TensorFlow's own
        raise InputError(f"TensorFlow cannot load {path}, is it a whole SavedModel? {reason(error)}") from error
    if not callable(model):
        raise InputError(f"{path} is no {what}: the model in it cannot be called")
    return model
