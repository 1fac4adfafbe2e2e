"""The page says what the runs say, and needs nothing but itself."""

import base64
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
import torch

from vla.evaluation import Episode, write_episodes
from vla.figures import binned, filmstrip, metric_curves, pooled_rates
from vla.report import Stage, discordant, main, write_report
from vla.statistics import rate, wilson
from vla.video import read_video, write_video


def episodes(successes: str, first_seed: int = 0) -> list[Episode]:
    return [Episode(first_seed + i, "lift it", x == "1", 3, 6, float(x)) for i, x in enumerate(successes)]


def moving_square(frames: int, size: int = 64):
    pictures = torch.zeros(frames, size, size, 3, dtype=torch.uint8)
    for i in range(frames):
        pictures[i, 20:40, 4 * i : 4 * i + 20] = 250
    return pictures


@pytest.fixture
def stages(tmp_path):
    """Two evaluations of the same ten episodes, and a run that learned in between."""
    for name, successes in {"before": "1100000000", "after": "0111111110"}.items():
        directory = tmp_path / name
        directory.mkdir()
        write_episodes(directory, episodes(successes))
        summary = {"program": "evaluate", "seconds": 1.0, **rate(successes.count("1"), 10)}
        (directory / "summary.json").write_text(json.dumps(summary))
        (directory / "config.yaml").write_text("policy:\n  path: <b>bold</b>\n")
        (directory / "identity.json").write_text(json.dumps({"command": "python -m x 'a b'", "torch": "9.9.9"}))
    write_video(tmp_path / "after" / "videos" / "seed_1_success.mp4", moving_square(8), fps=5.0)
    write_video(tmp_path / "after" / "videos" / "seed_0_failure.mp4", moving_square(8), fps=5.0)
    learned = tmp_path / "learned"
    learned.mkdir()
    rows = [{"step": i, "train/success": i / 4, "train/episodes": 4, "loss": 1.0 / (i + 1)} for i in range(5)]
    (learned / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [Stage(name, tmp_path / name) for name in ("before", "learned", "after")]


@pytest.fixture
def page(stages, tmp_path):
    return write_report(stages, tmp_path / "out" / "report.html", title="A & B").read_text()


def test_the_page_shows_every_rate_with_its_n_and_interval(page):
    low, high = wilson(8, 10)
    assert "8 of 10" in page
    assert "2 of 10" in page
    assert f"{low:.0%} to {high:.0%}" in page
    assert f"left:{low:.2%};width:{high - low:.2%}" in page


def test_stages_on_the_same_episodes_are_compared_in_pairs(page):
    assert "7 were solved only by <em>after</em> and 1 only by <em>before</em>" in page
    assert "p = 0.07" in page  # 2 * (1 + 8) / 2**8


def test_the_page_says_what_reading_after_every_pair_would_have_told(stages, tmp_path, page):
    assert "whether they differ is not clear yet; the largest e is 3.35" in page  # 7 wins, 1 loss
    write_episodes(stages[0].directory, episodes("0" * 10))
    assert "they differ, as was clear after 8 pairs" in write_report(stages, tmp_path / "r.html").read_text()


def test_evaluations_in_other_environments_are_not_compared(stages, tmp_path):
    (stages[0].directory / "config.yaml").write_text("env:\n  num_envs: 3\n  size: 1\n")
    (stages[2].directory / "config.yaml").write_text("env:\n  num_envs: 4\n  size: 1\n")
    assert "McNemar" in write_report(stages, tmp_path / "r.html").read_text()
    (stages[2].directory / "config.yaml").write_text("env:\n  num_envs: 4\n  size: 2\n")
    assert "McNemar" not in write_report(stages, tmp_path / "r.html").read_text()


def test_sanity_checks_and_success_at_the_end_are_shown_below_the_stage(stages, tmp_path):
    summary = json.loads((stages[2].directory / "summary.json").read_text())
    checks = {"policy": rate(4, 5), "zero": rate(1, 5), "told": {"a": "b"}}
    changed = {**summary, "at_end": rate(6, 10), "sanity": checks}
    (stages[2].directory / "summary.json").write_text(json.dumps(changed))
    page = write_report(stages, tmp_path / "r.html").read_text()
    assert page.index("at the end of the episode</td><td>6 of 10") > page.index("after</td><td>8 of 10")
    assert "sanity check: no motion</td><td>1 of 5" in page
    assert "sanity check: the policy on the same episodes</td><td>4 of 5" in page


def test_discordant_counts_only_shared_episodes_by_seed():
    assert discordant(episodes("1100"), episodes("1010")) == (1, 1, 1, 1)
    assert discordant(episodes("11", first_seed=0), episodes("01", first_seed=1)) == (0, 1, 0, 0)
    assert discordant(episodes("11"), episodes("11", first_seed=5)) == (0, 0, 0, 0)


def test_stages_on_other_episodes_are_not_compared(stages, tmp_path):
    write_episodes(stages[2].directory, episodes("0111111110", first_seed=100))
    assert "McNemar" not in write_report(stages, tmp_path / "r.html").read_text()


def test_the_page_needs_no_other_file_and_no_script(page):
    assert "<script" not in page
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith("data:")
    assert not re.search(r"url\(|@import|http", re.sub(r'"data:[^"]*"', "", page))


def test_what_runs_say_is_shown_as_text(page):
    assert "A &amp; B" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "python -m x &#x27;a b&#x27;" in page
    assert "9.9.9" in page


def test_films_are_marked_by_how_they_ended(page):
    assert page.count('<figure class="success">') == 1
    assert page.count('<figure class="failure">') == 1
    assert page.count("data:video/mp4") == 2
    assert "episode 1 <em>lift it</em>" in page


def test_learning_is_drawn_from_the_log(page):
    assert page.count("data:image/svg+xml") == 2
    assert "Learning: learned" in page


def test_a_filmstrip_goes_from_the_first_to_the_last_picture(tmp_path):
    write_video(tmp_path / "x.mp4", moving_square(11), fps=5.0)
    data = base64.b64decode(filmstrip(tmp_path / "x.mp4", pictures=3, height=64).split(",")[1])
    strip = np.asarray(PIL.Image.open(io.BytesIO(data)))[30].astype(int).sum(-1) > 300
    starts = [int(strip[a : a + 64].nonzero()[0].min()) for a in (0, 68, 136)]
    assert starts == pytest.approx([0, 20, 40], abs=1)


def test_a_film_survives_writing_and_reading(tmp_path):
    pictures = moving_square(6, size=65)  # an odd size loses a row and a column
    write_video(tmp_path / "x.mp4", pictures, fps=10.0)
    seen = read_video(tmp_path / "x.mp4")
    assert seen.shape == (6 + 8, 64, 64, 3)  # the last picture is held for 0.8 s
    assert (seen[:6].int() - pictures[:, :64, :64].int()).abs().float().mean() < 4
    assert (seen[-1].int() - pictures[-1, :64, :64].int()).abs().float().mean() < 4


def test_crowded_rates_are_pooled_not_dropped():
    rows = [{"step": i, "train/success": float(i % 2), "train/episodes": 1} for i in range(400)]
    steps, shares, low, high = pooled_rates(rows, "train")
    assert len(steps) == 40
    assert shares == [0.5] * 40
    assert (low[0], high[0]) == wilson(5, 10)
    assert steps[0] == 4.5


def test_crowded_figures_become_means_and_percentiles():
    steps, means, low, high = binned([(float(i), float(i % 10)) for i in range(2000)])
    assert (len(steps), steps[0], means[0]) == (200, 4.5, 4.5)
    assert (low[0], high[0]) == pytest.approx((0.9, 8.1))


def test_without_other_figures_there_are_no_panels():
    assert metric_curves([{"step": 1, "train/success": 1.0}]) is None


def test_a_directory_without_a_run_is_refused_in_one_message(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"{tmp_path} holds no run" in err
    assert main([]) == 2


def test_the_command_line_names_stages_and_the_page(stages, tmp_path, capsys):
    assert main([f"first={stages[0].directory}", str(stages[2].directory), f"out={tmp_path / 'p.html'}"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "p.html")
    assert "first · after" in (tmp_path / "p.html").read_text()
