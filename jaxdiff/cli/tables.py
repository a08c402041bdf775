"""The tables that commands print."""

from typing import Any

from jaxdiff.runs import quality
from jaxdiff.runs.probability import Row


def print_denoising(rows: list[dict[str, float]]) -> None:
    """Print the denoising errors, a line for each time."""
    print(
        f"{'t':>6} {'log SNR':>9} {'x_0 error':>18} {'best linear':>12} {'mean':>9}"
        "   (mean squared, data in [-1, 1])"
    )
    for row in rows:
        error = f"{row['x_0_error']:.5f} +- {row['x_0_error_se']:.5f}"
        print(
            f"{row['t']:6.3f} {row['log_snr']:9.2f} {error:>18} "
            f"{row['gaussian_error']:12.5f} {row['mean_error']:9.5f}"
        )


def print_probability(rows: list[Row]) -> None:
    """Print the table, a line for each estimator."""
    print(
        f"{'log p(x)':<45} {'kind':<8} {'data':<10} {'nats':>20} {'bits/dim':>18} "
        f"{'calls':>7} {'n':>6} {'s':>7}"
    )
    for row in rows:
        nats = f"{row.nats:.2f} +- {row.nats_se:.2f}"
        bits = f"{row.bits_per_dim:.4f} +- {row.bits_per_dim_se:.4f}"
        end = f"{row.calls:>7} {row.examples:>6} {row.seconds:7.1f}"
        print(f"{row.name:<45} {row.kind:<8} {row.data:<10} {nats:>20} {bits:>18} {end}")


def print_quality(found: dict[str, Any]) -> None:
    """Print each figure with its standard error and its floor: real data in place of samples."""
    print(f"{'samples':36}{'':>22}{'real against real':>22}")
    for name in found:
        if name.endswith(("_se", quality.REAL)):
            continue
        cells = [
            _cell(found, name),
            _cell(found, name + quality.REAL) if name + quality.REAL in found else "",
        ]
        print(f"{name:36}" + "".join(f"{cell:>22}" for cell in cells))


def _cell(found: dict[str, Any], name: str) -> str:
    error = f" +- {found[name + '_se']:.2g}" if name + "_se" in found else ""
    return (f"{found[name]:.4g}" if isinstance(found[name], float) else str(found[name])) + error
