"""Train a diffusion model: the command `jaxdiff train`."""

from jaxdiff.cli import main

if __name__ == "__main__":
    main("train")
