"""Subcommands of `python -m eval`, one a file: HELP, `add_arguments(parser)`, `run(args)`.

Heavy imports stand inside `run`, so that `--help` and a mistyped flag answer at once.
"""
