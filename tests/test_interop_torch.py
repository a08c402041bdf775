"""Networks from elsewhere beside the libraries that made them (where torch, diffusers, safetensors and azula are installed)."""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff as jd
from jaxdiff import interop
from jaxdiff.interop import _safetensors

reason = "an optional comparison: pip install torch diffusers safetensors azula"
torch = pytest.importorskip("torch", reason=reason)
diffusers = pytest.importorskip("diffusers", reason=reason)
torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]  # theirs are theirs

ROUNDING = 1e-5  # float32, against outputs of about 0.4
BASE = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64), "layers_per_block": 1,
    "norm_num_groups": 8, "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "upsample_type": "resnet", "downsample_type": "resnet",
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "default": BASE,
    "ddpm-cifar10": BASE | {"layers_per_block": 2, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "attention_head_dim": None},
    "consistency": BASE | RESNET | {"attn_norm_num_groups": 8, "num_class_embeds": 10},
    "learned variance": BASE | {"out_channels": 6, "resnet_time_scale_shift": "scale_shift"},
    "no middle": BASE | {"mid_block_type": None, "sample_size": (16, 24)},
    "odd": BASE | {
        "block_out_channels": (32, 32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "mid_block_scale_factor": 1.4,
        "center_input_sample": True, "add_attention": False, "time_embedding_dim": 96, "act_fn": "swish",
    },
}  # fmt: skip
LARGEST: dict[str, float] = {}  # differences, for whoever reads -s


@pytest.fixture(scope="module", autouse=True)
def largest() -> Any:
    yield
    print("\nlargest differences from torch:")
    for name, value in LARGEST.items():
        print(f"  {name:32} {value:.1e}")


def note(name: str, ours: Any, theirs: Any, most: float) -> None:
    difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    LARGEST[name] = max(LARGEST.get(name, 0.0), difference)
    assert difference <= most, name


def perturbed(model: Any) -> Any:
    """No bias and no scale at its default."""
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def last(x: Any) -> jax.Array:
    return jnp.asarray(np.moveaxis(np.asarray(x), -3, -1))


