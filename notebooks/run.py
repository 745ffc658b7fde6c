"""Executes notebooks and keeps their outputs in the files.

python notebooks/run.py [NOTEBOOK ...]
"""

import os
import pathlib
import sys

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """Returns the notebook with new outputs; raises nbclient's CellExecutionError if a cell fails."""
    # `!spectrodiff` is to be the command of this environment, whether or not it is activated.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    options = {
        "timeout": 1200,
        "kernel_name": "python3",
        "record_timing": False,
        "extra_arguments": ["--log-level=ERROR"],
    }
    # Of a progress bar, coalesced streams keep what a terminal would show last.
    NotebookClient(notebook, coalesce_streams=True, resources=resources, **options).execute()
    return notebook


if __name__ == "__main__":
    for path in [pathlib.Path(name).resolve() for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, flush=True)
        nbformat.write(execute(path), path)
