"""The benchmark of an accelerator on a tiny network on the CPU, without PyTorch, and its table of peaks."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import accelerator
import jax
import jax.numpy as jnp
import pair
import pytest
from helpers import rejects

from jaxdiff.models import _layers

TINY = accelerator.Options(side=4, channels=8, batch=8, updates=2, rounds=2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> accelerator.Options:
    """One block a level, and no torch."""
    whole = accelerator.work_of

    def work_of(*arguments: Any) -> pair.Work:
        work = whole(*arguments)
        network = work.network | {"multipliers": (1,), "num_blocks": 1, "num_heads": 1}
        return dataclasses.replace(work, network=network)

    monkeypatch.setattr(accelerator, "work_of", work_of)
    monkeypatch.setitem(sys.modules, "torch", None)
    return dataclasses.replace(TINY, output=tmp_path)


@pytest.mark.slow
def test_what_does_not_fit_into_the_minutes_is_left_out(
    tiny: accelerator.Options, capsys: pytest.CaptureFixture
) -> None:
    options = dataclasses.replace(tiny, minutes=1e-6, parts=("training", "likelihood"))
    found = accelerator.main(options)
    (row,) = found["rows"]
    assert row["dtype"] == "float32"
    assert len(row["seconds"]["jaxdiff"]) == 1  # the second round no longer fits
    assert row["jaxdiff_images_per_second"] == pytest.approx(16 / row["seconds"]["jaxdiff"][0])
    work = accelerator.work_of(options, None)
    counted = row["flops_per_second"] * row["seconds"]["jaxdiff"][0]
    assert counted == pytest.approx(2 * pair.update_flops(work))
    assert row["share_of_peak"] is None  # a CPU is not in the table
    assert found["left_out"] == ["training in bfloat16", "likelihood in float32"]
    assert json.loads((options.output / "accelerator.json").read_text())["rows"] == [row]
    page = (options.output / "accelerator.md").read_text()
    printed = capsys.readouterr().out
    assert page in printed
    assert "torch is not installed: its columns are empty" in printed
    assert "no time is left for training in bfloat16" in printed
    assert "Left out, for lack of time: training in bfloat16, likelihood in float32." in page
    assert "| training | float32 |" in page


@pytest.mark.slow
def test_every_job_runs(tiny: accelerator.Options) -> None:
    found = accelerator.main(dataclasses.replace(tiny, rounds=1, minutes=60.0))
    assert [(row["name"], row["dtype"]) for row in found["rows"]] == [
        (name, dtype) for name in tiny.parts for dtype in accelerator.JOBS[name][0]
    ]
    assert found["left_out"] == []
    assert all(row["calls_per_second"] > 0 for row in found["rows"])


def test_operations_are_counted() -> None:
    program = jax.jit(lambda a, b: a @ b)
    assert pair.flops(program, jnp.ones((8, 16)), jnp.ones((16, 4))) == 2 * 8 * 16 * 4


def test_an_update_has_three_times_the_operations_of_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without loops, in which XLA would count one block of images for all.
    monkeypatch.setattr(_layers, "_in_kernel", partial(_layers._plain, order="HWIO"))
    network = {
        "multipliers": (1,),
        "num_blocks": 1,
        "num_heads": 1,
        "norm_groups": 8,
        "channels": 8,
    }
    work = pair.Work((12, 12, 3), network, batch=8, num_devices=1)
    found = pair.flops(*pair.update_of(work, *pair.jax_model(work)))
    # The optimiser takes a few operations for each parameter.
    assert pair.update_flops(work) == pytest.approx(found, rel=0.25)


@pytest.mark.parametrize(
    ("card", "float32", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 495, 989),
        ("NVIDIA H100 PCIe", 378, 756),
        ("NVIDIA H100 NVL", 418, 835),
        ("NVIDIA H200", 495, 989),
        ("NVIDIA A100-SXM4-40GB", 156, 312),
        ("NVIDIA L4", 60, 121),
        ("Tesla V100-SXM2-16GB", 15.7, None),  # neither TF32 nor bfloat16
        ("Tesla V100-PCIE-32GB", 14, None),
        ("Tesla T4", 8.1, None),
        ("NVIDIA GeForce RTX 4090", 82.6, 165.2),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA L40S", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks(card: str, float32: float | None, bfloat16: float | None) -> None:
    for dtype, peak in (("float32", float32), ("bfloat16", bfloat16)):
        expected = None if peak is None else pytest.approx(peak * 1e12)
        assert accelerator.peak_of(card, dtype) == expected


def wrong(**options: Any) -> Any:
    return lambda: accelerator.main(dataclasses.replace(TINY, **options))


test_bad_options = rejects({
    "minutes": (wrong(minutes=0.0), ValueError, "minutes: expected a positive number, got 0"),
    "rounds": (wrong(rounds=0), ValueError, "rounds: expected at least 1, got 0"),
    "channels": (wrong(channels=12), ValueError, "channels, batch: expected multiples of 8 and 8, got 12 and 8"),
    "batch": (wrong(batch=12), ValueError, "channels, batch: expected multiples of 8 and 8, got 8 and 12"),
})  # fmt: skip
