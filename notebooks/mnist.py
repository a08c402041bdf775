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
# # One network, three uses
#
# A network that ships with jaxdiff does three things here. It draws handwritten digits.
# It says which class an image belongs to. It completes an image of which only one half
# is seen.
#
# The notebook does not need data and does not train. It takes a minute or two on two
# cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff import data

mnist = jd.pretrained("mnist")
schedule = mnist.schedule
key_prior, key_run, key_hidden, key_bound, key_draw = jax.random.split(
    jax.random.key(0), 5
)


def show(rows, titles=None):
    """Rows of images in [-1, 1]."""
    _, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(len(rows[0]), len(rows)), squeeze=False
    )
    for axis, x in zip(axes.flat, (x for row in rows for x in row), strict=True):
        axis.imshow(np.asarray(x)[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.axis("off")
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=9)


# %% [markdown]
# ## 1. Sampling
#
# We need a denoiser of the ten classes, a kernel (UniPC-2, which is of third order) and
# twenty steps.

# %%
labels = jnp.arange(40) % 10
x_init = jd.prior_sample(key_prior, schedule, (40, *mnist.event_shape))
drawn = jd.sample(
    key_run,
    jd.kernels.unipc(mnist.denoiser(labels), schedule),
    x_init,
    jd.grids.uniform(20),
)
show(np.asarray(drawn.x).reshape(4, 10, *mnist.event_shape))

# %% [markdown]
# ## 2. Probability makes a classifier
#
# The model of class $k$ gives a bound of $\log p(x_0 \mid k)$. All classes are given
# the same noise, so that the differences between the bounds are sharp. Bayes' rule
# turns these differences into $p(k \mid x_0)$. A classifier is not needed.
#
# The model gives probabilities to images of 256 grey levels. So the samples are rounded
# to these levels first.

# %%
ts = jd.grids.uniform(50)
decoder = jd.decoders.discretised_normal(mnist.levels)


@jax.jit
def bounds(images, k):
    chain = jd.Chain(
        mnist.denoiser(jnp.full(len(images), k)),
        schedule,
        ts,
        decoder=decoder,
        ends_clean=True,
    )
    return jd.likelihood.elbo(key_bound, chain, images)


images = data.to_unit(data.from_unit(drawn.x[:8], mnist.levels), mnist.levels)
log_p = jnp.stack([bounds(images, k) for k in range(10)], axis=1)
print("asked for", labels[:8], "most probable", log_p.argmax(axis=1))
print(
    "lead over the next best class, nats:",
    np.round(np.ptp(np.sort(log_p, axis=1)[:, -2:], axis=1), 1),
)

# %% [markdown]
# ## 3. Posteriors
#
# We take a digit that the model drew. Its top half is observed with a little noise.
# `posterior.draw` runs twelve independent systems of four particles under the model
# without labels, and returns one draw of each. They are samples of $p(x_0 \mid y)$, and
# together they estimate the evidence $\log p(y)$. `mnist.spread` says how far the digit
# may lie from the network's answer, by noise level and direction.

# %%
truth = images[3]
observed = jd.observations.half(mnist.event_shape, "top")
y = truth + 0.1 * jax.random.normal(key_hidden, truth.shape)
seen = jd.observations.mask(y, observed, noise_std=0.1)
kernel = jd.posterior.twisted(mnist.denoiser(), schedule, seen, spread=mnist.spread)
draws = jd.posterior.draw(
    key_run,
    kernel,
    schedule,
    (12, *mnist.event_shape),
    ts=jd.grids.uniform(25),
    rows=4,
)
print(
    f"log p(y) about {draws.log_evidence:.0f} nats,",
    f"of {len(draws.x)} independent systems",
)
show(
    [[truth, jnp.where(observed > 0, y, 0), *draws.x[:6]]],
    ["truth", "observed", *6 * ["draw"]],
)
