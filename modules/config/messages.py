"""What the trainer says, on standard error, beside bars and in files that keep it."""

from __future__ import annotations

import logging
import os
import sys

from tqdm.auto import tqdm


class AboveBars(logging.Handler):
    """A line for each message; a bar that moves in the terminal goes on below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message, wherever standard error goes at that moment."""
        tqdm.write(self.format(record), file=sys.stderr)


def show_messages() -> None:
    """Shows the trainer's own messages, and only warnings of the libraries; once over processes."""
    main_process = os.environ.get("RANK", "0") == "0"
    handler = AboveBars()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("modules").setLevel(logging.INFO if main_process else logging.ERROR)
