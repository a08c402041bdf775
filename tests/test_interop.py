"""Networks from elsewhere beside torch's own outputs, what is refused of their files, and folders for other people."""

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import interop, models, training
from jaxdiff.cli import evaluate, interpolate, posterior, report, sample
from jaxdiff.interop import _adm, _safetensors, _scheduler
from jaxdiff.interop._unet2d import steps_of, unet2d
from jaxdiff.runs import loading
from jaxdiff.runs.probability import Probability
from jaxdiff.runs.problems import Particles
from jaxdiff.zoo import Trained

FOLDER = Path(__file__).parent / "data" / "interop"  # by build_interop.py
WEIGHTS = "diffusion_pytorch_model.safetensors"
with np.load(FOLDER / "outputs.npz") as _file:
    OUTPUTS = dict(_file)
ROUNDING = 1e-5  # float32, against a network's output of about 0.4
STEPS = 5e-5  # the rounding of ten steps, against states of about 3


@pytest.fixture(scope="module")
def trained() -> Trained:
    return interop.diffusers(FOLDER)


def last(x: np.ndarray) -> jax.Array:
    """Images with their channels last."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    copy = tmp_path / "net"
    copy.mkdir()
    for name in ("config.json", "scheduler_config.json", WEIGHTS):
        shutil.copy(FOLDER / name, copy / name)
    return copy


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_arrays(path: Path, change: Callable[[dict], Any]) -> None:
    arrays = _safetensors.read(path)
    change(arrays)
    _safetensors.write(path, arrays)


# --- beside torch --------------------------------------------------------------------------------------------------


def test_the_outputs_are_those_of_torch(trained: Trained) -> None:
    t = jnp.asarray((OUTPUTS["step"] + 1) / 1000, jnp.float32)
    out = jax.jit(trained.model.apply)(trained.params, last(OUTPUTS["x"]), t)
    np.testing.assert_allclose(out, last(OUTPUTS["out"]), atol=ROUNDING)


def test_a_ddpm_trajectory_is_that_of_torch(trained: Trained) -> None:
    """Ten steps with the noise that torch drew, clipped: each from the state before it here."""
    process, states, noise = (
        interop.scheduler(FOLDER),
        last(OUTPUTS["ddpm"]),
        last(OUTPUTS["noise"]),
    )
    ts, x = process.grid(10), states[0]
    assert trained.variance == "large"

    @jax.jit
    def step(x: jax.Array, t: jax.Array, s: jax.Array, z: jax.Array) -> jax.Array:
        law = jd.p_mean_variance(trained.denoiser(), trained.schedule, x, t, s, variance="large")
        return law.mean + jnp.sqrt(law.variance) * z

    for i in range(10):
        x = step(x, ts[i], ts[i + 1], noise[i])
        np.testing.assert_allclose(x, states[i + 1], atol=STEPS)


def test_a_ddim_trajectory_is_that_of_torch(trained: Trained) -> None:
    """With use_clipped_model_output=True there: the noise follows from the clipped x_0."""
    states, ts = last(OUTPUTS["ddim"]), jd.grids.subsequence(1000, 10, "trailing")
    kernel = jd.kernels.ddim(trained.denoiser(), trained.schedule)
    found = jd.sample(jax.random.key(0), kernel, states[0], ts, save_every=1).trajectory
    np.testing.assert_allclose(found[-10:], states[1:], atol=STEPS)


def test_what_the_folder_says(trained: Trained) -> None:
    assert (trained.event_shape, trained.levels, trained.prediction) == ((8, 8, 1), 256, "eps")
    assert repr(trained.threshold) == "Clip(limit=1.0)"
    assert trained.denoiser().threshold is trained.threshold
    assert trained.denoiser(threshold="dynamic").threshold != trained.threshold
    assert dataclasses.replace(trained, threshold=None).denoiser().threshold is None


def test_steps_are_whole_and_have_a_slope() -> None:
    steps = np.arange(1000)
    times = jnp.asarray((steps + 1) / 1000, jnp.float32)
    np.testing.assert_array_equal(steps_of(times, 1000), steps)
    np.testing.assert_array_equal(steps_of(jnp.asarray([0.0005, 0.00251]), 1000)[0], -0.5)
    assert jax.grad(steps_of)(jnp.float32(0.501), 1000) == 1000


@pytest.mark.parametrize("name", ["new", "legacy", "improved"])
def test_arrays_of_guided_diffusion_find_their_places(name: str, tmp_path: Path) -> None:
    """All the names and shapes of a network that its authors' code makes; the values are in the torch tests."""
    shapes = json.loads((FOLDER / "adm.json").read_text())[name]
    options: dict[str, Any] = {
        "new": {"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True, "num_classes": 10},
        "legacy": {"resblock_updown": True},
        "improved": {"use_scale_shift_norm": False},
    }[name]  # fmt: skip
    path = tmp_path / "model.safetensors"
    _safetensors.write(path, {k: np.zeros(shape, np.float16) for k, shape in shapes.items()})
    options |= {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (8,), "learn_sigma": True}  # fmt: skip
    found = interop.guided_diffusion(path, **options)
    assert found.learned_variance
    assert found.variance == "learned"
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == sum(
        int(np.prod(shape)) for shape in shapes.values()
    )
    with pytest.raises(ValueError, match=r"model.safetensors: .*expected"):
        interop.guided_diffusion(path, **options | {"num_res_blocks": 2})


def test_fused_rows_are_taken_apart_by_either_order() -> None:
    rows = np.array(["q0", "q1", "k0", "k1", "v0", "v1"])  # two heads of one row each
    net = unet2d_of(num_heads=2).module
    np.testing.assert_array_equal(
        _adm._qkv(rows, net, False, ""), [["q0", "q1"], ["k0", "k1"], ["v0", "v1"]]
    )
    rows = np.array(["q0", "k0", "v0", "q1", "k1", "v1"])
    np.testing.assert_array_equal(
        _adm._qkv(rows, net, True, ""), [["q0", "q1"], ["k0", "k1"], ["v0", "v1"]]
    )


def unet2d_of(**options: Any) -> models.Model:
    """A network of one level."""
    level: dict[str, Any] = {"widths": (4,), "num_blocks": 1, "down_attention": (False,), "up_attention": (False,), "down_resampling": ("conv",), "up_resampling": ("conv",)}  # fmt: skip
    sizes = {"in_channels": 1, "out_channels": 1, "groups": 2, "middle_groups": 2}
    return unet2d(**sizes | level | options)


def test_a_network_without_a_null_class_needs_a_label() -> None:
    model = unet2d_of(num_classes=3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), (4, 4, 1)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    schedule = jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    net = Trained(model, params, schedule, "eps", (4, 4, 1))
    for call in (lambda: net.denoiser(), lambda: net.denoiser(jnp.array([0, 2]), 2.0)):
        with pytest.raises(
            ValueError, match=r"label: expected classes 0 to 2, got None: .* no null"
        ):
            call()
    with pytest.raises(ValueError, match=r"label: expected .*0 \.\. 2, got 3"):
        net.denoiser(jnp.array(3))
    out = jax.jit(model.apply)(params, jnp.ones((4, 4, 4, 1)), 0.5, jnp.array([0, 2, 3, -1]))
    np.testing.assert_array_equal(np.isnan(out).all((1, 2, 3)), [False, False, True, True])
    two = unet2d_of(widths=(4, 4), down_attention=(False,) * 2, up_attention=(False,) * 2, down_resampling=("conv",) * 2, up_resampling=("conv",) * 2)  # fmt: skip
    with pytest.raises(ValueError, match="x: expected sides that are multiples of 2"):
        two.init(jax.random.key(0), (3, 4, 1))


@pytest.mark.slow
def test_the_network_keeps_the_contract_of_models() -> None:
    """Shapes and dtypes, rows that never couple, finite slopes, no second compilation."""
    jd.testing.check_model(unet2d_of(widths=(8,), dropout=0.5, film=True), (4, 4, 1))


# --- the scheduler -------------------------------------------------------------------------------------------------


def scheduler_of(path: Path, **options: Any) -> interop.Scheduler:
    path.write_text(json.dumps(options))
    return _scheduler.scheduler(path)


def test_schedulers_in_other_words(tmp_path: Path) -> None:
    """Tables, predictions, thresholds, variances and the defaults of each class."""

    def of(**options: Any) -> interop.Scheduler:
        return scheduler_of(tmp_path / "scheduler_config.json", **options)

    t = jnp.asarray([0.001, 0.5, 1.0])
    plain = of(_class_name="DDPMScheduler")
    assert (plain.prediction, plain.variance, plain.spacing) == ("eps", "small", "leading")
    np.testing.assert_array_equal(
        plain.schedule.log_snr(t),
        jd.schedules.from_betas(jd.schedules.linear_betas(1000)).log_snr(t),
    )
    scaled = of(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # rounding, below
    np.testing.assert_allclose(
        scaled.schedule.alpha(t) ** 2, np.cumprod(1 - betas)[[0, 499, 999]], rtol=1e-4
    )
    given = of(trained_betas=[0.1, 0.2], num_train_timesteps=2)
    np.testing.assert_allclose(given.schedule.alpha(jnp.array(1.0)) ** 2, 0.9 * 0.8, rtol=1e-6)
    zero = of(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert zero.schedule.alpha(1.0) < 1e-15
    assert zero.prediction == "v"
    assert of(clip_sample=False).threshold is None
    assert of(_class_name="PNDMScheduler").threshold is None
    assert of(_class_name="UniPCMultistepScheduler").variance is None
    assert of(_class_name="UniPCMultistepScheduler").spacing == "linspace"
    assert repr(of(clip_sample_range=2.0).threshold) == "Clip(limit=2.0)"
    assert repr(of(thresholding=True).threshold) == "Clip(limit=1.0)"  # up to 1 it is clipping
    dynamic = of(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9).threshold
    x_0 = jnp.asarray([[0.5, 0.5], [1.2, 1.2], [3.0, 3.0]])
    np.testing.assert_allclose(dynamic(x_0), [[0.5, 0.5], [1.0, 1.0], [1.0, 1.0]], rtol=1e-6)
    learned = of(variance_type="learned_range")
    assert learned.variance == "learned"
    shifted = of(_class_name="DDIMScheduler", steps_offset=1, set_alpha_to_one=False)
    np.testing.assert_allclose(shifted.grid(4), [0.752, 0.502, 0.252, 0.002, 0.001], rtol=1e-6)


OTHER_SCHEDULERS: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name: expected one of DDPM"),
    "table": ({"beta_schedule": "sigmoid"}, "beta_schedule: expected 'linear', .* got 'sigmoid'"),
    "table's type": ({"beta_schedule": 3}, "beta_schedule: expected str, got 3"),
    "prediction": ({"prediction_type": "flow_prediction"}, "prediction_type: expected one of 'epsilon'"),
    "variance": ({"variance_type": "learned"}, "variance_type: expected one of 'fixed_small'"),
    "spacing": ({"timestep_spacing": "odd"}, "timestep_spacing: expected one of 'leading'"),
    "flow": ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas: expected false"),
    "no steps": ({"num_train_timesteps": 0}, "num_train_timesteps: expected 1 to"),
    "too many": ({"num_train_timesteps": 10**15}, "num_train_timesteps: expected 1 to"),
    "betas": ({"trained_betas": [0.1]}, "trained_betas: expected 1000 values, got 1"),
    "beta": ({"beta_end": 2.0}, r"end: expected a variance in \(0, 1\), got 2.0"),
    "clip": ({"clip_sample_range": -1.0}, "limit: expected a positive bound"),
    "ratio": ({"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 2.0}, "quantile: expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_SCHEDULERS)
def test_other_processes_are_refused(case: str, tmp_path: Path) -> None:
    options, message = OTHER_SCHEDULERS[case]
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError, match=rf"scheduler_config.json: {message}") as caught:
        scheduler_of(path, **options)
    assert "\n" not in str(caught.value)


# --- files that are refused ----------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"rotary": 2}, "rotary: expected an option that is known here, got 2"),
    "other class": ({"_class_name": "UNet2DConditionModel"}, "_class_name: expected one of 'UNet2DModel'"),
    "fourier": ({"time_embedding_type": "fourier"}, "time_embedding_type: expected one of 'positional'"),
    "activation": ({"act_fn": "gelu"}, "act_fn: expected one of 'silu', 'swish', got 'gelu'"),
    "skip blocks": ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types: expected one of 'DownBlock2D'"),
    "up blocks": ({"up_block_types": ["UpBlock2D", "X"]}, "up_block_types: expected one of 'UpBlock2D'"),
    "class embedding": ({"class_embed_type": "timestep"}, "class_embed_type: expected one of None"),
    "type": ({"layers_per_block": "2"}, "layers_per_block: expected int, got '2'"),
    "truth": ({"layers_per_block": True}, "layers_per_block: expected int, got True"),
    "list": ({"block_out_channels": 8}, "block_out_channels: expected tuple"),
    "groups": ({"norm_num_groups": 3}, "widths: expected multiples of the groups, 3, got 8"),
    "heads": ({"attention_head_dim": 16}, "widths: expected multiples of the heads, 16, got 8"),
    "none": ({"block_out_channels": []}, "widths: expected at least one level"),
    "levels": ({"block_out_channels": [8, 16, 16]}, "down_attention: expected 3 entries, one a level, got 2"),
    "output": ({"out_channels": 3}, "out_channels: expected 1, or 2 with a learned variance, got 3"),
    "variance": ({"out_channels": 2}, "out_channels: expected 1 with the scheduler's variance_type, got 2"),
    "padding": ({"downsample_padding": 2}, "padding: expected 0 or 1, got 2"),
    "eps": ({"norm_eps": 0.0}, "eps: expected a positive number, got 0.0"),
    "shift": ({"freq_shift": 4}, "frequency_shift: expected a number below 4"),
    "dropout": ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\)"),
    "size": ({"sample_size": 9}, r"sample_size: expected sides that are multiples of 2, which the levels halve, and 1 channels, got \(9, 9, 1\)"),
    "no size": ({"sample_size": None}, "sample_size: expected the side of an image, got null; give event_shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_other_networks_are_refused(case: str, folder: Path) -> None:
    changes, message = CONFIGS[case]
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"net/config.json: {message}") as caught:
        interop.diffusers(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 9, 1), (8, 8, 3), (1, 8, 8), (8, 8)])
