"""Make tests/data/interop: a small random UNet2DModel folder with outputs of torch, and names of ADM files.

Needs torch, diffusers and azula, none of which the tests need:

    python tests/build_interop.py

The weights are random, every array is perturbed, and nothing was trained: there is no licence to keep.
"""

import json
from pathlib import Path

import numpy as np
import torch
from azula.plugins.adm._src.unet import UNetModel
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

FOLDER = Path(__file__).parent / "data" / "interop"
OPTIONS = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "freq_shift": 1, "flip_sin_to_cos": False,
    "downsample_padding": 0, "norm_eps": 1e-6, "time_embedding_dim": 16,
}  # fmt: skip
ADM = {
    "new": {"num_head_channels": 16, "use_new_attention_order": True, "resblock_updown": True, "use_scale_shift_norm": True, "num_classes": 10},
    "legacy": {"num_heads": 4, "resblock_updown": True, "use_scale_shift_norm": True},
    "improved": {"num_heads": 4, "resblock_updown": False, "use_scale_shift_norm": False},
}  # fmt: skip


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """The network with no bias and no scale at its default."""
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def adm(name: str) -> torch.nn.Module:
    """A small network of guided diffusion, as its authors write it."""
    torch.manual_seed(0)
    return perturbed(
        UNetModel(
            image_size=16,
            in_channels=3,
            model_channels=32,
            out_channels=6,
            num_res_blocks=1,
            attention_resolutions={2},
            channel_mult=(1, 2),
            **ADM[name],
        )
    )


def trajectory(
    model: torch.nn.Module, scheduler: object, x: torch.Tensor, **options: object
) -> np.ndarray:
    """The states of a run, [steps + 1, ...], channels first."""
    states = [x]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for step in scheduler.timesteps:
            eps = model(x, step).sample
            x = scheduler.step(eps, step, x, generator=generator, **options).prev_sample
            states.append(x)
    return torch.stack(states).numpy()


def noises(scheduler: object, x: torch.Tensor) -> np.ndarray:
    """The noise that DDPMScheduler draws in such a run, at every step but the last."""
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(x.shape, generator=generator) for _ in scheduler.timesteps[:-1]]
    return torch.stack([*drawn, torch.zeros_like(x)]).numpy()


def main() -> None:
    torch.manual_seed(0)
    model = perturbed(UNet2DModel(**OPTIONS)).half()  # half of the size, and the widening is tested
    model.save_pretrained(FOLDER)
    model = model.float()
    x, step = torch.randn(4, 1, 8, 8), torch.tensor([0, 17, 500, 999])
    with torch.no_grad():
        arrays = {"x": x.numpy(), "step": step.numpy(), "out": model(x, step).sample.numpy()}
    ddpm = DDPMScheduler(variance_type="fixed_large")
    ddpm.save_pretrained(FOLDER)
    ddpm.set_timesteps(10)
    arrays |= {"ddpm": trajectory(model, ddpm, x), "noise": noises(ddpm, x)}
    ddim = DDIMScheduler(timestep_spacing="trailing", clip_sample=True)
    ddim.set_timesteps(10)
    arrays["ddim"] = trajectory(model, ddim, x, use_clipped_model_output=True)
    np.savez_compressed(FOLDER / "outputs.npz", **arrays)
    names = {name: {k: list(v.shape) for k, v in adm(name).state_dict().items()} for name in ADM}
    (FOLDER / "adm.json").write_text(json.dumps(names, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
