# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # 5. Probability
#
# A diffusion model is a probability distribution. It can say how probable an image is,
# in nats or bits. This chapter shows what such a number must do, and four ways to
# compute it.
#
# The data look like digits of 8x8 pixels, but they come from a mixture of normals that
# was fitted to digits. So $\log p(x)$ is known.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff import data

plt.rcParams["figure.dpi"] = 72

keys = jax.random.split(jax.random.key(0), 8)
digits = data.load("digits")
images = jnp.asarray(data.to_unit(digits.train.images, digits.levels))
mixture = jd.oracles.fitted(keys[0], images, 10)
x_0 = mixture.sample(keys[1], (64,))  # [64, 64]
noise = jax.random.uniform(keys[2], x_0.shape, minval=-1.0, maxval=1.0)

figure, axes = plt.subplots(2, 8, figsize=(8, 2.2))
for axis, x in zip(axes.flat, [*x_0[:8], *noise[:8]], strict=True):
    axis.imshow(x.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
    axis.axis("off")

# %% [markdown]
# *Above: draws of the mixture. Below: noise.*
#
# ## The naive idea: the test error is the likelihood
#
# The naive tutorial reports the mean squared error of the network's output as
# "log-likelihood" of the test data.


# %%
def naive_log_likelihood(model, x):
    return -np.mean((model(x) - x) ** 2)


def copier(x):
    return x


def smoother(x):
    """Each image becomes the mean of the data."""
    return jnp.broadcast_to(
        jax.nn.softmax(mixture.log_weights) @ mixture.means, x.shape
    )


for name, model in {"copier": copier, "mean of the data": smoother}.items():
    print(
        f"{name:17s} digits {naive_log_likelihood(model, x_0):.3f},",
        f"noise {naive_log_likelihood(model, noise):.3f}",
    )
print(f"the same, pixels times 10: {100 * naive_log_likelihood(smoother, x_0):.2f}")

# %% [markdown]
# ## Why it falls short
#
# A model that copies its input gets the best possible number. It gets the same number
# for digits and for noise. So the number cannot say which images are probable.
#
# It has no unit either. If we store the pixels times ten, it changes by a factor of
# 100. A log-density changes by a known *sum*, $d \log 10$, for every model alike. So
# differences between models do not depend on how we store the pixels.
#
# A probability has to be shared. What a model gives to one image it takes from others.
# The copier shares nothing. The true log-density tells the two sets apart:

# %%
log_p = mixture.log_prob(x_0)
log_p_noise = mixture.log_prob(noise)
print(f"exact log p, nats: digits {log_p.mean():.1f}, noise {log_p_noise.mean():.1f}")

# %% [markdown]
# ## The right way: paths
#
# A finite chain of reverse steps is a model $p_\theta$ of the data. Its probability is
# an integral over all paths $x_{1:T}$. We draw a path with the forward process and
# weight it:
#
# $$w = \frac{p(x_T) \prod_t p_\theta(x_{t-1} \mid x_t)}{q(x_{1:T} \mid x_0)},
#   \qquad E[w] = p_\theta(x_0).$$
#
# - The mean of $\log w$ is a bound from below: the variational bound, `elbo`.
# - The log of the mean of $w$ over many paths is nearer: `importance_log_prob`.
# - The probability-flow ODE is another model, with a density of its own:
#   `ode_log_prob`.
#
# The denoiser here is exact, so that the exact $\log p$ is the common aim.

# %%
schedule = jd.schedules.cosine()
denoiser = mixture.denoiser(schedule, variance=True)
chain = jd.Chain(denoiser, schedule, jd.grids.uniform(25), variance="optimal")

estimates = {
    "bound, 1 path": jd.likelihood.elbo(keys[3], chain, x_0),
    "bound, mean of 16 paths": jd.likelihood.elbo(keys[3], chain, x_0, num_paths=16),
    "weights of 16 paths": jd.likelihood.importance_log_prob(
        keys[3], chain, x_0, num_paths=16
    ),
    "ODE, 4 probes": jd.likelihood.ode_log_prob(
        mixture.denoiser(schedule),
        schedule,
        jd.grids.log_snr(schedule, 50),
        x_0,
        key=keys[4],
        num_probes=4,
    ),
}
gaps = {}
for name, value in estimates.items():
    gap = np.asarray(value - log_p)
    gaps[name] = gap.mean(), gap.std() / np.sqrt(len(gap))
    print(f"{name:24s} minus exact: {gaps[name][0]:7.2f} +- {gaps[name][1]:.2f} nats")
bound_noise = jd.likelihood.elbo(keys[3], chain, noise)
lead = float(estimates["bound, 1 path"].mean() - bound_noise.mean())
print(f"the bound puts digits above noise by {lead:.0f} nats")

# %% [markdown]
# The bound lies below the truth. The weights of the same 16 paths are nearer. The ODE
# has no gap in expectation. Its error here is that of four random probes. All of these
# numbers are in nats, and the bound tells digits from noise at once.
#
# ## From both sides
#
# For data that the model draws, the path that made them is known. It gives a bound from
# *above*. The negative log weight of a path is called its *work*: $W_F$ on forward
# paths and $W_R$ on reverse paths. Crooks' theorem relates their distributions,
#
# $$\frac{P_F(W)}{P_R(-W)} = e^{W + \log p(x_0)}.$$
#
# So the two densities cross exactly at $W = -\log p(x_0)$. We check it on normal data
# of eight dimensions, for which the law of the finite chain is known. The works of each
# $x_0$ are shown around its own exact $\log p_\theta(x_0)$.

# %%
gaussian = jd.oracles.gaussian(jnp.full(8, 0.5), jnp.linspace(0.2, 1.5, 8))
narrow = jd.schedules.cosine(log_snr_min=-8.0, log_snr_max=8.0)
short = jd.Chain(gaussian.denoiser(narrow), narrow, jd.grids.log_snr(narrow, 100))
bounds = jd.work.bidirectional_bounds(keys[5], short, (4000, 8), num_paths=2)
exact = jd.oracles.chain_law(gaussian, short).log_prob(bounds.x_0)
forward = bounds.forward_work[0] + exact
reverse = bounds.reverse_work - exact

bennett = float(jd.work.bennett_acceptance_ratio(forward, reverse))
bennett_error = float(jd.work.bennett_standard_error(forward, reverse))
slope = jd.work.crooks(forward, reverse)
print(f"mean of -W_F minus log p: {-forward.mean():.3f} nats, below")
print(f"mean of  W_R minus log p: {reverse.mean():.3f} nats, above")
print(f"Bennett's estimate minus log p: {bennett:.4f} +- {bennett_error:.4f} nats")
print(f"slope of Crooks' theorem: {slope.slope:.3f} +- {slope.slope_se:.3f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.4))
bins = np.linspace(-8, 6, 60)
axis.hist(
    np.asarray(-forward), bins, density=True, alpha=0.5, label="-W_F, forward paths"
)
axis.hist(
    np.asarray(reverse), bins, density=True, alpha=0.5, label="W_R, reverse paths"
)
axis.axvline(0, color="black", ls="--", label="exact log p")
axis.set(xlabel="nats, around log p(x_0)", ylabel="density")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# The histograms cross at the exact value. The mean of one lies below it, the mean of
# the other above it. Bennett's ratio uses both, and finds the value to a few
# hundredths of a nat.
#
# ## Exercise
#
# Probabilities of all images sum to 1. Probabilities from a bound sum to less. Check
# this for images of one pixel with 17 levels, of which you can list all.
#
# Take the mixture below, its denoiser, `jd.grids.uniform(10)`, and the decoder
# `jd.decoders.discretised_normal(17)`. The levels are `jd.decoders.levels(17)`.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
pixel = jd.oracles.GaussianMixture(
    jnp.log(jnp.array([0.6, 0.4])), jnp.array([[-0.5], [0.6]]), jnp.array([0.02, 0.01])
)
small = jd.Chain(
    pixel.denoiser(schedule),
    schedule,
    jd.grids.uniform(10),
    decoder=jd.decoders.discretised_normal(17),
)
everything = jd.decoders.levels(17)[:, None]  # [17, 1]
total = float(
    jnp.exp(
        jd.likelihood.importance_log_prob(keys[6], small, everything, num_paths=5000)
    ).sum()
)
total_of_bound = float(
    jnp.exp(jd.likelihood.elbo(keys[6], small, everything, num_paths=5000)).sum()
)
print(f"sum of probabilities {total:.3f}, of those of the bound {total_of_bound:.3f}")

# %% [markdown]
# ## What this chapter claims

# %%
assert naive_log_likelihood(copier, x_0) == naive_log_likelihood(copier, noise) == 0
assert float(log_p.mean() - log_p_noise.mean()) > 100
assert lead > 100
assert (
    gaps["bound, mean of 16 paths"][0] < -5 * gaps["bound, mean of 16 paths"][1]
)  # below
assert gaps["bound, mean of 16 paths"][0] < gaps["weights of 16 paths"][0]
assert abs(gaps["ODE, 4 probes"][0]) < 5 * gaps["ODE, 4 probes"][1]
assert -forward.mean() < 0 < reverse.mean()
assert abs(bennett) < 5 * bennett_error
assert abs(slope.slope - 1) < 5 * slope.slope_se
assert abs(total - 1) < 0.05
assert total_of_bound < 0.95
