"""Executes notebooks and keeps their outputs in the files.

python notebooks/run.py [NOTEBOOK ...]
"""

import os
import pathlib
import re
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """Returns the notebook with new outputs; raises nbclient's CellExecutionError if a cell fails."""
    # `!spectrodiff` is to be the command of this environment, whether or not it is activated.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        coalesce_streams=True,  # of a progress bar, this keeps what a terminal would show last
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute()
    temporary = re.compile(re.escape(tempfile.gettempdir()) + r"/tmp\w+/")  # where the notebooks work
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.output_type == "stream":
            output.text = temporary.sub("", output.text)
    return notebook


if __name__ == "__main__":
    for path in [pathlib.Path(name).resolve() for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, flush=True)
        nbformat.write(execute(path), path)
