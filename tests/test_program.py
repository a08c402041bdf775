"""A sampler as a StableHLO file: it runs without jaxdiff, and draws what the library draws."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rejects

import jaxdiff as jd
from jaxdiff import interop, kernels, models
from jaxdiff.cli import export
from jaxdiff.runs import loading
from jaxdiff.zoo import Trained

WITHOUT = """
import sys
sys.modules["jaxdiff"] = None  # no import of it succeeds
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
index = np.array([3, 0, 1], np.uint32)
labels = [np.array([2, 0, 1], np.int32)] if len(program.in_avals) == 3 else []
np.save(sys.argv[2], program.call(np.uint32(7), index, *labels))
"""


def small(num_classes: int | None) -> Trained:
    """A network of vectors with random parameters."""
    model = models.mlp(width=16, depth=1, num_classes=num_classes)
    params = model.init(jax.random.key(0), (2,))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    return Trained(model, params, jd.schedules.cosine(), "v", (2,))


@pytest.mark.parametrize("num_classes", [None, 3])
def test_it_draws_what_the_library_draws(num_classes: int | None, tmp_path: Path) -> None:
    trained, guidance = small(num_classes), 1.0 if num_classes is None else 1.5
    ts = jd.grids.uniform(5)
    options: dict[str, Any] = {"kernel": kernels.ancestral, "ts": ts, "guidance": guidance}
    file, out = tmp_path / "program", tmp_path / "x.npy"
    file.write_bytes(interop.export_sampler(trained, platforms=["cpu"], **options))
    subprocess.run([sys.executable, "-c", WITHOUT, file, out], check=True, timeout=300)
    # Sample 1 has label 1, sample 0 label 0, sample 3 label 2.
    label = None if num_classes is None else jnp.array([0, 1, 0, 2])
    denoiser = trained.denoiser(label, guidance)
    drawn = jd.draw(
        jax.random.key(7), denoiser, trained.schedule, (4, 2), kernel=kernels.ancestral, ts=ts
    ).x
    np.testing.assert_allclose(np.load(out), drawn[jnp.array([3, 0, 1])], atol=1e-5)


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loading.Run(tmp_path, None, None, small(3))  # type: ignore[arg-type]
    monkeypatch.setattr(loading, "load_run", lambda folder: run)
    file = tmp_path / "sampler.stablehlo"
    sampling = export.Sampling(sampler="ancestral", steps=3, platforms=("cpu", "cuda"))
    export.main(export.Options(run=tmp_path, program=file, sampling=sampling))
    from jax import export as jax_export

    read = jax_export.deserialize(bytearray(file.read_bytes()))
    assert read.platforms == ("cpu", "cuda")
    # Other batches run too; rows do not depend on each other.
    index, labels = np.arange(5, dtype=np.uint32), np.arange(5, dtype=np.int32) % 3
    x = read.call(np.uint32(0), index, labels)
    np.testing.assert_allclose(read.call(np.uint32(0), index[2:4], labels[2:4]), x[2:4], atol=1e-5)
    with pytest.raises(ValueError, match="sampling: expected none without --program"):
        export.main(export.Options(run=tmp_path, sampling=sampling))


test_bad_input = rejects({
    "no network": (lambda: interop.export_sampler(None), TypeError, "trained: expected a Trained"),  # type: ignore[arg-type]
    "platform": (lambda: interop.export_sampler(small(3), platforms=["gpu"]), ValueError, "platforms: expected some of cpu, cuda, rocm, tpu"),
    "a word": (lambda: interop.export_sampler(small(3), platforms="cpu"), ValueError, "platforms: expected some of"),
    "no platform": (lambda: interop.export_sampler(small(3), platforms=[]), ValueError, "platforms: expected some of"),
    "guidance": (lambda: interop.export_sampler(small(None), guidance=2.0), ValueError, "guidance: expected 1, as the network has no classes"),
    "kernel": (lambda: interop.export_sampler(small(3), kernel="ddim"), TypeError, "kernel: expected a function"),  # type: ignore[arg-type]
    "steps": (lambda: interop.export_sampler(small(3), ts=jnp.array([0.0, 1.0])), ValueError, "ts: expected"),
})  # fmt: skip
