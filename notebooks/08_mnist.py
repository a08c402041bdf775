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
# # 8. MNIST
#
# This chapter compares a naive network for handwritten digits with the network that
# ships with jaxdiff. It needs no data set: the shipped network draws the digits that
# the naive one is trained on.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxdiff as jd

plt.rcParams["figure.dpi"] = 72

keys = jax.random.split(jax.random.key(0), 8)
mnist = jd.pretrained("mnist")
schedule = mnist.schedule
labels = jnp.arange(160) % 10
drawn = jd.draw(keys[0], mnist.denoiser(labels), schedule, (160, *mnist.event_shape))
digits = jnp.clip(drawn.x, -1, 1)
train, fresh = digits[:120], digits[120:]
print(f"pixels below 0: {jnp.mean(digits < 0):.1%} of all")

# %% [markdown]
# ## The naive idea: three convolutions
#
# The naive network has three convolutions and a sigmoid at the end. It sees one noise
# level, and the loss is the mean squared error. There is no time.


# %%
class Naive(nn.Module):
    """Three convolutions and a sigmoid."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        return nn.sigmoid(nn.Conv(1, (3, 3))(x))


network = Naive()
noise = 0.5
optimizer = optax.adam(3e-3)


def fit(loss, num_steps=200):
    """Train the network on one fixed set of digits."""
    params = network.init(keys[1], train[:1])
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, key):
        key_rows, key_noise = jax.random.split(key)
        rows = jax.random.randint(key_rows, (32,), 0, len(train))
        x = train[rows]
        x_noisy = x + noise * jax.random.normal(key_noise, x.shape)
        gradient = jax.grad(loss)(params, x, x_noisy, labels[rows])
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, change), state

    for n in range(num_steps):
        params, state = update(params, state, jax.random.fold_in(keys[2], n))
    return params


def denoising(params, x, x_noisy, label):
    return jnp.mean((network.apply(params, x_noisy) - x) ** 2)


naive = fit(denoising)

# %% [markdown]
# ## Why it falls short: four mistakes
#
# **1. The sigmoid.** Its values lie between 0 and 1. The data lie between -1 and 1, and
# most pixels are near -1. The network can never reach them. The best value that it can
# give to a pixel is the pixel clipped to [0, 1], so that the loss has a floor.
#
# **2. The labels.** In some tutorials the loss compares the output with the *label*,
# `mean((output - label) ** 2)`. Shapes broadcast, and nothing warns.


# %%
def against_labels(params, x, x_noisy, label):
    return jnp.mean((network.apply(params, x_noisy) - label[:, None, None, None]) ** 2)


mistaken = fit(against_labels, num_steps=100)
test_noisy = fresh + noise * jax.random.normal(keys[3], fresh.shape)
output = network.apply(naive, test_noisy)
error = float(jnp.mean((output - fresh) ** 2))
floor = float(jnp.mean((jnp.clip(fresh, 0, 1) - fresh) ** 2))
grey = network.apply(mistaken, test_noisy)
print(f"error {error:.3f}, floor of any sigmoid {floor:.3f}")
print(f"trained on labels: all pixels between {grey.min():.3f} and {grey.max():.3f}")

# %% [markdown]
# The error is at its floor, and the floor is high. The network that was trained on
# labels gives images that are white everywhere: most labels are 1 or more, and the
# sigmoid ends at 1.
#
# **3. One noise level.** The network was trained at $\sigma = 0.5$. We measure it at
# other levels, beside the shipped network. For this comparison the sigmoid is repaired:
# we train the same convolutions with outputs that are stretched to [-1, 1].


# %%
def repaired(params, x):
    return 2 * network.apply(params, x) - 1


def denoising_repaired(params, x, x_noisy, label):
    return jnp.mean((repaired(params, x_noisy) - x) ** 2)


better = fit(denoising_repaired)
shipped = mnist.denoiser()
levels = [0.2, 0.5, 1.0, 2.0, 5.0]
table = {"one level": [], "shipped": []}
for level in levels:
    eps = jax.random.normal(keys[4], fresh.shape)
    # x + level eps is x_t / alpha_t at the time whose noise-to-signal ratio is level.
    t = schedule.time(-2 * np.log(level))
    x_t = jd.q_sample(schedule, fresh, t, eps)
    for name, guess in (
        ("one level", repaired(better, fresh + level * eps)),
        ("shipped", shipped(x_t, t)),
    ):
        table[name].append(float(jnp.mean((guess - fresh) ** 2)))
print("sigma    ", "  ".join(f"{level:5.1f}" for level in levels))
for name, values in table.items():
    print(f"{name:9s}", "  ".join(f"{value:.3f}" for value in values))

# %% [markdown]
# Near its own level the repaired network is useful. At large noise it is far worse than
# the shipped network, which is told the level.
#
# **4. It cannot start from noise.** A generator must turn pure noise into a digit. Near
# the noise nothing of a digit is left to be repaired, so that the whole image matters.
# Three convolutions see 7x7 pixels.
#
# ## The right way: a U-Net, the time, and all levels
#
# The shipped network sees the whole image and the time. It was trained on all levels
# with the prediction $v$. The figure shows its reverse process, and what the naive
# networks make of noise if they are applied again and again.

# %%
x_init = jd.prior_sample(keys[5], schedule, (10, *mnist.event_shape))
run = jd.sample(
    keys[6],
    jd.kernels.unipc(mnist.denoiser(jnp.arange(10)), schedule),
    x_init,
    jd.grids.uniform(20),
    save_every=4,
)


def again_and_again(apply, params, num_times=20):
    """Apply a network to its own output; keep every fourth image."""
    kept, x = [x_init], x_init
    for n in range(num_times):
        x = apply(params, x)
        if n % 4 == 3:
            kept.append(x)
    return kept


strips = {
    "shipped": list(run.trajectory),
    "repaired": again_and_again(jax.jit(repaired), better),
    "naive": again_and_again(jax.jit(network.apply), naive),
    "labels": again_and_again(jax.jit(network.apply), mistaken),
}
figure, axes = plt.subplots(4, 12, figsize=(11, 4))
for row, (name, strip) in zip(axes, strips.items(), strict=True):
    shown = [strip[k][i] for i in (3, 0) for k in range(6)]
    for axis, x in zip(row, shown, strict=True):
        axis.imshow(np.asarray(x)[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.tight_layout()

# %% [markdown]
# *Two strips side by side, from noise to the end. Top row: the shipped network, asked
# for a 3 and a 0.*
#
# How near are the results to digits? We take the distance to the nearest of the 120
# digits, and divide it by the same distance of fresh digits.


# %%
def nearest(x):
    squared = jnp.sum((x[:, None] - train[None]) ** 2, axis=(2, 3, 4))
    return float(jnp.median(jnp.sqrt(squared.min(axis=1))))


ratios = {name: nearest(strip[-1]) / nearest(fresh) for name, strip in strips.items()}
for name, ratio in ratios.items():
    print(f"{name:9s} {ratio:.2f}")

# %% [markdown]
# The samples of the shipped network are as near to its digits as fresh digits are. The
# others end far away.
#
# ## Exercise
#
# Does the shipped network use the time that it is told? Add noise with $\sigma = 1$ to
# fresh digits. Give the network this image, but tell it the time of $\sigma = 0.3$, of
# $1$ and of $3$. Keep $x_t = \alpha_t (x_0 + \sigma \epsilon)$, with the $\alpha_t$ of
# the time that you tell it. Which error of $x_0$ is the smallest?
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
noisy = fresh + 1.0 * jax.random.normal(keys[7], fresh.shape)
told = {}
for level in (0.3, 1.0, 3.0):
    t = schedule.time(-2 * np.log(level))
    guess = shipped(schedule.alpha(t) * noisy, t)
    told[level] = float(jnp.mean((guess - fresh) ** 2))
    print(f"told sigma = {level}: error {told[level]:.3f}")

# %% [markdown]
# The right time gives the smallest error. If it is told too little noise, the network
# leaves noise in the image. If it is told too much, it takes details away.
#
# ## What this chapter claims

# %%
assert error > 0.95 * floor > 0.5  # the sigmoid
assert float(grey.min()) > 0.5  # the labels: white everywhere
assert table["one level"][3] > 3 * table["shipped"][3]  # one noise level
assert ratios["shipped"] < 1.3  # and the start from noise
assert min(ratios[name] for name in ("repaired", "naive", "labels")) > 1.5
assert min(told, key=told.get) == 1.0
