"""Contracts that a user's own kernel, denoiser, model or schedule can be put through.

testing.check_denoiser(denoiser, (28, 28, 1))
testing.check_kernel(my_kernel(denoiser, schedule), (28, 28, 1))

Each check returns nothing, or raises an AssertionError of one line that names the claim that
failed. The extra `testing` brings chex, which the checks use.
"""

from jaxdiff.testing._kernels import check_kernel
from jaxdiff.testing._networks import check_denoiser, check_model
from jaxdiff.testing._schedules import check_schedule

__all__ = ["check_denoiser", "check_kernel", "check_model", "check_schedule"]
