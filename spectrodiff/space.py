"""The page of `spectrodiff app` as a hosted space, whose app.py is a copy of this file."""

from spectrodiff.commands.app import page
from spectrodiff.commands.common import keep_compiled_programs

keep_compiled_programs()
demo = page()

if __name__ == "__main__":
    demo.launch()