def test_another_event_shape_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="event_shape: expected sides that are multiples of 2"):
        interop.diffusers(FOLDER, event_shape=shape)


def drop(name: str) -> Callable[[dict], Any]:
    return lambda arrays: arrays.pop(name)


def put(name: str, array: np.ndarray) -> Callable[[dict], Any]:
    return lambda arrays: arrays.update({name: array})


ARRAYS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "missing": (drop("conv_in.bias"), "expected an array conv_in.bias, which it does not have"),
    "extra": (put("more.weight", np.zeros(3, np.float32)), "expected no array 'more.weight': the network has no"),
    "extra line": (put("more\nlines", np.zeros(3, np.float32)), r"expected no array 'more\\nlines': the network"),
    "shape": (put("conv_in.weight", np.zeros((8, 1, 3, 2), np.float32)), r"conv_in.weight: expected shape \(8, 1, 3, 3\), got \(8, 1, 3, 2\)"),
    "axes": (put("conv_in.bias", np.zeros((8, 1), np.float32)), r"conv_in.bias: expected shape \(8,\), got \(8, 1\)"),
    "turned": (put("time_embedding.linear_1.weight", np.zeros((8, 16), np.float32)), r"time_embedding.linear_1.weight: expected shape \(16, 8\), got \(8, 16\)"),
    "integers": (put("conv_in.bias", np.zeros(8, np.int64)), "conv_in.bias: expected floats, got int64"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_do_not_fit_are_refused(case: str, folder: Path) -> None:
    change, message = ARRAYS[case]
    edit_arrays(folder / WEIGHTS, change)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: {message}") as caught:
        interop.diffusers(folder)
    assert "\n" not in str(caught.value)


def test_a_network_larger_than_its_file_is_not_traced(folder: Path) -> None:
    edit(folder / "config.json", block_out_channels=[8, 2**24])
    with pytest.raises(
        ValueError, match=r"expected the numbers of 1 blocks of width 16777216, got"
    ):
        interop.diffusers(folder)
    edit(folder / "config.json", block_out_channels=[8, 16], layers_per_block=10**9)
    with pytest.raises(ValueError, match=r"expected the numbers of 1000000000 blocks of width 16"):
        interop.diffusers(folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".ckpt"])
