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
# # 9. 热力学
#
# 开创这个领域的论文从物理学得到了它的想法（Sohl-Dickstein et al. 2015,
# arXiv:1503.03585）。
# 数据是远离平衡的状态，噪声是平衡态，两者之间的路径要做*功*。
# 这一章把物理学的四个结果翻译成扩散模型里的数。
#
# | 物理学 | 扩散模型 |
# |---|---|
# | 路径的功 | 负对数权重，$W_F = -\log w$ |
# | 自由能差 | $-\log p_\theta(x_0)$ |
# | 第二定律 | $E[W_F] \ge -\log p_\theta(x_0)$：变分下界 |
# | 耗散功 | 下界的差距 |
#
# 数据是四维正态分布，四个方差各不相同。
# 因此有限链的分布是精确已知的（`oracles.chain_law`）。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd

plt.rcParams["figure.dpi"] = 72

keys = jax.random.split(jax.random.key(0), 8)
schedule = jd.schedules.cosine(log_snr_min=-8.0, log_snr_max=8.0)
mixture = jd.oracles.gaussian(jnp.full(4, 0.5), jnp.array([0.1, 0.5, 1.0, 1.5]))


def make_chain(num_steps):
    grid = jd.grids.log_snr(schedule, num_steps)
    return jd.Chain(mixture.denoiser(schedule), schedule, grid)


# %% [markdown]
# ## 朴素的想法：平均功就是答案
#
# 朴素的理解把下界，也就是对路径的平均，当作 $\log p(x_0)$ 本身。
# 我们对相同的数据和相同的去噪器计算它，只改变步数。

# %%
x_0 = mixture.sample(keys[0], (2000,))
log_q = float(mixture.log_prob(x_0).mean())
numbers = [10, 20, 40, 80]
bounds = {
    T: float(jd.likelihood.elbo(keys[1], make_chain(T), x_0).mean()) for T in numbers
}
for T, bound in bounds.items():
    print(f"{T:3d} steps: bound {bound:7.2f} nats, log density of the data {log_q:.2f}")

# %% [markdown]
# ## 它差在哪里
#
# 这个数强烈地依赖于步数。差别是路径浪费的功：它被*耗散*了。变化得快，浪费就多。
# 下界混合了两件事：模型有多好，以及它的路径有多快。
#
# ## 正确的做法，1：前向功与反向功
#
# 反向路径也有功，$W_R = \log w$。它的均值是 $\log p_\theta(x_0)$ 的上界。
# 两侧的差距都是耗散功。路径足够慢时，它们按 $1 / T$ 下降。
# 我们以链的精确分布为基准测量它们。

# %%
works, gaps = {}, {}
for T in numbers:
    chain = make_chain(T)
    pair = jd.work.bidirectional_bounds(keys[2], chain, (4000, 4), num_paths=1)
    exact = jd.oracles.chain_law(mixture, chain).log_prob(pair.x_0)
    works[T] = (
        np.asarray(pair.forward_work[0] + exact),
        np.asarray(pair.reverse_work - exact),
    )
    gaps[T] = works[T][0].mean(), works[T][1].mean()
    print(
        f"{T:3d} steps: dissipated {gaps[T][0]:6.2f} forward, {gaps[T][1]:5.2f} reverse"
    )

# %% [markdown]
# ## 2：Jarzynski 与 Crooks
#
# Jarzynski 等式说，无论快慢，$e^{-W_F}$ 的均值都是精确的：
#
# $$E[e^{-W_F}] = p_\theta(x_0).$$
#
# 它是精确的，但对快的路径，均值由少见的路径决定，因此需要许多路径。
# Crooks 定理联系了两个方向，$P_F(W) / P_R(-W) = e^{W + \log p_\theta(x_0)}$，
# 而 Bennett 比值最好地利用了两者。

# %%
T = 20
chain = make_chain(T)
few = mixture.sample(keys[3], (256,))
exact = jd.oracles.chain_law(mixture, chain).log_prob(few)
jarzynski = {}
for num_paths in (1, 10, 1000):
    estimate = jd.likelihood.importance_log_prob(
        keys[4], chain, few, num_paths=num_paths
    )
    jarzynski[num_paths] = float((estimate - exact).mean())
    print(f"Jarzynski, {num_paths:4d} paths: {jarzynski[num_paths]:.2f} nats off")

forward, reverse = works[T]
bennett = float(jd.work.bennett_acceptance_ratio(forward, reverse))
error = float(jd.work.bennett_standard_error(forward, reverse))
crooks = jd.work.crooks(forward, reverse)
print(f"Bennett: {bennett:.2f} +- {error:.2f} nats off")
print(f"slope of Crooks' theorem: {crooks.slope:.2f} +- {crooks.slope_se:.2f}, exact 1")

# %% [markdown]
# ## 3：退火
#
# 更多的路径是一种办法，更好的路径是另一种。
# 退火重要性采样用许多小步从前向路径走到后验的路径。它每一步先加权，
# 再用哈密顿动力学移动。它可以从两侧进行，两个界都向中间靠拢。

