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
# # 8. MNIST
#
# 这一章把一个朴素的手写数字网络与随 jaxdiff 提供的网络比较。它不需要数据集：
# 训练朴素网络的数字由后者画出。

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
# ## 朴素的想法：三个卷积
#
# 朴素的网络有三个卷积，最后是一个 sigmoid。它只见过一个噪声水平，损失是均方误差，
# 没有时间。


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
# ## 它差在哪里：四个错误
#
# **1. sigmoid。** 它的值在 0 和 1 之间。数据在 -1 和 1 之间，而且大部分像素接近 -1。
# 网络永远达不到这些值。它对一个像素能给出的最好的值，是把像素截断到 [0, 1]，
# 所以损失有一个下限。
#
# **2. 标签。** 有些教程的损失把输出与*标签*比较，`mean((output - label) ** 2)`。
# 形状会自动广播，没有任何警告。


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
# 误差就在下限上，而这个下限很高。用标签训练的网络给出处处都是白色的图像：
# 大多数标签不小于 1，而 sigmoid 最大只到 1。
#
# **3. 一个噪声水平。** 网络是在 $\sigma = 0.5$ 上训练的。我们在其他水平上测量它，
# 并与随库提供的网络比较。为了这个比较，我们先修好 sigmoid：用同样的卷积训练，
# 但把输出拉伸到 [-1, 1]。


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
# 在自己的水平附近，修好的网络是有用的。噪声大时它远不如随库提供的网络，
# 后者知道噪声的水平。
#
# **4. 它不能从噪声出发。** 生成器必须把纯噪声变成数字。靠近噪声时，
# 数字没有留下任何可以修补的东西，所以需要看整幅图像。三个卷积只能看见 7x7 个像素。
#
# ## 正确的做法：U-Net、时间、所有水平
#
# 随库提供的网络看见整幅图像和时间。它在所有水平上训练，预测 $v$。图中是它的反向过程，
# 以及把朴素的网络一次又一次作用在噪声上的结果。

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
# *左右各有一条从噪声到结果的序列。第一行：随库提供的网络，要求它画 3 和 0。*
#
# 结果离数字有多近？我们取到 120 个数字中最近一个的距离，再除以新画的数字的同一距离。


# %%
def nearest(x):
    squared = jnp.sum((x[:, None] - train[None]) ** 2, axis=(2, 3, 4))
    return float(jnp.median(jnp.sqrt(squared.min(axis=1))))


ratios = {name: nearest(strip[-1]) / nearest(fresh) for name, strip in strips.items()}
for name, ratio in ratios.items():
    print(f"{name:9s} {ratio:.2f}")

# %% [markdown]
# 随库提供的网络的样本离数字很近，与新画的数字相同。其余的都离得很远。
#
# ## 练习
#
# 随库提供的网络是否使用了告诉它的时间？请给新画的数字加上 $\sigma = 1$ 的噪声。
# 把这幅图像交给网络，但告诉它的时间分别对应 $\sigma = 0.3$、$1$ 和 $3$。
# 保持 $x_t = \alpha_t (x_0 + \sigma \epsilon)$，其中 $\alpha_t$ 取所告诉的时间的值。
# 哪一个 $x_0$ 的误差最小？
#
# 下一个单元格是答案。

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
noisy = fresh + 1.0 * jax.random.normal(keys[7], fresh.shape)
told = {}
for level in (0.3, 1.0, 3.0):
    t = schedule.time(-2 * np.log(level))
    guess = shipped(schedule.alpha(t) * noisy, t)
    told[level] = float(jnp.mean((guess - fresh) ** 2))
    print(f"told sigma = {level}: error {told[level]:.3f}")

# %% [markdown]
# 正确的时间给出最小的误差。如果告诉它的噪声太小，它就把噪声留在图像里。如果太大，
# 它就抹掉细节。
#
# ## 本章的结论

# %%
assert error > 0.95 * floor > 0.5  # the sigmoid
assert float(grey.min()) > 0.5  # the labels: white everywhere
assert table["one level"][3] > 3 * table["shipped"][3]  # one noise level
assert ratios["shipped"] < 1.3  # and the start from noise
assert min(ratios[name] for name in ("repaired", "naive", "labels")) > 1.5
assert min(told, key=told.get) == 1.0