def test_pickles_are_refused_with_the_command_that_converts_them(suffix: str, folder: Path) -> None:
    pickled = folder / f"diffusion_pytorch_model{suffix}"
    (folder / WEIGHTS).rename(pickled)
    says = rf"diffusion_pytorch_model\{suffix}: expected a .safetensors .* converts it: python -c"
    with pytest.raises(ValueError, match=says):
        interop.diffusers(folder)
    with pytest.raises(ValueError, match=says):
        interop.guided_diffusion(pickled, image_size=64)


@pytest.mark.parametrize("magic", _safetensors.PICKLES)
def test_a_pickle_under_another_name_is_refused(magic: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(magic + bytes(range(1, 100)))
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: expected a safetensors file, got a pickle"):
        interop.diffusers(folder)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"got 'diffusion_pytorch_model.fp16.safetensors'"):
        interop.diffusers(folder)
    (folder / "diffusion_pytorch_model.fp16.safetensors").rename(folder / WEIGHTS)
    for name, says in ((WEIGHTS, WEIGHTS), ("scheduler_config.json", "there or in scheduler"), ("config.json", "there or in unet")):  # fmt: skip
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=says):
            interop.diffusers(folder)
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors: there is no such file"):
        interop.guided_diffusion(tmp_path / "nothing.safetensors", image_size=64)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ValueError, match="channel_mult: expected the widths of side 48, got None"):
        interop.guided_diffusion(tmp_path / "a.safetensors", image_size=48)
    with pytest.raises(ValueError, match="noise_schedule: expected one of 'linear', 'cosine'"):
        interop.guided_diffusion(tmp_path / "a.safetensors", image_size=64, noise_schedule="odd")


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00"])
def test_damaged_json_is_named(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"net/{name}: expected (JSON|an object), got"):
        interop.diffusers(folder)


