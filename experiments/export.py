"""Pack a run into one small file: the command `jaxdiff export`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("export")
