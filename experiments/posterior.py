"""Draw images given an observation of them: the command `jaxdiff posterior`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("posterior")
