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
# # 3. 网络说了什么
#
# 网络的输入是 $x_t$ 和 $t$。它可以估计噪声、数据，或者两者的混合。
# 这一章说明网络为什么需要时间，以及这些回答其实是同一个回答，只是单位不同。
#
# 数据仍然是平面上的三个簇。精确去噪器告诉我们网络最好能做到什么程度。

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
key_train, key_test, key_noise, key_params = jax.random.split(jax.random.key(0), 4)

# %% [markdown]
# ## 朴素的想法：network(x) 返回 x
#
# 朴素的网络输入一幅带噪声的图像，输出一幅图像。没有人告诉它噪声有多大。
# 它与正确的网络是同一个感知机，但它看到的永远是 $t = 0$。

# %%
model = models.mlp(width=64, depth=2)
num_steps, batch_size = 3000, 256
batches = np.asarray(mixture.sample(key_train, (num_steps, batch_size)))


def without_time(params, x, t, label=None, *, dropout_key=None):
    """The naive network: it does not look at t."""
    return model.apply(params, x, jnp.zeros_like(t), label, dropout_key=dropout_key)


def train(apply):
    """Train a network that predicts x_0, and return its denoiser."""
    optimizer = training.make_optimizer(3e-3, num_steps=num_steps)
    loss = training.denoising_loss(
        apply, schedule, prediction="x0", weight=jd.losses.weights.min_snr(1.0)
    )
    step = training.make_step(loss, optimizer, ema_decay=0.99)
    state = training.init_state(key_train, model.init(key_params, (2,)), optimizer)
    state = training.fit(
        step,
        state,
        lambda n: (batches[n], None),
        num_steps,
        devices=jax.devices()[:1],
        at_once=50,
    )
    return jd.make_denoiser(Partial(apply, state.ema_params), schedule, "x0")


naive, network = train(without_time), train(model.apply)

# %% [markdown]
# ## 它差在哪里
#
# 我们在九个噪声水平上测量 $x_0$ 的均方误差，比较五种去噪器：
#
# - 数据的均值，它根本不看 $x_t$；
# - 每个 $t$ 的最优线性去噪器；
# - 没有时间的网络；
# - 有时间的网络；
# - 精确去噪器 $E[x_0 \mid x_t]$，没有哪个去噪器的误差比它更小。

# %%
mean = weights @ means
centred = means - mean
covariance = 0.04 * jnp.eye(2) + (weights[:, None] * centred).T @ centred
denoisers = {
    "mean": lambda x_t, t: jnp.broadcast_to(mean, x_t.shape),
    "best linear": jd.oracles.gaussian(mean, covariance).denoiser(schedule),
    "network without t": naive,
    "network": network,
    "exact": mixture.denoiser(schedule),
}
x_0 = mixture.sample(key_test, (4000,))
times = np.linspace(0.1, 0.9, 9)
errors = {
    name: np.array(
        [
            float(
                jnp.mean(
                    jd.losses.denoising_error(
                        key_noise, denoiser, schedule, x_0, t=float(t)
                    )
                )
            )
            for t in times
        ]
    )
    for name, denoiser in denoisers.items()
}
print("t                 ", "  ".join(f"{t:.1f}  " for t in times))
for name, error in errors.items():
    print(f"{name:18s}", " ".join(f"{e:.4f}" for e in error))

# %%
figure, axis = plt.subplots(figsize=(6, 3.6))
styles = {"mean": "C7:", "best linear": "C1-", "network without t": "C3o-"}
for name, error in errors.items():
    axis.semilogy(times, error, styles.get(name, "C0s-"), label=name)
axis.lines[-1].set(color="black", marker="", linestyle="--")
axis.set(xlabel="t", ylabel="mean squared error of x_0")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# 有时间的网络与精确去噪器一致。没有时间的网络在每个水平上都更差。
# 同一个点可能是噪声很少的数据，也可能是数据很少的噪声，而它只能给出一个回答。
# 从 $t = 0.7$ 起，知道时间的线性去噪器也比它好。从 $t = 0.8$ 起，连一个常数都比它好：
# 数据的均值。
#
# ## 正确的做法：一个去噪器，任意的预测
#
# 如果 $x_t$ 和 $t$ 已知，噪声、数据和速度就互为仿射函数。例如对方差保持的调度，
#
# $$v = \alpha_t \epsilon - \sigma_t x_0, \qquad x_0 = \alpha_t x_t - \sigma_t v.$$
#
# `make_denoiser` 把其中任何一种变成 $E[x_0 \mid x_t]$。库的其余部分只使用它。
#
# 这些预测是等价的，但它们的误差并不等价。假设网络在自己的单位里偏差 0.01。
# 下一个单元格显示 $x_0$ 因此偏差多少。

