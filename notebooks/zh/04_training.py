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
# # 4. 训练
#
# 训练就是拟合去噪器。损失决定网络学到什么。这一章比较两种损失：一种可以降到零，
# 另一种不可能降到零。
#
# 数据仍然是三个簇。精确去噪器给出任何网络都无法低于的最小损失。

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models, training

plt.rcParams["figure.dpi"] = 72

weights = jnp.array([0.5, 0.3, 0.2])
means = jnp.array([[-1.5, 0.3], [1.0, 1.5], [1.2, -1.3]])
mixture = jd.oracles.GaussianMixture(jnp.log(weights), means, jnp.full(3, 0.04))
schedule = jd.schedules.cosine()
key_data, key_params, key_train, key_test, key_loss, key_run = jax.random.split(
    jax.random.key(0), 6
)

model = models.mlp(width=64, depth=2)
num_steps, batch_size = 3000, 256
batches = np.asarray(mixture.sample(key_data, (num_steps, batch_size)))


def train(loss):
    """Train the perceptron on a loss; return its parameters and its losses."""
    losses = []
    optimizer = training.make_optimizer(3e-3, num_steps=num_steps)
    state = training.fit(
        training.make_step(loss, optimizer, ema_decay=0.99),
        training.init_state(key_train, model.init(key_params, (2,)), optimizer),
        lambda n: (batches[n], None),
        num_steps,
        devices=jax.devices()[:1],
        at_once=20,
        after=lambda progress: losses.extend(np.ravel(progress.metrics["loss"])),
    )
    # Means of 20 updates, so that the curve can be read.
    return state.ema_params, np.array(losses).reshape(-1, 20).mean(axis=1)


# %% [markdown]
# ## 朴素的想法：MSE(model(x), x)
#
# 朴素的损失把网络的输出与它自己的输入比较。


# %%
def copying_loss(params, rows, batch):
    x, _ = batch
    return jnp.mean((model.apply(params, x, jnp.zeros(len(x))) - x) ** 2, axis=1)


copier, copier_losses = train(copying_loss)
print(f"loss at the start {copier_losses[0]:.4f}, at the end {copier_losses[-1]:.1e}")

# %% [markdown]
# ## 它差在哪里
#
# 恒等映射的损失是 0，而恒等映射对数据一无所知。网络非常接近恒等映射。
# 我们像生成器那样给它噪声，它又把噪声还给我们。

# %%
noise = jax.random.normal(key_run, (2000, 2))
copied = model.apply(copier, noise, jnp.zeros(len(noise)))


def inside(x):
    """The share of the points within four deviations (0.8) of a cluster."""
    distance = jnp.linalg.norm(x[:, None] - means[None], axis=-1)
    return float(jnp.mean(distance.min(1) < 0.8))


moved = float(jnp.median(jnp.linalg.norm(copied - noise, axis=1)))
print(f"median distance that the copier moves noise: {moved:.3f}")
print(f"inside a cluster: noise {inside(noise):.1%}, copies {inside(copied):.1%}")

# %% [markdown]
# ## 正确的做法：输入里没有的目标
#
# 去噪损失给每个样本抽取一个时刻和一份噪声。网络看到 $x_t$，必须说出混合的是什么。
# 预测 $v$、权重为 1 时，损失是
#
# $$L = E_{t, x_0, \epsilon} \frac{1}{d} \lVert v_\theta(x_t, t) - v \rVert^2,$$
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad
#   v = \alpha_t \epsilon - \sigma_t x_0.$$
#
# `jd.losses.simple` 就是这个损失：它是随机数键、网络、
# 调度和数据的纯函数。`training.denoising_loss` 把它变成训练步所需要的形式。

# %%
params, losses = train(
    training.denoising_loss(model.apply, schedule, prediction="v"),
)
network = Partial(model.apply, params)
exact = mixture.denoiser(schedule)


def exact_network(x_t, t):
    """What a perfect network says: the exact denoiser in units of v."""
    return jd.prediction.from_x_0(schedule, exact(x_t, t), x_t, t, prediction="v")


def identity_network(x_t, t):
    """The identity as a denoiser, in units of v."""
    return jd.prediction.from_x_0(schedule, x_t, x_t, t, prediction="v")


test = mixture.sample(key_test, (20_000,))
means_of_loss, errors_of_loss = {}, {}
for name, apply in {
    "identity": identity_network,
    "network": network,
    "exact": exact_network,
}.items():
    value = jd.losses.simple(key_loss, apply, schedule, test, prediction="v")
    means_of_loss[name] = float(value.mean())
    errors_of_loss[name] = float(value.std() / np.sqrt(len(value)))
    print(f"{name:9s} {means_of_loss[name]:.4f} +- {errors_of_loss[name]:.4f}")

