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

# %%

# %% [markdown]
# # 7. 分布的乘积
#
# 扩散模型是先验 $p(x_0)$，观测 $y$ 有似然 $p(y \mid x_0)$。后验是它们的乘积，
#
# $$p(x_0 \mid y) = \frac{p(x_0)\, p(y \mid x_0)}{p(y)}.$$
#
# 这一章从后验中抽样：先在真相已知的平面上，再对只看见一半的数字。

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
# ## 朴素的想法：加噪声，去噪一次
#
# 朴素的“后验样本”取一些数据，加上噪声，再去噪一次。

# %%
data_points = mixture.sample(keys[1], (num,))
x_t = jd.q_sample(
    schedule, data_points, 0.5, jax.random.normal(keys[2], data_points.shape)
)
naive = denoiser(x_t, 0.5)
print("shares: naive", shares(naive))

# %% [markdown]
# ## 它差在哪里
#
# 观测根本没有出现。所以各簇的比例就是先验的比例：有一半的点落在被观测排除的簇里。
# 而且去噪一次得到的是均值，不是样本。
#
# 扩散后验采样（DPS）确实使用了 $y$。它沿着去噪状态处似然的梯度前进。这是一种近似，
# 无论多少步都有偏差。

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
# ## 正确的做法：带权重的粒子
#
# `posterior.twisted` 以类似的方式引导粒子，并用权重修正引导。粒子数增加时，
# 样本收敛到后验。权重还给出证据 $p(y)$ 的无偏估计。

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
# *灰线：与 $y$ 完全一致的点。数字是到精确后验的距离，
# “exact posterior” 的数字是这个距离的下限。*

# %% [markdown]
# DPS 把太多的点放进了上面的簇。带权重的粒子几乎与精确样本一样近。
#
# ## 数字的一半
#
# 随 jaxdiff 提供的网络是手写数字的先验。这里它先画出两个数字。
# 我们看见它们的上半部分，带有少量噪声。`posterior.draw` 运行多个独立的系统，
# 每个系统有四个粒子，
# 并各返回一个样本。`mnist.spread` 说明 $x_0$ 可能离网络的回答多远。

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
# 样本与看见的一半在噪声范围内一致：残差大约是一个标准差。看不见的一半每个样本都不同。
# 朴素方法得到的图像是别的数字。
#
# ## 练习
#
# 如果先验容易抽样，后验样本就不需要扩散。请从混合分布抽取 20,000 个点，
# 用似然给每个点加权。估计 $\log p(y)$ 和各簇的比例。
# 有效样本量有多大？`observation(x)` 是一个点的对数似然。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
points = mixture.sample(keys[0], (20_000,))
log_weights = jax.vmap(observation)(points)
estimate = float(jd.resampling.log_mean_weight(log_weights))
chosen = jd.resampling.draw(keys[1], log_weights, points, num)
size = float(jd.resampling.effective_sample_size(log_weights))
print(f"log p(y) {estimate:.3f}, exact {log_evidence:.3f}")
print("shares", shares(chosen), f"effective sample size {size:.0f} of 20000")

# %% [markdown]
# 在平面上这样做可行。在数字的 784 维空间里，先验的样本几乎没有一个有正确的上半部分。
# 所以粒子必须在途中得到引导。
#
# ## 本章的结论

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
