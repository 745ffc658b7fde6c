"""A vocoder from a TensorFlow SavedModel, such as that of the published spectrogram inverter on TensorFlow Hub."""

import contextlib
import os
import pathlib
from collections.abc import Callable

from spectrodiff.errors import InputError, reason
from spectrodiff.files import is_file
from spectrodiff.fingerprint import fingerprint_of_files
from spectrodiff.vocoder.published import PublishedVocoder

FILE = "saved_model.pb"  # in the folder of every SavedModel
_PARTS = ("variables", "assets")  # its folders; TensorFlow reads no other files


class SavedModelVocoder(PublishedVocoder):
    """A vocoder: unscaled log-mel [t, MEL_BINS] to audio [t * HOP] by TensorFlow on the CPU.

    The model is called with float32 [1, frames, MEL_BINS], for any number of frames, and returns [1, frames * HOP].
    """

    def __init__(self, path: str | os.PathLike):
        """Raises InputError as `load_model`, or if the model cannot decode mels."""
        super().__init__(path, load_model(path, "mel decoder"))
        self._fingerprint = fingerprint_of_model(path)

    def identity(self) -> str:
        """Returns a fingerprint of the program, variables and assets when they were loaded; see `Vocoder`."""
        return f"SavedModelVocoder {self._fingerprint}"


def fingerprint_of_model(path: str | os.PathLike) -> str:
    """Returns a fingerprint of the program, variables and assets of the SavedModel in a folder."""
    folder = pathlib.Path(path)
    parts = [folder / FILE, *(at for part in _PARTS for at in (folder / part).rglob("*") if at.is_file())]
    return fingerprint_of_files({str(at.relative_to(folder)): at for at in parts})


def load_model(path: str | os.PathLike, what: str) -> Callable:
    """Loads the SavedModel in a folder as a function, on the CPU; error messages call it a `what`.

    A SavedModel is a program, which can read and write files: load only one you trust.

    Raises:
      InputError: there is no such folder, it is damaged, the model cannot be called, or TensorFlow is not installed.
    """
    if not is_file(pathlib.Path(path) / FILE):
        raise InputError(f"there is no {FILE} in {path}; name the folder of an unpacked SavedModel")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # with JAX's setting of 1, a missing GPU is logged as an error
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(f'{path} needs TensorFlow: pip install "spectrodiff[tf]"') from error

    with contextlib.suppress(RuntimeError):  # raised if TensorFlow was used before
        tf.config.set_visible_devices([], "GPU")  # otherwise it allocates all GPU memory that is left
    try:
        model = tf.saved_model.load(os.fspath(path))
    except Exception as error:  # OSError, ValueError, and TensorFlow's exceptions
        raise InputError(f"TensorFlow cannot load {path}, is it a whole SavedModel? {reason(error)}") from error
    if not callable(model):
        raise InputError(f"{path} is no {what}: the model in it cannot be called")
    return model
