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
# # 1. The forward process
#
# A diffusion model turns data into noise, step by step. Then it learns the way back.
# This chapter is about the way to the noise.
#
# Each chapter begins with an idea that many first tutorials share. It shows what the
# idea does on data whose truth is known. Then it shows the right way.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

import jaxdiff as jd
from jaxdiff import data

plt.rcParams["figure.dpi"] = 72

digits = data.load("digits")
images = data.to_unit(digits.train.images, digits.levels)  # [1437, 8, 8, 1], [-1, 1]
test = data.to_unit(digits.test.images, digits.levels)
reader = LogisticRegression(C=0.01, max_iter=1000)
reader.fit(images.reshape(len(images), -1), digits.train.labels)


def read(x):
    """The share of the test digits that a classifier reads correctly in x."""
    read_as = reader.predict(np.asarray(x).reshape(len(x), -1))
    return np.mean(read_as == digits.test.labels)


# %% [markdown]
# ## The naive idea: add noise once
#
# The naive forward process adds a little noise to the data, once. The number $\beta$
# is its variance.

# %%
beta = 0.02
rng = np.random.default_rng(0)
noised = test + np.sqrt(beta) * rng.normal(size=test.shape)

print(f"read correctly: {read(test):.1%} of the digits, {read(noised):.1%} after noise")

# %% [markdown]
# ## Why it falls short
#
# The digits are still there: the classifier reads almost all of them. A model that
# generates must start from something that we can draw without data. These noisy digits
# are not such a thing.
#
# We can add noise many times. After $n$ steps
#
# $$x_n = x_0 + \sqrt{n \beta}\, \epsilon, \qquad \epsilon \sim N(0, I).$$
#
# The signal keeps its size. Only the noise grows, and the variance of $x_n$ grows with
# it. Two numbers describe what happens: the variance of a pixel, and the log of the
# signal-to-noise ratio of $x_t = \alpha_t x_0 + \sigma_t \epsilon$,
#
# $$\lambda_t = \log \frac{\alpha_t^2}{\sigma_t^2}.$$

# %%
num_steps = 100
step = np.arange(1, num_steps + 1)
pixel_variance = np.mean(test**2)  # about zero
naive_variance = pixel_variance + step * beta
naive_log_snr = -np.log(step * beta)
many = test + np.sqrt(num_steps * beta) * rng.normal(size=test.shape)

print(f"after {num_steps} steps: mean square of a pixel {np.mean(many**2):.2f},")
print(f"log-SNR {naive_log_snr[-1]:.2f}, read correctly {read(many):.1%}")

# %% [markdown]
# After a hundred steps the classifier still reads about half of the digits. Chance is
# 10%. The state is neither data nor a noise that we can draw without data.
#
# ## The right way: a schedule
#
# A schedule says how much signal and how much noise there is at each time $t$, from 0
# (data) to 1 (noise). It is a pytree with `log_snr(t)`, `alpha(t)` and `sigma(t)`.
# `q_sample` goes to any time at once:
#
# $$q(x_t \mid x_0) = N(\alpha_t x_0, \sigma_t^2 I).$$

# %%
schedules = {
    "cosine": jd.schedules.cosine(),
    "linear": jd.schedules.linear(),
    "sigmoid": jd.schedules.sigmoid(),
    "rectified flow": jd.schedules.rectified_flow(),
    "EDM": jd.schedules.edm(),
}
x_0 = jnp.asarray(test)
eps = jax.random.normal(jax.random.key(0), x_0.shape)
ends = {
    name: read(jd.q_sample(schedule, x_0, 1.0, eps))
    for name, schedule in schedules.items()
}
for name, schedule in schedules.items():
    print(
        f"{name:15s} log-SNR at t = 1: {float(schedule.log_snr(1.0)):6.1f},",
        f"read correctly there: {ends[name]:.1%}",
    )

# %% [markdown]
# At $t = 1$ all five end at about chance. There are three families.
#
# - *Variance preserving* (cosine, linear, sigmoid): $\alpha_t^2 + \sigma_t^2 = 1$. The
#   signal fades while the noise grows.
# - *Flow* (rectified flow): $\alpha_t = 1 - t$ and $\sigma_t = t$.
# - *Variance exploding* (EDM): $\alpha_t = 1$, as in the naive chain. But its noise
#   grows to $\sigma_1 = 80$, so that the signal does not matter at the end.
#
# The figure shows the variance of a pixel and the log-SNR. The naive chain is the
# dashed line. Below it stands one digit, under the naive chain and under the cosine
# schedule.

