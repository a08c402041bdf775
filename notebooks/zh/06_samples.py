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
# # 6. 样本好不好？
#
# 生成器可以以许多方式失败。这一章故意用三种方式弄坏一个生成器，看看哪个数能发现什么。
#
# “真实”数据是一个高斯混合分布的样本，这个分布是对 8x8 数字拟合得到的。
# 因此真实样本要多少有多少，而且存在一个完美的生成器：混合分布本身。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff import data

plt.rcParams["figure.dpi"] = 72

keys = jax.random.split(jax.random.key(0), 12)
digits = data.load("digits")
images = jnp.asarray(data.to_unit(digits.train.images, digits.levels))
mixture = jd.oracles.fitted(keys[0], images, 10)
num = 600
real, other_real, train = (mixture.sample(key, (num,)) for key in keys[1:4])

# %% [markdown]
# ## 生成器
#
# - *good*：用精确去噪器的 50 步反向过程。
# - *memoriser*（记忆者）：只交还一个小训练集里的 `kept` 幅图像。
# - *dropper*（遗漏者）：丢掉了混合分布的一些成分。
# - *blurrer*（模糊者）：给每幅图像加一点噪声。

# %%
schedule = jd.schedules.cosine()
good = jd.draw(
    keys[4],
    mixture.denoiser(schedule),
    schedule,
    (num, 64),
    kernel=jd.kernels.ddim,
    ts=jd.grids.uniform(50),
).x


def memoriser(kept):
    return train[jax.random.randint(keys[5], (num,), 0, kept)]


def dropper(weight):
    """Draw, with the weight of the three most frequent components scaled."""
    frequent = jnp.argsort(-mixture.log_weights)[:3]
    log_weights = mixture.log_weights.at[frequent].add(jnp.log(weight))
    return jd.oracles.GaussianMixture(
        log_weights, mixture.means, mixture.covariances
    ).sample(keys[6], (num,))


def blurrer(width):
    x = mixture.sample(keys[7], (num,))
    return x + width * jax.random.normal(keys[8], x.shape)


# %% [markdown]
# ## 朴素的想法：一个数
#
# 朴素的报告只有一个数，比如 Frechet 距离。它比较均值和协方差。
# 我们调节每种缺陷的强度，使这个数对三者都大约是 1.3。


# %%
def frechet(x):
    return jd.metrics.frechet_distance(x, real).value


def tuned(make, strengths, aim=1.3):
    """The samples whose Frechet distance is nearest to the aim, and the strength."""
    made = [make(strength) for strength in strengths]
    best = int(np.argmin([abs(frechet(x) - aim) for x in made]))
    return made[best], strengths[best]


memorised, kept = tuned(memoriser, [100, 130, 160, 200])
dropped, weight = tuned(dropper, [0.05, 0.1, 0.15, 0.2])
blurred, width = tuned(blurrer, [0.2, 0.24, 0.26, 0.28, 0.3])
generators = {
    "good": good,
    "memoriser": memorised,
    "dropper": dropped,
    "blurrer": blurred,
}
print(f"memoriser of {kept} images, weight {weight} of three modes, noise of {width}")
for name, x in generators.items():
    print(f"{name:10s} Frechet distance {frechet(x):.2f}")

# %% [markdown]
# ## 它差在哪里
#
# 三种不同的缺陷得到同一个数。它说不出是哪一种缺陷，也说不出“大约 1.3”有多好：
# 真实图像与另一些真实图像之间也有距离，因为在 64 维里 600 幅图像并不多。
# 这就是该指标的*下限*（floor）。

