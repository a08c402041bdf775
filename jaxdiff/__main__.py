"""`python -m jaxdiff COMMAND` is `jaxdiff COMMAND`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main()