# %%
exact = denoisers["exact"]
x_t = jd.q_sample(schedule, x_0[:500], 0.5, jax.random.normal(key_noise, (500, 2)))


def off(prediction, t):
    """How far x_0 is off if the network is off by 0.01."""

    def wrong(x_t, t):
        output = jd.prediction.from_x_0(
            schedule, exact(x_t, t), x_t, t, prediction=prediction
        )
        return output + 0.01

    denoiser = jd.make_denoiser(wrong, schedule, prediction)
    return float(jnp.abs(denoiser(x_t, t) - exact(x_t, t)).mean())


table = {kind: [off(kind, t) for t in (0.05, 0.5, 0.95)] for kind in ("eps", "x0", "v")}
print("t      0.05    0.50    0.95")
for kind, values in table.items():
    print(f"{kind:5s}", " ".join(f"{value:.5f}" for value in values))

# %% [markdown]
# $\epsilon$ 的误差要乘以 $\sigma_t / \alpha_t$：靠近数据时无害，
# 靠近噪声时很大。$x_0$ 的误差保持原样。$v$ 的误差要乘以 $\sigma_t$：靠近数据时很小，
# 而且从不超过 1。因此第 4 章和第 8 章里随库提供的网络使用 $v$。
#
# ## 练习
#
# 没有时间的网络不可能完美。它最好的回答是对所有可能产生 $x$ 的时刻取平均，
#
# $$E[x_0 \mid x] = \frac{\int w(t)\, q_t(x)\, D(x, t)\, dt}{\int w(t)\, q_t(x)\, dt},$$
#
# 其中 $w(t) = \min(\mathrm{SNR}_t, 1)$ 是损失的权重。
# 请用 oracle 计算它：`mixture.diffuse(schedule, t).log_prob(x)` 就是 $\log q_t(x)$。
# 把它的误差与没有时间的网络的误差比较。
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
all_times = jnp.linspace(0.005, 0.995, 199)


@jax.jit
def best_without_time(x, t):
    def at(time):
        log_q = mixture.diffuse(schedule, time).log_prob(x)
        log_weight = jnp.minimum(schedule.log_snr(time), 0)
        return log_q + log_weight, exact(x, time)

    log_weights, denoised = jax.lax.map(at, all_times)
    return jnp.einsum("tb,tbd->bd", jax.nn.softmax(log_weights, axis=0), denoised)


best = np.array(
    [
        float(
            jnp.mean(
                jd.losses.denoising_error(
                    key_noise, best_without_time, schedule, x_0, t=float(t)
                )
            )
        )
        for t in times
    ]
)
print("best without t    ", " ".join(f"{e:.4f}" for e in best))
print("network without t ", " ".join(f"{e:.4f}" for e in errors["network without t"]))

# %% [markdown]
# 两行数字很接近。朴素的网络已经学到了它能学的一切。更多的训练或更多的层都帮不了它：
# 它缺少一个输入。
#
# ## 本章的结论

# %%
for name, error in errors.items():
    assert np.all(error > 0.97 * errors["exact"]), name  # 4000 points: 3% of noise
assert np.all(errors["network"] < 1.15 * errors["exact"] + 0.005)
assert np.all(errors["network without t"] > errors["network"])
assert np.all(errors["network without t"][6:] > errors["best linear"][6:])  # t >= 0.7
assert np.all(errors["network without t"][7:] > errors["mean"][7:])  # t >= 0.8
assert np.allclose(best, errors["network without t"], rtol=0.15, atol=0.01)
assert np.isclose(
    table["eps"][2] / 0.01, np.exp(-schedule.log_snr(0.95) / 2), rtol=0.01
)
