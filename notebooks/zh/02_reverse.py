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
# # 2. 反向过程
#
# 反向过程从噪声开始，到数据结束。每一步它都问*去噪器*（denoiser）：
# 给定 $x_t$，$x_0$ 的均值是多少？
#
# $$D(x_t, t) = E[x_0 \mid x_t].$$
#
# 这一章在精确去噪器已知的数据上比较几种去噪器：数据是平面上的三个簇。

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
# ## 朴素的想法：一个线性层，没有 t
#
# 朴素的网络是一个线性层，它不知道时间。我们用最好的方法拟合它：
# 对所有时刻的 $(x_t, x_0)$ 做最小二乘。然后把它一次又一次地作用在噪声上。

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
# ## 它差在哪里
#
# 所有的点都落到同一个位置。最小二乘得到的层把每个点拉向数据的均值，
# 五十次之后就什么也不剩了。
#
# 也许这一层只是缺少时间？每个 $t$ 的最优线性去噪器有解析解：
# 它就是*一个*正态分布的精确去噪器，这个正态分布与数据有相同的均值和协方差。
# 因此我们可以在真正的反向过程里使用它，而且知道会得到什么。

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
# 线性去噪器得到一团云。它有数据的均值和协方差，但大部分点落在簇与簇之间。
# 精确去噪器得到三个簇，而且比例正确。

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
# *灰色：真实的点。红色：样本。蓝色：从噪声到数据的 40 条路径。*
#
# ## 正确的做法：去噪器、核、网格
#
# 在 jaxdiff 里，采样器由三部分组成。
#
# - *去噪器*是一个函数 $(x_t, t) \mapsto E[x_0 \mid x_t]$。
# - *核*（kernel）是从 $t$ 到更小的 $s$ 的一步。
# - *网格*（grid）列出从 1 到 0 的时刻。
#
# `jd.sample` 在网格上运行核，整个过程编译成一个 scan。去噪器精确时，误差只来自步长。
# 我们以 400 步的结果为基准来测量误差。所有采样器从相同的噪声出发。

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
# DDIM 的误差与调用次数成反比。另外两种方法的阶更高。UniPC-2 用 20 次调用，
# 就比 DDIM 用 40 次调用更接近解。
#
# ## 练习
#
# DDIM 的一步先从 $x_t$ 中取出噪声，再按 $s$ 的水平放回去：
#
# $$\hat\epsilon = \frac{x_t - \alpha_t D(x_t, t)}{\sigma_t}, \qquad
#   x_s = \alpha_s D(x_t, t) + \sigma_s \hat\epsilon.$$
#
# 请自己写出这个循环，并在 20 步上与 `jd.kernels.ddim` 比较。
#
# 下一个单元格是答案。

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
# ## 本章的结论

# %%
error_of_share = np.sqrt(np.asarray(weights) * (1 - np.asarray(weights)) / num)
assert np.all(np.abs(shares(runs["exact"].x) - weights) < 5 * error_of_share)
assert inside(runs["exact"].x) > 0.98
assert inside(runs["linear"].x) < 0.5  # one cloud
assert float(collapsed.std(0).max()) < 0.01  # one point
assert errors["UniPC-2"][2] < errors["DDIM"][3]
assert difference < 1e-4
