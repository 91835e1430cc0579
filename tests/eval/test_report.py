"""Reports are whole, safe to open, and draw what they were given."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from eval_fixtures import TensorImages, photographs, tiny_vae
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.protocol.codecs import VAECodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.protocol import Protocol
from eval.report.charts import line_chart, tick_text, ticks
from eval.report.grid import comparison_grid, error_image
from eval.report.latents import SCALE, latent_values
from eval.report.outputs import without_nan
from eval.report.page import Cell, Picture, data_uri, render
from eval.report.tables import best_models, markdown_table, notes, rows
from eval.report.terminal import table_text
from eval.report.training import write_training_report
from modules.builders.banner import facts
from modules.builders.outline import changed_flags
from modules.config.command_line import resolve_arguments

HARMFUL = "<script>alert(\"x\")</script> & 'quoted'"


def found(metrics=("psnr", "color", "kl"), **models):
    images = TensorImages(photographs(4))
    models = models or {"jpeg:10": open_codec("jpeg:10"), "jpeg:80": open_codec("jpeg:80")}
    return evaluate_reconstruction(
        models, images, list(metrics), num_samples=2, latents=True, progress=False
    )


class Checker(HTMLParser):
    """Collects tags, and fails on a tag that is closed in the wrong place."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(html):
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def training_page(**values):
    """training.html with nothing on it but `values`."""
    nothing = {"validation": {}, "charts": [], "pictures": [], "latents": {}, "facts": {}}
    return render("training.html", **{"title": "t", "lead": "", "stamp": [], **nothing, **values})


def test_a_page_is_closed_self_contained_and_escapes_every_text():
    image = photographs(1)[0]
    html = training_page(
        title=HARMFUL,
        lead=HARMFUL,
        stamp=[HARMFUL],
        validation_header=[HARMFUL, HARMFUL],
        explained="",
        validation={HARMFUL: [Cell(HARMFUL, HARMFUL, True)]},
        charts=[line_chart(HARMFUL, HARMFUL, {HARMFUL: [(1, 2)], HARMFUL + "2": [(1, 2)]})],
        pictures=[(HARMFUL, [Picture(image, HARMFUL, HARMFUL, image)])],
        facts={HARMFUL: HARMFUL},
    )
    checker = check(html)
    assert "script" not in checker.tags
    assert html.count("&lt;script&gt;") >= 14
    assert "<h2>Latents" not in html
    assert "error ×8" in html
    sources = [value for name, value in checker.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/webp;base64,") for value in sources)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)


def test_embedded_pictures_are_lossless():
    image = photographs(1)[0]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    encoded = data_uri(picture).split(",")[1]
    decoded = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    assert np.array_equal(np.array(decoded), np.array(picture))


@given(
    st.lists(
        st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32)),
        min_size=0,
        max_size=20,
    ),
    st.booleans(),
)
def test_line_charts_draw_any_numbers_inside_their_frame(values, log):
    chart = line_chart("t", "x", {"a": list(enumerate(values))}, log_y=log)
    ElementTree.fromstring(re.search("<svg.*</svg>", training_page(charts=[chart]), re.S)[0])
    for line in chart.lines:
        for x, y in re.findall(r"[ML](\S+) ([^ML]+)", line.path):
            assert chart.left <= float(x) <= chart.right
            assert chart.top <= float(y) <= chart.bottom


def test_gaps_interrupt_a_line_and_a_lone_point_is_a_dot():
    points = list(enumerate([1, 2, math.nan, 3, None, 4]))
    (line,) = line_chart("t", "x", {"a": points}).lines
    assert line.path.count("M") == 3
    assert len(line.dots) == 2
    assert "no values" in training_page(charts=[line_chart("t", "x", {"a": [(1, math.nan)]})])


