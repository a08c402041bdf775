"""Write a run's pictures and figures as one page: the command `jaxdiff report`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("report")
