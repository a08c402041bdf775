"""Trained networks that ship with the package, to sample from, score and condition in seconds.

mnist = jaxdiff.pretrained("mnist")
kernel = jaxdiff.kernels.unipc(mnist.denoiser(jnp.arange(10)), mnist.schedule)
"""

import hashlib
import io
from importlib import resources

from jaxdiff import _archive
from jaxdiff.zoo._about import read_about
from jaxdiff.zoo._packing import pack, pack_spread, unpack, unpack_spread
from jaxdiff.zoo._trained import Trained, network_denoiser

__all__ = [
    "ABOUT",
    "SHA256",
    "Trained",
    "network_denoiser",
    "pack",
    "pack_spread",
    "pretrained",
    "read",
    "unpack",
    "unpack_spread",
]

ABOUT = "about"  # the name, in a file, of everything besides the parameters

# The hash of each file that ships, by the network's name.
SHA256: dict[str, str] = {
    "mnist": "d77ff4e3a42abbb3f4c9689a55c62163088b3f72d194c3f28bfaa3ed3110fd56",
}


def pretrained(name: str) -> Trained:
    """Load a network that ships with the package.

    "mnist" is a class-conditional U-Net of 28x28 handwritten digits in [-1, 1], trained as
    RESULTS.md says.

    Args:
      name: "mnist".
    Returns:
      Trained: model, parameters, schedule, shapes, and `denoiser`.
    Raises:
      ValueError: no network has this name, or its file is not the one that was shipped (its SHA-256
        differs).
    """
    if name not in SHA256:
        raise ValueError(
            f"name: expected one of {', '.join(SHA256)}, got {name!r} (load reads the folder of a "
            "run, interop.diffusers a folder of diffusers)"
        )
    content = resources.files(__name__).joinpath(f"{name}.npz").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{name}: expected the file of SHA-256 {SHA256[name]}, got {found}; "
            "install jaxdiff again"
        )
    return read(name, content)


def read(name: str, content: bytes) -> Trained:
    """Read a checkpoint's file, without verifying it.

    Nothing in it is executed, and no array is larger than the file says in several places. Whether
    the arrays fit the network is seen where it is first called.

    Args:
      name: what to call it.
      content: a NumPy archive of `pack`'s arrays, perhaps of `pack_spread`'s, and of JSON under
        "about": the arguments of `models.unet`, and the fields of `Trained`.
    Returns:
      Trained.
    Raises:
      ValueError: the content is damaged, or no such archive.
    """
    arrays = _archive.read(io.BytesIO(content), name)
    try:
        about = read_about(arrays.pop(ABOUT, None))
        spread = unpack_spread(arrays)
        if spread is not None and spread.axes.shape[1:] != about["event_shape"]:
            raise ValueError(
                f"spread: expected axes of {about['event_shape']}, got {spread.axes.shape[1:]}"
            )
        return Trained(params=unpack(arrays), spread=spread, **about)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
