"""Measure a run on held-out data: the command `jaxdiff evaluate`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("evaluate")
