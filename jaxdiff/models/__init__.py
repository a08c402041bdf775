"""Networks, each as `params = model.init(key, event_shape)` and `model.apply(params, x, t)`."""

from jaxdiff.models._model import Model
from jaxdiff.models.mlp import mlp
from jaxdiff.models.unet import MOST_FOURIER, unet

__all__ = ["MOST_FOURIER", "Model", "mlp", "unet"]
