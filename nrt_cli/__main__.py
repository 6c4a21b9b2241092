"""Where the `nrt` command begins: Ctrl-C while the rest is still being imported is one line too."""

import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run the command."""
    try:
        from nrt_cli.cli import main as run
    except KeyboardInterrupt:
        stopped()
    run()


def stopped() -> NoReturn:
    """End after Ctrl-C with one line, and as shells do."""
    # Pressed once more, it ends at once what else is done on the way out.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("nrt: stopped; what was saved is kept.", file=sys.stderr, flush=True)
    sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
