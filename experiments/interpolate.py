"""Make strips from one image to another: the command `jaxdiff interpolate`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("interpolate")
