"""The page of tasks: its figures are those of the table of measured experts, and that table is kept by a program."""

import re

from benchmarks import tasks
from benchmarks.experts import Measured, read, record
from policies.scripted import PLANS
from simulators.libero_files import SUITES
from simulators.maniskill_tasks import TASKS
from vla.statistics import wilson
from vla.types import Camera, Command, EnvSpec

SPEC = EnvSpec(1, 20.0, 50, (Camera("front", 8, 8), Camera("hand", 8, 8)), (), Command("ee_delta", 7))


def test_every_figure_on_the_page_is_the_measured_one():
    page = tasks.sections(tasks.PAGE.read_text())
    measured = read()
    for x in measured:
        low, high = (round(100 * y) for y in wilson(x.k, x.n))
        (line,) = [line for line in page[x.simulator].splitlines() if line.startswith(f"| {x.task} |")]
        assert line.endswith(f"| {x.k}/{x.n} ({low}-{high} %) |")
    shown = sum(len(re.findall(r"\| \d+/\d+ \(", body)) for body in page.values())
    assert shown == len(measured)


def test_every_measured_expert_is_there_and_says_how_to_measure_it_again():
    for x in read():
        assert x.task in PLANS or (x.simulator == "libero" and x.task in SUITES and "LIBERO" in PLANS)
        assert f"{x.simulator} {x.task}" in x.command
        assert f"--episodes {x.n} --seed {x.seed}" in x.command


def test_the_page_has_every_task_of_maniskill():
    section = tasks.sections(tasks.PAGE.read_text())["maniskill"]
    assert re.findall(r"^\| (\S+-v1) \|", section, re.MULTILINE) == list(TASKS)


def test_measuring_again_replaces_a_row_and_keeps_the_others(tmp_path):
    table = tmp_path / "experts.csv"
    assert read(table) == []
    first, other = Measured("b", "T", 1, 10, 0, "first"), Measured("a", "T", 2, 10, 0, "other")
    again = Measured("b", "T", 9, 10, 5, "again")
    for row in (first, other, again):
        record(table, row)
    assert read(table) == [other, again]


def test_a_row_says_what_its_simulator_and_the_measurement_say():
    row = tasks.Row("Lift", "lift it", "lifted", "arm", SPEC, ("joint_delta",), dense=True)
    text = tasks.section([row], "s", [Measured("s", "Lift", 5, 10, 0, "")])
    assert text.splitlines()[-1] == (
        "| Lift | lift it | lifted | 50 at 20 Hz | front, hand | arm | no | yes | 5/10 (24-76 %) |"
    )
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_new_figures_replace_old_ones_and_nothing_else():
    row = tasks.Row("Lift", "lift it", "lifted", "arm", SPEC, ("ee_delta",), dense=False)
    old, new = ([Measured("s", "Lift", k, 10, 0, "")] for k in (5, 9))
    assert tasks.with_figures(tasks.section([row], "s", old), "s", new) == tasks.section([row], "s", new)
    assert tasks.section([row], "s", old) != tasks.section([row], "s", new)


def test_other_simulators_keep_their_sections():
    page = "# Tasks\n\nwords\n\n## a\n\none\n\n## b\n\ntwo\n"
    assert tasks.sections(page) == {"a": "one\n", "b": "two\n"}
