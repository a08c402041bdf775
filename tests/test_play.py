"""The page to play with a network: what it asks for, and the page itself where gradio is installed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxdiff as jd
from jaxdiff import models
from jaxdiff.cli import play
from jaxdiff.runs import loading, playing
from jaxdiff.runs.seeds import key_of
from jaxdiff.zoo import Trained


def player(num_classes: int | None = 3, shape: tuple[int, ...] = (4, 4, 1)) -> playing.Player:
    """A small network with random parameters, which are not zero."""
    if len(shape) == 3:
        model = models.unet(channels=8, multipliers=(1,), num_blocks=1, num_classes=num_classes)
    else:
        model = models.mlp(width=8, depth=1)
    params = model.init(jax.random.key(0), shape)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    trained = Trained(model, params, jd.schedules.cosine(), "v", shape, levels=17)
    dataset = type("Dataset", (), {"is_here": False})()
    return playing.Player(loading.Run(Path("mine"), None, dataset, trained))  # type: ignore[arg-type]


def test_states_are_those_of_the_library() -> None:
    it = player()
    states = it.states(num=3, label=2, guidance=1.5, steps=4, seed=5)
    assert states.shape == (5, 3, 4, 4, 1)
    trained = it.run.trained
    denoiser = jd.make_denoiser(
        Partial(trained.model.apply, trained.params, label=jnp.full(3, 2)), trained.schedule, "v"
    )
    free = jd.make_denoiser(Partial(trained.model.apply, trained.params), trained.schedule, "v")
    guided = jd.guidance.classifier_free(denoiser, free, 1.5)
    x = jd.draw(
        key_of(5, "samples"), guided, trained.schedule, (3, 4, 4, 1), ts=jd.grids.uniform(4)
    ).x
    np.testing.assert_allclose(states[-1], x, atol=1e-5)
    # A new class and guidance are arguments of the same program.
    before = playing._sampler.cache_info().misses
    again = it.states(num=3, label=0, guidance=2.0, steps=4, seed=5)
    assert playing._sampler.cache_info().misses == before
    assert np.abs(again[-1] - states[-1]).max() > 1e-3
    np.testing.assert_array_equal(again[0], states[0])


def test_a_completion_keeps_what_is_seen() -> None:
    it = player()
    x_0 = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4, 1)
    hidden = np.zeros((4, 4), bool)
    hidden[2:] = True
    found = it.complete(x_0, hidden, noise_std=0.02, seed=1)
    assert found.x.shape == (playing.SYSTEMS, 4, 4, 1)
    free = it.states(num=12, steps=25)[-1]
    near, far = (np.sqrt(np.mean((x[:, :2] - x_0[:2]) ** 2)) for x in (found.x, free))
    assert near < 0.2 < 0.5 < far  # 0.12 and 0.9: a network that was never trained
    assert found.x[:, 2:].std(0).min() > 0.02
    assert np.isfinite([found.log_evidence, found.error]).all()
    assert 1 <= found.lineages <= playing.ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": np.zeros((4, 4))}, r"x_0, hidden: expected shapes \(4, 4, 1\) and \(4, 4\)"),
        ({"hidden": np.zeros((4, 4), bool)}, "hidden: expected a part of the picture, got nothing"),
        ({"hidden": np.ones((4, 4), bool)}, "hidden: .* got everything"),
        ({"noise_std": 0.0}, "noise_std: expected a positive number, got 0.0"),
    ],
)
def test_bad_completions(change: dict, message: str) -> None:
    hidden = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match=message):
        player().complete(**{"x_0": np.zeros((4, 4, 1)), "hidden": hidden} | change)


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match="sampler: expected one of"):
        player().states(sampler="euler")
    with pytest.raises(ValueError, match="num, steps: expected at least 1, got 16, 0"):
        player().states(steps=0)
    with pytest.raises(ValueError, match=r"run: expected a network of images, got .* \(2,\)"):
        player(shape=(2,))


def test_painted_is_half_a_pixel() -> None:
    layer = np.zeros((40, 40, 4), np.uint8)
    layer[:10, :14, 3] = 255  # all of one pixel, and less than half of the next
    layer[20:26, 20:30, 3] = 255  # more than half of one pixel
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[2, 2] = True
    np.testing.assert_array_equal(play.painted([layer], (4, 4, 1)), expected)
    assert not play.painted([], (4, 4, 1)).any()


def test_a_sheet_has_the_width_of_the_page() -> None:
    assert play.enlarged(np.zeros((16, 28, 28, 1)), 4).width == 345
    assert play.enlarged(np.zeros((1, 4, 4, 3)), 1).size == (448, 448)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_page_is_built_and_answers() -> None:
    pytest.importorskip("gradio", reason='an optional page: pip install "jaxdiff[play]"')
    events = play.Events(player())
    states, sheet, slider, x_0, canvas = events.draw(play.EVERY, 1.0, "unipc_2", 4, 0)
    assert (len(states), slider.maximum, x_0.shape) == (5, 4, (4, 4, 1))
    assert sheet.width == play.enlarged(states[-1], 4).width == events.step(states, 2).width
    layer = np.zeros((canvas["background"].height, canvas["background"].width, 4), np.uint8)
    layer[: len(layer) // 2, :, 3] = 255
    seen, completed, words = events.complete(x_0, {"layers": [layer]}, play.UNKNOWN, 0.1, 0)
    assert "log p(what is seen) = **" in words
    assert completed.width > 0
    assert seen.getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(Exception, match="hidden: expected a part of the picture"):
        events.complete(x_0, {"layers": []}, play.UNKNOWN, 0.1, 0)
    assert len(play.page(events.player).fns) == 5