# %%
ais = jd.work.ais_bounds(keys[5], chain, (128, 4), num_temperatures=100, step_size=0.2)
exact = jd.oracles.chain_law(mixture, chain).log_prob(ais.x_0)
low, high = float((ais.lower - exact).mean()), float((ais.upper - exact).mean())
print(f"one path: {-gaps[T][0]:.2f} to +{gaps[T][1]:.2f} nats around the exact value")
print(f"annealed: {low:.2f} to +{high:.2f} nats around the exact value")

# %% [markdown]
# ## 4：熵产生
#
# 功是在哪里损失的？一个反向步的熵产生，是真正的反向步与模型的反向步之间的散度，
#
# $$E\left[\log \frac{q(x_s)\, q(x_t \mid x_s)}{q(x_t)\, p_\theta(x_s \mid x_t)}\right]
#   = E\, \mathrm{KL}(q(x_s \mid x_t) \,\|\, p_\theta(x_s \mid x_t)) \ge 0.$$
#
# 不计路径的两端，
# 它的总和就是下界与数据的熵之间的差距。`work.entropy_production` 使用 oracle
# 的精确边缘分布。


# %%
def log_marginal(x, t):
    return mixture.diffuse(schedule, t).log_prob(x)


production = {
    T: np.asarray(
        jd.work.entropy_production(keys[6], make_chain(T), x_0, log_marginal)
    ).mean(axis=1)
    for T in numbers
}
for T, values in production.items():
    print(
        f"{T:3d} steps: entropy production {values.sum():6.2f},",
        f"gap of the bound {log_q - bounds[T]:6.2f} nats",
    )

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
bins = np.linspace(-24, 10, 90)
for T, color in ((20, "C1"), (80, "C0")):
    f, r = works[T]
    axes[0].hist(
        -f, bins, density=True, histtype="step", color=color, label=f"{T} steps: -W_F"
    )
    axes[0].hist(
        r, bins, density=True, alpha=0.35, color=color, label=f"{T} steps: W_R"
    )
axes[0].axvline(0, color="black", ls="--")
axes[0].set(xlabel="nats, around log p(x_0)", title="work of both directions")
axes[0].legend(fontsize=8)
axes[1].loglog(numbers, [gaps[T][0] for T in numbers], "o-", label="forward")
axes[1].loglog(numbers, [gaps[T][1] for T in numbers], "s-", label="reverse")
axes[1].loglog(numbers, [110 / T for T in numbers], "k:", label="slope -1")
axes[1].set(xlabel="steps", title="dissipated work, nats")
axes[1].set_xticks(numbers, numbers)
axes[1].set_yticks([1, 2, 5, 10, 20], [1, 2, 5, 10, 20])
axes[1].minorticks_off()
axes[1].legend(fontsize=8)
for T, values in production.items():
    middle = schedule.log_snr(np.asarray(make_chain(T).times))[: len(values)]
    axes[2].plot(middle, values, ".-", label=f"{T} steps")
axes[2].set(xlabel="log-SNR at t", title="entropy production of a step, nats")
axes[2].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# - 两个方向的功在精确值处相交。路径越慢，分布越窄。
# - 路径足够慢时，两个方向的耗散功都按 $1 / T$ 下降。
# - 靠近噪声（左侧）的一步没有损失。功从对数信噪比大约为 0 处开始损失，
#   数据在那里变得可见。网格的步应当放在那里。
#
# ## 练习
#
# 在平衡附近，功服从正态分布。对方差为 $s^2$ 的正态分布的功，
# Jarzynski 等式说明了耗散有多少。请推导公式，并与 20、
# 40 和 80 步的前向功（`works[T][0]`）比较。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# For W ~ N(m, s^2): log E[exp(-W)] = -m + s^2 / 2. It must be log p. So the dissipated
# work, m + log p, is s^2 / 2: the fluctuation-dissipation relation.
ratio = {}
for T in (20, 40, 80):
    predicted = works[T][0].var() / 2
    ratio[T] = predicted / gaps[T][0]
    print(f"{T} steps: s^2 / 2 = {predicted:.2f}, dissipated {gaps[T][0]:.2f}")

# %% [markdown]
# 路径越慢，公式越准。
#
# ## 本章的结论

# %%
assert all(bounds[T] < log_q for T in numbers)
assert log_q - bounds[10] > 5 * (log_q - bounds[80])
assert 1.8 < gaps[40][0] / gaps[80][0] < 2.4  # 1 / T
assert 1.7 < gaps[40][1] / gaps[80][1] < 2.3
assert jarzynski[1] < jarzynski[10] < jarzynski[1000] < 0.1
assert abs(bennett) < 5 * error
assert abs(crooks.slope - 1) < 5 * crooks.slope_se
assert -gaps[20][0] < 5 * low < 0.5  # from below
assert -0.5 < 5 * high < gaps[20][1]  # from above
for T in numbers:
    assert np.isclose(production[T].sum(), log_q - bounds[T], rtol=0.1)
assert abs(ratio[80] - 1) < abs(ratio[20] - 1)
