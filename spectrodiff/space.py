"""The page of `spectrodiff app` as a hosted space: its app.py imports `demo` from here and calls `demo.launch()`."""

from spectrodiff.commands.app import page
from spectrodiff.commands.common import keep_compiled_programs

keep_compiled_programs()
demo = page()
