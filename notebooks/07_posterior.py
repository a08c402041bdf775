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
# # 7. Multiplying distributions
#
# A diffusion model is a prior $p(x_0)$. An observation $y$ has a likelihood
# $p(y \mid x_0)$. The posterior is their product,
#
# $$p(x_0 \mid y) = \frac{p(x_0)\, p(y \mid x_0)}{p(y)}.$$
#
# This chapter draws from it: first in the plane, where the truth is known, and then for
# digits of which one half is seen.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff import data

plt.rcParams["figure.dpi"] = 72
np.set_printoptions(precision=3, suppress=True)

keys = jax.random.split(jax.random.key(0), 12)
weights = jnp.array([0.5, 0.3, 0.2])
means = jnp.array([[-1.5, 0.3], [1.0, 1.5], [1.2, -1.3]])
mixture = jd.oracles.GaussianMixture(jnp.log(weights), means, jnp.full(3, 0.1))
schedule = jd.schedules.cosine()
denoiser = mixture.denoiser(schedule)

# One number is seen: y = A x_0 + noise.
A, y, noise_std = jnp.array([[0.8, 0.25]]), jnp.array([0.7]), 0.3
exact = mixture.posterior(A, y, noise_std**2 * jnp.eye(1))
log_evidence = float(mixture.log_evidence(A, y, noise_std**2 * jnp.eye(1)))


def shares(x):
    """The share of the points that is nearest to each cluster."""
    distance = jnp.linalg.norm(x[:, None] - means[None], axis=-1)
    return np.bincount(np.asarray(distance.argmin(1)), minlength=3) / len(x)


num = 2000
truth = exact.sample(keys[0], (20_000,))
print("shares: prior", weights, "posterior", shares(truth))

# %% [markdown]
# ## The naive idea: add noise, denoise once
#
# The naive "posterior sample" takes data, adds noise and denoises once.

# %%
data_points = mixture.sample(keys[1], (num,))
x_t = jd.q_sample(
    schedule, data_points, 0.5, jax.random.normal(keys[2], data_points.shape)
)
naive = denoiser(x_t, 0.5)
print("shares: naive", shares(naive))

# %% [markdown]
# ## Why it falls short
#
# The observation appears nowhere. So the shares of the clusters are those of the prior:
# half of the points lie in a cluster that the observation excludes. And one denoising
# gives a mean, not a draw.
#
# Diffusion posterior sampling (DPS) does use $y$. It follows the gradient of the
# likelihood at the denoised state. It is an approximation, and stays biased with any
# number of steps.

# %%
observation = jd.observations.linear(lambda x: A @ x, y, noise_std, event_shape=(2,))
ts = jd.grids.uniform(100)
x_init = jd.prior_sample(keys[3], schedule, (num, 2))
dps = jd.sample(
    keys[4],
    jd.kernels.ancestral(jd.guidance.dps(denoiser, schedule, observation), schedule),
    x_init,
    ts,
).x
print("shares: DPS", shares(dps), "deviation", dps.std(0), "exact", truth.std(0))

# %% [markdown]
# ## The right way: weighted particles
#
# `posterior.twisted` guides particles in a similar way, and corrects the guidance with
# weights. Its samples converge to the posterior as the number of particles grows. The
# weights also estimate the evidence $p(y)$, without bias.

# %%
kernel = jd.posterior.twisted(denoiser, schedule, observation, prior_std=1.4)
run = jd.sample(keys[5], kernel, x_init, ts, resample=jd.resampling.systematic())
twisted = jd.resampling.draw(keys[6], run.log_weights, run.x, num)
print("shares: twisted", shares(twisted), "deviation", twisted.std(0))
print(f"log p(y): {float(run.log_evidence):.3f}, exact {log_evidence:.3f}")

# %%
sets = {
    "prior": data_points,
    "exact posterior": truth[:num],
    "naive": naive,
    "DPS": dps,
    "twisted": twisted,
}
error = {}
for name, x in sets.items():
    error[name] = jd.metrics.sliced_wasserstein(x, truth[-num:]).value
    print(f"{name:16s} sliced Wasserstein distance {error[name]:.3f}")
figure, axes = plt.subplots(1, 5, figsize=(13, 3), sharex=True, sharey=True)
line = np.linspace(-3, 3, 2)
for axis, (name, x) in zip(axes, sets.items(), strict=True):
    axis.plot(line, (y[0] - A[0, 0] * line) / A[0, 1], color="0.6", lw=1)
    axis.scatter(*x[:1000].T, s=1, color="C3" if name in ("naive", "DPS") else "C0")
    axis.set(xlim=(-3, 3), ylim=(-3, 3))
    axis.set_title(f"{name}: {error[name]:.2f}", fontsize=10)
figure.tight_layout()

