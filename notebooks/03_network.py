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
# # 3. What a network says
#
# A network takes $x_t$ and $t$. It may return an estimate of the noise, of the data or
# of a mixture of both. This chapter shows why it needs the time, and that all these
# answers are one answer in different units.
#
# The data are three clusters in the plane again. Their exact denoiser says how good a
# network can be.

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
key_train, key_test, key_noise, key_params = jax.random.split(jax.random.key(0), 4)

# %% [markdown]
# ## The naive idea: network(x) returns x
#
# The naive network takes an image with noise and returns an image. It is not told how
# much noise there is. We build it from the same perceptron as the right one, but it
# always sees $t = 0$.

# %%
model = models.mlp(width=64, depth=2)
num_steps, batch_size = 3000, 256
batches = np.asarray(mixture.sample(key_train, (num_steps, batch_size)))


def without_time(params, x, t, label=None, *, dropout_key=None):
    """The naive network: it does not look at t."""
    return model.apply(params, x, jnp.zeros_like(t), label, dropout_key=dropout_key)


def train(apply):
    """Train a network that predicts x_0, and return its denoiser."""
    optimizer = training.make_optimizer(3e-3, num_steps=num_steps)
    loss = training.denoising_loss(
        apply, schedule, prediction="x0", weight=jd.losses.weights.min_snr(1.0)
    )
    step = training.make_step(loss, optimizer, ema_decay=0.99)
    state = training.init_state(key_train, model.init(key_params, (2,)), optimizer)
    state = training.fit(
        step,
        state,
        lambda n: (batches[n], None),
        num_steps,
        devices=jax.devices()[:1],
        at_once=50,
    )
    return jd.make_denoiser(Partial(apply, state.ema_params), schedule, "x0")


naive, network = train(without_time), train(model.apply)

# %% [markdown]
# ## Why it falls short
#
# We measure the mean squared error of $x_0$ at nine noise levels, for five denoisers:
#
# - the mean of the data, which does not look at $x_t$;
# - the best linear denoiser of each $t$;
# - the network without the time;
# - the network with the time;
# - the exact denoiser $E[x_0 \mid x_t]$. No denoiser has a smaller error.

# %%
mean = weights @ means
centred = means - mean
covariance = 0.04 * jnp.eye(2) + (weights[:, None] * centred).T @ centred
denoisers = {
    "mean": lambda x_t, t: jnp.broadcast_to(mean, x_t.shape),
    "best linear": jd.oracles.gaussian(mean, covariance).denoiser(schedule),
    "network without t": naive,
    "network": network,
    "exact": mixture.denoiser(schedule),
}
x_0 = mixture.sample(key_test, (4000,))
times = np.linspace(0.1, 0.9, 9)
errors = {
    name: np.array(
        [
            float(
                jnp.mean(
                    jd.losses.denoising_error(
                        key_noise, denoiser, schedule, x_0, t=float(t)
                    )
                )
            )
            for t in times
        ]
    )
    for name, denoiser in denoisers.items()
}
print("t                 ", "  ".join(f"{t:.1f}  " for t in times))
for name, error in errors.items():
    print(f"{name:18s}", " ".join(f"{e:.4f}" for e in error))

# %%
figure, axis = plt.subplots(figsize=(6, 3.6))
styles = {"mean": "C7:", "best linear": "C1-", "network without t": "C3o-"}
for name, error in errors.items():
    axis.semilogy(times, error, styles.get(name, "C0s-"), label=name)
axis.lines[-1].set(color="black", marker="", linestyle="--")
axis.set(xlabel="t", ylabel="mean squared error of x_0")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# The network with the time follows the exact denoiser. The network without it is worse
# at every level. It must give one answer to a point that may be data with little noise
# or noise with little data. From $t = 0.7$ on even the linear denoiser, which knows the
# time, is better. From $t = 0.8$ on a constant is better: the mean of the data.
#
# ## The right way: one denoiser, any prediction
#
# The noise, the data and the velocity are affine functions of each other, if $x_t$ and
# $t$ are known. For instance
#
# $$v = \alpha_t \epsilon - \sigma_t x_0, \qquad x_0 = \alpha_t x_t - \sigma_t v$$
#
# for a variance preserving schedule. `make_denoiser` turns any of them into
# $E[x_0 \mid x_t]$. The rest of the library speaks only of that.
#
# The predictions are equal, but their errors are not. Say that a network is off by 0.01
# in its own units. The next cell shows how far $x_0$ is then off.

