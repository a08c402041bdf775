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
# # 9. Thermodynamics
#
# The paper that started the field took its idea from physics (Sohl-Dickstein et al.
# 2015, arXiv:1503.03585). Data are a state far from equilibrium, noise is equilibrium,
# and a path between them costs *work*. This chapter translates four results of physics
# into numbers of a diffusion model.
#
# | physics | diffusion model |
# |---|---|
# | work of a path | minus its log weight, $W_F = -\log w$ |
# | free energy difference | $-\log p_\theta(x_0)$ |
# | second law | $E[W_F] \ge -\log p_\theta(x_0)$: the variational bound |
# | dissipated work | the gap of the bound |
#
# The data are normal in four dimensions, with four different variances. So the law of
# the finite chain is known exactly (`oracles.chain_law`).

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
# ## The naive idea: the mean work is the answer
#
# The naive reading takes the bound, a mean over paths, for $\log p(x_0)$ itself. We
# compute it for the same data and the same denoiser, and change only the number of
# steps.

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
# ## Why it falls short
#
# The number depends strongly on the number of steps. The difference is work that the
# path wastes: it is *dissipated*. A fast change wastes more. The bound mixes two
# things: how good the model is, and how fast its path was.
#
# ## The right way, 1: forward and reverse work
#
# A reverse path has a work too, $W_R = \log w$. Its mean bounds $\log p_\theta(x_0)$
# from above. Both gaps are dissipated work. For slow paths they fall as $1 / T$. We
# measure each against the exact law of the chain.

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
# ## 2: Jarzynski and Crooks
#
# Jarzynski's equality says that the mean of $e^{-W_F}$ is exact at any speed:
#
# $$E[e^{-W_F}] = p_\theta(x_0).$$
#
# It is exact, but for fast paths the mean lives on rare ones. Then many paths are
# needed. Crooks' theorem relates both directions,
# $P_F(W) / P_R(-W) = e^{W + \log p_\theta(x_0)}$, and Bennett's ratio is the best use
# of both.

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
# ## 3: Annealing
#
# More paths are one cure. A better path is another. Annealed importance sampling goes
# from forward paths to paths of the posterior in many small steps. It weights after
# each step, and moves by Hamiltonian dynamics. It works from both sides, and both
# bounds close in.

# %%
ais = jd.work.ais_bounds(keys[5], chain, (128, 4), num_temperatures=100, step_size=0.2)
exact = jd.oracles.chain_law(mixture, chain).log_prob(ais.x_0)
low, high = float((ais.lower - exact).mean()), float((ais.upper - exact).mean())
print(f"one path: {-gaps[T][0]:.2f} to +{gaps[T][1]:.2f} nats around the exact value")
print(f"annealed: {low:.2f} to +{high:.2f} nats around the exact value")

# %% [markdown]
# ## 4: Entropy production
#
# Where is the work lost? The entropy production of one reverse step is the divergence
# between the true reverse step and the model's,
#
# $$E\left[\log \frac{q(x_s)\, q(x_t \mid x_s)}{q(x_t)\, p_\theta(x_s \mid x_t)}\right]
#   = E\, \mathrm{KL}(q(x_s \mid x_t) \,\|\, p_\theta(x_s \mid x_t)) \ge 0.$$
#
# Its sum is the gap between the bound and the entropy of the data, up to the two ends
# of the path. `work.entropy_production` takes the exact marginals of the oracle.


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
# - The work of both directions crosses at the exact value. Slow paths are sharper.
# - The dissipated work of both directions falls as $1 / T$ once the paths are slow.
# - Near the noise (left) a step costs nothing. The work is lost from a log-SNR of about
#   0 on, where the data become visible. There a grid needs its steps.
#
# ## Exercise
#
# Near equilibrium the work is normal. For normal work with variance $s^2$ Jarzynski's
# equality says how much is dissipated. Derive the formula, and compare it with the
# forward works of 20, 40 and 80 steps (`works[T][0]`).
#
# The next cell is the solution.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# For W ~ N(m, s^2): log E[exp(-W)] = -m + s^2 / 2. It must be log p. So the dissipated
# work, m + log p, is s^2 / 2: the fluctuation-dissipation relation.
ratio = {}
for T in (20, 40, 80):
    predicted = works[T][0].var() / 2
    ratio[T] = predicted / gaps[T][0]
    print(f"{T} steps: s^2 / 2 = {predicted:.2f}, dissipated {gaps[T][0]:.2f}")

# %% [markdown]
# The slower the path, the better the formula.
#
# ## What this chapter claims

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