def test_a_pipeline_s_folder_and_old_names(folder: Path, trained: Trained) -> None:
    """unet/ and scheduler/, a size in words, and attention as 1x1 convolutions under older names."""
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(folder / "unet" / name)
    (folder / "scheduler_config.json").rename(folder / "scheduler" / "scheduler_config.json")
    edit(folder / "unet" / "config.json", sample_size=None, act_fn="swish", new_option=None)

    def older(arrays: dict) -> None:
        new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [name for name in arrays if "attentions" in name]:
            for now, before in new.items():
                if f".{now}." in name:
                    array = arrays.pop(name)
                    shape = (*array.shape, 1, 1) if array.ndim == 2 else array.shape
                    arrays[name.replace(now, before)] = array.reshape(shape)

    edit_arrays(folder / "unet" / WEIGHTS, older)
    found = interop.diffusers(folder, event_shape=(8, 8, 1))
    chex.assert_trees_all_equal(found.params, trained.params)


# --- the reader of weights -----------------------------------------------------------------------------------------


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got a header of -1 bytes in a file of 0"),
    "short": (b"1234567", "got a header of -1 bytes in a file of 7"),
    "nothing": (struct.pack("<Q", 0), "got a header of 0 bytes in a file of 8"),
    "long": (struct.pack("<Q", 2**63) + b"{}", "got a header of 9223372036854775808 bytes in a file of 10"),
    "longer by one": (struct.pack("<Q", 3) + b"{}", "got a header of 3 bytes in a file of 10"),
    "no JSON": (struct.pack("<Q", 2) + b"{]", "expected a header of JSON, got"),
    "no text": (struct.pack("<Q", 2) + b"\xff\xfe", "expected a header of JSON, got"),
    "deep": (struct.pack("<Q", 10**5) + b"[" * 10**5, "expected a header of JSON, got"),
    "digits": (struct.pack("<Q", 10**4) + b"1" * 10**4, "expected a header of JSON, got"),
    "list": (struct.pack("<Q", 2) + b"[]", r"expected a header that is an object, got \[\]"),
    "twice": (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "'a': expected one array of this name, got more"),
    "entry": (header(a=3), "'a': expected dtype, shape and data_offsets, got 3"),
    "fields": (header(a={"dtype": "F32"}), "'a': expected dtype, shape and data_offsets, got"),
    "more fields": (header(a=one() | {"b": 1}), "'a': expected dtype, shape and data_offsets, got"),
    "dtype": (header(a=one("F8_E4M3")) + bytes(8), "'a': expected a dtype of F64, .* got 'F8_E4M3'"),
    "dtype's type": (header(a=one([])) + bytes(8), "'a': expected a dtype of F64"),
    "shape": (header(a=one(shape=[-2])) + bytes(8), "'a': expected a shape that an array can have"),
    "shape's type": (header(a=one(shape=[2.0])) + bytes(8), "'a': expected a shape that an array can have"),
    "truth": (header(a=one(shape=[True, 2])) + bytes(8), "'a': expected a shape that an array can have"),
    "sides": (header(a=one(shape=[1] * 33, offsets=[0, 4])) + bytes(4), "'a': expected a shape that an array can have"),
    "empty and huge": (header(a=one(shape=[0, 2**62, 4], offsets=[0, 0])), "'a': expected a shape that an array"),
    "huge": (header(a=one(shape=[2**40], offsets=[0, 2**42])), "expected 4398046511104 bytes of data, got 0"),
    "overflow": (header(a=one(shape=[2**62, 2**62])), "'a': expected a shape that an array can have"),
    "offsets": (header(a=one(offsets=[0])) + bytes(8), "'a': expected two offsets"),
    "negative": (header(a=one(offsets=[-8, 0])) + bytes(8), "'a': expected two offsets"),
    "backwards": (header(a=one(offsets=[8, 0])) + bytes(8), "'a': expected 8 bytes for F32"),
    "too few": (header(a=one(offsets=[0, 4])) + bytes(4), r"'a': expected 8 bytes for F32 \[2\], got offsets"),
    "outside": (header(a=one()) + bytes(7), "expected 8 bytes of data, got 7"),
    "left over": (header(a=one()) + bytes(9), "expected 8 bytes of data, got 9"),
    "gap": (header(a=one(offsets=[4, 12])) + bytes(12), "'a': expected data from byte 0 on"),
    "overlap": (header(a=one(), b=one(offsets=[4, 12])) + bytes(12), "'b': expected data from byte 8 on"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one line that names the file, and no array is made."""
    content, message = HEADERS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    monkeypatch.setattr(_safetensors.np, "empty", None)
    with pytest.raises(ValueError, match=rf"x.safetensors: .*{message}") as caught:
        _safetensors.read(path)
    assert "\n" not in str(caught.value)


VALID = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "h": np.ones(3, np.float16),
    "i": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.uint8),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    _safetensors.write(path, VALID)
    return path


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["F32", "I64", "", "\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def reads_or_says(path: Path, content: bytes) -> None:
    """A content is read, or refused in one line that names the file; memory is at most the file's."""
    path.write_bytes(content)
    made: list[int] = []

    def empty(shape: Any, dtype: Any) -> np.ndarray:
        made.append(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
        assert sum(made) <= len(content)
        return np.zeros(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_safetensors.np, "empty", empty)
        said = ""
        try:
            _safetensors.read(path)
        except ValueError as error:
            said = str(error)
    assert not said or (said.startswith(f"{path}: ") and "\n" not in said)


@given(st.data())
def test_flipped_bytes_end_in_clear_errors(valid: Path, draw: st.DataObject) -> None:
    content = bytearray(valid.read_bytes())
    original = bytes(content)
    for _ in range(draw.draw(st.integers(1, 4))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(content)))
    reads_or_says(valid.with_name("y.safetensors"), bytes(content))
    reads_or_says(valid.with_name("y.safetensors"), original[:cut])


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4), st.binary(max_size=16))
def test_any_header_ends_in_clear_errors(valid: Path, entries: dict, data: bytes) -> None:
    text = json.dumps(entries).encode()
    content = struct.pack("<Q", len(text)) + text + data
    reads_or_says(valid.with_name("z.safetensors"), content)


