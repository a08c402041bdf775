"""Prepare MNIST or a relative of it: the command `jaxdiff prepare`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("prepare")