# %%
times = np.linspace(0.001, 0.999, 200)
figure = plt.figure(figsize=(10, 5.5), layout="constrained")
grid = figure.add_gridspec(3, 8, height_ratios=(2.4, 1, 1))
left, right = figure.add_subplot(grid[0, :4]), figure.add_subplot(grid[0, 4:])
left.plot(step / num_steps, naive_variance, "k--", label="naive chain")
right.plot(step / num_steps, naive_log_snr, "k--")
for name, schedule in schedules.items():
    alpha, sigma = schedule.alpha_sigma(times)
    left.plot(times, alpha**2 * pixel_variance + sigma**2, label=name)
    right.plot(times, schedule.log_snr(times))
left.set(yscale="log", xlabel="t", title="mean square of a pixel")
left.legend(fontsize=8)
right.set(ylim=(-16, 16), xlabel="t", title="log-SNR")
shown, zero = np.linspace(0, 1, 8), np.flatnonzero(digits.test.labels == 0)[:1]
rows = [
    [x_0[zero] + np.sqrt(t * num_steps * beta) * eps[zero] for t in shown],
    [jd.q_sample(schedules["cosine"], x_0[zero], float(t), eps[zero]) for t in shown],
]
for i, row in enumerate(rows):
    for j, x in enumerate(row):
        axis = figure.add_subplot(grid[1 + i, j])
        axis.imshow(x[0, ..., 0], cmap="gray")
        axis.set(xticks=[], yticks=[])
        if j == 0:
            axis.set_ylabel(("naive", "cosine")[i])
        if i == 0:
            axis.set_title(f"t = {shown[j]:.2f}", fontsize=9)

# %% [markdown]
# The naive chain falls from a log-SNR of 4 to -0.7 and stops there. The schedules go
# from almost no noise to almost no signal.
#
# ## Two ways to the same time
#
# The forward process is a Markov chain. `q_step` goes from a time $s$ on to a later
# time $t$. Many small steps must have the law of one large step. For a mixture of
# normals this law is known: `diffuse` returns it. We compare moments.

# %%
mixture = jd.oracles.GaussianMixture(
    jnp.log(jnp.array([0.7, 0.3])), jnp.array([[-1.0], [1.5]]), jnp.array([0.1, 0.2])
)
cosine, num = schedules["cosine"], 20_000
key_data, key_path = jax.random.split(jax.random.key(1))
x = mixture.sample(key_data, (num,))
ladder = np.linspace(0, 0.6, 13)
for key, s, t in zip(
    jax.random.split(key_path, 12), ladder[:-1], ladder[1:], strict=True
):
    x = jd.q_step(cosine, x, float(s), float(t), jax.random.normal(key, x.shape))

law = mixture.diffuse(cosine, 0.6)
weights = jnp.exp(law.log_weights)
mean = float(weights @ law.means[:, 0])
second = float(weights @ (law.means[:, 0] ** 2 + law.covariances))
errors = [float(jnp.std(x**k) / np.sqrt(num)) for k in (1, 2)]
print(f"mean   {float(x.mean()):.4f} +- {errors[0]:.4f}, exact {mean:.4f}")
print(f"square {float((x**2).mean()):.4f} +- {errors[1]:.4f}, exact {second:.4f}")

# %% [markdown]
# ## Exercise
#
# DDPM writes the forward process as a recursion with variances $\beta_n$,
#
# $$x_n = \sqrt{1 - \beta_n}\, x_{n-1} + \sqrt{\beta_n}\, \epsilon_n.$$
#
# The naive chain lacks the first root. Show that this recursion keeps the variance of
# data with unit variance. Then find $\alpha$ after all steps for the table
# `jd.schedules.linear_betas(1000)`, and compare it with the schedule that
# `jd.schedules.from_betas` makes.
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# Unit variance stays: (1 - beta) 1 + beta = 1. The roots multiply, so that
# alpha_n^2 = prod_i (1 - beta_i).
betas = np.asarray(jd.schedules.linear_betas(1000), dtype=np.float64)
alpha = np.sqrt(np.cumprod(1 - betas))
table = jd.schedules.from_betas(betas)
for n in (10, 500, 1000):
    print(f"n = {n:4d}: alpha {alpha[n - 1]:.6f}, schedule {table.alpha(n / 1000):.6f}")

# %% [markdown]
# ## What this chapter claims
#
# The last cell of each chapter checks its claims. It fails if they stop being true.

# %%
assert read(noised) > 0.9  # the naive noise hides nothing
assert read(many) > 0.4  # and the naive chain does not reach noise
assert all(share < 0.2 for share in ends.values())  # schedules do
assert abs(float(x.mean()) - mean) < 5 * errors[0]
assert abs(float((x**2).mean()) - second) < 5 * errors[1]
assert np.allclose(table.alpha(1.0), alpha[-1], rtol=1e-4)
