"""Measuring image autoencoders: `python -m eval --help`."""