def test_arrays_are_read_back_exactly(tmp_path: Path) -> None:
    path, random = tmp_path / "x.safetensors", np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 100, (3, 2)).astype(dtype)
        for name, dtype in _safetensors.DTYPES.items()
    } | VALID
    arrays["turned"] = arrays["F32"].T
    arrays["special"] = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    _safetensors.write(path, arrays)
    found = _safetensors.read(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    with pytest.raises(TypeError, match=r"z: expected one of F64, .* got dtype complex64"):
        _safetensors.write(path, {"z": np.zeros(2, np.complex64)})
    with pytest.raises(ValueError, match="arrays: expected other names than __metadata__"):
        _safetensors.write(path, {"__metadata__": np.zeros(2)})
    half = np.array([1.0, -2.5, 3e38], np.float32)
    np.testing.assert_array_equal(  # bfloat16 is the upper half of float32
        np.asarray(jnp.asarray(half).astype(jnp.bfloat16)).view(np.uint16), [0x3F80, 0xC020, 0x7F62]
    )


# --- folders for other people --------------------------------------------------------------------------------------


def small(schedule: jd.Schedule, prediction: str = "v", **options: Any) -> Trained:
    model = models.mlp(width=8, depth=1, **options)
    params = model.init(jax.random.key(0), (2,))
    return Trained(model, params, schedule, prediction, (2,), about={"step": 3})


NETWORKS: dict[str, Callable[[], Trained]] = {
    "shipped": lambda: jd.pretrained("mnist"),
    "elsewhere": lambda: interop.diffusers(FOLDER),
    "vectors": lambda: small(jd.schedules.cosine()),  # whose log-SNR is infinite at the end
    "flow": lambda: small(jd.schedules.rectified_flow(), "velocity", num_classes=2),
    "edm": lambda: dataclasses.replace(small(jd.schedules.edm(), "edm"), sigma_data=0.3),
    "sigmoid": lambda: small(jd.schedules.sigmoid(tau=0.7)),
    "learned": lambda: small(jd.schedules.learned(jd.schedules.learned_parameters())),
    "dynamic": lambda: dataclasses.replace(
        small(jd.schedules.linear()), threshold=jd.prediction.dynamic_threshold(most=3.0), variance="large"
    ),
}  # fmt: skip
WORDS: dict[str, Any] = {"data": "digits | drawn\nby hand", "licence": 'CC "BY" 4.0'}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_read_back_exactly(name: str, tmp_path: Path) -> None:
    before, folder = NETWORKS[name](), tmp_path / "given"
    figures = {"bits per dimension": "3.7 +- 0.1", "FID": 3.2}
    interop.save(before, folder, command="jaxdiff train", figures=figures, **WORDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]
    for after in (interop.load(folder), jd.load(folder)):
        for field in ("params", "schedule", "spread", "threshold"):
            ours, theirs = getattr(before, field), getattr(after, field)
            chex.assert_trees_all_equal_structs(theirs, ours)
            chex.assert_trees_all_equal(theirs, ours)
            kinds = [[getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (ours, theirs)]  # fmt: skip
            assert kinds[0] == kinds[1]
        assert after.model == before.model
        for field in ("prediction", "event_shape", "levels", "sigma_data", "variance"):
            assert getattr(after, field) == getattr(before, field)
        assert after.about["card"]["figures"] == figures
        assert {k: v for k, v in after.about.items() if k != "card"} == before.about
    card = (folder / "README.md").read_text()
    for line in (
        "| data | digits \\| drawn by hand |", '| licence | CC "BY" 4.0 |', "| command | `jaxdiff train` |",
        "| FID | 3.2 |", 'license_name: "CC \\"BY\\" 4.0"', f"| predicts | {before.prediction} |",
    ):  # fmt: skip
        assert line in card.splitlines(), line


def test_folders_of_this_machine_are_left_out(tmp_path: Path) -> None:
    net = small(jd.schedules.cosine())
    net.about["config"] = {"run": "/home/me/runs/mine", "data_dir": "/home/me/data", "steps": 3}
    interop.save(net, tmp_path / "given", **WORDS)
    found = interop.load(tmp_path / "given").about["config"]
    assert found == {"run": "runs/mine", "data_dir": None, "steps": 3}


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, folder = small(jd.schedules.cosine()), tmp_path / "given"

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_safetensors, "write", fails)
        with pytest.raises(OSError, match="No space left"):
            interop.save(net, folder, **WORDS)
    own = dataclasses.replace(net, threshold=lambda x: x)
    refused: list[tuple[Trained, dict, type[Exception], str]] = [
        (net, WORDS | {"data": " "}, ValueError, "data: expected words"),
        (net, WORDS | {"licence": None}, ValueError, "licence: expected words"),
        (net, WORDS | {"figures": {"a": np.ones(2)}}, TypeError, "about, figures: expected what JSON"),
        (own, WORDS, TypeError, "threshold: expected one of static, dynamic, got function"),
        (dataclasses.replace(net, model=models.Model(object())), WORDS, TypeError, "trained: expected a network of unet, mlp, unet2d, got object"),
    ]  # fmt: skip
    for trained, words, error, message in refused:
        with pytest.raises(error, match=message):
            interop.save(trained, folder, **words)
    assert not list(tmp_path.iterdir())
    interop.save(net, folder, **WORDS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="folder: expected a path where nothing is"):
        interop.save(net, folder, **WORDS)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


SAVED: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"jaxdiff_network": 2}, "jaxdiff_network: expected 1, got 2"),
    "network": ({"network": {"kind": "vit"}}, "network.kind: expected one of 'unet', 'mlp', 'unet2d', got 'vit'"),
    "no name": ({"network": {"kind": []}}, r"network.kind: expected one of 'unet', 'mlp', 'unet2d', got \[\]"),
    "prediction": ({"prediction": "noise"}, "prediction: expected one of 'eps'"),
    "variance": ({"variance": "wide"}, "variance: expected one of 'small'"),
    "options": ({"network": {"kind": "mlp", "options": {}}}, "network.options: expected width, depth"),
    "schedule": ({"schedule": {"kind": "mine"}}, "schedule.kind: expected one of"),
    "numbers": ({"schedule": {"kind": "cosine", "numbers": {"a": 1}}}, "schedule.numbers: expected those of log_snr_min"),
    "number": ({"schedule": {"kind": "linear", "numbers": {"beta_min": "a", "beta_max": 1}}}, "schedule.numbers.beta_min: expected a number"),
    "no number": ({"schedule": {"kind": "linear", "numbers": {"beta_min": 0.1}}}, "schedule.numbers: expected beta_max, or an array"),
    "threshold": ({"threshold": {"kind": "static", "numbers": {"limit": -1}}}, "limit: expected a positive bound"),
    "unknown": ({"more": 1}, "more: expected an option that is known here, got 1"),
    "type": ({"event_shape": 2}, "event_shape: expected tuple"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_damaged_folders_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = SAVED[case]
    interop.save(small(jd.schedules.cosine()), tmp_path / "given", **WORDS)
    edit(tmp_path / "given" / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"given/config.json: {message}"):
        interop.load(tmp_path / "given")


def test_arrays_of_a_saved_folder_are_checked(tmp_path: Path) -> None:
    interop.save(small(jd.schedules.cosine()), tmp_path / "given", **WORDS)
    path = tmp_path / "given" / "model.safetensors"
    name = "params/head/bias"
    for change, message in (
        (put("params/x", np.zeros(1)), "expected no array 'params/x': the network"),
        (put("spread/axes", np.zeros(1)), "expected an array spread/scale, which"),
        (put(name, np.zeros(3, np.float32)), rf"{name}: expected shape \(2,\), got \(3,\)"),
        (drop(name), f"expected an array {name}, which it does not have"),
    ):
        content = path.read_bytes()
        edit_arrays(path, change)
        with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
            interop.load(tmp_path / "given")
        path.write_bytes(content)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors, which is not there"):
        interop.load(tmp_path / "given")


# --- the commands --------------------------------------------------------------------------------------------------


def test_a_network_from_elsewhere_is_a_run(folder: Path) -> None:
    run = loading.load_run(folder)
    assert (run.folder, run.trained.levels, run.dataset.is_here) == (folder, 256, False)
    with pytest.raises(ValueError, match=r"dataset: .* \(--dataset NAME\), because .*net does not"):
        run.dataset.head("test", 1)
    on_digits = loading.load_run(folder, dataset="digits")
    assert (on_digits.dataset.name, on_digits.trained.levels) == ("digits", 17)
    with pytest.raises(
        ValueError, match=r"dataset: expected examples of shape \(8, 8, 1\), .* swiss_roll"
    ):
        loading.load_run(folder, dataset="swiss_roll")
    with pytest.raises(
        ValueError, match="dataset: expected the name of a data set beside data_dir"
    ):
        loading.load_run(folder, data_dir=folder)


def test_it_is_sampled_without_data(folder: Path) -> None:
    sample.main(sample.Options(run=folder, num=4, steps=2, sampler="ancestral"))
    found = np.load(folder / "samples" / "samples.npz")["x"]
    assert found.shape == (4, 8, 8, 1)
    assert np.abs(found).max() > 0.1


def test_what_needs_a_null_class_is_refused_before_any_work(tmp_path: Path) -> None:
    model = unet2d_of(num_classes=10)
    params = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape),
        jax.eval_shape(lambda: model.init(jax.random.key(0), (8, 8, 1))),
    )
    schedule = jd.schedules.from_betas(jd.schedules.linear_betas(1000))
    interop.save(
        Trained(model, params, schedule, "eps", (8, 8, 1), levels=17), tmp_path / "net", **WORDS
    )
    given = {"run": tmp_path / "net", "dataset": "digits"}
    for call in (
        lambda: evaluate.main(evaluate.Options(**given)),
        lambda: posterior.main(posterior.Options(**given)),
        lambda: interpolate.main(interpolate.Options(**given)),
    ):
        with pytest.raises(ValueError, match="label: expected classes 0 to 9, got None"):
            call()
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["README.md", "config.json", "model.safetensors"]  # fmt: skip


