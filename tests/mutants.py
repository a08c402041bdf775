"""Mutants: one classic mistake each, in the source of the library, and the test that rejects it.

`make mutants` plants them one after the other in a copy of the repository (tests/run_mutants.py) and reports those that
live. In the suite, test_mutants.py holds that each still applies, and that no public function is without one.
"""

import re
from pathlib import PurePosixPath
from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake.

    Fields:
      file: where, from the root of the repository.
      covers: the public names that it breaks, of the file's public module.
      fault: what is wrong with it, in words.
      find: source text that stands in the file exactly once, however its lines are broken.
      put: what takes its place.
      test: the test that fails with it and passes without, from tests/.
    """

    file: str
    covers: tuple[str, ...]
    fault: str
    find: str
    put: str
    test: str

    @property
    def module(self) -> str:
        """The public module that the file belongs to, below jaxdiff: kernels of jaxdiff/kernels/_classic.py."""
        parts = PurePosixPath(self.file).with_suffix("").parts[1:]
        if parts[0] == "training":  # its __init__ offers what its modules define
            return "training"
        return ".".join(part for part in parts if not part.startswith("_"))

    def places(self, source: str) -> list[re.Match[str]]:
        """Where the text stands in a source: between its words may be any space, and the comma that ends a list."""
        words = re.findall(r"\w+|[^\w\s]", self.find)
        return list(re.finditer(r"\s*,?\s*".join(map(re.escape, words)), source))

    def in_place(self, source: str) -> str:
        """The source with the mistake in it."""
        (place,) = self.places(source)
        return source[: place.start()] + self.put.strip() + source[place.end() :]

    def __str__(self) -> str:
        return f"{self.file}: {self.covers[0]}: {self.fault}"


TABLE: dict[str, list[tuple[str, str, str, str, str]]] = {
    # --- schedules, grids, the forward process ---------------------------------------------------------------------
    "jaxdiff/schedules/_base.py": [
        ("Schedule", "sigma^2 for sigma", ", jnp.exp(-jax.nn.softplus(log_snr) / 2)", ", jnp.exp(-jax.nn.softplus(log_snr))", "test_schedules.py::test_family_constraint"),
    ],
    "jaxdiff/schedules/_continuous.py": [
        ("cosine", "log of the amplitudes' ratio, without the 2", "return 2 * (jnp.log(jnp.sin(high", "return 1 * (jnp.log(jnp.sin(high", "test_schedules.py::test_cosine_is_the_cosine"),
        ("linear", "the integral of t without its half", "(beta_max - beta_min) * t**2 / 2", "(beta_max - beta_min) * t**2", "test_schedules.py::test_linear_is_the_limit_of_ddpm"),
        ("sigmoid", "multiplied with the temperature", "return start / tau, end / tau, clip_min", "return start * tau, end * tau, clip_min", "test_schedules.py::test_sigmoid_matches_its_definition"),
        ("edm", "t runs from the data's end", "-2 * ((1 - t) * low + t * high)", "-2 * (t * low + (1 - t) * high)", "test_schedules.py::test_edm_levels"),
        ("rectified_flow", "the ratio for its square", "return 2 * (jnp.log(lifted(1 - t)) - jnp.log(lifted(t)))", "return jnp.log(lifted(1 - t)) - jnp.log(lifted(t))", "test_schedules.py::test_log_snr_is_the_log_of_the_ratio"),
    ],
    "jaxdiff/schedules/_table.py": [
        ("from_betas", "alpha-bar one step late", "numpy.concatenate([numpy.zeros(1, betas.dtype), numpy.cumsum(steps)])", "numpy.cumsum(steps)", "test_schedules.py::test_from_betas_is_the_ddpm_recursion"),
    ],
    "jaxdiff/schedules/_betas.py": [
        ("linear_betas", "ends a step early", "np.linspace(start, end, num_steps)", "np.linspace(start, end, num_steps, endpoint=False)", "test_schedules.py::test_beta_tables"),
        ("cosine_betas", "the last beta is not limited", "np.minimum(1 - f[1:] / f[:-1], 0.999)", "1 - f[1:] / f[:-1]", "test_schedules.py::test_beta_tables"),
        ("zero_terminal_snr", "scaled to 1 at the first step", "* alpha[0] / (alpha[0] - alpha[-1])", "/ (alpha[0] - alpha[-1]) * 0.999", "test_schedules.py::test_zero_terminal_snr"),
    ],
    "jaxdiff/schedules/_learned.py": [
        ("learned", "from the wrong end", "return ts, high + fractions * (low - high)", "return ts, low + fractions * (high - low)", "test_bound.py::test_learned_schedule_is_monotone_and_inverts"),
        ("learned_parameters", "bins of unequal shares", "jnp.zeros(num_bins, jnp.float32)", "jnp.arange(num_bins).astype(jnp.float32)", "test_identities.py::test_a_learned_schedule_starts_straight"),
    ],
    "jaxdiff/grids.py": [
        ("uniform", "T times for T steps", "np.arange(num_steps, -1, -1) / num_steps", "np.linspace(1, 0, num_steps)", "test_grids.py::test_uniform_is_exact"),
        ("quadratic", "the ends' squares", "_between(np.sqrt(start), np.sqrt(end), _fractions(num_steps)) ** 2", "_between(start, end, _fractions(num_steps)) ** 2", "test_identities.py::test_a_quadratic_grid_is_even_in_the_root_between_other_ends"),
        ("subsequence", "steps counted from 0", "np.round(total - k * total / num_steps)", "np.round(total - 1 - k * total / num_steps)", "test_grids.py::test_subsequences_are_the_table_s"),
        ("log_snr", "the step at an infinite end counted twice", "jnp.clip((index - at_start) / inner, 0, 1)", "jnp.clip(index / inner, 0, 1)", "test_identities.py::test_a_grid_at_an_infinite_start_spends_one_step_there"),
        ("karras", "rho for 1 / rho on the way back", "lambda x: -2 * rho * jnp.log(x)", "lambda x: -2 / rho * jnp.log(x)", "test_grids.py::test_karras_is_their_equation_5"),
        ("optimised", "the error at the end of the step", "* error[:, None], np.inf)", "* error[None, :], np.inf)", "test_grids.py::test_optimised_is_the_best_of_all_grids"),
    ],
    "jaxdiff/forward.py": [
        ("q_sample", "sigma^2 for sigma", "alpha * x_0 + sigma * eps", "alpha * x_0 + sigma**2 * eps", "test_forward.py::test_q_sample_is_affine"),
        ("q_step", "the variance at the wrong end of the step", "noise = level_t.sigma * jnp.sqrt(", "noise = level_s.sigma * jnp.sqrt(", "test_forward.py::test_steps_compose_to_q_sample"),
        ("renewed", "no rounding is foreseen", "gap <= rounding, jnp.minimum(gap, 0), gap", "gap <= rounding, gap, gap", "test_forward.py::test_rounding_of_a_log_snr_makes_no_negative_variance"),
        ("renewed", "a wrong order is hidden", "gap <= rounding, jnp.minimum(gap, 0), gap", "gap <= rounding, jnp.minimum(gap, 0), jnp.minimum(gap, 0)", "test_forward.py::test_rounding_of_a_log_snr_makes_no_negative_variance"),
        ("q_between q_posterior", "the variance at the wrong end of the step", "sigma_s**2 * new, mean.shape", "sigma_t**2 * new, mean.shape", "test_forward.py::test_posterior_is_ddpm_equation_7"),
        ("q_posterior", "alpha_t for alpha_s", "x_t + alpha_s * new * x_0", "x_t + alpha_t * new * x_0", "test_forward.py::test_posterior_is_ddpm_equation_7"),
        ("q_likelihood", "a standard deviation for a variance", "jnp.exp(-log_snr), x_t.shape", "jnp.exp(-log_snr / 2), x_t.shape", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.05]"),
        ("rates", "alpha' and sigma' exchanged", "return _rows.expand(d_alpha, x), _rows.expand(d_sigma, x)", "return _rows.expand(d_sigma, x), _rows.expand(d_alpha, x)", "test_prediction.py::test_velocity_is_dx_dt"),
        ("level", "half of the log-SNR", "in (alpha, sigma, log_snr)))", "in (alpha, sigma, log_snr / 2)))", "test_forward.py::test_posterior_is_ddpm_equation_7"),
        ("no_noise", "the ratio's square is below rounding", "-2 * math.log(", "-math.log(", "test_identities.py::test_noise_is_hidden_where_the_ratio_is_below_rounding"),
        ("levels q_step q_posterior", "< for <=", "s.astype(dtype) <= now.astype(dtype)", "s.astype(dtype) < now.astype(dtype)", "test_forward.py::test_equal_times_of_two_precisions_are_equal"),
    ],
    "jaxdiff/_rows.py": [
        ("keys", "keys split over the batch, whatever its first row", "jax.vmap(jax.random.fold_in, (None, 0))(key, index)", "jax.random.split(key, num_rows)", "test_sampling.py::test_same_samples_whatever_the_split"),
        ("event_sum", "a mean over the event", "jnp.sum(x.reshape(x.shape[0], -1), axis=1)", "jnp.mean(x.reshape(x.shape[0], -1), axis=1)", "test_decoders.py::test_normal_decoder_is_the_density"),
        ("fold", "n is forgotten", "jax.vmap(jax.random.fold_in, (0, None))(keys, n)", "keys", "test_identities.py::test_steps_of_a_run_draw_their_own_noise"),
        ("pick", "an index outside is another row's", 'values.at[index].get(mode="fill", wrap_negative_indices=False)', "values[index]", "test_edges.py::test_an_ancestor_is_a_row"),
    ],
    "jaxdiff/normal.py": [
        ("log_density Normal", "a missing factor in the normaliser", "jnp.log(2 * jnp.pi * spread)", "jnp.log(jnp.pi * spread)", "test_decoders.py::test_normal_decoder_is_the_density"),
        ("Normal", "the variance for the standard deviation", "return self.mean + jnp.sqrt(self.variance) * eps", "return self.mean + self.variance * eps", "test_decoders.py::test_samples_follow_the_probabilities"),
        ("Normal", "the other direction of the divergence", "excess = (self.variance - q.variance) / q.variance", "excess = (q.variance - self.variance) / self.variance", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("log_ratio", "the log-determinant dropped", "(q_noise + p_noise) + jnp.log(ratio)) / 2", "(q_noise + p_noise) + 0 * jnp.log(ratio)) / 2", "test_early_chain.py::test_paths_weights_and_noises_are_one_and_the_same[0.0]"),
    ],
    "jaxdiff/_functions.py": [
        ("known_ahead", "a grid made inside is traced", "known_ahead = jax.ensure_compile_time_eval()", "known_ahead = lambda function: function", "test_edges.py::test_what_is_made_inside_is_what_is_made_outside"),
    ],
    # --- decoders, predictions -------------------------------------------------------------------------------------
    "jaxdiff/decoders.py": [
        ("normal", "a mean for a draw", "return last.sample(key)", "return last.mean", "test_decoders.py::test_normal_decoder_draws_from_it"),
        ("discretised_normal", "the last bin is closed", "jnp.where(x_0 > self.high - half, jnp.inf,", "jnp.where(x_0 > self.high + half, jnp.inf,", "test_decoders.py::test_probabilities_of_all_levels_sum_to_one"),
        ("categorical", "no half in the exponent", "(x + values - 2 * mean) / (2 * variance)", "(x + values - 2 * mean) / variance", "test_decoders.py::test_samples_follow_the_probabilities"),
        ("levels", "without its last value", "return jnp.linspace(low, high, num_levels)", "return jnp.linspace(low, high, num_levels, endpoint=False)", "test_decoders.py::test_samples_follow_the_probabilities"),
        ("on_levels", "what lies between is on a level", "inside & (abs(index - numpy.round(index)) < slack)", "inside", "test_edges.py::test_a_traced_row_off_the_levels_has_no_probability"),
        ("on_levels", "beyond the ends is on a level", "inside & (abs(index - numpy.round(index)) < slack)", "abs(index - numpy.round(index)) < slack", "test_edges.py::test_a_traced_row_off_the_levels_has_no_probability"),
        ("discretised_normal", "off the levels is an end", "return jnp.where(valid, _rows.event_sum(mass)", "return jnp.where(True, _rows.event_sum(mass)", "test_edges.py::test_a_traced_row_off_the_levels_has_no_probability"),
        ("uniform_dequantise", "n bins for n - 1 steps", "/ (num_levels - 1) * noise", "/ num_levels * noise", "test_identities.py::test_dequantised_data_fill_their_bins"),
    ],
    "jaxdiff/prediction/_conversions.py": [
        ("affine", "the sign of eps", "Affine(1 / alpha, -sigma / alpha)", "Affine(1 / alpha, sigma / alpha)", "test_prediction.py::test_targets_mean_x_0"),
        ("affine", "the sign of v", "-sigma / (alpha**2 + sigma**2))", "sigma / (alpha**2 + sigma**2))", "test_prediction.py::test_targets_mean_x_0"),
        ("affine", "sigma for sigma^2 in the score", "Affine(1 / alpha, sigma**2 / alpha)", "Affine(1 / alpha, sigma / alpha)", "test_prediction.py::test_score_prediction_is_the_oracles_score"),
        ("to_x_0", "what is skipped is left out", "(skip * x_t + jnp.where(lost, jnp.nan, out) * output)", "(jnp.where(lost, jnp.nan, out) * output)", "test_prediction.py::test_all_pairs_convert"),
        ("to_x_0", "an answer where there is none", "jnp.where(lost, jnp.nan, out) * output", "out * output", "test_identities.py::test_a_prediction_of_noise_says_nothing_without_data"),
        ("says_nothing", "the score is of order one", 'if prediction == "score":  # it', 'if prediction == "none":  # it', "test_identities.py::test_a_prediction_of_noise_says_nothing_without_data"),
        ("says_nothing", "nowhere", "return size * jnp.finfo(out.dtype).eps > 1", "return size * jnp.finfo(out.dtype).eps > jnp.inf", "test_edges.py::test_a_prediction_of_noise_is_of_no_use_without_data"),
        ("check_start", "at t = 1 whatever the start", "out = affine(schedule, start, jnp.zeros(1)", "out = affine(schedule, 1.0, jnp.zeros(1)", "test_edges.py::test_a_prediction_of_noise_is_of_no_use_without_data"),
        ("check_sigma_data", "zero is a standard deviation", "lambda s: s > 0)", "lambda s: s >= 0)", "test_prediction.py::test_bad_input"),
        ("from_x_0", "multiplied where it divides", "((x_0 - skip * x_t) / out)", "((x_0 - skip * x_t) * out)", "test_prediction.py::test_all_pairs_convert"),
        ("from_x_0", "an answer where there is none", "out = jnp.where(lost, jnp.nan, out)", "out = jnp.where(lost, 1, out)", "test_edges.py::test_a_prediction_is_not_known_without_noise"),
        ("target", "v is taken for the velocity of a flow", '"v": alpha * eps - sigma * x_0', '"v": eps - x_0', "test_prediction.py::test_targets_mean_x_0"),
        ("convert", "nothing is converted", "prediction=source), x_t, t, prediction=target)", "prediction=source), x_t, t, prediction=source)", "test_prediction.py::test_all_pairs_convert"),
    ],
    "jaxdiff/prediction/_denoiser.py": [
        ("clip", "one side only", "jnp.clip(x_0, -limit, limit)", "jnp.clip(x_0, None, limit)", "test_prediction.py::test_thresholds"),
        ("dynamic_threshold", "one bound for the batch", "jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), quantile, axis=1)", "jnp.broadcast_to(jnp.quantile(jnp.abs(x_0), quantile), x_0.shape[:1])", "test_prediction.py::test_thresholds"),
        ("make_denoiser", "the fraction is not centred", "((fraction + 1) / 2)", "fraction", "test_prediction.py::test_learned_variance_splits_the_channels"),
        ("make_denoiser", "an answer where there is none", "out = jnp.where(says_nothing(self.schedule, t, out, self.prediction), jnp.nan, out)", "out = 1 * out", "test_edges.py::test_a_traced_schedule_that_leaves_no_data_gives_nan"),
        ("make_denoiser", "any prediction will do", "check_start(schedule, prediction, start)", "_checks.time('start', start)", "test_edges.py::test_a_prediction_of_noise_is_of_no_use_without_data"),
        ("edm_input", "scaled by the noise alone", "(x_t / jnp.hypot(sigma, alpha * sigma_data))", "(x_t / sigma)", "test_losses.py::test_weighted_losses_do_not_depend_on_the_prediction[snr-cosine]"),
    ],
    "jaxdiff/categorical.py": [
        ("make_categorical_denoiser", "the evidence of x_t without its half", "distance**2 / 2", "distance**2", "test_categorical.py::test_independent_pixels_have_the_exact_denoiser"),
        ("on_log_snr", "from the wrong end", "(high - log_snr) / (high - low)", "(log_snr - low) / (high - low)", "test_categorical.py::test_a_network_of_the_log_snr_means_the_same_under_every_schedule"),
    ],
    # --- kernels and the driver ------------------------------------------------------------------------------------
    "jaxdiff/kernels/_kernel.py": [
        ("noise", "noise in the last step", "jnp.where(jnp.asarray(s) > 0, _rows", "jnp.where(jnp.asarray(s) >= 0, _rows", "test_identities.py::test_the_step_to_the_data_is_the_denoised_state"),
        ("noise", "of any strength without a key", "jnp.where(jnp.asarray(strength) == 0, jnp.zeros_like(x), jnp.nan)", "jnp.zeros_like(x)", "test_edges.py::test_a_traced_strength_of_noise_is_nan_unless_it_is_none"),
        ("is_clean", "never", "level.log_snr > 0.75 * LOG_SNR_LIMIT", "level.log_snr > 1.75 * LOG_SNR_LIMIT", "test_identities.py::test_only_an_infinite_log_snr_is_clean"),
    ],
    "jaxdiff/kernels/_reverse.py": [
        ("p_given p_mean_variance", "no part of x_t in the mean", "return Normal(mean, value)", "return Normal(x_0_of(denoised, x_t), value)", "test_kernels.py::test_p_mean_variance"),
        ("p_mean_variance", "alpha_t for alpha_s", "gain = (alpha_s * jnp.expm1(lambda_t - lambda_s)) ** 2", "gain = (alpha_t * jnp.expm1(lambda_t - lambda_s)) ** 2", "test_kernels.py::test_large_variance_is_beta_for_ddpm"),
    ],
    "jaxdiff/kernels/_discrete.py": [
        ("ancestral", "the variance for the standard deviation", "return p.at(noise(key, x_t, s))", "return p.mean + p.variance * noise(key, x_t, s)", "test_kernels.py::test_eta_one_is_ancestral"),
        ("ddim", "alpha_t for alpha_s", "return alpha_s * x_0 + sigma_s * (old", "return alpha_t * x_0 + sigma_s * (old", "test_kernels.py::test_eta_zero_is_the_ddim_equation"),
        ("ddim", "eta for eta^2 in what is kept", "ratio + (1 - eta**2) * kept", "ratio + (1 - eta) * kept", "test_identities.py::test_ddim_between_its_ends_is_their_equation_16"),
    ],
    "jaxdiff/kernels/_classic.py": [
        ("euler", "a step in t", "return ddim(denoiser, schedule)", "return lift(EulerT(denoiser, schedule))", "test_solvers.py::test_euler_is_the_step_in_sigma_of_edm"),
        ("euler_t", "the ends of the step swapped", "_rows.expand(jnp.asarray(s - t, sigma_t.dtype), x_t)", "_rows.expand(jnp.asarray(t - s, sigma_t.dtype), x_t)", "test_solvers.py::test_euler_in_t_is_ddim_on_a_flow"),
        ("heun", "the whole of the second slope", "jnp.expm1(h) / 2 * change", "jnp.expm1(h) * change", "test_solvers.py::test_heun_is_edms"),
        ("euler_maruyama", "the drift of the ODE with noise", "(2 * d_sigma - d_alpha * sigma_t / alpha) * eps", "d_sigma * eps", "test_solvers.py::test_euler_maruyama_is_of_weak_order_one"),
    ],
    "jaxdiff/kernels/_exponential.py": [
        ("dpmpp_1s", "noise of half the step", "jnp.expm1(-2 * tau**2 * h)", "jnp.expm1(-(tau**2) * h)", "test_solvers.py::test_order_one_is_ddim_and_with_noise_ddpm[cosine]"),
        ("dpmpp_2m", "the whole of the first moment", "moment[1] = moment[0] / 2", "moment[1] = moment[0]", "test_solvers.py::test_dpmpp_2m_is_the_papers"),
        ("dpmpp_3m", "the history's order", "History((x_0, *history.x_0)[: len(history.x_0)]", "History((*history.x_0[:1], x_0, *history.x_0[1:])[: len(history.x_0)]", "test_solvers.py::test_order[dpmpp_3m-linear]"),
        ("dpmpp_3m unipc", "the second moment without its 2", "1 - j * by_parts[-1] / large", "1 - by_parts[-1] / large", "test_solvers.py::test_moments_of_the_exponential_weight"),
        ("dpmpp_2s", "the middle in t", "u = self.schedule.time((level_s.log_snr + level_t.log_snr) / 2)", "u = (jnp.asarray(t) + s) / 2", "test_solvers.py::test_dpmpp_2s_is_the_papers"),
        ("unipc", "the corrector at the wrong end", "nodes = [jnp.ones_like(taken), *_nodes(last", "nodes = [jnp.zeros_like(taken), *_nodes(last", "test_solvers.py::test_order[unipc_2-linear]"),
    ],
    "jaxdiff/kernels/_adaptive.py": [
        ("adaptive", "scaled back by the start's size", "x = y * jnp.hypot(end.alpha, end.sigma)", "x = y * jnp.hypot(begin.alpha, begin.sigma)", "test_identities.py::test_the_adaptive_solver_widens_a_normal_law_as_it_is"),
    ],
    "jaxdiff/kernels/_flow.py": [
        ("rates", "the sign of eps", "cosine * x_0 - cosine**2 * y,", "cosine * x_0 + cosine**2 * y,", "test_solvers.py::test_the_adaptive_solver_meets_its_tolerance"),
        ("rates", "the divergence of the scaling left out", "by_row * trace - by_row**2 * y[0].size", "by_row * trace", "test_early_chain.py::test_the_density_of_the_ode_is_exact"),
        ("solve", "one step for all rows", "return jax.vmap(row)(y, *probes)", "together = lambda v, state, probes: jax.vmap(field, (None, 0, 0))(v, state, probes)\n        solution = diffrax.diffeqsolve(\n            diffrax.ODETerm(together), diffrax.Dopri5(), 0.0, 1.0, 0.01, Rates(y, jnp.zeros(len(y), y.dtype)), probes,\n            stepsize_controller=control, max_steps=16384, throw=False,\n        )\n        return Rates(*(leaf[0] for leaf in solution.ys))", "test_edges.py::test_a_row_is_what_it_is_alone_beside_a_hard_one"),
        ("solve", "as far as it came", "jnp.where(solved, leaf[0], jnp.nan)", "leaf[0]", "test_edges.py::test_a_row_is_what_it_is_alone_beside_a_hard_one"),
    ],
    "jaxdiff/kernels/_corrected.py": [
        ("corrected", "Langevin's noise without its 2", "sigma_s * jnp.sqrt(2 * size) * eps", "sigma_s * jnp.sqrt(size) * eps", "test_solvers.py::test_stochastic_kernels_reproduce_the_mixture[corrected-linear]"),
        ("corrected", "the predictor's noise again", "eps = _rows.normal(_rows.fold(keys, n + 1), x)", "eps = _rows.normal(_rows.fold(keys, n), x)", "test_identities.py::test_a_correction_draws_noise_of_its_own"),
    ],
    "jaxdiff/_lineages.py": [
        ("keep", "a trajectory's slots one early", "trajectory.at[slot + 1].set(x)", "trajectory.at[slot].set(x)", "test_sampling.py::test_trajectory"),
        ("keep", "the last step for all that were skipped", "descent.at[slot].set(before[ancestors])", "descent.at[slot].set(ancestors)", "test_lineages.py::test_lineages_are_those_of_a_record_by_hand[3-2.0]"),
        ("number_of", "rows for origins", "at[origins].set(1)", "at[origins].add(1)", "test_lineages.py::test_lineages_are_those_of_a_record_by_hand[1-0.6]"),
        ("exchange", "the weights are forgotten", "log_weights + gain, 0)", "gain, 0)", "test_lineages.py::test_a_path_goes_on_from_a_past_that_fits"),
    ],
    "jaxdiff/sampling.py": [
        ("prior_sample", "of unit variance", "schedule.sigma(t).astype(noise.dtype) * noise", "noise", "test_sampling.py::test_prior_has_the_schedules_scale"),
        ("sample run", "weights reset without adding to log Z", "jnp.where(resampled, log_mean_weight(log_weights), 0)", "0", "test_sampling.py::test_evidence_of_a_gaussian_integral"),
        ("sample run", "the last weights not in log Z", "log_evidence = log_evidence + log_mean_weight(log_weights)\n", "log_evidence = log_evidence + 0\n", "test_sampling.py::test_evidence_of_a_gaussian_integral"),
        ("sample run", "the carry is not resampled", "carry, x = jax.tree.map(lambda leaf: _rows.pick(leaf, ancestors), (carry, x))", "x = _rows.pick(x, ancestors)", "test_sampling.py::test_resampling_takes_the_carry_along"),
        ("sample run", "every step draws the same noise", "_rows.fold(row_keys, n)", "row_keys", "test_identities.py::test_steps_of_a_run_draw_their_own_noise"),
        ("encode", "from the noise to the data", "return run(None, kernel, x_0, jnp.asarray(ts)[::-1])", "return run(None, kernel, x_0, jnp.asarray(ts))", "test_solvers.py::test_latents_of_data_are_noise"),
        ("encode", "from a clean end", "    if clean:\n", "    if False:\n", "test_edges.py::test_there_is_no_way_back_from_data_without_noise"),
        ("encode", "from a clean end that is traced", "jnp.where(clean, jnp.nan, run", "jnp.where(clean, 0, run", "test_edges.py::test_a_traced_grid_that_ends_clean_is_nan"),
        ("slerp", "a chord", "jnp.sin((1 - weight) * angle) / safe)", "(1 - weight) * jnp.ones_like(angle))", "test_sampling.py::test_slerp_keeps_the_norm_of_noise"),
    ],
    # --- the chain, its bounds and its probability -----------------------------------------------------------------
    "jaxdiff/chain.py": [
        ("prior_kl", "without its half", "jnp.exp(level(schedule, t, x_0).log_snr) * x_0**2 / 2", "jnp.exp(level(schedule, t, x_0).log_snr) * x_0**2", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("q_variance", "at the wrong end of the step", "return level_t.sigma**2 * renewed(", "return level(schedule, s, x).sigma ** 2 * renewed(", "test_identities.py::test_the_forward_variance_is_that_of_a_step"),
        ("log_ends", "the log-determinant dropped", "jnp.broadcast_to(jnp.log(sigma / prior_std), x_0.shape)", "jnp.zeros(x_0.shape)", "test_early_chain.py::test_the_bounds_hold_the_exact_law[0.0]"),
        ("diffusing", "the reverse step from the wrong state", "p = self.chain.p_step(x_t, t, s)\n        residual = (x_s", "p = self.chain.p_step(x_s, t, s)\n        residual = (x_s", "test_early_chain.py::test_the_bounds_hold_the_exact_law[0.0]"),
        ("generating", "the work's sign", "return carry, x_s, log_ratio(noise, p.variance", "return carry, x_s, -log_ratio(noise, p.variance", "test_early_chain.py::test_a_reverse_path_carries_its_own_weight"),
        ("path", "noises that do not add up", "jnp.cumsum(added * eps, axis=0)", "added * eps", "test_early_chain.py::test_paths_weights_and_noises_are_one_and_the_same"),
        ("noises_of_path", "not scaled back", "jnp.concatenate([x_0[None], xs / alpha])", "jnp.concatenate([x_0[None], xs])", "test_early_chain.py::test_paths_weights_and_noises_are_one_and_the_same"),
        ("log_weight_of_path", "a step too few", "return ends + jnp.sum(steps, axis=0)", "return ends + jnp.sum(steps[1:], axis=0)", "test_early_chain.py::test_paths_weights_and_noises_are_one_and_the_same"),
    ],
    "jaxdiff/likelihood.py": [
        ("vlb_terms", "the prior's term is zero", "jnp.concatenate([prior_kl(chain.schedule, x_0, ts[0])[None]", "jnp.concatenate([0 * prior_kl(chain.schedule, x_0, ts[0])[None]", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("vlb_terms", "the same noise in every term", "x_t = q_sample(chain.schedule, x_0, t, _noise(keys, n, x_0))", "x_t = q_sample(chain.schedule, x_0, t, _noise(keys, 0, x_0))", "test_early_chain.py::test_terms_have_noises_of_their_own"),
        ("path_log_weights", "the prior at the wrong end of the path", "log_ends(chain, x_0, first, path.x)", "log_ends(chain, x_0, first, first)", "test_early_chain.py::test_the_bounds_hold_the_exact_law[0.0]"),
        ("paths_log_weights", "the same path K times", "jax.random.split(key, num_paths))", "jnp.stack([key] * num_paths))", "test_early_chain.py::test_paths_differ_and_their_averages_are_what_they_are"),
        ("elbo", "the best path", "return jnp.mean(paths_log_weights(", "return jnp.max(paths_log_weights(", "test_early_chain.py::test_paths_differ_and_their_averages_are_what_they_are"),
        ("importance_log_prob", "a sum for a mean", "num_paths), axis=0) - math.log(num_paths)", "num_paths), axis=0)", "test_early_chain.py::test_paths_differ_and_their_averages_are_what_they_are"),
        ("continuous_lower_bound", "the prior's term left out", "terms.prior + terms.diffusion + terms.reconstruction", "terms.diffusion + terms.reconstruction", "test_early_chain.py::test_the_continuous_bound_has_its_exact_mean"),
        ("ode_log_prob", "probes of the wrong variance", "draw(k, (num_probes, *x_0.shape[1:])).astype(dtype)", "2 * draw(k, (num_probes, *x_0.shape[1:])).astype(dtype)", "test_early_chain.py::test_the_density_of_the_ode_is_exact"),
        ("bits_per_dim", "nats", "return -nats / (event_size * math.log(2))", "return -nats / event_size", "test_decoders.py::test_dequantisation_counts_its_volume"),
        ("bits_per_dim", "the volume of one dimension", "nats + event_size * math.log(bin_width)", "nats + math.log(bin_width)", "test_decoders.py::test_dequantisation_counts_its_volume"),
    ],
    "jaxdiff/flow_density.py": [
        ("_hutchinson", "products that are slow inside a scan", "x_0, pull = jax.vjp(denoise, y)\n    products = jax.lax.map(lambda v: _rows.event_sum(pull(v)[0] * v)", "x_0, push = jax.linearize(denoise, y)\n    products = jax.lax.map(lambda v: _rows.event_sum(push(v) * v)", "test_flow_density.py::test_the_divergence_takes_vector_jacobian_products"),
        ("density", "the ends of the ODE swapped", "size * (jnp.log(end) - jnp.log(start))", "size * (jnp.log(start) - jnp.log(end))", "test_flow_density.py::test_mixture_density_is_exact"),
        ("density", "the prior without 2 pi", "(jnp.log(sigma) + math.log(2 * math.pi) / 2)", "jnp.log(sigma)", "test_early_chain.py::test_the_density_of_the_ode_is_exact"),
        ("flowing", "Hutchinson's v^T left out", "event_sum(pull(v)[0] * v)", "event_sum(pull(v)[0])", "test_early_chain.py::test_the_density_of_the_ode_is_exact"),
    ],
    # --- losses ----------------------------------------------------------------------------------------------------
    "jaxdiff/losses/_chain.py": [
        ("vlb", "a term is not weighed", "return rest + cost / probability", "return rest + cost", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("vlb", "T - 1 terms drawn, and T counted", "jax.random.randint(k, (), 0, num_steps)", "jax.random.randint(k, (), 0, num_steps - 1)", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("vlb", "the prior's term is zero", "rest = prior_kl(chain.schedule, x_0, chain.ts[0])", "rest = 0 * prior_kl(chain.schedule, x_0, chain.ts[0])", "test_early_chain.py::test_the_bounds_have_their_exact_means[0.0]"),
        ("hybrid", "the bound trains the mean", "mean = jax.lax.stop_gradient(x_0_of(denoised, x_t))", "mean = x_0_of(denoised, x_t)", "test_early_chain.py::test_hybrid_is_the_sum_of_its_parts"),
        ("hybrid", "the simple part is not weighed", "simple = simple / ((len(chain.ts) - 1) * jnp.asarray(probability, simple.dtype))", "simple = simple / 1", "test_early_chain.py::test_hybrid_is_the_sum_of_its_parts"),
    ],
    "jaxdiff/losses/_bound.py": [
        ("continuous_elbo", "the prior's term is zero", "prior=prior_kl(schedule, x_0, 1.0)", "prior=0 * prior_kl(schedule, x_0, 1.0)", "test_early_chain.py::test_the_continuous_bound_has_its_exact_mean"),
        ("continuous_elbo", "without its half", "jnp.exp(log_snr) / 2 * error.astype", "jnp.exp(log_snr) * error.astype", "test_early_chain.py::test_the_continuous_bound_has_its_exact_mean"),
        ("schedule_variance_loss", "up the gradient", "(jax.lax.stop_gradient(log_density) - log_density)", "(log_density - jax.lax.stop_gradient(log_density))", "test_bound.py::test_the_gradient_of_the_interior_is_that_of_the_variance"),
    ],
    "jaxdiff/losses/_denoising.py": [
        ("simple", "the root of the weight", "return scale**2 * error", "return scale * error", "test_losses.py::test_weight_is_of_the_x_0_error"),
        ("simple", "a mean over the batch", "return jnp.mean(x.reshape(x.shape[0], -1), axis=1)", "return jnp.broadcast_to(jnp.mean(x), x.shape[:1])", "test_losses.py::test_rows_depend_on_their_own_keys"),
        ("simple", "one key for the time and the noise", "eps = _rows.normal(key_noise, x_0).astype(x_0.dtype)\n    x_t = q_sample(schedule, x_0, t, eps)\n    expected", "eps = _rows.normal(key_time, x_0).astype(x_0.dtype)\n    x_t = q_sample(schedule, x_0, t, eps)\n    expected", "test_identities.py::test_the_time_and_the_noise_of_a_loss_are_independent"),
        ("denoising_error", "the error of eps", "event_sum((x_0 - x_0_of(", "event_sum((eps - x_0_of(", "test_grids.py::test_denoising_error_is_the_mmse_of_a_gaussian"),
    ],
    "jaxdiff/losses/weights.py": [
        ("snr", "its inverse", "return Partial(jnp.exp)", "return Partial(lambda log_snr: jnp.exp(-log_snr))", "test_losses.py::test_weights_by_their_definitions"),
        ("min_snr", "the larger", "jnp.minimum(log_snr, jnp.log(gamma))", "jnp.maximum(log_snr, jnp.log(gamma))", "test_losses.py::test_weights_by_their_definitions"),
        ("edm", "sigma_data^2 for its inverse", "jnp.asarray(self.sigma_data**-2,", "jnp.asarray(self.sigma_data**2,", "test_losses.py::test_weights_by_their_definitions"),
        ("sigmoid", "the bias's sign", "jax.nn.sigmoid(bias - log_snr)", "jax.nn.sigmoid(-bias - log_snr)", "test_losses.py::test_weights_by_their_definitions"),
    ],
    "jaxdiff/losses/_times.py": [
        ("uniform_times", "not uniform", "jax.random.uniform(k, (), jnp.float32))(_rows", "jax.random.uniform(k, (), jnp.float32) ** 2)(_rows", "test_losses.py::test_uniform_times"),
        ("low_discrepancy_times", "even within a device only", "index.astype(jnp.float32) / whole", "index.astype(jnp.float32) / num", "test_losses.py::test_low_discrepancy_times"),
        ("log_normal_times", "the log of the ratio for lambda", "-2 * (mean + std * noise)", "-(mean + std * noise)", "test_losses.py::test_log_normal_times"),
        ("term_history", "starts with a loss counted", "jnp.zeros(num_terms, jnp.int32)", "jnp.ones(num_terms, jnp.int32)", "test_identities.py::test_terms_are_drawn_by_the_root_of_their_mean_square"),
        ("record_terms", "the oldest stay", "jnp.concatenate([loss[n][None], history.losses[i, :-1]])", "jnp.concatenate([loss[n][None], history.losses[i, 1:]])", "test_chain.py::test_loss_aware_terms"),
        ("record_terms", "a negative index is a term's", "jnp.where(index < 0, num_terms, index)", "1 * index", "test_edges.py::test_a_term_that_there_is_none_of_is_not_recorded"),
        ("loss_aware_terms", "the mean for the root of the mean square", "jnp.sqrt(jnp.mean(history.losses**2, axis=1))", "jnp.mean(history.losses, axis=1)", "test_identities.py::test_terms_are_drawn_by_the_root_of_their_mean_square"),
    ],
    # --- work ------------------------------------------------------------------------------------------------------
    "jaxdiff/work/_bounds.py": [
        ("bidirectional_bounds", "no reverse path above", "jnp.concatenate([reverse[None], forward[:-1]])", "forward", "test_early_chain.py::test_the_bounds_hold_the_exact_law[0.0]"),
        ("reverse_path bidirectional_bounds", "a start of unit variance", "x_T = chain.schedule.sigma(chain.times[0]) * _rows", "x_T = 1.0 * _rows", "test_early_chain.py::test_the_bounds_hold_the_exact_law[0.0]"),
    ],
    "jaxdiff/work/_annealing.py": [
        ("annealing", "the weight after the move on the way up", "jnp.where(s < t, before, log_weight(moved))", "log_weight(moved)", "test_early_chain.py::test_annealing_is_unbiased_in_both_directions"),
        ("annealing", "moves at the wrong temperature", "beta = 1 - jnp.minimum(t, s)", "beta = 1 - jnp.maximum(t, s)", "test_early_chain.py::test_annealing_is_unbiased_in_both_directions"),
        ("ais ais_run", "temperatures from the posterior", "betas = jnp.linspace(1, 0, num_temperatures + 1", "betas = jnp.linspace(0, 1, num_temperatures + 1", "test_early_chain.py::test_annealing_is_unbiased_in_both_directions"),
        ("ais_bounds", "the mirror's sign", "return AisBounds(x_0, lower, -mirror.log_weights)", "return AisBounds(x_0, lower, mirror.log_weights)", "test_early_chain.py::test_annealing_is_unbiased_in_both_directions"),
    ],
    "jaxdiff/work/_estimators.py": [
        ("bennett_acceptance_ratio", "as if both directions had as many", "ratio = math.log(forward.size / reverse.size)\n    ends", "ratio = 0.0\n    ends", "test_work.py::test_bennett_and_crooks_on_gaussian_works"),
        ("bennett_standard_error", "no 1 subtracted", "jnp.mean(v) ** 2 - 1) / v.size", "jnp.mean(v) ** 2) / v.size", "test_work.py::test_bennett_and_crooks_on_gaussian_works"),
        ("crooks", "the classes' sizes forgotten", "intercept = beta[0] - math.log(forward.size / reverse.size) -", "intercept = beta[0] -", "test_work.py::test_bennett_and_crooks_on_gaussian_works"),
    ],
    "jaxdiff/work/_entropy.py": [
        ("entropy_production", "the marginals exchanged", "log_marginal(x_s, s) - log_marginal(x_t, t)", "log_marginal(x_t, t) - log_marginal(x_s, s)", "test_early_chain.py::test_exact_steps_produce_no_entropy"),
        ("entropy_bounds", "the ends of the step exchanged", "EntropyBounds(entropy(level_s.sigma), entropy(level_t.sigma))", "EntropyBounds(entropy(level_t.sigma), entropy(level_s.sigma))", "test_work.py::test_entropy_bounds_hold_the_true_entropy"),
    ],
    # --- moves, resampling, observations, guidance, posteriors -----------------------------------------------------
    "jaxdiff/moves.py": [
        ("ula", "noise without its 2", "jnp.sqrt(2 * step_size) * _rows", "jnp.sqrt(step_size) * _rows", "test_moves.py::test_ula_leaves_it_by_its_step_size"),
        ("mala", "2 s^2 for 4 s in the way back", "jnp.sqrt(step_size / 2) * (slope + slope_new)", "jnp.sqrt(step_size) * (slope + slope_new)", "test_moves.py::test_mala_holds_its_target_at_any_size[0.15]"),
        ("mala hmc", "every proposal is taken", "_rows.expand(jnp.log(chance) < gain, x)", "_rows.expand(jnp.log(chance) < gain + 99, x)", "test_moves.py::test_mala_holds_its_target_at_any_size[0.15]"),
        ("hmc", "the kinetic energy without its half", "event_sum((momentum - last) * (momentum + last)) / 2", "event_sum((momentum - last) * (momentum + last))", "test_moves.py::test_hmc_holds_its_target"),
    ],
    "jaxdiff/resampling.py": [
        ("Resampler", "the path is resampled away", "return ancestors.at[0].set(0), resampled", "return ancestors, resampled", "test_lineages.py::test_the_first_row_follows_the_path[mcgdiff]"),
        ("Resampler", "the others in even parts", "Resampler(_multinomial, self.threshold)(key, log_weights)", "self(key, log_weights)", "test_lineages.py::test_others_are_independent_draws_beside_a_path"),
        ("multinomial", "none in the last part", "_anywhere(key, size, size)", "_anywhere(key, size, size - 1)", "test_resampling.py::test_copies_are_right_on_average[multinomial]"),
        ("stratified", "one offset for all parts", "_Copies(part, _fractions(key, part.shape))", "_Copies(part, _fractions(key, (1,)))", "test_resampling.py::test_schemes_keep_their_bounds"),
        ("systematic", "never moved", "offset, part = _anywhere(key, 1, stride),", "offset, part = _Copies(jnp.zeros(1, jnp.int32), jnp.full(1, _UNIT // 2, jnp.int32)),", "test_resampling.py::test_copies_are_right_on_average[systematic]"),
        ("residual", "all of the weight again", "rest = _Copies(jnp.zeros_like(copies.whole), copies.fraction)", "rest = copies", "test_resampling.py::test_copies_are_right_on_average[residual]"),
        ("residual", "rounding takes a certain copy", "jnp.where(jnp.abs(copies - nearest) <= 32 * jnp.finfo(copies.dtype).eps * nearest, nearest, copies)", "copies", "test_resampling.py::test_whole_copies_are_certain"),
        ("residual systematic stratified multinomial", "what rounding leaves is lost", "value + jnp.where(is_largest, over, 0)", "value + 0 * over", "test_resampling.py::test_expected_copies_add_up"),
        ("effective_sample_size", "without its square", "jnp.sum(weights) ** 2 / jnp.where(squares", "jnp.sum(weights) / jnp.where(squares", "test_resampling.py::test_effective_sample_size_of_small_weights"),
        ("effective_sample_size draw", "NaN is a weight", "usable = log_weights > -jnp.inf", "usable = log_weights != -jnp.inf", "test_resampling.py::test_nan_is_no_weight"),
        ("log_mean_weight", "a mean over the rows that are left", "- jnp.log(usable.shape[0])", "- jnp.log(jnp.sum(usable > -jnp.inf))", "test_resampling.py::test_nan_is_no_weight"),
        ("log_mean_weight", "NaN is a weight", "jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)", "log_weights", "test_resampling.py::test_nan_is_no_weight"),
        ("draw", "whatever the weights", "_expected_copies(jnp.asarray(log_weights), num * stride)", "_expected_copies(jnp.zeros(len(log_weights)), num * stride)", "test_resampling.py::test_draw"),
        ("draw", "a row without a weight", "jnp.where(jnp.any(log_weights > -jnp.inf), drawn, jnp.nan)", "drawn", "test_resampling.py::test_no_row_has_a_weight"),
        ("multinomial stratified systematic residual", "where the weights are even", "(size < threshold * num_rows)", "(size > threshold * num_rows)", "test_resampling.py::test_threshold"),
    ],
    "jaxdiff/drawing.py": [
        ("draw", "one key for the noise and the run", "key_prior, key_run = jax.random.split(key)", "key_prior = key_run = key", "test_drawing.py::test_it_is_prior_sample_and_sample"),
        ("draw", "a later start begins with the noise of t = 1", "shape, t=ts[0], first=first)", "shape, first=first)", "test_drawing.py::test_a_grid_that_begins_later_begins_with_its_noise"),
        ("draw", "every chunk runs with the first one's keys", "x_init, ts, first=first, save_every", "x_init, ts, save_every", "test_drawing.py::test_chunks_join_up"),
    ],
    "jaxdiff/observations.py": [
        ("linear", "the spread is forgotten", "residual.dtype) * variance", "residual.dtype) * 0 * variance", "test_observations.py::test_log_density_and_gain_by_matrices"),
        ("linear", "a function has a gain of 1", "squared_rows(self.operator, x_0) if self.gain is None", "1.0 if self.gain is None", "test_posterior.py::test_a_function_has_the_evidence_of_its_matrix"),
        ("linear", "a function's gain, asked for once, is 1", "noise_std, squared_rows(function, like))", "noise_std, 1.0)", "test_observations.py::test_a_function_has_the_gain_of_its_matrix"),
        ("Observation", "the normaliser dropped", "terms = residual**2 / total + jnp.log(2 * jnp.pi * jnp.broadcast_to(total, residual.shape))", "terms = residual**2 / total", "test_observations.py::test_log_density_and_gain_by_matrices"),
        ("mask Observation", "hidden entries are counted", "jnp.where(self.observed, terms, 0)", "terms", "test_identities.py::test_what_is_hidden_is_not_counted_and_a_blur_is_normal"),
        ("masked", "a mask of 255 weighs 255", "jnp.asarray(observed).astype(bool), y.shape)", "jnp.asarray(observed), y.shape)", "test_posterior.py::test_masks_of_any_kind_are_the_same"),
        ("masked", "what is hidden must be finite", "y = jnp.where(observed, y, 0)", "y = jnp.asarray(y)", "test_observations.py::test_operators_are_what_they_say"),
        ("half", "the other half", "(index < size // 2)", "(index >= size // 2)", "test_observations.py::test_operators_are_what_they_say"),
        ("noisy", "no gain", "return Observation(Mask(jnp.ones(jnp.shape(y), bool)), y, noise_std)", "return Observation(Mask(jnp.ones(jnp.shape(y), bool)), y, noise_std, 0.0)", "test_observations.py::test_log_density_and_gain_by_matrices"),
        ("downsample", "the gain of a sum", "noise_std, 1 / factor**2)", "noise_std, 1 / factor)", "test_observations.py::test_log_density_and_gain_by_matrices"),
        ("blur", "the gain of a sum", "jnp.sum(matrix**2, axis=1) for matrix in (vertical, horizontal)", "jnp.sum(matrix, axis=1) for matrix in (vertical, horizontal)", "test_observations.py::test_log_density_and_gain_by_matrices"),
        ("poisson", "the factorial of one less", "gammaln(counts + 1)", "gammaln(jnp.maximum(counts, 1))", "test_observations.py::test_counts_and_classes"),
        ("poisson", "a photon for two", "noisy(2 * self.counts / peak - 1", "noisy(self.counts / peak - 1", "test_twisted.py::test_counts_are_nearly_normal"),
        ("classified", "logits for log-probabilities", "_rows.pick(jax.nn.log_softmax(logits), self.label)", "_rows.pick(logits, self.label)", "test_observations.py::test_counts_and_classes"),
        ("classified", "a class too many is the last", "_rows.pick(jax.nn.log_softmax(logits), self.label)", "jax.nn.log_softmax(logits)[self.label]", "test_edges.py::test_an_observed_class_is_no_other_class"),
    ],
    "jaxdiff/_operators.py": [
        ("squared_rows", "lengths for their squares", "jnp.sum(pull(e.reshape(predicted.shape))[0] ** 2)", "jnp.sqrt(jnp.sum(pull(e.reshape(predicted.shape))[0] ** 2))", "test_observations.py::test_a_function_has_the_gain_of_its_matrix"),
        ("squared_rows", "one probe again and again", "jax.random.fold_in(jax.random.key(0), n)", "jax.random.key(0)", "test_observations.py::test_the_gain_of_many_rows_is_probed"),
        ("blur_matrix", "no half in the exponent", "jnp.asarray(2 * width**2, squared.dtype)", "jnp.asarray(width**2, squared.dtype)", "test_identities.py::test_what_is_hidden_is_not_counted_and_a_blur_is_normal"),
        ("BlockMeans", "blocks laid the other way", "blocks.mean(axis=(1, 3))", "blocks.mean(axis=(0, 2))", "test_observations.py::test_operators_are_what_they_say"),
    ],
    "jaxdiff/guidance/_classes.py": [
        ("classifier_free", "1 + w for w", "without + _rows.expand(scale, x_t) * (target - without)", "target + _rows.expand(scale, x_t) * (target - without)", "test_guidance.py::test_scales_zero_and_one_are_the_parts"),
        ("classifier_free", "the interval is forgotten", "(now >= low) & (now <= high)", "now >= -1", "test_guidance.py::test_guidance_is_on_in_its_interval_only"),
        ("classifier_free", "one contrast for the batch", "jnp.var(x.reshape(x.shape[0], -1), axis=1)", "jnp.broadcast_to(jnp.var(x), x.shape[:1])", "test_guidance.py::test_rescale_restores_the_contrast"),
        ("classifier", "away from the class", "return self.follow(denoised, jax.grad(total)(x_t), x_t, t)", "return self.follow(denoised, -jax.grad(total)(x_t), x_t, t)", "test_guidance.py::test_the_exact_classifier_gives_the_class_conditional_denoiser"),
    ],
    "jaxdiff/guidance/_observed.py": [
        ("tweedie", "sigma for sigma^2", "sigma**2 / jnp.where(usable, alpha, 1)", "sigma / jnp.where(usable, alpha, 1)", "test_guidance.py::test_the_exact_classifier_gives_the_class_conditional_denoiser"),
        ("dps", "normalised over the batch", "_rows.expand(jnp.asarray(self.scale, x_t.dtype), x_t) * slope", "_rows.expand(jnp.asarray(self.scale, x_t.dtype), x_t) * slope / jnp.linalg.norm(slope)", "test_observations.py::test_the_known_bias_of_the_approximations"),
        ("dps", "a slope that is not finite moves", "jnp.where(_rows.all_finite(score), score, 0)", "1 * score", "test_observations.py::test_a_slope_that_is_not_finite_moves_nothing"),
        ("isotropic_spread pigdm", "the prior's variance forgotten", "/ (alpha**2 * squared + sigma**2)", "/ (alpha**2 + sigma**2)", "test_identities.py::test_the_spread_is_the_variance_of_normal_data"),
        ("pigdm", "a standard deviation for a variance", "lambda u: variance * u", "lambda u: jnp.sqrt(variance) * u", "test_identities.py::test_approximations_are_exact_where_their_covariance_is"),
        ("tmpd", "the Jacobian for the covariance", "jnp.maximum(scale * pull(jnp.ones_like(x_t)), 0)", "jnp.maximum(pull(jnp.ones_like(x_t)), 0)", "test_identities.py::test_approximations_are_exact_where_their_covariance_is"),
        ("mmps", "the Jacobian for the covariance", "return lambda u: scale * pull(u)", "return lambda u: pull(u)", "test_identities.py::test_approximations_are_exact_where_their_covariance_is"),
        ("conjugate_gradients", "steepest descent", "new + ratio(dot(new, new), dot(residual, residual)) * direction", "new", "test_identities.py::test_conjugate_gradients_solve_in_as_many_steps_as_dimensions"),
    ],
    "jaxdiff/guidance/_dps_step.py": [
        ("dps_step", "without the normalisation", "residual / jnp.where(length > 0, length, 1)", "residual", "test_approximations.py::test_a_dps_step_is_algorithm_1"),
        ("dps_step", "the gradient at the size of x_t alone", "2 * scale * size_s * size_t * slope", "2 * scale * size_t**2 * slope", "test_approximations.py::test_a_dps_step_is_the_same_in_every_family"),
        ("dps_step", "the gradient of the length for that of its square", "- 2 * scale * size_s", "- scale * size_s", "test_approximations.py::test_a_dps_step_is_algorithm_1"),
    ],
    "jaxdiff/guidance/_triangular.py": [
        ("lower_root", "the upper half is left as it comes", "jnp.where(jnp.arange(size) < i, 0, rest / jnp.sqrt(rest[i]))", "rest / jnp.sqrt(rest[i])", "test_spread.py::test_the_root_of_a_matrix_and_its_inverse"),
    ],
    "jaxdiff/guidance/_spread.py": [
        ("lower_root", "LAPACK's", "    root_of_K = lower_root(K)", "    root_of_K = jnp.linalg.cholesky(K)", "test_spread.py::test_a_sampler_does_not_wait_for_the_threads_of_lapack"),
        ("conditioned", "the variance before y", "variance = jnp.broadcast_to(given.variance()[None], x_t.shape)", "variance = jnp.broadcast_to(given.covariance.diagonal()[None], x_t.shape)", "test_spread.py::test_conditioned_is_the_posteriors_denoiser_of_normal_data"),
        ("spread_of", "a mean deviation for a variance", "jnp.mean((rows @ axes.T) ** 2, axis=0)", "jnp.mean(jnp.abs(rows @ axes.T), axis=0)", "test_spread.py::test_the_spread_of_normal_data_is_exact[3]"),
        ("Spread", "the data's variance forgotten", "shrunk = scale / (1 + scale * jnp.exp(log_snr))", "shrunk = scale / (1 + jnp.exp(log_snr))", "test_spread.py::test_the_spread_of_normal_data_is_exact[3]"),
        ("widened", "a standard deviation for a variance", "return self.spread.at(self.schedule, t, x_0.dtype).diagonal()", "return jnp.sqrt(self.spread.at(self.schedule, t, x_0.dtype).diagonal())", "test_spread.py::test_widened_is_the_optimal_variance_of_normal_data"),
        ("Covariance", "a variance for a deviation", "return jnp.sqrt(self.rest) * z +", "return self.rest * z +", "test_spread.py::test_a_covariance_is_its_matrix"),
        ("conditioner", "the determinant of the axes forgotten", "logs + 2 * jnp.sum(jnp.log(jnp.diagonal(root_of_K)))", "1 * logs", "test_spread.py::test_conditioning_is_that_of_normal_laws[mask-5-0.3]"),
        ("conditioner", "hidden entries are counted", "jnp.sum(observed * jnp.log(2 * jnp.pi * total))", "jnp.sum(jnp.log(2 * jnp.pi * total))", "test_spread.py::test_conditioning_is_that_of_normal_laws[mask-5-0.3]"),
        ("Conditioner", "what lies beside the axes does not move", "shift = rest * transpose(w)[0]", "shift = 0 * transpose(w)[0]", "test_spread.py::test_conditioning_is_that_of_normal_laws[mask-5-0.3]"),
        ("Conditioner", "y tells nothing of what lies beside the axes", "beside - beside**2 * self.precision", "beside", "test_spread.py::test_conditioning_is_that_of_normal_laws[mask-5-0.3]"),
    ],
    "jaxdiff/guidance/_repaint.py": [
        ("repaint", "the mask the other way round", "jnp.where(self.observed[None], known, unknown)", "jnp.where(self.observed[None], unknown, known)", "test_observations.py::test_repaint_keeps_what_is_seen_and_is_biased"),
        ("repaint", "nothing is repeated", "return q_step(self.schedule, down(x, n), s, t, eps)", "return x", "test_identities.py::test_repeated_steps_tell_the_hidden_of_the_seen"),
    ],
    "jaxdiff/posterior/_twisted.py": [
        ("twisted", "the final true likelihood never applied", "return carry.denoised, carry.guide, log_likelihoods(self.log_likelihood, x)", "return carry.denoised, carry.guide, carry.log_r", "test_posterior.py::test_mutants_of_the_driver_are_rejected[only at the end-True]"),
        ("twisted", "sigma for sigma^2 in the drift", "tilt(p, carry.guide)", "tilt(p, carry.guide / jnp.sqrt(p.variance))", "test_identities.py::test_a_twisted_step_is_shifted_by_variance_times_slope"),
        ("twisted", "steps as wide as before y", "self.conditioner(t, x_t).variance()[None]", "self.spread.at(self.schedule, t, x_t.dtype).diagonal()[None]", "test_twisted.py::test_independent_normal_data_leave_nothing_to_the_weights"),
        ("twisted", "points drawn anew in each step", "nodes = jnp.asarray(nodes, x_0.dtype)", "nodes = jax.random.normal(jax.random.fold_in(jax.random.key(0), jnp.asarray(1000 * t, int)), nodes.shape, x_0.dtype)", "test_twisted.py::test_the_twist_is_one_function_of_the_state"),
        ("through", "the variance is forgotten", "return p_mean_variance(self.denoiser, self.schedule, x_t, t, s, variance=self.variance)", "return p_mean_variance(self.denoiser, self.schedule, x_t, t, s)", "test_identities.py::test_a_twisted_step_is_shifted_by_variance_times_slope"),
    ],
    "jaxdiff/posterior/_weighting.py": [
        ("tilt", "sigma for sigma^2 in the drift", "Normal(p.mean + p.variance * gradient, p.variance)", "Normal(p.mean + jnp.sqrt(p.variance) * gradient, p.variance)", "test_posterior.py::test_the_unweighted_bias_of_2015[None-0.596-0.377]"),
        ("Weighted", "the last twist is not taken out", "ratio + self.log_r_of(new) - self.log_r_of(carry)", "ratio + self.log_r_of(new)", "test_posterior.py::test_a_perfect_twist_leaves_nothing_to_the_weights[twisted]"),
        ("draw_weighted", "weights with the model's variance for the proposal's", "x_s, ratio = safe_q.draw_for(safe_p, eps)", "x_s, ratio = safe_q.at(eps), Normal(safe_q.mean, safe_p.variance).draw_for(safe_p, eps)[1]", "test_twisted.py::test_independent_normal_data_leave_nothing_to_the_weights"),
        ("draw_weighted", "the path is weighted for its own noise", "(reference - q.mean[0]) / jnp.sqrt(spread)", "reference - q.mean[0]", "test_lineages.py::test_a_path_of_a_run_has_the_weight_of_that_run[spread]"),
        ("weighable", "a zero on the way is for ever", "jnp.where(jnp.isfinite(log_r), log_r, before)", "log_r", "test_posterior.py::test_one_run_of_many_rows_with_a_zero_likelihood[twisted-2.0]"),
        ("finite_or", "a slope that is not finite moves", "usable = _rows.all_finite(q.mean) & _rows.all_finite(variance)", "usable = jnp.isfinite(variance) | True", "test_posterior.py::test_a_slope_that_is_not_finite_leaves_the_models_step"),
        ("Weighted", "ancestors without the density of the step", "return p.log_prob(x_s[None]) - self.log_r_of(carry)", "return -self.log_r_of(carry)", "test_lineages.py::test_a_path_goes_on_from_a_past_that_fits"),
        ("Weighted", "ancestors keep their twist", "return p.log_prob(x_s[None]) - self.log_r_of(carry)", "return p.log_prob(x_s[None])", "test_lineages.py::test_a_path_goes_on_from_a_past_that_fits"),
    ],
    "jaxdiff/posterior/_tilted.py": [
        ("tilted", "r in full at every step", "jnp.asarray(self.power(t), x.dtype) * log_likelihoods(self.log_r, x)", "log_likelihoods(self.log_r, x)", "test_posterior.py::test_the_unweighted_bias_of_2015[None-0.596-0.377]"),
    ],
    "jaxdiff/posterior/_smoothing.py": [
        ("smoothed", "a mean of logs", "logsumexp(values, axis=0) - jnp.log(len(shifts))", "jnp.mean(values, axis=0)", "test_twisted.py::test_many_nodes_are_the_convolution"),
        ("smoothed", "the terms are averaged together", 'getattr(log_likelihood, "terms", log_likelihood)', "log_likelihood", "test_twisted.py::test_terms_are_averaged_one_by_one"),
        ("standard_nodes", "no pairs", "[z, -z, np.zeros((num % 2, size))]", "[z, z, np.zeros((num % 2, size))]", "test_twisted.py::test_nodes_are_fixed_pairs_of_mean_zero"),
    ],
    "jaxdiff/posterior/_draws.py": [
        ("draw", "evidence averaged in logs", "log_evidence = resampling.log_mean_weight(log_z)", "log_evidence = jnp.mean(log_z)", "test_lineages.py::test_draws_of_systems_and_their_evidence"),
        ("draw", "every chunk has the systems of the first", "_rows.keys(key, shape[0], first=first)", "_rows.keys(key, shape[0])", "test_lineages.py::test_a_draw_is_its_key_and_its_index[0]"),
        ("draw", "whatever the weights", "jnp.where(usable, log_weights, 0), rows, num)", "jnp.zeros(len(rows)), rows, num)", "test_lineages.py::test_a_draw_is_chosen_by_its_weight"),
        ("path_of", "the row for its ancestor", "row = ancestors[slot, row]", "row = 1 * row", "test_lineages.py::test_lineages_are_those_of_a_record_by_hand[1-0.6]"),
    ],
    "jaxdiff/posterior/_conjugate.py": [
        ("mcgdiff", "the path has another row's twist", "moved = observation.project(x_s)", "moved = 1 * moved", "test_lineages.py::test_a_path_of_a_run_has_the_weight_of_that_run[mcgdiff]"),
        ("mcgdiff", "the last normaliser is not taken out", "return log_r_s, x_s, log_normaliser - carry", "return log_r_s, x_s, log_normaliser", "test_posterior.py::test_a_perfect_twist_leaves_nothing_to_the_weights[conjugate]"),
        ("mcgdiff", "scale for scale^2", "added + scale**2 * v", "added + scale * v", "test_posterior.py::test_a_perfect_twist_leaves_nothing_to_the_weights[conjugate]"),
        ("mcgdiff", "what lies outside of A's range is forgotten", "constant = -jnp.sum(outside**2) / (2 * std**2)", "constant = 0 * jnp.sum(outside**2) / (2 * std**2)", "test_identities.py::test_what_lies_outside_the_range_counts"),
        ("inpaint", "hidden entries are counted", "observed.astype(y.dtype), y, noise_std, observed)", "observed.astype(y.dtype), y, noise_std, True)", "test_posterior.py::test_without_an_observation_it_is_ancestral"),
        ("denoise", "nothing is observed", "everything = jnp.ones(jnp.shape(y), bool)", "everything = jnp.zeros(jnp.shape(y), bool)", "test_posterior.py::test_a_perfect_twist_leaves_nothing_to_the_weights[conjugate]"),
        ("noise_level", "the ratio for its square", "schedule.time(-2 * jnp.log(jnp.asarray(noise_std)))", "schedule.time(-jnp.log(jnp.asarray(noise_std)))", "test_identities.py::test_the_noise_level_is_where_the_ratio_is"),
        ("gaussian_belief", "the mean counts in full", "sigma**2 * mean / total", "mean", "test_identities.py::test_the_gaussian_belief_is_the_oracles_posterior"),
    ],
    "jaxdiff/posterior/_gibbs.py": [
        ("split_gibbs", "the coupling's square", "self.observation, x, (alpha / sigma) ** 2", "self.observation, x, alpha / sigma", "test_identities.py::test_the_first_half_of_split_gibbs_is_its_conditional"),
    ],
    "jaxdiff/posterior/_least_squares.py": [
        ("split_gibbs daps", "no noise of its own", "jnp.sqrt(precision) * noise_x", "0 * noise_x", "test_approximations.py::test_daps_is_exact_on_isotropic_data[1]"),
        ("diffpir", "the noise for its square", "transpose(observed * residual / std**2)", "transpose(observed * residual / std)", "test_approximations.py::test_diffpir_is_algorithm_1"),
    ],
    "jaxdiff/posterior/_decoupled.py": [
        ("daps", "a variance for a precision", "return 1 / std**2 + (level_t.alpha / level_t.sigma) ** 2", "return std**2 + (level_t.sigma / level_t.alpha) ** 2", "test_approximations.py::test_daps_is_exact_on_isotropic_data[1]"),
        ("daps", "the noise of x_t for that of x_s", "alpha, sigma, _ = level(self.schedule, s, x_t)", "alpha, sigma, _ = level(self.schedule, t, x_t)", "test_approximations.py::test_daps_is_exact_on_isotropic_data[6]"),
        ("daps", "moves without the likelihood", "return near + log_likelihoods(self.log_likelihood, x_0)", "return near", "test_approximations.py::test_daps_by_langevin_moves_is_daps"),
        ("diffpir", "the noise of the denoised state", "old = (x_t - level_t.alpha * x_0) / level_t.sigma", "old = (x_t - level_t.alpha * x_0_of(self.denoiser(x_t, t), x_t)) / level_t.sigma", "test_approximations.py::test_diffpir_is_algorithm_1"),
        ("diffpir", "zeta for its root", "jnp.sqrt(1 - zeta) * old + jnp.sqrt(zeta) * new", "(1 - zeta) * old + zeta * new", "test_approximations.py::test_diffpir_is_algorithm_1"),
    ],
    "jaxdiff/posterior/_mixture_guided.py": [
        ("mgdm", "the likelihood of the noisy state", "x_0_of(self.denoiser(x_u, u), x_u))\n            near", "x_u)\n            near", "test_approximations.py::test_the_law_of_x_u_is_fitted_to_the_product"),
        ("mgdm", "a law that is never wide", "near = 0.5 * (jnp.exp(2 * log_scale) + shift**2) - log_scale", "near = 0.5 * (jnp.exp(2 * log_scale) + shift**2)", "test_approximations.py::test_the_law_of_x_u_is_fitted_to_the_product"),
        ("mgdm", "no noise from u to s", "return x_0, kept * x_u + added * _rows.normal(key_s, x_s)", "return x_0, kept * x_u", "test_approximations.py::test_a_sweep_without_an_observation_keeps_the_law[1]"),
        ("mgdm", "x_0 of before the sweep", "jnp.where(more, swept[0], x_0)", "x_0", "test_approximations.py::test_a_sweep_without_an_observation_keeps_the_law[1]"),
    ],
    "jaxdiff/posterior/_midpoint.py": [
        ("midpoint", "no bridge", "bridge_gain(level_t, level_s, level_l) * shift", "shift", "test_approximations.py::test_the_midpoints_mean_is_that_of_its_normal_law[cosine-0.5]"),
        ("midpoint", "alpha at the wrong end", "return level_s.alpha / level_l.alpha * kept", "return level_l.alpha / level_s.alpha * kept", "test_approximations.py::test_the_bridge_is_bayes"),
        ("midpoint", "no way back to the model", "(prior.mean + prior.variance * slope - mean)", "(prior.variance * slope)", "test_approximations.py::test_the_midpoints_mean_is_that_of_its_normal_law[cosine-0.5]"),
        ("midpoint", "a slope that is not finite moves", "slope = jnp.where(_rows.all_finite(slope), slope, 0)", "slope = 1 * slope", "test_approximations.py::test_a_midpoint_that_tells_nothing_is_the_models_step"),
    ],
    "jaxdiff/posterior/_annealed.py": [
        ("annealed_gibbs", "the ratio for its square", "jnp.where(jnp.asarray(t) > 0, sigma / alpha, 0) ** 2 * gain", "jnp.where(jnp.asarray(t) > 0, sigma / alpha, 0) * gain", "test_annealed_gibbs.py::test_levels_are_normal_densities[noisy]"),
        ("annealed_gibbs", "a level that the start's weights do not contain is taken out", "jnp.where(carry, self.log_r(residual, gain, t), 0)", "self.log_r(residual, gain, t)", "test_annealed_gibbs.py::test_the_first_step_is_the_models_chain"),
        ("annealed_gibbs", "only the diagonal of A A^T", "_is_diagonal(seen.operator) if self.diagonal is None else self.diagonal", "True", "test_annealed_gibbs.py::test_levels_are_normal_densities[matrix]"),
        ("annealed_gibbs", "the last level is not taken out", "return jnp.ones_like(carry), x,", "return carry, x,", "test_annealed_gibbs.py::test_evidence_is_unbiased_with_exact_moves_at_sixteen_particles[8-3]"),
        ("annealed_gibbs", "the copy's distance is not the level's", "x_t, (alpha / sigma) ** 2, keys=(key_y, key_z)", "x_t, alpha / sigma, keys=(key_y, key_z)", "test_annealed_gibbs.py::test_a_move_leaves_its_level_as_it_is[1.5]"),
        ("annealed_gibbs", "the last step returns a mean", "return p.sample(key)", "return jnp.where(jnp.asarray(s) > 0, p.sample(key), p.mean)", "test_annealed_gibbs.py::test_one_step_draws_from_a_normal_posterior"),
    ],
    "jaxdiff/posterior/_exchange.py": [
        ("replica_exchange", "the increment of the old step is forgotten", "jnp.where(old > -jnp.inf, new.increment - old, jnp.inf)", "jnp.where(old > -jnp.inf, new.increment, jnp.inf)", "test_exchange.py::test_a_round_leaves_the_law_of_the_ladder_as_it_is"),
        ("replica_exchange", "every swap is accepted", "accepted = jnp.log(chance) < gain", "accepted = jnp.log(chance) < jnp.inf", "test_exchange.py::test_a_round_leaves_the_law_of_the_ladder_as_it_is"),
        ("replica_exchange", "the upper path stays where it is", "order = order.at[upper].set(jnp.where(accepted, lower, upper))", "order = order.at[upper].set(jnp.where(accepted, upper, upper))", "test_exchange.py::test_a_round_leaves_the_law_of_the_ladder_as_it_is"),
        ("replica_exchange", "the new state belongs to the old path", "leaf = leaf[order]", "leaf = leaf[jnp.arange(len(ts))]", "test_exchange.py::test_a_round_leaves_the_law_of_the_ladder_as_it_is"),
        ("replica_exchange", "odd pairs never swap", "for parity in (0, 1):", "for parity in (0, 0):", "test_exchange.py::test_a_wrong_start_is_forgotten_and_the_evidence_found"),
        ("replica_exchange", "works of the wrong sign", "return ladder, (accepted.astype(ts.dtype), -new.increment, old)", "return ladder, (accepted.astype(ts.dtype), new.increment, -old)", "test_exchange.py::test_a_wrong_start_is_forgotten_and_the_evidence_found"),
    ],
    "jaxdiff/posterior/_composed.py": [
        ("composed", "the rate without its half", "return gap / 2 + b * self", "return gap + b * self", "test_composed.py::test_products_powers_and_quotients_of_gaussians[cosine-exponents0]"),
        ("composed_score", "sigma for sigma^2", "- total * x) / sigma**2", "- total * x) / sigma", "test_identities.py::test_the_composed_score_is_the_sum_of_scores"),
        ("mixed", "no half in the exponent", "jnp.sum(squared, axis=2) / 2, axis=1)", "jnp.sum(squared, axis=2), axis=1)", "test_composed.py::test_mixtures_are_exact_at_any_number_of_steps"),
        ("mixed", "no weights choose the first model", "jnp.where(_rows.expand(jnp.isnan(carry).any(axis=1), mean), jnp.nan, mean)", "1 * mean", "test_posterior.py::test_a_mixture_with_a_model_of_no_weight"),
    ],
    "jaxdiff/posterior/_moves.py": [
        ("langevin", "a step of the SNR, not of its square", "moves.ula(key, target, x, 2 * step**2)", "moves.ula(key, target, x, 2 * step)", "test_identities.py::test_moves_hold_a_normal_law"),
        ("metropolis", "every proposal is taken", "moves.mala(key, target, x, 2 * step**2).x", "moves.ula(key, jax.grad(lambda x: jnp.sum(target(x))), x, 2 * step**2)", "test_identities.py::test_moves_hold_a_normal_law"),
        ("hamiltonian", "a step of the square", "moves.hmc(key, target, x, step, num_leapfrog=self.num_leapfrog)", "moves.hmc(key, target, x, step**2, num_leapfrog=self.num_leapfrog)", "test_identities.py::test_moves_hold_a_normal_law"),
    ],
    # --- oracles, discrete data ------------------------------------------------------------------------------------
    "jaxdiff/oracles/_affine.py": [
        ("affine_chain", "covariances that are not pushed on", "slope @ covariance @ slope.T", "slope @ covariance", "test_early_chain.py::test_the_chains_law_is_its_recursion"),
        ("chain_law", "the last latent is taken for the data", "law.covariances[0] / alpha**2", "law.covariances[0]", "test_early_chain.py::test_the_chains_law_is_its_recursion"),
    ],
    "jaxdiff/oracles/_fitting.py": [
        ("fitted", "the mean covariance is forgotten", "scatters + strength * within[None]", "scatters + 0 * within[None]", "test_fitting.py::test_one_component_is_the_moments_and_the_floor"),
        ("fitted", "a deviation for its square", "floor**2 * eye[None]", "floor * eye[None]", "test_fitting.py::test_one_component_is_the_moments_and_the_floor"),
        ("fitted", "every point in the nearest component", "jax.nn.softmax(joint, axis=1)", "jnp.ones_like(joint)", "test_fitting.py::test_two_separate_normals_are_recovered"),
    ],
    "jaxdiff/oracles/_mixture.py": [
        ("GaussianMixture gaussian", "a missing factor in the normaliser", "jnp.log(2 * jnp.pi * value), axis=1)", "jnp.log(jnp.pi * value), axis=1)", "test_oracles.py::test_log_prob_is_scipys"),
        ("GaussianMixture", "the score's sign", "Spectrum(-1 / values, vectors), 1.0)", "Spectrum(1 / values, vectors), 1.0)", "test_oracles.py::test_score_is_the_gradient"),
        ("GaussianMixture", "the denoiser's gain without alpha", "Spectrum(alpha[..., None] * values[None] / values_t, vectors)", "Spectrum(values[None] / values_t, vectors)", "test_oracles.py::test_denoiser_is_tweedie"),
        ("GaussianMixture", "the posterior's mean moves the wrong way", "y[None] - evidence.means)", "evidence.means - y[None])", "test_oracles.py::test_posterior_and_evidence_are_bayes"),
        ("GaussianMixture", "the components' means have no spread", "given.covariances + centred[:, :, None] * centred[:, None, :]", "given.covariances", "test_identities.py::test_the_oracles_variance_is_its_covariances_diagonal"),
        ("empirical", "a variance for the bandwidth", "jnp.asarray(bandwidth, flat.dtype) ** 2", "jnp.asarray(bandwidth, flat.dtype)", "test_identities.py::test_the_empirical_law_is_the_kernel_density"),
    ],
    "jaxdiff/oracles/_binary.py": [
        ("binary_states", "the last bit first", ">> np.arange(size)[::-1]) % 2", ">> np.arange(size)) % 2", "test_identities.py::test_a_binary_chain_of_one_step_draws_what_is_denoised"),
        ("BinaryLaw", "no half of the agreements", "(2 * sequences.T - 1) / 2", "(2 * sequences.T - 1)", "test_binomial.py::test_the_exact_denoiser_is_bayes_rule_by_enumeration"),
        ("binary_chain", "a step too few", "jax.lax.fori_loop(0, len(ts) - 1, step, jnp.full", "jax.lax.fori_loop(1, len(ts) - 1, step, jnp.full", "test_identities.py::test_a_binary_chain_of_one_step_draws_what_is_denoised"),
        ("binary_bound", "the prior's term is zero", "step, -binomial.prior_kl(schedule, states, ts[0]))", "step, 0 * binomial.prior_kl(schedule, states, ts[0]))", "test_identities.py::test_a_binary_bound_that_starts_early_has_its_prior"),
    ],
    "jaxdiff/binomial.py": [
        ("q_transition", "from the data, not from x_s", "_survive(alpha_t / alpha_s, x_s)", "_survive(alpha_t, x_s)", "test_binomial.py::test_it_is_the_papers_table"),
        ("draw", "the other bit", "(_rows.keys(key, len(probability)), probability)", "(_rows.keys(key, len(probability)), 1 - probability)", "test_binomial.py::test_samples_follow_the_chains_exact_law"),
        ("prior_sample", "no fair coin", "jnp.full(shape, 0.5))\n", "jnp.full(shape, 0.4))\n", "test_identities.py::test_bits_start_as_fair_coins"),
        ("log_odds", "of one bit's probability", "jnp.log1p(alpha) - jnp.log(jnp.maximum(1 - alpha", "jnp.log1p(alpha) - 0 * jnp.log(jnp.maximum(1 - alpha", "test_binomial.py::test_a_networks_logits_are_the_other_bits_evidence"),
        ("bernoulli_kl", "without the entropy", "xlog1py(1 - p, -q) - entropy)", "xlog1py(1 - p, -q))", "test_identities.py::test_the_binary_kl_is_by_hand"),
        ("prior_kl", "zero", "return bernoulli_kl(q_marginal(schedule, x_0, t), jnp.full(", "return 0 * bernoulli_kl(q_marginal(schedule, x_0, t), jnp.full(", "test_identities.py::test_a_binary_bound_that_starts_early_has_its_prior"),
        ("vlb_terms", "a step too few", "(jnp.arange(len(ts) - 1), ts[:-1], ts[1:])", "(jnp.arange(len(ts) - 2), ts[:-2], ts[1:-1])", "test_identities.py::test_the_binary_bound_is_the_oracles"),
        ("q_marginal", "what is lost counts twice", "return probability * x + (1 - probability) / 2", "return probability * x + (1 - probability)", "test_binomial.py::test_it_is_the_papers_table"),
        ("q_posterior", "the transition forgets s", "_bernoulli(_survive(alpha_t / alpha_s, 1.0), x_t)", "_bernoulli(_survive(alpha_t, 1.0), x_t)", "test_binomial.py::test_transitions_compose_and_the_posterior_is_bayes"),
        ("make_denoiser", "evidence against itself", "logits + sign * log_odds(alpha)", "logits - sign * log_odds(alpha)", "test_binomial.py::test_a_networks_logits_are_the_other_bits_evidence"),
        ("ancestral", "the bit that is denoised", "p = q_posterior(self.schedule, x_t, self.denoiser(x_t, t), t=t, s=s)", "p = self.denoiser(x_t, t)", "test_binomial.py::test_samples_follow_the_chains_exact_law"),
        ("step_kl", "the other direction", "return bernoulli_kl(q_posterior(schedule, x_t, x_0, t=t, s=s), p)", "return bernoulli_kl(p, q_posterior(schedule, x_t, x_0, t=t, s=s))", "test_identities.py::test_the_binary_kl_is_by_hand"),
        ("vlb", "T - 1 terms for T", "prior_kl(schedule, x_0, ts[0]) + num_steps * cost", "prior_kl(schedule, x_0, ts[0]) + (num_steps - 1) * cost", "test_identities.py::test_the_binary_bound_is_the_oracles"),
        ("vlb", "an index outside is another term's", "jnp.where((index >= 0) & (index < num_steps), bound + invalid, jnp.nan)", "bound + invalid", "test_edges.py::test_a_traced_index_is_no_other_term"),
        ("vlb vlb_terms", "what is no bit has a bound", "jnp.where((x_0 == 0) | (x_0 == 1), 0, jnp.nan)", "(0 * x_0)", "test_edges.py::test_a_traced_row_of_no_bits_has_no_probability"),
    ],
    # --- metrics ---------------------------------------------------------------------------------------------------
    "jaxdiff/metrics/_classifiers.py": [
        ("nearest_neighbour_accuracy", "a point is its own neighbour", "distances[row, start + row] = np.inf", "distances[row, start + row] = 0", "test_metrics.py::test_it_is_sklearns_leave_one_out"),
        ("nearest_neighbour_accuracy", "itself by its place in the block", "distances[row, start + row] = np.inf", "distances[row, row] = np.inf", "test_metrics.py::test_blocks_change_nothing"),
        ("classifier_accuracy", "judged on what it was fitted to", "(slice(half), slice(half, None))", "(slice(half), slice(half))", "test_metrics.py::test_a_classifier_is_judged_on_held_out_examples"),
        ("precision", "a point counts as its own neighbour", "k, axis=1)[:, k]", "k, axis=1)[:, k - 1]", "test_metrics.py::test_precision_and_recall_are_those_of_sklearns_neighbours"),
        ("recall", "precision again", "return precision(y, x, num_neighbours", "return precision(x, y, num_neighbours", "test_metrics.py::test_a_lost_mode_costs_recall_and_an_invented_one_precision"),
    ],
    "jaxdiff/metrics/_comparison.py": [
        ("compare", "the floor is the figure", "metric(other_real, real))", "metric(x, real))", "test_metrics.py::test_every_metric_finds_a_shift_and_stands_on_its_floor_without"),
        ("permutation_test", "always one-sided", "alternative=alternative,", 'alternative="greater",', "test_identities.py::test_the_alternative_of_a_permutation_test_counts"),
    ],
    "jaxdiff/metrics/_kernels.py": [
        ("energy_distance", "squared distances", "-np.sqrt(squared)", "-squared", "test_metrics.py::test_energy_distance_is_scipys"),
        ("mmd", "no half in the exponent", "np.exp(-squared / (2 * b**2))", "np.exp(-squared / b**2)", "test_metrics.py::test_discrepancies_of_normal_laws_are_unbiased"),
        ("mmd energy_distance", "points paired with themselves", "if x is y:", "if x is None:", "test_metrics.py::test_discrepancies_of_normal_laws_are_unbiased"),
        ("mmd energy_distance", "itself by its place in the block", "values[row, start + row] = 0", "values[row, row] = 0", "test_metrics.py::test_blocks_change_nothing"),
        ("mmd", "distances to itself in the median", "np.median(pdist(points))", "np.median(np.append(pdist(points), np.zeros(len(points))))", "test_metrics.py::test_the_median_heuristic_is_the_median_distance_of_the_pooled_sample"),
    ],
    "jaxdiff/metrics/_parzen.py": [
        ("parzen_log_likelihood", "a missing factor in the normaliser", "np.log(np.sqrt(2 * np.pi) * widths)", "np.log(np.sqrt(np.pi) * widths)", "test_metrics.py::test_parzen_is_sklearns_kernel_density_with_the_best_width"),
        ("parzen_width", "the worst", "widths[np.argmax(", "widths[np.argmin(", "test_metrics.py::test_parzen_is_sklearns_kernel_density_with_the_best_width"),
    ],
    "jaxdiff/metrics/_transport.py": [
        ("frechet_distance", "ddof", "np.cov(z.T)", "np.cov(z.T, ddof=0)", "test_metrics.py::test_frechet_distance_is_scipys"),
        ("normal_wasserstein", "the cross term once", "np.trace(covariances[1]) - 2 * cross", "np.trace(covariances[1]) - cross", "test_metrics.py::test_wasserstein_and_frechet_of_normal_laws"),
        ("sliced_wasserstein", "directions of any length", "theta /= np.linalg.norm(theta, axis=1, keepdims=True)", "theta /= 1.0", "test_metrics.py::test_sliced_wasserstein_of_a_shift"),
        ("wasserstein", "the square of the cost", "** (order / 2)", "** order", "test_metrics.py::test_wasserstein_is_scipys_and_that_of_a_shift"),
    ],
    # --- training --------------------------------------------------------------------------------------------------
    "jaxdiff/training/state.py": [
        ("make_step", "an average without warm-up", "decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))", "decay = self.ema_decay", "test_training.py::test_average_warms_up"),
        ("make_step", "gradients of one device", "value, grads = jax.lax.pmean((value, grads), AXIS)", "value = jax.lax.pmean(value, AXIS)", "test_training.py::test_gradients_themselves_agree"),
        ("make_step Rows", "noise by the device's own count", "return jax.lax.axis_index(AXIS) * num_rows,", "return 0 * jax.lax.axis_index(AXIS),", "test_training.py::test_the_same_gradient_on_any_number_of_devices"),
        ("make_step", "every step draws the same noise", "jax.random.fold_in(state.key, state.step)", "jax.random.fold_in(state.key, 0)", "test_identities.py::test_every_update_has_a_stream_of_its_own"),
        ("make_step", "parts that have the noise of the first one", "starts = first + part * jnp.arange(", "starts = first + 0 * jnp.arange(", "test_training.py::test_a_gradient_in_parts_is_the_whole_one"),
        ("make_step", "a sum of parts for their mean", "lambda leaf: leaf / len(starts), total", "lambda leaf: leaf, total", "test_training.py::test_a_gradient_in_parts_is_the_whole_one"),
        ("make_step", "a bad gradient moves the parameters", "jnp.where(good, new, old)", "new", "test_training.py::test_an_update_that_is_not_finite_is_skipped"),
        ("make_step", "all bad ones are in a row", "jnp.where(good, 0, state.in_a_row + 1)", "state.in_a_row + ~good", "test_training.py::test_an_update_that_is_not_finite_is_skipped"),
    ],
    "jaxdiff/training/devices.py": [
        ("map_step replicate placements", "nothing is divided", "if not any(sizes):", "if True:", "test_training.py::test_a_divided_state_is_updated_like_a_whole_one"),
        ("map_step", "several updates with the batches backwards", "jax.lax.scan(one, state, batch, at_once)", "jax.lax.scan(one, state, batch, at_once, reverse=True)", "test_dispatch.py::test_updates_in_one_dispatch_are_single_ones"),
        ("shard", "every device has the first rows", "make_array_from_process_local_data(place, np.asarray(leaf))", "make_array_from_process_local_data(place, np.repeat(np.asarray(leaf)[:1], len(leaf), 0))", "test_training.py::test_the_same_gradient_on_any_number_of_devices"),
        ("split", "rows dealt out in turns", "leaf.reshape(num, rows // num, *leaf.shape[1:])", "leaf.reshape(rows // num, num, *leaf.shape[1:]).swapaxes(0, 1)", "test_training.py::test_rows_are_split_in_order"),
    ],
    "jaxdiff/training/objective.py": [
        ("denoising_loss", "labels dropped at another rate", "jax.random.bernoulli(k, label_drop))(key)", "jax.random.bernoulli(k, 1 - label_drop))(key)", "test_training.py::test_labels_are_dropped_at_the_rate_asked_for"),
        ("denoising_loss", "times by the device's own count", "losses.low_discrepancy_times(key, size, first=rows.first, total=rows.total)", "losses.low_discrepancy_times(key, size)", "test_training.py::test_the_same_gradient_on_any_number_of_devices"),
        ("chain_loss", "the last term is never drawn", "jnp.minimum(num_steps * times_of(rows, time_sampling), num_steps - 1)", "jnp.minimum(num_steps * times_of(rows, time_sampling), num_steps - 2)", "test_early_chain.py::test_the_losses_of_training_are_the_bounds"),
        ("likelihood_loss", "nats", "bits = x_0[0].size * math.log(2)", "bits = x_0[0].size", "test_early_chain.py::test_the_losses_of_training_are_the_bounds"),
        ("make_optimizer", "no clipping", "return optax.chain(clip, optax.adamw(", "return optax.chain(optax.identity(), optax.adamw(", "test_identities.py::test_gradients_are_clipped_to_the_norm"),
        ("learning_rates", "the last rate is no share of the peak", "learning_rate * final_scale", "final_scale", "test_training.py::test_learning_rate_and_clipping"),
    ],
    "jaxdiff/training/checkpoints.py": [
        ("Checkpoints", "the digest is not compared", 'return tree if digest(tree) == about["sha256"] else None', "return tree", "test_training.py::test_another_number_in_a_checkpoint_is_damage"),
        ("Checkpoints", "the oldest first", "steps = sorted(self._manager.all_steps(), reverse=True)", "steps = sorted(self._manager.all_steps())", "test_training.py::test_the_newest_and_the_best_are_kept"),
        ("Checkpoints", "whatever the model", "if found == expected:", "if found or expected:", "test_training.py::test_a_checkpoint_of_another_model_is_refused"),
    ],
    "jaxdiff/training/run.py": [
        ("Log", "< for <=: the step it resumes from is written twice or lost", 'if line["step"] <= step]', 'if line["step"] < step]', "test_training.py::test_log_goes_on_from_the_step_it_resumes"),
        ("atomic", "the draft stays behind", "draft.unlink(missing_ok=True)", "pass", "test_training.py::test_atomic_files"),
        ("lock", "nobody is kept out", '        who = path.read_text().strip() or "another process"\n', "        yield\n        return\n        who = 0\n", "test_training.py::test_one_process_writes_to_a_run"),
        ("first_line", "of a message that there is not", "next(filter(None, lines), type(error).__name__)", "str(error).splitlines()[0]", "test_training.py::test_an_error_without_a_message_is_passed_over_too"),
    ],
    "jaxdiff/training/loop.py": [
        ("fit", "from the first step again", "range(int(state.step), num_steps)", "range(num_steps)", "test_training.py::test_the_loop_stops_after_the_step_in_hand_and_goes_on_bit_for_bit"),
        ("run_updates", "the user is not heard", "stopped = stop is not None and _asked(stop, part)", "stopped = False", "test_training.py::test_the_loop_stops_after_the_step_in_hand_and_goes_on_bit_for_bit"),
        ("run_updates", "the update in hand is waited for", "ELSEWHERE = 3", "ELSEWHERE = 1", "test_dispatch.py::test_an_accelerator_never_waits_for_the_host"),
        ("run_updates", "dispatches that depend on where a run was stopped", "whole = start % at_once == 0 and start", "whole = start", "test_dispatch.py::test_dispatches_begin_at_their_multiples"),
        ("Progress", "the metrics of the first of several updates", "float(np.ravel(value)[-1])", "float(np.ravel(value)[0])", "test_dispatch.py::test_updates_in_one_dispatch_are_single_ones"),
        ("stopping", "signals stay caught", "signal.signal(number, handler)", "signal.signal(number, stop)", "test_training.py::test_the_loop_stops_after_the_step_in_hand_and_goes_on_bit_for_bit"),
    ],
    "jaxdiff/training/watch.py": [
        ("Watch", "work is a wait too", "if self._idle and computed", "if False and computed", "test_devices.py::test_work_is_no_wait_where_only_idle_time_counts"),
        ("Watch", "a stopped program has waited", "STOPPED = 5", "STOPPED = 10**9", "test_devices.py::test_a_stopped_program_has_not_waited"),
    ],
    "jaxdiff/runs/loop.py": [
        ("held_out_loss", "chunks that all have the first rows' times", "losses(params, index[0], keys[index],", "losses(params, 0 * index[0], keys[index],", "test_memory.py::test_the_held_out_loss_does_not_change_with_the_chunk"),
        ("held_out_loss", "chunks that all have the first rows' noise", "index[0], keys[index],", "index[0], keys[: len(index)],", "test_memory.py::test_the_held_out_loss_does_not_change_with_the_chunk"),
    ],
    "jaxdiff/runs/memory.py": [
        ("in_chunks", "what fills up the last chunk is counted", "np.asarray(leaf)[: num - start]", "np.asarray(leaf)", "test_memory.py::test_chunks_have_one_shape_and_join_up"),
    ],
    # --- networks --------------------------------------------------------------------------------------------------
    "jaxdiff/models/_layers.py": [
        ("attend", "all pairs at once", "if pixels <= WHOLE:", "if pixels <= 99 * WHOLE:", "test_models.py::test_no_layer_holds_all_pairs_of_pixels"),
        ("attend", "the backward pass keeps all pairs", "    @jax.checkpoint\n    def one", "    def one", "test_models.py::test_attention_takes_memory_in_proportion_to_the_pixels"),
        ("attend", "turns that come out in another order", "batch_size=max(16, PAIRS // pixels)), 0, 1)", "batch_size=max(16, PAIRS // pixels))[::-1], 0, 1)", "test_models.py::test_attention_in_turns_is_attention_at_once"),
        ("_in_kernel", "rows from the wrong side", "above, here, below = jax.lax.split", "below, here, above = jax.lax.split", "test_models.py::test_convolution_is_the_plain_one_to_the_second_derivative"),
        ("_in_kernel", "blocks added up in bfloat16", "precise = kernel.astype(_rows.state_dtype(kernel.dtype))", "precise = kernel", "test_models.py::test_a_kernel_s_gradient_in_bfloat16_is_summed_in_float32"),
        ("_in_kernel", "the backward pass keeps the columns", "    @jax.checkpoint  # the columns are three times as large as x\n", "", "test_models.py::test_a_kernel_s_gradient_keeps_only_the_images"),
        ("Embedding", "a negative label is counted from the end", "jnp.where(label < 0, self.num_classes + 1, label)", "1 * label", "test_models.py::test_a_traced_label_is_no_other_class"),
        ("Norm", "parameters of the default dtype", '"scale", nn.initializers.ones, x.shape[-1:], jnp.float32)', '"scale", nn.initializers.ones, x.shape[-1:])', "test_models.py::test_parameters_are_float32_and_the_same_in_float64_programs"),
    ],
    # --- data and what ships ---------------------------------------------------------------------------------------
    "jaxdiff/data/idx.py": [
        ("write", "little-endian", 'array.astype(">" + kind)', 'array.astype("<" + kind)', "test_data.py::test_idx_round_trip"),
        ("read parse", "little-endian", 'np.dtype(">" + DTYPES[content[2]])', 'np.dtype("<" + DTYPES[content[2]])', "test_data.py::test_idx_round_trip"),
        ("parse", "what trails is forgotten", "if length != expected:", "if length < expected:", "test_data.py::test_idx_errors"),
    ],
    "jaxdiff/data/digits.py": [
        ("load", "any file will do", "if found != SHA256:", "if not found:", "test_data.py::test_other_digits_are_refused"),
    ],
    "jaxdiff/data/images.py": [
        ("to_unit", "n levels for n - 1 steps", "span = np.float32(levels - 1)", "span = np.float32(levels)", "test_data.py::test_every_level_survives_the_round_trip"),
        ("from_unit", "levels by truncation", "return level.round().clip(", "return level.clip(", "test_data.py::test_from_unit_takes_the_nearest_level_and_clips"),
    ],
    "jaxdiff/data/held_out.py": [
        ("hold_out", "what is held out is trained on", "rest = np.setdiff1d(np.arange(train.num_examples), rows)", "rest = np.arange(train.num_examples)", "test_data.py::test_train_alone_is_cut"),
        ("by_content", "a random side", "int(content[:8], 16) < SHARE * 16**8 for content in contents", "n % 10 == 0 for n, content in enumerate(contents)", "test_folder.py::test_a_picture_keeps_its_side_when_others_are_added"),
        ("hold_out", "hidden labels come first", "others.sort(key=lambda other: dataset.splits[other].labels is None)", "pass", "test_data.py::test_hidden_labels_come_second"),
    ],
    "jaxdiff/data/pipeline.py": [
        ("batches example_indices", "the same order in every epoch", "np.array([seed, epoch], np.uint64)", "np.array([seed, 0], np.uint64)", "test_data.py::test_orders_differ_between_epochs_and_seeds_and_stay_between_versions"),
        ("example_indices", "examples that come twice", "outside = found >= num_examples", "found, outside = found % np.uint64(num_examples), found < 0", "test_on_disk.py::test_a_computed_order_visits_each_example_once"),
        ("batches", "a coin for the place in the batch", "samples.astype(np.uint64) ^ _draws(seed, 2**64 - 1, 1)", "np.arange(len(samples)).astype(np.uint64) ^ _draws(seed, 2**64 - 1, 1)", "test_folder.py::test_flips_are_a_function_of_the_seed_and_the_step"),
        ("batches", "every process has the first rows", "self.rank * rows + np.arange(rows)", "0 * self.rank * rows + np.arange(rows)", "test_data.py::test_the_batch_does_not_depend_on_the_number_of_processes"),
    ],
    "jaxdiff/data/reading.py": [
        ("ahead", "the next step for this one", "first = self._coming.pop(wanted[0], None)", "first = self._coming.pop(wanted[1], None)", "test_on_disk.py::test_any_step_in_any_order"),
        ("ahead", "a batch too many", "range(step, step + 1 + self._depth)", "range(step, step + 2 + self._depth)", "test_on_disk.py::test_the_next_steps_are_made_meanwhile_and_no_more"),
    ],
    "jaxdiff/data/on_disk.py": [
        ("OnDisk", "rows of the whole for rows of a part", "rows=rows if self.rows is None else self.rows[rows]", "rows=rows", "test_on_disk.py::test_an_index_means_what_it_means_for_an_array"),
    ],
    "jaxdiff/data/tfds.py": [
        ("load", "a stale cache is read", 'if str(arrays.pop("fingerprint")) == fingerprint:', 'if arrays.pop("fingerprint"):', "test_data.py::test_decoded_arrays_are_kept_until_the_set_changes"),
    ],
    "jaxdiff/data/folder.py": [
        ("load", "links lead anywhere", "if path.is_symlink() and not path.resolve()", "if path.is_symlink() and not path", "test_folder.py::test_a_bad_file_is_skipped_with_its_reason[link out]"),
        ("load", "a fingerprint without the names", "[[name, content] for name, content in", "[content for name, content in", "test_folder.py::test_the_fingerprint_is_that_of_the_data"),
        ("luminance", "the mean of the colours", "LUMA = (19595, 38470, 7471)", "LUMA = (21846, 21845, 21845)", "test_folder.py::test_colours_are_those_of_the_pictures"),
    ],
    "jaxdiff/data/parts.py": [
        ("prepared", "a changed file is not read again", "entry is None or entry.stamp != stamp or entry.reason", "entry is None or entry.reason", "test_folder.py::test_preparing_goes_on_where_it_was_stopped"),
    ],
    "jaxdiff/data/saved_set.py": [
        ("find", "rows without a label have the last one", "if number is None or number < 0:", "if number is None:", "test_folder.py::test_a_saved_set_has_its_classes_and_its_own_held_out_split"),
        ("is_saved", "a set of one split is none", 'MARKS = ("dataset_dict.json", "state.json")', 'MARKS = ("dataset_dict.json",)', "test_folder.py::test_saved_sets_that_are_refused"),
    ],
    "jaxdiff/data/pictures.py": [
        ("decoded", "two pictures of one kind of pixels are one", "hashlib.sha256(content)", "hashlib.sha256(b'')", "test_folder.py::test_a_saved_set_of_one_split_is_held_out_by_content"),
        ("read", "16 bits cut off", "((levels * 255 + 32767) // 65535)", "levels.clip(0, 255)", "test_folder.py::test_a_picture_of_any_mode_becomes_eight_bit_colours[16 bits]"),
        ("read", "an orientation the wrong way round", '6: "ROTATE_270"', '6: "ROTATE_90"', "test_folder.py::test_a_picture_stands_upright[6]"),
        ("read", "without a filter", "library.Resampling.BICUBIC", "library.Resampling.NEAREST", "test_folder.py::test_a_picture_is_cropped_in_the_middle_and_resized_without_aliasing"),
    ],
    "jaxdiff/data/table.py": [
        ("load", "the scale of all rows", "_standard(values[~held])", "_standard(values)", "test_table.py::test_a_table_is_standardised_by_its_training_rows[npy]"),
    ],
    "jaxdiff/data/mnist.py": [
        ("prepare", "any file is MNIST", 'if name == "mnist" and digest != MNIST_SHA256[part]:', 'if name == "mnist" and not digest:', "test_data.py::test_sources_that_are_refused"),
    ],
    "jaxdiff/data/toy.py": [
        ("spiral", "more points inside", "radius = jnp.sqrt(_uniform(on_curve, 0, 1))", "radius = _uniform(on_curve, 0, 1)", "test_data.py::test_toy_scale"),
        ("sample swiss_roll", "another roll", "_uniform(on_curve, 1.5 * jnp.pi, 4.5 * jnp.pi)", "_uniform(on_curve, 1.5 * jnp.pi, 5.5 * jnp.pi)", "test_data.py::test_toy_scale"),
    ],
    "jaxdiff/zoo/_packing.py": [
        ("pack", "rounded to zero", "np.round(value / scale).astype(np.int8)", "(value / scale).astype(np.int8)", "test_zoo.py::test_a_weight_moves_by_half_a_scale_at_most"),
        ("pack_spread unpack_spread", "the axes for the fractions", "np.asarray(getattr(spread, name), np.float32)", "np.asarray(spread.axes, np.float32)", "test_zoo.py::test_a_spread_survives_its_packing"),
        ("unpack", "a scale of any shape", "if scale.shape != expected:", "if not expected:", "test_hostile.py::test_a_weight_is_not_broadcast"),
        ("unpack", "the scale is forgotten", "value = value * scale", "value = 1 * value", "test_zoo.py::test_a_weight_moves_by_half_a_scale_at_most"),
    ],
    "jaxdiff/zoo/_trained.py": [
        ("network_denoiser", "the label is forgotten", "apply = Partial(model.apply, params, **inputs)", "apply = Partial(model.apply, params)", "test_edges.py::test_a_label_reaches_its_row_and_no_other"),
    ],
    "jaxdiff/zoo/__init__.py": [
        ("pretrained", "any file will do", "if found != SHA256[name]:", "if not found:", "test_zoo.py::test_a_damaged_or_unknown_network_is_refused"),
    ],
    # --- contracts for users ---------------------------------------------------------------------------------------
    "jaxdiff/testing/_kernels.py": [
        ("check_kernel", "the other rows are not looked at", "_claims.equal(_claims.unchanged(run[:2]), _claims.unchanged(whole[:2]))", "_claims.equal(whole[:2], whole[:2])", "test_testing.py::test_wrong_kernels_are_rejected[batch-coupled mean]"),
        ("check_kernel", "whatever the batch size", "run = halves(kernel, _claims.halved(keys), _claims.halved(x), ts)", "run = jax.tree.map(_claims.halved, whole[:2])", "test_testing.py::test_wrong_kernels_are_rejected[one noise for the batch]"),
        ("check_kernel", "a second call may differ", "_claims.equal(_steps(kernel, keys, x, ts), first)", "_claims.equal(first, first)", "test_testing.py::test_wrong_kernels_are_rejected[memory in Python]"),
    ],
    "jaxdiff/testing/_networks.py": [
        ("check_denoiser check_model", "the other rows are not looked at", "_claims.equal(_claims.unchanged(strange), _claims.unchanged(whole))", "_claims.equal(whole, whole)", "test_testing.py::test_wrong_denoisers_are_rejected[normalised over the batch]"),
        ("check_model", "any number of channels", "for n in range(1, channels + 1)", "for n in range(1, channels + 9)", "test_testing.py::test_wrong_models_are_rejected[three times the channels]"),
    ],
    "jaxdiff/testing/_schedules.py": [
        ("check_schedule", "it may stand still or rise", "if not np.all(rise < 0):", "if not np.all(rise < 99):", "test_testing.py::test_wrong_schedules_are_rejected[t runs from the noise]"),
    ],
    "jaxdiff/testing/_claims.py": [
        ("claim", "float64 is not tried", '("float32", False), ("float32", True), ("float64", True)', '("float32", False), ("float32", False)', "test_testing.py::test_wrong_kernels_are_rejected[float32 whatever comes]"),
        ("one_program", "any two may be given", "if len(structures) > 1:", "if not structures:", "test_testing.py::test_numbers_in_closures_are_rejected"),
    ],
    # --- networks from elsewhere -----------------------------------------------------------------------------------
    "jaxdiff/interop/__init__.py": [
        ("recognised", "what was saved is for the readers of runs", "return load(folder)", "return None", "test_interop.py::test_a_saved_network_is_read_back_exactly[vectors]"),
    ],
    "jaxdiff/interop/_adm.py": [
        ("guided_diffusion", "q, k and v of a head taken for those of all", "by_heads.swapaxes(0, 1)", "by_heads.swapaxes(0, 0)", "test_interop.py::test_fused_rows_are_taken_apart_by_either_order"),
    ],
    "jaxdiff/interop/_arrays.py": [
        ("diffusers", "the kernel is turned in the plane", "found.transpose(2, 3, 1, 0)", "found.transpose(3, 2, 1, 0)", "test_interop.py::test_the_outputs_are_those_of_torch"),
    ],
    "jaxdiff/interop/_diffusers.py": [
        ("diffusers", "zeros on both sides of a stride", "padding=options.downsample_padding", "padding=1", "test_interop.py::test_the_outputs_are_those_of_torch"),
    ],
    "jaxdiff/interop/_program.py": [
        ("export_sampler", "all rows have the noise of the first", "kernel=kernel, ts=times, first=index", "kernel=kernel, ts=times, first=0 * index", "test_program.py::test_it_draws_what_the_library_draws[3]"),
    ],
    "jaxdiff/interop/_safetensors.py": [
        ("load", "a header may ask for more than the file has", "if end != size - 8 - length:", "if end < size - 8 - length:", "test_interop.py::test_damaged_headers_are_refused[huge]"),
    ],
    "jaxdiff/interop/_saved.py": [
        ("save", "folders of this machine are given away", "about=_without_places(trained.about)", "about=trained.about", "test_interop.py::test_folders_of_this_machine_are_left_out"),
        ("load", "float64 loses its digits", "if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype", "if array.size", "test_interop.py::test_a_saved_network_is_read_back_exactly[elsewhere]"),
    ],
    "jaxdiff/interop/_scheduler.py": [
        ("scheduler", "scaled_linear is linear", "*np.sqrt(ends)), np.float64) ** 2", "*ends), np.float64)", "test_interop.py::test_schedulers_in_other_words"),
    ],
    "jaxdiff/interop/_unet2d.py": [
        ("diffusers", "steps are counted from 1", "step = total * t - 1", "step = total * t", "test_interop.py::test_steps_are_whole_and_have_a_slope"),
    ],
}  # fmt: skip

MUTANTS = [
    Mutant(file, tuple(covers.split()), fault, find, put, test)
    for file, rows in TABLE.items()
    for covers, fault, find, put, test in rows
]

# Public functions without a mutant of their own: they check, wrap, name or move things, or only call what has one.
PLUMBING = {
    "data.idx": ("read_bytes",),
    "data.folder": ("shown",),
    "data.pictures": ("quiet",),
    "data.tfds": ("data_root", "find", "fits", "quiet"),
    "data.toy": (
        "names",
        "two_moons",
        "checkerboard",
        "eight_gaussians",
        "rings",
    ),  # DENSITIES is tested as a table
    "decoders": ("check_levels",),
    "kernels": ("no_weight", "without_memory"),
    "observations": ("log_likelihoods",),
    "prediction": ("x_0_of",),
    "training": ("init_state", "read_log", "times_of", "unreplicate", "write_json"),
    "zoo": ("read",),  # test_hostile.py
}
