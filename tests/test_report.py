"""The report of a run: the command that makes it again, figures in words, and a page for all screens."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.cli import report_page as html
from jaxdiff.cli import train
from jaxdiff.runs.config import PRESETS, Config, Diffusion, Network, Optimizer, arguments
from jaxdiff.runs.records import flat

configs = st.builds(
    Config,
    run=st.sampled_from([Path("runs/a b"), Path("/x")]),
    dataset=st.sampled_from(["digits", "mnist", "swiss_roll"]),
    data_dir=st.sampled_from([None, Path("there")]),
    steps=st.integers(1, 10**6),
    flip=st.booleans(),
    conditional=st.booleans(),
    label_drop=st.floats(0, 1),
    network=st.builds(
        Network,
        channels=st.sampled_from([None, 8]),
        multipliers=st.sampled_from([None, (1,), (1, 2, 4)]),
        attention=st.sampled_from([None, (), (4, 8)]),
        fourier=st.sampled_from([(), (5, 7)]),
        remat=st.booleans(),
    ),
    diffusion=st.builds(Diffusion, objective=st.sampled_from([None, "simple", "vlb"])),
    optimizer=st.builds(Optimizer, clip_norm=st.sampled_from([None, 0.5])),
)


@given(configs)
def test_the_command_makes_the_configuration_again(config: Config) -> None:
    assert train.parse(arguments(config), "jaxdiff train") == config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_name(preset: str) -> None:
    assert arguments(PRESETS[preset][1]) == [preset]
    config = dataclasses.replace(PRESETS[preset][1], seed=3)
    assert arguments(config) == [preset, "--seed", "3"]


def test_flat_has_the_names_of_the_command_line() -> None:
    found = flat(Config())
    assert found["network.channels"] == 32
    assert len(found) > 40
    assert not any(dataclasses.is_dataclass(value) for value in found.values())


FOUND = {
    "recognised": 0.5,
    "recognised_se": 0.01,
    "features_frechet_distance": 3.25,
    "features_frechet_distance_se": 0.5,
    "features_frechet_distance_real_vs_real": 4.0,
    "features_frechet_distance_real_vs_real_se": 0.25,
    "probability": [
        {
            "name": "bound <in time>", "kind": "lower", "data": "held out", "nats": -80.0, "nats_se": 0.5,
            "bits_per_dim": 1.75, "bits_per_dim_se": 0.02,
        }
    ],
}  # fmt: skip


def test_figures_stand_beside_their_floor_with_their_errors() -> None:
    table = html.figures([FOUND], ["mine"])
    assert "50.0% +- 1.0%" in table
    assert '<td class="n">3.25 +- 0.5</td><td class="n">4 +- 0.25</td>' in table
    assert html.figures([{}], ["mine"]) == ""
    assert html.figures([FOUND, {}], ["mine", "other"]).count("<th>") == 4


def test_probabilities_say_which_side_they_bound() -> None:
    table = html.probabilities([FOUND], ["mine"])
    assert "bound &lt;in time&gt; <small>(at least; held out)</small>" in table
    assert "1.75 +- 0.02 bits/dim" in table
    assert "-80 +- 0.5 nats" in table
    assert html.probabilities([{}], ["mine"]) == ""
    both = html.probabilities([FOUND, {}], ["mine", "other"])
    assert "<th>mine</th><th>other</th>" in both
    assert "nats" not in both


def test_the_slider_has_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "reverse.gif"
    frames = [Image.new("L", (4, 4), level) for level in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = html.slider(path)
    assert 'max="2" value="2"' in found
    listed = json.loads(found.partition("frames_reverse=")[2].removesuffix("</script>"))
    assert len(set(listed)) == 3
    assert f'src="{listed[-1]}"' in found
    assert html.slider(tmp_path / "none.gif") == ""


def test_a_page_is_for_all_screens_and_escapes_names() -> None:
    page = html.page("a<b", "it & that", [html.section("Empty", ""), html.section("Full", "text")])
    assert 'name="viewport"' in page
    assert "color-scheme: light dark" in page
    assert "a&lt;b" in page
    assert "it &amp; that" in page
    assert "Empty" not in page