def build(folder: Path, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = perturbed(diffusers.UNet2DModel(**options))
    model.save_pretrained(folder)
    learned = options["out_channels"] == 2 * options["in_channels"]
    diffusers.DDPMScheduler(variance_type="learned_range" if learned else "fixed_small").save_pretrained(folder)  # fmt: skip
    return model


def compare(name: str, folder: Path, options: dict[str, Any]) -> None:
    """Build, save, load; their outputs at several steps, and ours."""
    model, trained = build(folder, options), interop.diffusers(folder)
    size = trained.event_shape
    x, step = torch.randn(4, size[2], *size[:2]), torch.tensor([0, 17, 500, 999])
    y = torch.tensor([0, 3, 9, 1]) if options.get("num_class_embeds") else None
    with torch.no_grad():
        theirs = model(x, step, class_labels=y).sample
    t = jnp.asarray((step.numpy() + 1) / 1000, jnp.float32)
    label = None if y is None else jnp.asarray(y.numpy())
    ours = jax.jit(trained.model.apply)(trained.params, last(x), t, label)
    note(name, ours, last(theirs), ROUNDING)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_torch(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path / "net", CASES[name])


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    """Options of UNet2DModel that fit together, of one to three levels."""
    levels = draw(st.integers(1, 3))
    kinds = lambda names: st.lists(st.sampled_from(names), min_size=levels, max_size=levels)  # noqa: E731
    film = draw(st.booleans())
    channels = draw(st.integers(1, 3))
    return {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels * draw(st.sampled_from([1, 2])),
        "block_out_channels": tuple(draw(kinds([8, 16, 24]))),
        "layers_per_block": draw(st.integers(1, 2)),
        "down_block_types": tuple(draw(kinds(["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]))),
        "up_block_types": tuple(draw(kinds(["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]))),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "norm_num_groups": draw(st.sampled_from([1, 4, 8])),
        "attn_norm_num_groups": draw(st.sampled_from([None, 4])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "attention_head_dim": draw(st.sampled_from([None, 4, 8])),
        "resnet_time_scale_shift": "scale_shift" if film else "default",
        "freq_shift": draw(st.sampled_from([0, 1])),
        "flip_sin_to_cos": draw(st.booleans()),
        "time_embedding_dim": draw(st.sampled_from([None, 20])),
        "num_class_embeds": draw(st.sampled_from([None, 10])),
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", None])),
        "add_attention": draw(st.booleans()),
        "mid_block_scale_factor": draw(st.sampled_from([1, 1.4])),
        "center_input_sample": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
    }  # fmt: skip


@settings(max_examples=40)
@given(architectures())
def test_any_options_give_torch_s_outputs(options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compare("any options", Path(folder), options)


ADM: dict[str, dict[str, Any]] = {
    "new order": {"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True, "use_scale_shift_norm": True, "num_classes": 10},
    "legacy order": {"num_heads": 4, "resblock_updown": True, "use_scale_shift_norm": True},
    "improved DDPM": {"num_heads": 4, "resblock_updown": False, "use_scale_shift_norm": False},
}  # fmt: skip


@pytest.mark.parametrize("name", ADM)
def test_guided_diffusion_is_that_of_its_authors(name: str, tmp_path: Path) -> None:
    """The file is a pickle first: the command that its error shows converts it."""
    unet = pytest.importorskip("azula.plugins.adm._src.unet", reason=reason)
    options: dict[str, Any] = ADM[name]
    torch.manual_seed(0)
    model = perturbed(
        unet.UNetModel(
            image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=2,
            attention_resolutions={2}, channel_mult=(1, 2), **options,
        )
    )  # fmt: skip
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    options = options | {"image_size": 16, "num_channels": 32, "channel_mult": (1, 2), "attention_resolutions": (8,), "learn_sigma": True}  # fmt: skip
    with pytest.raises(ValueError, match="this converts it: python -c") as caught:
        interop.guided_diffusion(path, **options)
    program, *arguments = shlex.split(str(caught.value).split("this converts it: ")[1])
    subprocess.run([program.replace("python", sys.executable), *arguments], timeout=300, check=True)
    trained = interop.guided_diffusion(path.with_suffix(".safetensors"), **options)
    x, step = torch.randn(4, 3, 16, 16), torch.tensor([0, 17, 500, 999])
    y = torch.tensor([0, 3, 9, 1]) if "num_classes" in options else None
    with torch.no_grad():
        theirs = model(x, step) if y is None else model(x, step, y=y)
    t = jnp.asarray((step.numpy() + 1) / 1000, jnp.float32)
    label = None if y is None else jnp.asarray(y.numpy())
    ours = jax.jit(trained.model.apply)(trained.params, last(x), t, label)
    note(f"guided diffusion, {name}", ours, last(theirs), ROUNDING)


# --- schedulers ----------------------------------------------------------------------------------------------------

TABLES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR": {"rescale_betas_zero_snr": True},
    "trained": {"trained_betas": [0.01, 0.02, 0.3], "num_train_timesteps": 3},
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    theirs = diffusers.DDPMScheduler(**TABLES[name])
    theirs.save_pretrained(tmp_path)
    found = interop.scheduler(tmp_path)
    t = jnp.arange(1, found.total + 1) / found.total
    ours = np.asarray(found.schedule.alpha(t)) ** 2
    exact = theirs.alphas_cumprod.numpy()
    # Their product of 1000 factors is in float32; 1e-4 of it is their rounding.
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_grids_are_those_of_diffusers(spacing: str, kind: str, tmp_path: Path) -> None:
    for offset in (0, 1) if spacing == "leading" else (0,):
        theirs = getattr(diffusers, kind)(timestep_spacing=spacing, steps_offset=offset)
        theirs.save_pretrained(tmp_path)
        # A single step of "linspace" is step 0 there.
        for num in (1, 3, 10, 50, 999)[spacing == "linspace" :]:
            theirs.set_timesteps(num)
            ours = np.asarray(interop.scheduler(tmp_path).grid(num))
            np.testing.assert_allclose(ours[:-1] * 1000 - 1, theirs.timesteps, atol=1e-3)
            assert ours[-1] == 0


@pytest.mark.parametrize("largest", [1.0, 1.5])
def test_dynamic_thresholds_are_those_of_diffusers(largest: float, tmp_path: Path) -> None:
    theirs = diffusers.DDPMScheduler(
        thresholding=True, sample_max_value=largest, dynamic_thresholding_ratio=0.9
    )
    theirs.save_pretrained(tmp_path)
    x = torch.tensor([0.3, 1.0, 3.0])[:, None, None, None] * torch.randn(3, 3, 8, 8)
    threshold = interop.scheduler(tmp_path).threshold
    assert threshold is not None
    np.testing.assert_allclose(threshold(last(x)), last(theirs._threshold_sample(x)), atol=1e-6)


SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {"clip_sample": False},
    "clipped": {"clip_sample": True},
    "dynamic": {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
    "v": {"clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "x0": {"clip_sample": True, "prediction_type": "sample"},
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("net")
    return build(folder, CASES["ddpm-cifar10"]), folder


@pytest.mark.parametrize("name", SAMPLING)
def test_ddim_goes_step_by_step_as_in_diffusers(name: str, net: tuple[Any, Path]) -> None:
    model, folder = net
    options = SAMPLING[name] | {"timestep_spacing": "trailing"}
    scheduler = diffusers.DDIMScheduler(**options)
    scheduler.save_pretrained(folder)
    scheduler.set_timesteps(10)
    torch.manual_seed(1)
    states = [torch.randn(4, 3, 16, 16)]
    with torch.no_grad():
        for step in scheduler.timesteps:
            eps = model(states[-1], step).sample
            clips = "clip" if name in ("clipped", "x0", "dynamic") else ""
            after = scheduler.step(eps, step, states[-1], use_clipped_model_output=bool(clips))
            states.append(after.prev_sample)
    trained, ts = interop.diffusers(folder), interop.scheduler(folder).grid(10)
    kernel = jd.kernels.ddim(trained.denoiser(), trained.schedule)
    x = last(states[0])
    whole = jd.sample(jax.random.key(0), kernel, x, ts, save_every=1).trajectory[-10:]
    for i in range(10):
        one = jd.sample(jax.random.key(0), kernel, last(states[i]), ts[i : i + 2]).x
        scale = float(states[i + 1].abs().max())
        # A clipped component passes on its difference or none: that grows over a whole run.
        note(f"DDIM {name}, a step, relative", one / scale, last(states[i + 1]) / scale, 1e-5)
        note(f"DDIM {name}, all, relative", whole[i] / scale, last(states[i + 1]) / scale, 2e-4)


def test_clipping_without_the_clipped_noise_is_another_sampler(net: tuple[Any, Path]) -> None:
    """What DDIMScheduler does by default: the noise of the x_0 that was not clipped."""
    model, folder = net
    scheduler = diffusers.DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    scheduler.save_pretrained(folder)
    scheduler.set_timesteps(10)
    torch.manual_seed(1)
    x, step = torch.randn(4, 3, 16, 16), scheduler.timesteps[0]
    with torch.no_grad():
        eps = model(x, step).sample
    default, clipped = (
        scheduler.step(eps, step, x, use_clipped_model_output=use).prev_sample for use in (0, 1)
    )
    assert (default - clipped).abs().max() > 0.1


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_goes_step_by_step_as_in_diffusers(variance: str, tmp_path: Path) -> None:
    learned = variance == "learned_range"
    model = build(tmp_path, CASES["learned variance" if learned else "default"])
    scheduler = diffusers.DDPMScheduler(variance_type=variance)
    scheduler.save_pretrained(tmp_path)
    scheduler.set_timesteps(10)
    trained, ts = interop.diffusers(tmp_path), interop.scheduler(tmp_path).grid(10)
    assert trained.variance == {"fixed_small": "small", "fixed_large": "large"}.get(variance, "learned")  # fmt: skip
    torch.manual_seed(1)
    x = torch.randn(4, 3, 16, 16)
    for i, step in enumerate(scheduler.timesteps):
        with torch.no_grad():
            out = model(x, step).sample
        generator = torch.Generator().manual_seed(i)
        after = scheduler.step(out, step, x, generator=generator).prev_sample
        noise = last(torch.randn(x.shape, generator=torch.Generator().manual_seed(i)))
        law = jd.p_mean_variance(
            trained.denoiser(), trained.schedule, last(x), ts[i], ts[i + 1], variance=trained.variance
        )  # fmt: skip
        ours = law.mean + jnp.sqrt(law.variance) * (noise if step > 0 else 0)
        scale = float(after.abs().max())
        note(f"DDPM {variance}, a step, relative", ours / scale, last(after) / scale, ROUNDING)
        x = after


# --- the format ----------------------------------------------------------------------------------------------------


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason=reason)
    arrays = {
        name: np.arange(6).reshape(2, 3).astype(dtype)
        for name, dtype in _safetensors.DTYPES.items()
        if name != "BF16"  # which NumPy lacks
    }
    _safetensors.write(tmp_path / "ours.safetensors", arrays)
    library.save_file(arrays, tmp_path / "theirs.safetensors")
    for found in (
        library.load_file(tmp_path / "ours.safetensors"),
        _safetensors.read(tmp_path / "theirs.safetensors"),
    ):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    from safetensors.torch import save_file

    half = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    save_file({"half": half}, tmp_path / "half.safetensors")
    found = _safetensors.read(tmp_path / "half.safetensors")["half"]
    np.testing.assert_array_equal(found.astype(np.float32), half.float().numpy())


def test_16_bits_of_a_folder_are_widened(tmp_path: Path) -> None:
    model = build(tmp_path, CASES["default"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = interop.diffusers(tmp_path).params["conv_in"]["kernel"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(
        found, model.conv_in.weight.detach().float().permute(2, 3, 1, 0).numpy()
    )
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "UNet2DModel"
