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
# # 1. 前向过程
#
# 扩散模型把数据一步一步变成噪声，再学习如何走回来。这一章讲通向噪声的路。
#
# 每一章都从许多入门教程共有的一个想法开始。我们先看它在真相已知的数据上做出什么结果，
# 再看正确的做法。

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
# ## 朴素的想法：只加一次噪声
#
# 朴素的前向过程只给数据加一次少量噪声。$\beta$ 是噪声的方差。

# %%
beta = 0.02
rng = np.random.default_rng(0)
noised = test + np.sqrt(beta) * rng.normal(size=test.shape)

print(f"read correctly: {read(test):.1%} of the digits, {read(noised):.1%} after noise")

# %% [markdown]
# ## 它差在哪里
#
# 数字还在那里：分类器几乎全部认得出来。
# 生成模型必须从一种不需要数据就能抽取的东西出发。这些带噪声的数字不是这样的东西。
#
# 我们可以加很多次噪声。$n$ 步之后
#
# $$x_n = x_0 + \sqrt{n \beta}\, \epsilon, \qquad \epsilon \sim N(0, I).$$
#
# 信号的大小不变，只有噪声在增长，$x_n$ 的方差也随之增长。有两个量可以描述这个过程：
# 像素的方差，以及 $x_t = \alpha_t x_0 + \sigma_t \epsilon$ 的对数信噪比，
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
# 一百步之后，分类器仍然认得出大约一半的数字，而随机猜测只有 10%。这个状态既不是数据，
# 也不是不需要数据就能抽取的噪声。
#
# ## 正确的做法：噪声调度
#
# 噪声调度（schedule）规定每个时刻 $t$ 有多少信号和多少噪声，$t$ 从 0（数据）到
# 1（噪声）。
# 它是一个 pytree，
# 有 `log_snr(t)`、`alpha(t)` 和 `sigma(t)`。`q_sample` 一步就能到达任意时刻：
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
# 在 $t = 1$ 时，五种调度都接近随机猜测的水平。它们分属三个族。
#
# - *方差保持*（cosine、linear、sigmoid）：$\alpha_t^2 + \sigma_t^2 = 1$，
#   噪声增长的同时信号减弱。
# - *流*（rectified flow）：$\alpha_t = 1 - t$，$\sigma_t = t$。
# - *方差爆炸*（EDM）：$\alpha_t = 1$，与朴素的链相同。
#   但它的噪声一直增长到 $\sigma_1 = 80$，因此信号最后不再重要。
#
# 图中是像素的方差和对数信噪比。虚线是朴素的链。下面是同一个数字，
# 分别经过朴素的链和 cosine 调度。

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
# 朴素的链的对数信噪比从 4 降到 -0.7，然后停住。
# 而这些调度从几乎没有噪声一直走到几乎没有信号。
#
# ## 两条路通向同一时刻
#
# 前向过程是一个马尔可夫链。`q_step` 从时刻 $s$ 走到更晚的时刻 $t$。
# 许多小步必须与一大步有相同的分布。对高斯混合分布来说这个分布是已知的，
# 由 `diffuse` 返回。我们比较两者的矩。

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
# ## 练习
#
# DDPM 用方差 $\beta_n$ 把前向过程写成递推，
#
# $$x_n = \sqrt{1 - \beta_n}\, x_{n-1} + \sqrt{\beta_n}\, \epsilon_n.$$
#
# 朴素的链缺少第一个根号。请证明：数据的方差为 1 时，这个递推保持方差不变。
# 然后对表 `jd.schedules.linear_betas(1000)` 求出所有步之后的 $\alpha$，
# 并与 `jd.schedules.from_betas` 给出的调度比较。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# Unit variance stays: (1 - beta) 1 + beta = 1. The roots multiply, so that
# alpha_n^2 = prod_i (1 - beta_i).
betas = np.asarray(jd.schedules.linear_betas(1000), dtype=np.float64)
alpha = np.sqrt(np.cumprod(1 - betas))
table = jd.schedules.from_betas(betas)
for n in (10, 500, 1000):
    print(f"n = {n:4d}: alpha {alpha[n - 1]:.6f}, schedule {table.alpha(n / 1000):.6f}")

# %% [markdown]
# ## 本章的结论
#
# 每一章的最后一个单元格检查本章的结论。如果结论不再成立，它就会报错。

# %%
assert read(noised) > 0.9  # the naive noise hides nothing
assert read(many) > 0.4  # and the naive chain does not reach noise
assert all(share < 0.2 for share in ends.values())  # schedules do
assert abs(float(x.mean()) - mean) < 5 * errors[0]
assert abs(float((x**2).mean()) - second) < 5 * errors[1]
assert np.allclose(table.alpha(1.0), alpha[-1], rtol=1e-4)