# %% [markdown]
# *Grey line: points that agree with $y$ exactly. The number is the distance from the
# exact posterior; that of "exact posterior" is its floor.*

# %% [markdown]
# DPS puts too many points into the upper cluster. The weighted particles are nearly as
# near as exact draws.
#
# ## Halves of digits
#
# The network that ships with jaxdiff is a prior of handwritten digits. It draws two
# digits here. We see their upper halves with a little noise. `posterior.draw` runs
# independent systems of four particles and returns one draw of each.
# `mnist.spread` says how far $x_0$ may lie from the network's answer.

# %%
mnist = jd.pretrained("mnist")
digits = jd.draw(
    keys[7], mnist.denoiser(jnp.array([8, 2])), mnist.schedule, (2, *mnist.event_shape)
).x
digits = data.to_unit(data.from_unit(digits, mnist.levels), mnist.levels)
observed = jd.observations.half(mnist.event_shape, "top")
seen = digits + 0.1 * jax.random.normal(keys[8], digits.shape)
free = mnist.denoiser()

drawn, once = [], []
for i, part in enumerate(seen):
    likelihood = jd.observations.mask(part, observed, noise_std=0.1)
    kernel = jd.posterior.twisted(free, mnist.schedule, likelihood, spread=mnist.spread)
    draws = jd.posterior.draw(
        jax.random.fold_in(keys[9], i),
        kernel,
        mnist.schedule,
        (6, *mnist.event_shape),
        ts=jd.grids.uniform(20),
        rows=4,
    )
    drawn.append(draws.x)
    print(f"digit {i}: log p(y) about {float(draws.log_evidence):.0f} nats")

# The naive way: other digits, with noise, denoised once.
others = jd.draw(
    keys[10],
    mnist.denoiser(jnp.arange(6)),
    mnist.schedule,
    (6, *mnist.event_shape),
).x
x_t = jd.q_sample(
    mnist.schedule, others, 0.5, jax.random.normal(keys[11], others.shape)
)
once = free(x_t, 0.5)


def residual(x, part):
    """The deviation from the seen half, in units of its noise."""
    return float(jnp.sqrt(jnp.mean((x - part)[:, :14] ** 2)) / 0.1)


residuals = {
    "twisted": [residual(x, part) for x, part in zip(drawn, seen, strict=True)],
    "naive": [residual(once, part) for part in seen],
}
for name, values in residuals.items():
    print(f"{name:8s} residual of the seen half, in deviations:", np.round(values, 2))

# %%
figure, axes = plt.subplots(4, 8, figsize=(8, 4.2))
for i, (digit, part) in enumerate(zip(digits, seen, strict=True)):
    half = jnp.where(observed > 0, part, -0.3)
    for j, images in enumerate((drawn[i], once)):
        row = axes[2 * i + j]
        for axis, x in zip(row, [digit, half, *images], strict=True):
            axis.imshow(np.asarray(x)[..., 0], cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(("twisted", "naive")[j])
for axis, title in zip(axes[0], ["truth", "seen", *6 * ["draw"]], strict=True):
    axis.set_title(title, fontsize=9)
figure.tight_layout()

# %% [markdown]
# The draws agree with the seen half up to its noise: a residual of about one deviation.
# The unseen half differs from draw to draw. The naive images are other digits.
#
# ## Exercise
#
# Posterior samples need no diffusion if the prior is easy to draw. Draw 20,000 points
# of the mixture and weight each by the likelihood. Estimate $\log p(y)$ and the shares
# of the clusters. How large is the effective sample size? `observation(x)` is the log
# likelihood of one point.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
points = mixture.sample(keys[0], (20_000,))
log_weights = jax.vmap(observation)(points)
estimate = float(jd.resampling.log_mean_weight(log_weights))
chosen = jd.resampling.draw(keys[1], log_weights, points, num)
size = float(jd.resampling.effective_sample_size(log_weights))
print(f"log p(y) {estimate:.3f}, exact {log_evidence:.3f}")
print("shares", shares(chosen), f"effective sample size {size:.0f} of 20000")

# %% [markdown]
# In the plane this works. In the 784 dimensions of a digit hardly any draw of the prior
# has the right upper half. That is why particles must be guided on their way.
#
# ## What this chapter claims

# %%
aim = shares(truth)
assert np.all(np.abs(shares(twisted) - aim) < 0.05)
assert np.abs(shares(naive) - aim).max() > 0.3
assert np.abs(shares(dps) - aim).max() > 0.06
assert error["twisted"] < 0.7 * error["DPS"] < error["naive"]
assert abs(float(run.log_evidence) - log_evidence) < 0.1
assert all(0.8 < value < 1.5 for value in residuals["twisted"])
assert all(value > 3 for value in residuals["naive"])
assert abs(estimate - log_evidence) < 0.05
