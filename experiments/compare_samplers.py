"""Compare the samplers: the command `jaxdiff compare`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("compare")