@pytest.mark.slow
def test_it_is_measured_conditioned_and_interpolated(folder: Path) -> None:
    """Bits per dimension with bounds from both sides, posteriors with evidence, strips and a page."""
    few = Probability(
        examples=8, term_examples=8, steps=2, paths=2, path_examples=8, ode_examples=0, baselines=False
    )  # fmt: skip
    found = evaluate.main(
        evaluate.Options(run=folder, dataset="digits", num_times=1, examples=8, samples=0, probability=few)
    )  # fmt: skip
    assert {row["kind"] for row in found["probability"]} == {"lower", "upper"}
    assert found["dataset"] == "digits"
    assert report.main(report.Options(runs=(folder,))).exists()
    drawn = posterior.main(
        posterior.Options(
            run=folder, dataset="digits", images=1, calibration=0,
            sampling=Particles(draws=2, rows=2, steps=2),
        )
    )  # fmt: skip
    assert np.isfinite(drawn["methods"][0]["images"][0]["log_evidence"])
    strips = interpolate.main(
        interpolate.Options(run=folder, dataset="digits", strips=1, columns=2, steps=2)
    )
    assert strips.shape == (1, 2, 8, 8, 1)


# --- networks of one's own: how they are trained and drawn from ----------------------------------------------------


def train_and_draw(apply: Callable, params: Any) -> tuple[np.ndarray, jax.Array]:
    """Ten updates of any network on points around (1, -1): the losses, and samples.

    A network is a function (params, x [B, d], t [B], label, *, dropout_key) -> prediction [B, d] of
    a pytree of parameters. Nothing else depends on its library.
    """
    schedule = jd.schedules.cosine()
    loss = training.denoising_loss(apply, schedule, prediction="x0", dropout=False)
    optimizer = training.make_optimizer(3e-2, num_steps=30, warmup=2)
    step = training.map_step(training.make_step(loss, optimizer), jax.devices()[:1])
    state = training.replicate(
        training.init_state(jax.random.key(0), params, optimizer), jax.devices()[:1]
    )
    x_0 = np.array([1.0, -1.0]) + 0.1 * np.random.default_rng(0).normal(size=(64, 2))
    losses = []
    for _ in range(30):
        state, metrics = step(
            state, training.shard((x_0.astype(np.float32), None), jax.devices()[:1])
        )
        losses.append(float(metrics["loss"]))
    denoiser = jd.make_denoiser(Partial(apply, training.unreplicate(state.params)), schedule, "x0")
    return np.array(losses), jd.draw(jax.random.key(1), denoiser, schedule, (8, 2)).x


