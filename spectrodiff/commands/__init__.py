"""The subcommands. Each module has `add(commands)`, and delays slow imports until it runs."""
