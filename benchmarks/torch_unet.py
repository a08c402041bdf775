"""The network of `jaxdiff.models.unet` in PyTorch, layer by layer, for the comparisons of pair.py.

As a script it does one training step and nothing else. It does not import JAX, so its start-up is
that of a PyTorch user.
"""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HALF = 0.5**0.5


class ResBlock(nn.Module):
    """Two normalised convolutions, modulated by the embedding (FiLM) and added to their input."""

    def __init__(self, channels, embedding, groups):
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm_2 = nn.GroupNorm(groups, channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embedding):
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return x + h


class Attention(nn.Module):
    """Self-attention among the pixels of one image, added to the image."""

    def __init__(self, channels, num_heads, groups):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.qkv(self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels))
        q, k, v = h.reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = self.out(h.reshape(batch, height, width, channels))
        return x + h.permute(0, 3, 1, 2)


class TorchUNet(nn.Module):
    """Map x [B, C, H, W] and t [B] to [B, C, H, W]; unconditional, without dropout."""

    def __init__(
        self, shape, *, channels, multipliers, num_blocks, attention, num_heads, norm_groups
    ):
        super().__init__()
        self.num_blocks, width = num_blocks, 4 * channels
        widths = [channels * m for m in multipliers]
        heights = [math.ceil(shape[0] / 2**level) for level in range(len(widths))]
        frequencies = 1000 * 10000.0 ** (-np.arange(channels // 2) / (channels // 2))
        self.register_buffer("frequencies", torch.tensor(frequencies, dtype=torch.float32))
        self.time_1, self.time_2 = nn.Linear(channels, width), nn.Linear(width, width)
        self.stem = nn.Conv2d(shape[2], channels, 3, padding=1)
        self.res, self.attend, self.down, self.up = (nn.ModuleList() for _ in range(4))

        def block(width, attend):
            self.res.append(ResBlock(width, 4 * channels, norm_groups))
            self.attend.append(
                Attention(width, num_heads, norm_groups) if attend else nn.Identity()
            )

        levels = [
            (w, h in attention)
            for w, h in zip(widths, heights, strict=True)
            for _ in range(num_blocks)
        ]
        for width, attend in [*levels, (widths[-1], True), (widths[-1], False), *reversed(levels)]:
            block(width, attend)
        for wide, narrow in zip(widths[1:], widths[:-1], strict=True):
            self.down.append(nn.Conv2d(narrow, wide, 3, stride=2))
            self.up.append(nn.Conv2d(wide, narrow, 3, padding=1))
        self.norm_out = nn.GroupNorm(norm_groups, widths[0])
        self.head = nn.Conv2d(widths[0], shape[2], 3, padding=1)

    def embed(self, t):
        """Send time features through two layers, [B, 4 * channels]."""
        angles = t[:, None] * self.frequencies
        h = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return F.silu(self.time_2(F.silu(self.time_1(h))))

    def forward(self, x, t):
        embedding = self.embed(t)
        blocks = iter(zip(self.res, self.attend, strict=True))

        def block(h):
            res, attend = next(blocks)
            return attend(res(h, embedding))

        h = self.stem(x)
        skips = []
        for down in [None, *self.down]:
            if down is not None:  # XLA's "SAME" pads an even side by one more row at its end.
                h = down(F.pad(h, [p for side in (h.shape[3], h.shape[2]) for p in (side % 2, 1)]))
            for _ in range(self.num_blocks):
                h = block(h)
                skips.append(h)
        h = block(block(h))
        for up in [None, *reversed(self.up)]:
            if up is not None:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = up(h[:, :, : skips[-1].shape[2], : skips[-1].shape[3]])
            for _ in range(self.num_blocks):
                h = block((h + skips.pop()) * HALF)
        return self.head(F.silu(self.norm_out(h)))


def copy_weights(net, params):
    """Copy params, the nested dict that `Model.init` returns for the JAX network, into net."""
    pairs = [
        (net.stem, params["stem"]),
        (net.head, params["head"]),
        (net.norm_out, params["norm_out"]),
    ]
    pairs += [
        (net.time_1, params["Embedding_0"]["time_1"]),
        (net.time_2, params["Embedding_0"]["time_2"]),
    ]
    attend = [module for module in net.attend if isinstance(module, Attention)]
    pairs += [(module, params[f"ResBlock_{i}"]) for i, module in enumerate(net.res)]
    pairs += [(module, params[f"Attention_{i}"]) for i, module in enumerate(attend)]
    pairs += [(module, params[f"down_{i + 1}"]) for i, module in enumerate(net.down)]
    pairs += [(module, params[f"up_{i}"]) for i, module in enumerate(net.up)]
    copied = sum(_copy(module, leaves) for module, leaves in pairs)
    expected = sum(p.numel() for p in net.parameters())
    if copied != expected:
        raise RuntimeError(f"parameters: copied {copied} of {expected}")


def _copy(module, leaves):
    """Copy a nested dict of leaves into a module of the same shape; return how many numbers."""
    if not hasattr(leaves, "items"):
        raise TypeError(f"leaves: expected a dict, got {type(leaves).__name__}")
    copied = 0
    for name, leaf in leaves.items():
        if hasattr(leaf, "items"):
            copied += _copy(getattr(module, name), leaf)
            continue
        target = getattr(module, "bias" if name == "bias" else "weight")
        value = torch.tensor(np.asarray(leaf))
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        value = value.permute(order)
        target.data.copy_(value.reshape(target.shape))
        copied += value.numel()
    return copied


def wait(device):
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def autocast(net, dtype):
    """Let the layers compute in a dtype, float32 or bfloat16; parameters stay float32."""
    device = next(net.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def training_step(net, shape, batch, rate, dtype="float32"):
    """Make a function that does one update: noise, forward, backward, Adam."""
    device = next(net.parameters()).device
    optimizer = torch.optim.Adam(net.parameters(), rate, fused=device.type == "cuda")
    x_0 = torch.rand(batch, shape[2], *shape[:2], device=device) * 2 - 1
    x_0 = x_0.contiguous(memory_format=torch.channels_last)

    def run():
        t, eps = torch.rand(batch, device=device), torch.randn_like(x_0)
        alpha, sigma = (f(t * np.pi / 2)[:, None, None, None] for f in (torch.cos, torch.sin))
        with autocast(net, dtype):
            loss = F.mse_loss(net(alpha * x_0 + sigma * eps, t).float(), eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def start(net, shape, batch, num_steps, end=0.0):
    """Noise to begin with, and on a grid from 1 to end the times, alphas and sigmas."""
    device = next(net.parameters()).device
    x = torch.randn(batch, shape[2], *shape[:2], device=device)
    ts = torch.linspace(1, end, num_steps + 1)
    angles = ts.double() * math.atan(math.exp(7.5))  # the cosine schedule, from log-SNR -15 on
    levels = angles.cos().tolist(), angles.sin().tolist()
    return x.contiguous(memory_format=torch.channels_last), ts.to(device), *levels


def ddim(net, shape, batch, num_steps):
    """Make a function that draws samples by DDIM, in a dtype."""
    x_init, ts, alphas, sigmas = start(net, shape, batch, num_steps)

    def run(dtype="float32"):
        x = x_init
        with torch.no_grad(), autocast(net, dtype):
            for n in range(num_steps):
                eps = net(x, ts[n].expand(batch)).float()
                x_0 = (x - sigmas[n] * eps) / alphas[n]
                x = alphas[n + 1] * x_0 + sigmas[n + 1] * eps
        return x

    return run


def integral_weights(h, nodes):
    """Weights of values at nodes in int_0^1 h exp(-h (1 - v)) P(v) dv, P the polynomial there."""
    moments = [-math.expm1(-h)]
    for j in range(1, len(nodes)):
        moments.append(1 - j * moments[-1] / h)
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()


def unipc(net, shape, batch, num_steps):
    """Make a function that draws samples by UniPC-2, in a dtype (Zhao et al. 2023)."""
    # The last step would be infinitely long at t = 0.
    x_init, ts, alphas, sigmas = start(net, shape, batch, num_steps, end=1e-3)
    half = [math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]

    def moved(x, n, nodes, values):
        """From time n - 1 to n, with the denoised states at nodes (numbers of times)."""
        h = half[n] - half[n - 1]
        weights = integral_weights(h, [(half[k] - half[n - 1]) / h for k in nodes])
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        return sigmas[n] / sigmas[n - 1] * x + alphas[n] * total

    def run(dtype="float32"):
        x = last = x_init
        denoised: tuple = ()  # newest first
        with torch.no_grad(), autocast(net, dtype):
            for n in range(num_steps):
                eps = net(x, ts[n].expand(batch)).float()
                denoised = ((x - sigmas[n] * eps) / alphas[n], *denoised[:2])
                times = [n - k for k in range(len(denoised))]
                last = moved(last, n, times, denoised) if n else x
                x = moved(last, n + 1, times[:2], denoised[:2])
        return x

    return run


SAMPLERS = {"ddim": ddim, "unipc": unipc}


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    unet = TorchUNet(options["shape"], **options["network"]).to(memory_format=torch.channels_last)
    training_step(unet, options["shape"], options["batch"], options["rate"])()
