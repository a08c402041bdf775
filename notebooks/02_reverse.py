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
# # 2. The reverse process
#
# The reverse process begins with noise and ends with data. At each step it asks a
# *denoiser*: given $x_t$, what is the mean of $x_0$?
#
# $$D(x_t, t) = E[x_0 \mid x_t].$$
#
# This chapter compares denoisers on data whose exact denoiser is known: three clusters
# in the plane.

# %%
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd

plt.rcParams["figure.dpi"] = 72
np.set_printoptions(precision=3, suppress=True)

weights = jnp.array([0.5, 0.3, 0.2])
means = jnp.array([[-1.5, 0.3], [1.0, 1.5], [1.2, -1.3]])
mixture = jd.oracles.GaussianMixture(jnp.log(weights), means, jnp.full(3, 0.04))
schedule = jd.schedules.cosine()
key_data, key_noise, key_prior, key_run, key_real = jax.random.split(
    jax.random.key(0), 5
)
num = 2000
real = mixture.sample(key_real, (num,))


def shares(x):
    """The share of the points that is nearest to each cluster."""
    distance = jnp.linalg.norm(x[:, None] - means[None], axis=-1)
    return np.bincount(np.asarray(distance.argmin(1)), minlength=3) / len(x)


def inside(x):
    """The share of the points within four deviations (0.8) of a cluster."""
    distance = jnp.linalg.norm(x[:, None] - means[None], axis=-1)
    return float(jnp.mean(distance.min(1) < 0.8))


print("shares of real points", shares(real), "inside a cluster", inside(real))

# %% [markdown]
# ## The naive idea: one linear layer, without t
#
# The naive network is one linear layer. It does not know the time. We fit it in the
# best way there is, by least squares on pairs $(x_t, x_0)$ of all times. Then we apply
# it to noise again and again.

# %%
x_0 = mixture.sample(key_data, (20_000,))
t = jd.losses.uniform_times(key_noise, len(x_0))
x_t = jd.q_sample(schedule, x_0, t, jax.random.normal(key_noise, x_0.shape))
layer, *_ = jnp.linalg.lstsq(jnp.hstack([x_t, jnp.ones((len(x_t), 1))]), x_0)

x = jax.random.normal(key_prior, (num, 2))
for _ in range(50):
    x = jnp.hstack([x, jnp.ones((num, 1))]) @ layer
collapsed = x
print("mean", x.mean(0), "deviation", x.std(0), "real deviation", real.std(0))

# %% [markdown]
# ## Why it falls short
#
# All points end in one place. A least-squares layer draws each point towards the mean
# of the data. Fifty times this leaves nothing else.
#
# Perhaps the layer only needs the time? The best linear denoiser for each $t$ has a
# closed form. It is the exact denoiser of *one* normal distribution with the mean and
# the covariance of the data. So we can run it in a true reverse process, and we know
# what comes out.

# %%
mean = weights @ means
centred = means - mean
covariance = 0.04 * jnp.eye(2) + (weights[:, None] * centred).T @ centred
linear = jd.oracles.gaussian(mean, covariance).denoiser(schedule)
exact = mixture.denoiser(schedule)
x_init = jd.prior_sample(key_prior, schedule, (num, 2))
ts = jd.grids.uniform(50)

runs = {
    name: jd.sample(
        key_run, jd.kernels.ddim(denoiser, schedule), x_init, ts, save_every=1
    )
    for name, denoiser in {"linear": linear, "exact": exact}.items()
}
for name, run in runs.items():
    print(f"{name:7s} shares {shares(run.x)}, inside a cluster {inside(run.x):.1%}")

