"""A mel decoder as a TensorFlow SavedModel, such as TensorFlow Hub's of the published inverter, as a vocoder."""

import contextlib
import os
import pathlib

from spectrodiff.errors import InputError, reason
from spectrodiff.vocoder.published import PublishedVocoder

FILE = "saved_model.pb"  # what makes a folder a SavedModel


class SavedModelVocoder(PublishedVocoder):
    """Unscaled log-mel [t, MEL_BINS] to audio [t * HOP] by TensorFlow on the CPU.

    The model is called with a float32 tensor [1, frames, MEL_BINS], any number of frames, and gives [1, frames * HOP].
    A SavedModel is a program, which can read and write files: load only one you trust.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises InputError where there is no such folder, it is damaged, or not such a decoder; or no TensorFlow."""
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
            raise InputError(f"{path} is no mel decoder: the model in it cannot be called")
        super().__init__(path, lambda mel: model(tf.constant(mel)))
