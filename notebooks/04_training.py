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
# # 4. Training
#
# Training fits the denoiser. The loss decides what the network learns. This chapter
# compares a loss that can be zero with a loss that cannot.
#
# The data are the three clusters again. Their exact denoiser gives the smallest loss
# that any network can have.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, training

plt.rcParams["figure.dpi"] = 72

weights = jnp.array([0.5, 0.3, 0.2])
means = jnp.array([[-1.5, 0.3], [1.0, 1.5], [1.2, -1.3]])
mixture = jd.oracles.GaussianMixture(jnp.log(weights), means, jnp.full(3, 0.04))
schedule = jd.schedules.cosine()
key_data, key_params, key_train, key_test, key_loss, key_run = jax.random.split(
    jax.random.key(0), 6
)

model = models.mlp(width=64, depth=2)
num_steps, batch_size = 3000, 256
batches = np.asarray(mixture.sample(key_data, (num_steps, batch_size)))


def train(loss):
    """Train the perceptron on a loss; return its parameters and its losses."""
    losses = []
    optimizer = training.make_optimizer(3e-3, num_steps=num_steps)
    state = training.fit(
        training.make_step(loss, optimizer, ema_decay=0.99),
        training.init_state(key_train, model.init(key_params, (2,)), optimizer),
        lambda n: (batches[n], None),
        num_steps,
        devices=jax.devices()[:1],
        at_once=20,
        after=lambda progress: losses.extend(np.ravel(progress.metrics["loss"])),
    )
    # Means of 20 updates, so that the curve can be read.
    return state.ema_params, np.array(losses).reshape(-1, 20).mean(axis=1)


# %% [markdown]
# ## The naive idea: MSE(model(x), x)
#
# The naive loss compares the network's output with its own input.


# %%
def copying_loss(params, rows, batch):
    x, _ = batch
    return jnp.mean((model.apply(params, x, jnp.zeros(len(x))) - x) ** 2, axis=1)


copier, copier_losses = train(copying_loss)
print(f"loss at the start {copier_losses[0]:.4f}, at the end {copier_losses[-1]:.1e}")

# %% [markdown]
# ## Why it falls short
#
# The identity has loss 0, and the identity knows nothing of the data. The network comes
# close to it. We give it noise, as a generator must. It gives the noise back.

# %%
noise = jax.random.normal(key_run, (2000, 2))
copied = model.apply(copier, noise, jnp.zeros(len(noise)))


def inside(x):
    """The share of the points within four deviations (0.8) of a cluster."""
    distance = jnp.linalg.norm(x[:, None] - means[None], axis=-1)
    return float(jnp.mean(distance.min(1) < 0.8))


moved = float(jnp.median(jnp.linalg.norm(copied - noise, axis=1)))
print(f"median distance that the copier moves noise: {moved:.3f}")
print(f"inside a cluster: noise {inside(noise):.1%}, copies {inside(copied):.1%}")

# %% [markdown]
# ## The right way: a target that the input does not contain
#
# The denoising loss draws a time and noise for each example. The network sees $x_t$ and
# has to say what was mixed. With the prediction $v$ and unit weight it is
#
# $$L = E_{t, x_0, \epsilon} \frac{1}{d} \lVert v_\theta(x_t, t) - v \rVert^2,$$
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad
#   v = \alpha_t \epsilon - \sigma_t x_0.$$
#
# `jd.losses.simple` is this loss: a pure function of a key, a network, a schedule and
# data. `training.denoising_loss` gives it the form that a training step takes.

# %%
params, losses = train(
    training.denoising_loss(model.apply, schedule, prediction="v"),
)
network = Partial(model.apply, params)
exact = mixture.denoiser(schedule)


def exact_network(x_t, t):
    """What a perfect network says: the exact denoiser in units of v."""
    return jd.prediction.from_x_0(schedule, exact(x_t, t), x_t, t, prediction="v")


def identity_network(x_t, t):
    """The identity as a denoiser, in units of v."""
    return jd.prediction.from_x_0(schedule, x_t, x_t, t, prediction="v")


test = mixture.sample(key_test, (20_000,))
means_of_loss, errors_of_loss = {}, {}
for name, apply in {
    "identity": identity_network,
    "network": network,
    "exact": exact_network,
}.items():
    value = jd.losses.simple(key_loss, apply, schedule, test, prediction="v")
    means_of_loss[name] = float(value.mean())
    errors_of_loss[name] = float(value.std() / np.sqrt(len(value)))
    print(f"{name:9s} {means_of_loss[name]:.4f} +- {errors_of_loss[name]:.4f}")