def learns(apply: Callable, params: Any) -> None:
    losses, x = train_and_draw(apply, params)
    assert losses[-5:].mean() < 0.3 * losses[:5].mean()
    np.testing.assert_allclose(np.mean(x, axis=0), [1, -1], atol=0.5)  # of 30 updates


@pytest.mark.slow
def test_a_plain_function_is_a_network() -> None:
    def apply(
        params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
    ):
        h = jnp.tanh(x @ params["in"] + t[:, None] * params["time"][None])
        return h @ params["out"] + params["shift"][None]

    keys = jax.random.split(jax.random.key(2), 3)
    params = {
        "in": jax.random.normal(keys[0], (2, 16)),
        "time": jax.random.normal(keys[1], (16,)),
        "out": jax.random.normal(keys[2], (16, 2)) / 4,
        "shift": jnp.zeros(2),
    }
    learns(apply, params)


def test_a_flax_nnx_module_is_a_network() -> None:
    """nnx.split gives the parameters, a pytree, and what is fixed; nnx.merge joins them in apply."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(3, 16, rngs=rngs)
            self.last = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
            return self.last(nnx.tanh(self.first(jnp.concatenate([x, t[:, None]], axis=-1))))

    fixed, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)

    def apply(
        params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
    ):
        return nnx.merge(fixed, params)(x, t)

    learns(apply, params)


@pytest.mark.slow
def test_an_equinox_module_is_a_network() -> None:
    """eqx.partition gives the arrays and what is fixed; an Equinox network takes one example."""
    eqx = pytest.importorskip("equinox")
    network = eqx.nn.MLP(3, 2, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, fixed = eqx.partition(network, eqx.is_inexact_array)

    def apply(
        params: Any, x: jax.Array, t: jax.Array, label: Any = None, *, dropout_key: Any = None
    ):
        return jax.vmap(eqx.combine(params, fixed))(jnp.concatenate([x, t[:, None]], axis=-1))

    learns(apply, params)