# %%
exact = denoisers["exact"]
x_t = jd.q_sample(schedule, x_0[:500], 0.5, jax.random.normal(key_noise, (500, 2)))


def off(prediction, t):
    """How far x_0 is off if the network is off by 0.01."""

    def wrong(x_t, t):
        output = jd.prediction.from_x_0(
            schedule, exact(x_t, t), x_t, t, prediction=prediction
        )
        return output + 0.01

    denoiser = jd.make_denoiser(wrong, schedule, prediction)
    return float(jnp.abs(denoiser(x_t, t) - exact(x_t, t)).mean())


table = {kind: [off(kind, t) for t in (0.05, 0.5, 0.95)] for kind in ("eps", "x0", "v")}
print("t      0.05    0.50    0.95")
for kind, values in table.items():
    print(f"{kind:5s}", " ".join(f"{value:.5f}" for value in values))

# %% [markdown]
# An error of $\epsilon$ is multiplied by $\sigma_t / \alpha_t$. It is harmless near the
# data and large near the noise. An error of $x_0$ stays as it is. An error of $v$ is
# multiplied by $\sigma_t$, which is small near the data and never more than 1. So
# chapter 4 and the shipped network of chapter 8 use $v$.
#
# ## Exercise
#
# The network without the time cannot become perfect. Its best answer is a mean over all
# times at which $x$ may have been made,
#
# $$E[x_0 \mid x] = \frac{\int w(t)\, q_t(x)\, D(x, t)\, dt}{\int w(t)\, q_t(x)\, dt},$$
#
# where $w(t) = \min(\mathrm{SNR}_t, 1)$ is the weight of the loss. Compute it with the
# oracle: `mixture.diffuse(schedule, t).log_prob(x)` is $\log q_t(x)$. Compare its error
# with the error of the network without the time.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
all_times = jnp.linspace(0.005, 0.995, 199)


@jax.jit
def best_without_time(x, t):
    def at(time):
        log_q = mixture.diffuse(schedule, time).log_prob(x)
        log_weight = jnp.minimum(schedule.log_snr(time), 0)
        return log_q + log_weight, exact(x, time)

    log_weights, denoised = jax.lax.map(at, all_times)
    return jnp.einsum("tb,tbd->bd", jax.nn.softmax(log_weights, axis=0), denoised)


best = np.array(
    [
        float(
            jnp.mean(
                jd.losses.denoising_error(
                    key_noise, best_without_time, schedule, x_0, t=float(t)
                )
            )
        )
        for t in times
    ]
)
print("best without t    ", " ".join(f"{e:.4f}" for e in best))
print("network without t ", " ".join(f"{e:.4f}" for e in errors["network without t"]))

# %% [markdown]
# The two rows are close. The naive network has learned what it can. More training or
# more layers cannot help it: it lacks an input.
#
# ## What this chapter claims

# %%
for name, error in errors.items():
    assert np.all(error > 0.97 * errors["exact"]), name  # 4000 points: 3% of noise
assert np.all(errors["network"] < 1.15 * errors["exact"] + 0.005)
assert np.all(errors["network without t"] > errors["network"])
assert np.all(errors["network without t"][6:] > errors["best linear"][6:])  # t >= 0.7
assert np.all(errors["network without t"][7:] > errors["mean"][7:])  # t >= 0.8
assert np.allclose(best, errors["network without t"], rtol=0.15, atol=0.01)
assert np.isclose(
    table["eps"][2] / 0.01, np.exp(-schedule.log_snr(0.95) / 2), rtol=0.01
)