# %%
print(f"floor: {frechet(other_real):.2f}")
figure, axes = plt.subplots(4, 12, figsize=(9, 3.2))
for row, (name, x) in zip(axes, generators.items(), strict=True):
    for axis, image in zip(row, x[:12], strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %% [markdown]
# ## 正确的做法：多个指标，各自配上下限
#
# - *Frechet 距离*：均值和协方差。
# - *能量距离*：分布的任何差别。
# - *1-NN 准确率*：最近邻能否区分样本与真实图像？0.5 表示不能。
# - *精确率*（precision）：落在真实图像之间的样本的比例。
# - *召回率*（recall）：落在样本之间的真实图像的比例。
# - *到训练集的距离*：样本的中位数，除以新的真实图像的同一个量。复制品的值是 0。
#
# `jd.metrics` 的每个指标都带有标准误。`compare` 还给出下限，
# 它来自数量相同的另一些真实图像。


# %%
def to_training(x, y):
    """The median distance to the nearest training image, over that of y."""

    def median(z):
        squared = jnp.sum((z[:, None] - train[None]) ** 2, axis=-1)
        return float(jnp.median(jnp.sqrt(squared.min(axis=1))))

    return jd.metrics.Estimate(median(x) / median(y), float("nan"))


metrics = {
    "Frechet": jd.metrics.frechet_distance,
    "energy": jd.metrics.energy_distance,
    "1-NN accuracy": jd.metrics.nearest_neighbour_accuracy,
    "precision": jd.metrics.precision,
    "recall": jd.metrics.recall,
    "to training": to_training,
}
table = {}
for name, x in generators.items():
    for label, metric in metrics.items():
        result = jd.metrics.compare(metric, x, real, other_real)
        table[name, label] = result.estimate.value
        table["floor", label] = result.floor.value
rows = ["floor", *generators]
print(f"{'':10s}", " ".join(f"{label:>13s}" for label in metrics))
for name in rows:
    values = " ".join(f"{table[name, label]:13.3f}" for label in metrics)
    print(f"{name:10s}", values)

# %%
values = np.array([[table[name, label] for label in metrics] for name in rows])
worst = np.abs(values - values[:1]).max(axis=0, keepdims=True)
figure, axis = plt.subplots(figsize=(8, 2.8))
axis.imshow(np.abs(values - values[:1]) / worst, cmap="Reds", vmax=1.3, aspect="auto")
for (i, j), value in np.ndenumerate(values):
    axis.text(j, i, f"{value:.2f}", ha="center", va="center")
axis.set_xticks(range(len(metrics)), metrics)
axis.set_yticks(range(len(rows)), rows)
figure.tight_layout()

# %% [markdown]
# *颜色越深，离下限越远。*
#
# - 好的生成器在所有列里都接近下限。
# - 记忆者的精确率是 0.86，因为它的图像是真的。它的召回率低，
#   1-NN 检验发现了它的复制品，到训练集的距离是 0。
# - 模糊者的精确率低。它的召回率高，1-NN 准确率是二分之一，
#   只看这两个数的话它会得到称赞。
# - 遗漏者在能量距离上很突出，在 1-NN 检验上稍微突出。精确率和召回率看不见它：
#   一个稀少的模式只要有几幅图像，就足以成为真实图像的近邻。
#
# 没有一个指标能看见一切。请报告多个指标，每个都配上下限。
#
# ## 练习
#
# 遗漏者丢掉了三个模式的大部分。请用计数找出它们：
# 把每幅图像归到混合分布中概率最大的成分，再与真实图像的计数比较。差别是否大于偶然？
# 使用统计量
#
# $$\chi^2 = \sum_k \frac{(n_k - m_k)^2}{n_k + m_k},$$
#
# 对于十个成分和来自同一分布的两组样本，它大约是 9。
#
# 下一个单元格是答案。


# %% tags=["hide-cell"] jupyter={"source_hidden": true}
@jax.jit
def counts(x):
    """How many images each component has."""

    def joint(mean, covariance, log_weight):
        return log_weight + jd.oracles.gaussian(mean, covariance).log_prob(x)

    log_joint = jax.vmap(joint)(mixture.means, mixture.covariances, mixture.log_weights)
    return jnp.bincount(log_joint.argmax(axis=0), length=len(mixture.means))


def chi_square(x):
    n, m = counts(x), counts(real)
    return float(jnp.sum((n - m) ** 2 / (n + m)))


print("real   ", counts(real))
print("dropper", counts(dropped))
chi = {name: chi_square(x) for name, x in generators.items()}
print({name: round(value, 1) for name, value in chi.items()})

# %% [markdown]
# 有三个成分只剩下很少的图像，统计量远大于 9。记忆者也大于 9：
# 它的 160 幅图像没有混合分布的比例。模糊者也是如此，因为噪声把图像移到了别的成分里。
#
# ## 本章的结论

# %%
broken = ["memoriser", "dropper", "blurrer"]
assert all(abs(table[name, "Frechet"] - 1.3) < 0.1 for name in broken)
assert abs(table["good", "Frechet"] - table["floor", "Frechet"]) < 0.1
assert table["memoriser", "to training"] < 0.01
assert all(table[name, "to training"] > 0.9 for name in ("good", "dropper", "blurrer"))
assert table["memoriser", "recall"] < 0.6 < table["good", "recall"]
assert table["blurrer", "precision"] < 0.5 < table["good", "precision"]
assert table["dropper", "energy"] > 5 * table["floor", "energy"]
assert abs(table["dropper", "recall"] - table["floor", "recall"]) < 0.1
assert chi["good"] < 25 < chi["dropper"]