def test_a_long_line_is_thinned_and_keeps_its_end():
    chart = line_chart("t", "x", {"a": [(i, float(i)) for i in range(10_000)]})
    path = chart.lines[0].path
    assert path.count("L") < 700
    assert float(path.rsplit("L", 1)[1].split()[0]) == pytest.approx(chart.right)


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    high = low + width
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in found)


def test_tick_texts_are_short():
    values = (0.0, 1.5e6, 20000.0, 950.0, 0.05, 2e-6)
    assert [tick_text(value) for value in values] == ["0", "1.5M", "20k", "950", "0.05", "2e-6"]


def test_latents_of_several_models_are_drawn():
    vae = VAECodec(tiny_vae())
    models = {label: e.latents for label, e in found(one=vae, other=vae).items()}
    html = training_page(
        latents=latent_values(models, SCALE, dict.fromkeys(models, 0.18215)), latent_grid=None
    )
    check(html)
    assert html.count("<svg") == 1
    assert html.count(f">{models['one'].channel_mean[3]:+.4f}<") == 2
    assert html.count(">0.18215<") == 2
    assert latent_values({}, SCALE, {}) == {}


def test_the_terminal_table_is_aligned_and_marks_the_best_and_the_identity_does_not_compete():
    models = {name: open_codec(name) for name in ("jpeg:10", "jpeg:80", "identity")}
    evaluations = found(**models)
    header, _, first, second, third = table_text(rows(evaluations)).splitlines()
    assert header.split()[:3] == ["model", "PSNR", "↑"]
    assert first.startswith("jpeg:10")
    assert ["*" in line for line in (first, second, third)] == [False, True, False]
    assert first.index(".") == second.index(".")
    assert best_models(evaluations, "psnr") == {"jpeg:80"}
    assert best_models(evaluations, "kl") == set()


@pytest.mark.parametrize("width", [20, 60, 160])
def test_no_number_is_lost_in_a_table_however_narrow(width):
    cells = [["model", *(f"metric {i}" for i in range(12))],
             *([f"[red]{name}", *(f"{i}.2345" for i in range(12))] for name in "ab")]  # fmt: skip
    text = table_text(cells, width)
    assert all(cell in text for row in cells for cell in row)
    assert "…" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    assert len(lines) == (14 if width < 160 else 4)


def test_markdown_has_one_row_a_model_and_the_best_in_bold():
    lines = markdown_table(found()).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "**" not in lines[2].split("|")[2]
    assert "**" in lines[3].split("|")[2]


def test_notes_name_what_is_missing_broken_or_unreadable():
    vae = tiny_vae()
    vae.decoder.conv_in.weight.data.fill_(torch.nan)
    models = {"mine": VAECodec(tiny_vae()), "broken": VAECodec(vae)}
    models["downsample:8"] = open_codec("downsample:8")
    images = TensorImages(photographs(4), damaged=[2])
    evaluations = evaluate_reconstruction(
        models, images, ["psnr", "rfid"], latents=True, progress=False
    )
    lines = notes(evaluations, lambda position: f"file{position}.png")
    assert "unreadable, left out: file2.png: damaged on purpose" in lines
    assert "broken: 3 of 3 images NaN, left out of its means" in lines
    assert "rFID is missing: its network was not given" in lines
    assert "mine does not beat downsample:8: as an autoencoder it is not working (yet)" in lines
    assert "–" in table_text(rows(evaluations))


def test_json_has_no_nan():
    data = {"a": [math.nan, 1.0, (math.inf, 2)], "b": {"c": -math.inf, "d": "text"}}
    assert without_nan(data) == {"a": [None, 1.0, [None, 2]], "b": {"c": None, "d": "text"}}


