"""What every script does with its errors: one clear line, and an exit code that is not zero."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what the user can mend in one line; JAXDIFF_TRACEBACK=1 shows where it was raised."""
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXDIFF_TRACEBACK"):
            raise
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        sys.exit(1)
