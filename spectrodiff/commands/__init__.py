"""The subcommands: each module has `add(commands)`, and imports what is heavy only when it runs."""