def test_the_grid_shows_originals_reconstructions_and_errors_pixel_by_pixel():
    images, models = TensorImages(photographs(2, 128)), {"jpeg:10": open_codec("jpeg:10")}
    evaluations = evaluate_reconstruction(models, images, ["psnr"], num_samples=2, progress=False)
    canvas = np.array(comparison_grid(evaluations))
    _, original, output, _ = evaluations["jpeg:10"].samples[1]
    error = error_image(original, output)
    assert error.float().mean() > 8
    for image in (original, output, error):
        pixels = image.permute(1, 2, 0).numpy()
        rows, columns = np.where((canvas == pixels[0, 0]).all(axis=2))
        at = zip(rows, columns, strict=True)
        assert any(np.array_equal(canvas[r : r + 128, c : c + 128], pixels) for r, c in at)


def test_a_grid_without_samples_says_how_to_get_them():
    evaluations = evaluate_reconstruction(
        {"a": open_codec("identity")}, TensorImages(photographs(1)), ["psnr"], progress=False
    )
    with pytest.raises(ValueError, match="num_samples > 0"):
        comparison_grid(evaluations)


def test_errors_are_eight_fold_and_clipped():
    original = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    output = torch.tensor([103, 10], dtype=torch.uint8).expand(3, 1, 2)
    assert error_image(original, output)[0, 0].tolist() == [24, 255]


def training_report(tmp_path, *training, **known):
    evaluation = found(("psnr", "kl"), vae=VAECodec(tiny_vae()))["vae"]
    validation = {f"val/{name}": value for name, value in evaluation.summary().items()}
    history = [{"step": 0, **validation}, *training, {"step": 9, **validation}]
    facts = {"Hardware": "1 x Abacus", "Flags": "--kl_scale 0.1  --no_use_ema"}
    write_training_report(
        tmp_path / "r.html", "mine", history, evaluation, Protocol(), facts=facts,
        baselines={"downsample:8": {"psnr": 22.125}}, **known,
    )  # fmt: skip
    html = (tmp_path / "r.html").read_text()
    check(html)
    return html


def test_nothing_of_a_discriminator_is_drawn_before_it_is_trained(tmp_path):
    row = {"step": 5, "train/lr": 1e-4, "train/disc_lr": 1e-4, "train/grad_norm_vae": 1.0,
           "train/grad_norm_disc": 0.0}  # fmt: skip
    off = training_report(tmp_path, row)
    assert "Learning rates" in off
    assert "discriminator" not in off
    assert "discriminator" in training_report(tmp_path, row | {"train/d_loss": 2.0})


def test_the_report_of_a_run_says_what_ran_where_and_what_needs_no_training(tmp_path):
    html = training_report(tmp_path)
    for text in ("1 x Abacus", "--kl_scale 0.1", "latest, step 9", "KL, nats per image"):
        assert text in html
    assert re.search(r'>downsample:8</th>\s*<td data-title="PSNR ↑" class="">22.12</td>', html)


def test_a_report_of_a_run_tells_one_scaling_factor_the_exported_one(tmp_path):
    assert re.search(r"\d\.\d{5}<", training_report(tmp_path)) is None
    html = training_report(tmp_path, scaling_factor=0.98765)
    assert re.findall(r"(\d\.\d{5})<", html) == ["0.98765"]
    assert "measured when the run ends" in html


def test_a_run_tells_its_flags_as_they_are_typed_and_keeps_its_secrets():
    argv = ["--kl_scale", "0.5", "--no_random_flip", "--no_use_ema", "--hub_token", "hf_secret"]
    device = torch.device("cpu")
    run = SimpleNamespace(
        args=resolve_arguments(argv),
        accelerator=SimpleNamespace(num_processes=2, device=device, mixed_precision="bf16"),
        step=5,
        max_train_steps=10,
    )
    told = facts(run, SimpleNamespace(began=time.monotonic() - 65, first_step=3))
    flags = changed_flags(run.args, paths=False)
    assert {"--kl_scale 0.5", "--no_random_flip", "--no_use_ema"} <= set(flags)
    assert "secret" not in str([told, flags])
    assert told["Hardware"].startswith("2 x CPU")
    assert told["Time"] == "0:01:05 since step 3, for 5 of 10 steps"
