"""Train on the embedded digits, sample, evaluate, report: the command `jaxdiff demo`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("demo")