# %% [markdown]
# The exact denoiser has a loss that is far from zero. What is left is the part of the
# noise that nobody can know. The network comes within one percent of it. The identity
# is the worst of the three.
#
# So the size of a loss says little by itself. Compare it with a floor, where one is
# known, and look at the samples.

# %%
denoiser = jd.make_denoiser(network, schedule, "v")
drawn = jd.draw(key_run, denoiser, schedule, (2000, 2)).x
distance = jnp.linalg.norm(drawn[:, None] - means[None], axis=-1)
shares = np.bincount(np.asarray(distance.argmin(1)), minlength=3) / len(drawn)
print(f"inside a cluster {inside(drawn):.1%}, shares {shares}, true {weights}")

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
steps = 20 * np.arange(1, len(losses) + 1)
axes[0].semilogy(steps, copier_losses, "C3", label="MSE(model(x), x)")
axes[0].semilogy(steps, losses, "C0", label="denoising loss")
axes[0].axhline(means_of_loss["exact"], color="black", ls="--", label="exact denoiser")
axes[0].set(xlabel="update", title="loss")
axes[0].legend(fontsize=8)
for axis, points, title in (
    (axes[1], copied, "copier: noise in, noise out"),
    (axes[2], drawn, "denoiser: samples"),
):
    axis.scatter(*test[:1000].T, s=1, color="0.75")
    axis.scatter(*points[:800].T, s=2, color="C3" if axis is axes[1] else "C0")
    axis.set(xlim=(-3, 3), ylim=(-3, 3), title=title)
figure.tight_layout()

# %% [markdown]
# *Grey: real points.*
#
# ## Times that cover the interval
#
# Independent random times leave gaps by chance, so that the loss of a batch is noisy.
# `low_discrepancy_times` draws times that are uniform too, but evenly spaced within a
# batch. We repeat the loss of one batch 200 times with each kind.

# %%
repeated = jax.random.split(key_loss, 200)


def batch_loss(key, times):
    key_times, key_noise = jax.random.split(key)
    t = times(key_times, batch_size)
    return jd.losses.simple(
        key_noise, exact_network, schedule, test[:batch_size], t=t, prediction="v"
    ).mean()


deviation = {
    times.__name__: float(
        jax.jit(jax.vmap(lambda key, times=times: batch_loss(key, times)))(
            repeated
        ).std()
    )
    for times in (jd.losses.uniform_times, jd.losses.low_discrepancy_times)
}
print(deviation)

# %% [markdown]
# The deviation is smaller by a tenth, at no cost. `training.denoising_loss` uses
# these times.
#
# ## Exercise
#
# The identity as a denoiser says $D(x_t, t) = x_t$. Find its mean squared error of
# $x_0$ in closed form, as a function of $\alpha_t$, $\sigma_t$ and $E\lVert x_0
# \rVert^2$. Compare it with `jd.losses.denoising_error` at three times.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# x_t - x_0 = (alpha - 1) x_0 + sigma eps, and x_0 and eps are independent:
# E |x_t - x_0|^2 = (1 - alpha)^2 E|x_0|^2 + 2 sigma^2 in two dimensions.
square = float(weights @ (means**2).sum(1)) + 2 * 0.04
found = {}
for t in (0.2, 0.5, 0.8):
    alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
    formula = (1 - alpha) ** 2 * square + 2 * sigma**2
    measured = jd.losses.denoising_error(
        key_loss, lambda x_t, t: x_t, schedule, test, t=t
    )
    found[t] = float(measured.mean()) / formula
    print(f"t = {t}: formula {formula:.4f}, measured {float(measured.mean()):.4f}")

# %% [markdown]
# ## What this chapter claims

# %%
assert copier_losses[-1] < 1e-3
assert abs(inside(copied) - inside(noise)) < 0.1  # noise stays noise
assert means_of_loss["exact"] > 0.1
assert 0.98 < means_of_loss["network"] / means_of_loss["exact"] < 1.1
assert means_of_loss["identity"] > 1.5 * means_of_loss["exact"]
assert inside(drawn) > 0.9
assert np.all(np.abs(shares - weights) < 0.05)
assert deviation["low_discrepancy_times"] < deviation["uniform_times"]
assert all(abs(ratio - 1) < 0.05 for ratio in found.values())
