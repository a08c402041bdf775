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
# # jaxdiff in two minutes
#
# This notebook begins with `q_sample`. It ends with digits that a network draws, after
# the notebook has trained it. Everything on the way is a pure function.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import data, models, training

# %% [markdown]
# ## 1. Data dissolves: the forward process
#
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$
#
# A schedule is a pytree with `log_snr(t)`, `alpha(t)` and `sigma(t)`. Time runs from 0
# (data) to 1 (noise). Images are [B, H, W, C], with values in [-1, 1].

# %%
digits = data.load("digits")
images = data.to_unit(digits.train.images, digits.levels)  # [1437, 8, 8, 1] in [-1, 1]
labels = digits.train.labels
schedule = jd.schedules.cosine()

times = np.linspace(0, 1, 8)
x_0, eps = jnp.asarray(images[:1]), jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
figure, axes = plt.subplots(1, 8, figsize=(12, 2))
for axis, t in zip(axes, times, strict=True):
    axis.imshow(
        jd.q_sample(schedule, x_0, float(t), eps)[0, ..., 0],
        cmap="gray",
        vmin=-1,
        vmax=1,
    )
    axis.set_title(f"t = {t:.2f}")
    axis.axis("off")

# %% [markdown]
# ## 2. The reverse process, exactly
#
# For a Gaussian mixture the denoiser $E[x_0 \mid x_t]$ has a closed form. We call it an
# *oracle*: if a sampler is right, the samples that it makes with this denoiser come
# from the mixture. Here we run DDIM with 50 steps.

# %%
mixture = jd.oracles.GaussianMixture(
    jnp.log(jnp.array([0.5, 0.3, 0.2])),
    jnp.array([[-1.5, 0.4], [0.9, 1.6], [1.2, -1.1]]),
    jnp.array(
        [
            [[0.20, 0.08], [0.08, 0.10]],
            [[0.06, -0.03], [-0.03, 0.15]],
            [[0.12, 0.0], [0.0, 0.05]],
        ]
    ),
)
key_prior, key_run = jax.random.split(jax.random.key(0))
x_init = jd.prior_sample(key_prior, schedule, (2000, 2))
kernel = jd.kernels.ddim(mixture.denoiser(schedule), schedule)
samples = jd.sample(key_run, kernel, x_init, jd.grids.uniform(50), save_every=10)

figure, axes = plt.subplots(1, 6, figsize=(15, 2.6), sharex=True, sharey=True)
for axis, x in zip(axes, samples.trajectory, strict=True):
    axis.scatter(*x.T, s=1)
    axis.set(xlim=(-4, 4), ylim=(-4, 4))
print(
    "mean of the samples",
    samples.x.mean(0),
    "exact",
    jnp.exp(mixture.log_weights) @ mixture.means,
)

# %% [markdown]
# ## 3. A network learns the denoiser
#
# A model is two pure functions, `init` and `apply`. The loss is one number for each
# example. The training step is written for one device. `fit` maps it over all devices
# and asks for a batch by the number of the update.

# %%
model = models.unet(
    channels=16, multipliers=(1, 2), num_blocks=1, attention=(4,), num_classes=10
)
num_steps, batch_size = 600, 128
optimizer = training.make_optimizer(3e-3, num_steps=num_steps)
loss = training.denoising_loss(model.apply, schedule, prediction="v", num_classes=10)
step = training.make_step(loss, optimizer, ema_decay=0.99)

key_params, key_train = jax.random.split(jax.random.key(1))
state = training.init_state(
    key_train, model.init(key_params, digits.event_shape), optimizer
)
batches, losses = data.batches(digits.train, batch_size=batch_size, seed=0), []


def batch(n):
    """The examples of an update, a function of its number alone."""
    rows = batches[n]
    return data.to_unit(rows.images, digits.levels), rows.labels


def keep(progress):
    losses.append(float(progress.metrics["loss"]))


params = training.fit(step, state, batch, num_steps, after=keep).ema_params
plt.figure(figsize=(6, 2.5))
plt.semilogy(np.convolve(np.asarray(losses, float), np.ones(20) / 20, mode="valid"))
plt.xlabel("step")
plt.ylabel("loss")
# %% [markdown]
# ## 4. Digits out of noise
#
# - `make_denoiser` turns the network into a denoiser, whatever the network predicts.
# - Guidance turns two denoisers into one.
# - A kernel turns a denoiser into a reverse step.
# - `sample` runs the steps as one compiled scan.
#
# The parameters are traced arguments. So new parameters do not compile anything again.

# %%
wanted = jnp.arange(40) % 10
given = jd.make_denoiser(Partial(model.apply, params, label=wanted), schedule, "v")
free = jd.make_denoiser(Partial(model.apply, params), schedule, "v")
guided = jd.guidance.classifier_free(given, free, 1.5)

x_init = jd.prior_sample(key_prior, schedule, (40, *digits.event_shape))
drawn = jd.sample(
    key_run, jd.kernels.ddim(guided, schedule), x_init, jd.grids.uniform(50)
).x

figure, axes = plt.subplots(4, 10, figsize=(10, 4))
for axis, x in zip(axes.flat, drawn, strict=True):
    axis.imshow(x[..., 0], cmap="gray", vmin=-1, vmax=1)
    axis.axis("off")

# %% [markdown]
# ## 5. Are they digits?
#
# A classifier reads the samples. It was trained on real digits only.

# %%
from sklearn.svm import SVC

classifier = SVC(C=10).fit(images.reshape(len(images), -1), labels)
test = data.to_unit(digits.test.images, digits.levels)
on_real = np.mean(classifier.predict(test.reshape(len(test), -1)) == digits.test.labels)
on_drawn = np.mean(
    classifier.predict(np.clip(drawn, -1, 1).reshape(40, -1)) == np.asarray(wanted)
)
print(
    f"recognised: {on_real:.1%} of held-out real digits,",
    f"{on_drawn:.1%} of the drawn ones",
)
