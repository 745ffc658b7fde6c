"""Downloads of model weights, which are kept in the user's cache folder."""

import hashlib
import os
import pathlib
import tarfile
import tempfile
import urllib.request

from tqdm import tqdm

from spectrodiff.errors import InputError, reason
from spectrodiff.files import replacing_folder
from spectrodiff.vocoder.saved_model import FILE

_CHUNK = 1 << 20  # bytes
_SECONDS = 60  # without an answer, after which a download fails
_SINGLE = "model"  # the name of a downloaded file that is not an archive


def fetched(source: str) -> pathlib.Path:
    """Returns the path of `source` on this machine, having downloaded it where it is an address (https:// and so on).

    For a .tar.gz it is the folder of the SavedModel in it, for anything else the file. What was downloaded before is
    not downloaded again.

    Raises:
      InputError: the address cannot be downloaded or unpacked, or the archive holds no SavedModel.
    """
    if "://" not in source:
        return pathlib.Path(source)
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spectrodiff" / "downloads"
    folder = home / hashlib.sha256(source.encode()).hexdigest()[:16]
    if not folder.is_dir():
        try:
            with tempfile.TemporaryFile() as file:
                _download(source, file)
                home.mkdir(parents=True, exist_ok=True)
                with replacing_folder(folder) as temporary:
                    _unpack(file, temporary)
        except InputError:
            raise
        except Exception as error:  # of the network, the address, the archive
            raise InputError(f"cannot get {source}: {reason(error)}") from error
    if (folder / _SINGLE).is_file():
        return folder / _SINGLE
    found = sorted(folder.rglob(FILE))
    if not found:
        raise InputError(f"the archive at {source} holds no {FILE}")
    return found[0].parent


def _download(source: str, file) -> None:
    with urllib.request.urlopen(source, timeout=_SECONDS) as answer:
        length = answer.headers.get("Content-Length")
        with tqdm(
            desc="downloading", total=length and int(length), unit="B", unit_scale=True, delay=2.0, leave=False
        ) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    file.seek(0)


def _unpack(file, folder: pathlib.Path) -> None:
    """Unpacks a tar archive into `folder`, and no file outside of it, or copies a file that is no archive."""
    if tarfile.is_tarfile(file):
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(folder, filter="data")
    else:
        file.seek(0)
        (folder / _SINGLE).write_bytes(file.read())