# %% [markdown]
# 精确去噪器的损失远大于零。剩下的是噪声中谁也无法知道的部分。
# 网络与它相差不到百分之一。三者之中恒等映射最差。
#
# 所以损失的大小本身说明不了什么。在下限已知的地方，请与下限比较，并且要看样本。

# %%
denoiser = jd.make_denoiser(network, schedule, "v")
drawn = jd.draw(key_run, denoiser, schedule, (2000, 2)).x
distance = jnp.linalg.norm(drawn[:, None] - means[None], axis=-1)
shares = np.bincount(np.asarray(distance.argmin(1)), minlength=3) / len(drawn)
print(f"inside a cluster {inside(drawn):.1%}, shares {shares}, true {weights}")

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
steps = 20 * np.arange(1, len(losses) + 1)
axes[0].semilogy(steps, copier_losses, "C3", label="MSE(model(x), x)")
axes[0].semilogy(steps, losses, "C0", label="denoising loss")
axes[0].axhline(means_of_loss["exact"], color="black", ls="--", label="exact denoiser")
axes[0].set(xlabel="update", title="loss")
axes[0].legend(fontsize=8)
for axis, points, title in (
    (axes[1], copied, "copier: noise in, noise out"),
    (axes[2], drawn, "denoiser: samples"),
):
    axis.scatter(*test[:1000].T, s=1, color="0.75")
    axis.scatter(*points[:800].T, s=2, color="C3" if axis is axes[1] else "C0")
    axis.set(xlim=(-3, 3), ylim=(-3, 3), title=title)
figure.tight_layout()

# %% [markdown]
# *灰色：真实的点。*
#
# ## 覆盖整个区间的时刻
#
# 独立的随机时刻会碰巧留下空隙，
# 因此一个批次的损失有噪声。`low_discrepancy_times` 抽取的时刻也是均匀分布的，
# 但在一个批次内间隔均匀。我们用两种方法各把同一批次的损失重复 200 次。

# %%
repeated = jax.random.split(key_loss, 200)


def batch_loss(key, times):
    key_times, key_noise = jax.random.split(key)
    t = times(key_times, batch_size)
    return jd.losses.simple(
        key_noise, exact_network, schedule, test[:batch_size], t=t, prediction="v"
    ).mean()


deviation = {
    times.__name__: float(
        jax.jit(jax.vmap(lambda key, times=times: batch_loss(key, times)))(
            repeated
        ).std()
    )
    for times in (jd.losses.uniform_times, jd.losses.low_discrepancy_times)
}
print(deviation)

# %% [markdown]
# 标准差小了十分之一，而且没有代价。`training.denoising_loss` 使用这样的时刻。
#
# ## 练习
#
# 恒等映射作为去噪器说 $D(x_t, t) = x_t$。请写出它的 $x_0$ 均方误差的解析式，
# 用 $\alpha_t$、$\sigma_t$ 和 $E\lVert x_0 \rVert^2$ 表示。
# 在三个时刻与 `jd.losses.denoising_error` 比较。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# x_t - x_0 = (alpha - 1) x_0 + sigma eps, and x_0 and eps are independent:
# E |x_t - x_0|^2 = (1 - alpha)^2 E|x_0|^2 + 2 sigma^2 in two dimensions.
square = float(weights @ (means**2).sum(1)) + 2 * 0.04
found = {}
for t in (0.2, 0.5, 0.8):
    alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
    formula = (1 - alpha) ** 2 * square + 2 * sigma**2
    measured = jd.losses.denoising_error(
        key_loss, lambda x_t, t: x_t, schedule, test, t=t
    )
    found[t] = float(measured.mean()) / formula
    print(f"t = {t}: formula {formula:.4f}, measured {float(measured.mean()):.4f}")

# %% [markdown]
# ## 本章的结论

# %%
assert copier_losses[-1] < 1e-3
assert abs(inside(copied) - inside(noise)) < 0.1  # noise stays noise
assert means_of_loss["exact"] > 0.1
assert 0.98 < means_of_loss["network"] / means_of_loss["exact"] < 1.1
assert means_of_loss["identity"] > 1.5 * means_of_loss["exact"]
assert inside(drawn) > 0.9
assert np.all(np.abs(shares - weights) < 0.05)
assert deviation["low_discrepancy_times"] < deviation["uniform_times"]
assert all(abs(ratio - 1) < 0.05 for ratio in found.values())
