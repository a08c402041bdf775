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
# # 5. 概率
#
# 扩散模型是一个概率分布。它可以说出一幅图像有多大的概率，以奈特或比特为单位。
# 这一章说明这样一个数必须满足什么，以及计算它的四种方法。
#
# 数据看起来像 8x8 像素的数字，但它们来自一个对数字拟合的高斯混合分布。
# 因此 $\log p(x)$ 是已知的。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff import data

plt.rcParams["figure.dpi"] = 72

keys = jax.random.split(jax.random.key(0), 8)
digits = data.load("digits")
images = jnp.asarray(data.to_unit(digits.train.images, digits.levels))
mixture = jd.oracles.fitted(keys[0], images, 10)
x_0 = mixture.sample(keys[1], (64,))  # [64, 64]
noise = jax.random.uniform(keys[2], x_0.shape, minval=-1.0, maxval=1.0)

figure, axes = plt.subplots(2, 8, figsize=(8, 2.2))
for axis, x in zip(axes.flat, [*x_0[:8], *noise[:8]], strict=True):
    axis.imshow(x.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
    axis.axis("off")

# %% [markdown]
# *上：混合分布的样本。下：噪声。*
#
# ## 朴素的想法：测试误差就是似然
#
# 朴素的教程把网络输出的均方误差当作测试数据的“对数似然”。


# %%
def naive_log_likelihood(model, x):
    return -np.mean((model(x) - x) ** 2)


def copier(x):
    return x


def smoother(x):
    """Each image becomes the mean of the data."""
    return jnp.broadcast_to(
        jax.nn.softmax(mixture.log_weights) @ mixture.means, x.shape
    )


for name, model in {"copier": copier, "mean of the data": smoother}.items():
    print(
        f"{name:17s} digits {naive_log_likelihood(model, x_0):.3f},",
        f"noise {naive_log_likelihood(model, noise):.3f}",
    )
print(f"the same, pixels times 10: {100 * naive_log_likelihood(smoother, x_0):.2f}")

# %% [markdown]
# ## 它差在哪里
#
# 复制输入的模型得到最好的数。对数字和对噪声它得到同一个数。
# 所以这个数说不出哪些图像的概率大。
#
# 它也没有单位。如果把像素乘以十再存储，它就变成 100 倍。
# 而对数密度只会改变一个已知的*加数* $d \log 10$，对每个模型都一样。
# 因此模型之间的差与像素的存储方式无关。
#
# 概率必须分配。模型给一幅图像的概率，是从其他图像那里拿来的。复制者什么也不分配。
# 真正的对数密度能区分这两组图像：

# %%
log_p = mixture.log_prob(x_0)
log_p_noise = mixture.log_prob(noise)
print(f"exact log p, nats: digits {log_p.mean():.1f}, noise {log_p_noise.mean():.1f}")

# %% [markdown]
# ## 正确的做法：路径
#
# 由有限个反向步组成的链是数据的一个模型 $p_\theta$。
# 它的概率是对所有路径 $x_{1:T}$ 的积分。我们用前向过程抽取一条路径，并给它加权：
#
# $$w = \frac{p(x_T) \prod_t p_\theta(x_{t-1} \mid x_t)}{q(x_{1:T} \mid x_0)},
#   \qquad E[w] = p_\theta(x_0).$$
#
# - $\log w$ 的均值是一个下界：变分下界，`elbo`。
# - 许多路径的 $w$ 取平均再取对数会更接近：`importance_log_prob`。
# - 概率流 ODE 是另一个模型，它有自己的密度：`ode_log_prob`。
#
# 这里的去噪器是精确的，因此精确的 $\log p$ 是它们共同的目标。

# %%
schedule = jd.schedules.cosine()
denoiser = mixture.denoiser(schedule, variance=True)
chain = jd.Chain(denoiser, schedule, jd.grids.uniform(25), variance="optimal")

estimates = {
    "bound, 1 path": jd.likelihood.elbo(keys[3], chain, x_0),
    "bound, mean of 16 paths": jd.likelihood.elbo(keys[3], chain, x_0, num_paths=16),
    "weights of 16 paths": jd.likelihood.importance_log_prob(
        keys[3], chain, x_0, num_paths=16
    ),
    "ODE, 4 probes": jd.likelihood.ode_log_prob(
        mixture.denoiser(schedule),
        schedule,
        jd.grids.log_snr(schedule, 50),
        x_0,
        key=keys[4],
        num_probes=4,
    ),
}
gaps = {}
for name, value in estimates.items():
    gap = np.asarray(value - log_p)
    gaps[name] = gap.mean(), gap.std() / np.sqrt(len(gap))
    print(f"{name:24s} minus exact: {gaps[name][0]:7.2f} +- {gaps[name][1]:.2f} nats")
bound_noise = jd.likelihood.elbo(keys[3], chain, noise)
lead = float(estimates["bound, 1 path"].mean() - bound_noise.mean())
print(f"the bound puts digits above noise by {lead:.0f} nats")

# %% [markdown]
# 下界低于真值。同样 16 条路径的权重更接近真值。ODE 的期望没有差距，
# 它在这里的误差来自四个随机探针。这些数都以奈特为单位，
# 而下界立刻就能把数字与噪声分开。
#
# ## 从两侧逼近
#
# 对于模型自己抽取的数据，产生它们的路径是已知的。这条路径给出一个*上*界。
# 路径的负对数权重叫作*功*：前向路径的功是 $W_F$，反向路径的功是 $W_R$。
# Crooks 定理联系了两者的分布，
#
# $$\frac{P_F(W)}{P_R(-W)} = e^{W + \log p(x_0)}.$$
#
# 所以两条密度曲线恰好在 $W = -\log p(x_0)$ 处相交。我们在八维正态数据上检验它，
# 这时有限链的分布是已知的。
# 每个 $x_0$ 的功都以它自己的精确值 $\log p_\theta(x_0)$ 为中心显示。

# %%
gaussian = jd.oracles.gaussian(jnp.full(8, 0.5), jnp.linspace(0.2, 1.5, 8))
narrow = jd.schedules.cosine(log_snr_min=-8.0, log_snr_max=8.0)
short = jd.Chain(gaussian.denoiser(narrow), narrow, jd.grids.log_snr(narrow, 100))
bounds = jd.work.bidirectional_bounds(keys[5], short, (4000, 8), num_paths=2)
exact = jd.oracles.chain_law(gaussian, short).log_prob(bounds.x_0)
forward = bounds.forward_work[0] + exact
reverse = bounds.reverse_work - exact

bennett = float(jd.work.bennett_acceptance_ratio(forward, reverse))
bennett_error = float(jd.work.bennett_standard_error(forward, reverse))
slope = jd.work.crooks(forward, reverse)
print(f"mean of -W_F minus log p: {-forward.mean():.3f} nats, below")
print(f"mean of  W_R minus log p: {reverse.mean():.3f} nats, above")
print(f"Bennett's estimate minus log p: {bennett:.4f} +- {bennett_error:.4f} nats")
print(f"slope of Crooks' theorem: {slope.slope:.3f} +- {slope.slope_se:.3f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.4))
bins = np.linspace(-8, 6, 60)
axis.hist(
    np.asarray(-forward), bins, density=True, alpha=0.5, label="-W_F, forward paths"
)
axis.hist(
    np.asarray(reverse), bins, density=True, alpha=0.5, label="W_R, reverse paths"
)
axis.axvline(0, color="black", ls="--", label="exact log p")
axis.set(xlabel="nats, around log p(x_0)", ylabel="density")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# 两个直方图在精确值处相交。一个的均值低于它，另一个的均值高于它。
# Bennett 比值同时使用两者，误差只有百分之几奈特。
#
# ## 练习
#
# 所有图像的概率之和是 1。由下界得到的概率之和小于 1。请对只有一个像素、
# 17 个灰度级的图像检验这一点：这样的图像可以全部列出。
#
# 使用下面的混合分布和它的去噪器、`jd.grids.uniform(10)`，
# 以及解码器 `jd.decoders.discretised_normal(17)`。灰度级是 `jd.decoders.levels(17)`。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
pixel = jd.oracles.GaussianMixture(
    jnp.log(jnp.array([0.6, 0.4])), jnp.array([[-0.5], [0.6]]), jnp.array([0.02, 0.01])
)
small = jd.Chain(
    pixel.denoiser(schedule),
    schedule,
    jd.grids.uniform(10),
    decoder=jd.decoders.discretised_normal(17),
)
everything = jd.decoders.levels(17)[:, None]  # [17, 1]
total = float(
    jnp.exp(
        jd.likelihood.importance_log_prob(keys[6], small, everything, num_paths=5000)
    ).sum()
)
total_of_bound = float(
    jnp.exp(jd.likelihood.elbo(keys[6], small, everything, num_paths=5000)).sum()
)
print(f"sum of probabilities {total:.3f}, of those of the bound {total_of_bound:.3f}")

# %% [markdown]
# ## 本章的结论

# %%
assert naive_log_likelihood(copier, x_0) == naive_log_likelihood(copier, noise) == 0
assert float(log_p.mean() - log_p_noise.mean()) > 100
assert lead > 100
assert (
    gaps["bound, mean of 16 paths"][0] < -5 * gaps["bound, mean of 16 paths"][1]
)  # below
assert gaps["bound, mean of 16 paths"][0] < gaps["weights of 16 paths"][0]
assert abs(gaps["ODE, 4 probes"][0]) < 5 * gaps["ODE, 4 probes"][1]
assert -forward.mean() < 0 < reverse.mean()
assert abs(bennett) < 5 * bennett_error
assert abs(slope.slope - 1) < 5 * slope.slope_se
assert abs(total - 1) < 0.05
assert total_of_bound < 0.95