# %% [markdown]
# The linear denoiser makes one cloud. It has the mean and the covariance of the data,
# but most of its points lie between the clusters. The exact denoiser makes the three
# clusters, with the right shares.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharex=True, sharey=True)
axes[0].scatter(*real.T, s=1, color="0.8")
axes[0].scatter(*collapsed.T, s=20, color="C3")
axes[0].set_title("one layer, without t")
for axis, (name, run) in zip(axes[1:], runs.items(), strict=True):
    axis.scatter(*real.T, s=1, color="0.8")
    for i in range(40):
        axis.plot(*run.trajectory[:, i].T, color="C0", lw=0.5, alpha=0.6)
    axis.scatter(*run.x[:400].T, s=2, color="C3")
    axis.set_title(f"{name} denoiser of each t: paths")
axes[0].set(xlim=(-3.2, 3.2), ylim=(-3, 3))
figure.tight_layout()

# %% [markdown]
# *Grey: real points. Red: samples. Blue: 40 paths from noise to data.*
#
# ## The right way: a denoiser, a kernel, a grid
#
# Three pieces make a sampler in jaxdiff.
#
# - A *denoiser* is a function $(x_t, t) \mapsto E[x_0 \mid x_t]$.
# - A *kernel* is one reverse step from $t$ to a smaller $s$.
# - A *grid* lists the times, from 1 to 0.
#
# `jd.sample` runs the kernel over the grid, as one compiled scan. With an exact
# denoiser only the steps make an error. We measure it against a run of 400 steps. All
# samplers begin with the same noise.

# %%
samplers = {
    "DDIM": jd.kernels.ddim(exact, schedule),
    "DPM-Solver++ 2M": jd.kernels.dpmpp_2m(exact, schedule),
    "UniPC-2": jd.kernels.unipc(exact, schedule),
}
calls = [5, 10, 20, 40]
start = x_init[:500]
solution = jd.sample(key_run, samplers["UniPC-2"], start, jd.grids.uniform(400)).x
errors = {
    name: [
        float(
            jnp.median(
                jnp.linalg.norm(
                    jd.sample(key_run, kernel, start, jd.grids.uniform(n)).x - solution,
                    axis=1,
                )
            )
        )
        for n in calls
    ]
    for name, kernel in samplers.items()
}
for name, error in errors.items():
    print(f"{name:16s}", " ".join(f"{e:.5f}" for e in error))

# %%
plt.figure(figsize=(5, 3.2))
for name, error in errors.items():
    plt.loglog(calls, error, "o-", label=name)
plt.xlabel("calls of the denoiser")
plt.ylabel("median distance from the solution")
plt.xticks(calls, calls)
plt.legend()
plt.minorticks_off()
# %% [markdown]
# The error of DDIM falls as one over the number of calls. The others are of higher
# order. UniPC-2 with 20 calls is nearer to the solution than DDIM with 40.
#
# ## Exercise
#
# A step of DDIM takes the noise out of $x_t$ and puts it back at the level of $s$:
#
# $$\hat\epsilon = \frac{x_t - \alpha_t D(x_t, t)}{\sigma_t}, \qquad
#   x_s = \alpha_s D(x_t, t) + \sigma_s \hat\epsilon.$$
#
# Write this loop yourself, and compare it with `jd.kernels.ddim` on 20 steps.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
x, grid = start, np.asarray(jd.grids.uniform(20))
for t, s in pairwise(grid):
    denoised = exact(x, t)
    eps = (x - schedule.alpha(t) * denoised) / schedule.sigma(t)
    x = schedule.alpha(s) * denoised + schedule.sigma(s) * eps
library = jd.sample(key_run, samplers["DDIM"], start, jd.grids.uniform(20)).x
difference = float(jnp.abs(x - library).max())
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# ## What this chapter claims

# %%
error_of_share = np.sqrt(np.asarray(weights) * (1 - np.asarray(weights)) / num)
assert np.all(np.abs(shares(runs["exact"].x) - weights) < 5 * error_of_share)
assert inside(runs["exact"].x) > 0.98
assert inside(runs["linear"].x) < 0.5  # one cloud
assert float(collapsed.std(0).max()) < 0.01  # one point
assert errors["UniPC-2"][2] < errors["DDIM"][3]
assert difference < 1e-4
