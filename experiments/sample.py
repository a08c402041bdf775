"""Draw samples from a run: the command `jaxdiff sample`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("sample")
