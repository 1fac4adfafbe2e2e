"""The table of tasks: `python -m benchmarks.tasks` writes `docs/tasks.md` from the simulators and `docs/experts.csv`.

A simulator joins with a function that yields its rows, named in `SIMULATORS`. `python -m benchmarks.tasks maniskill`
asks only that one again and leaves the other sections as they are; `python -m benchmarks.tasks figures` asks none and
brings only the experts' figures up to date.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experts import Measured, read
from policies.scripted import PLANS
from vla.run import write_atomically
from vla.statistics import rate
from vla.types import CommandKind, EnvSpec

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
HEAD = """# Tasks

Written by `python -m benchmarks.tasks`; figures of experts are read from `experts.csv`, which says how to get them
again. An expert sees the true poses, commands `ee_delta` and has the task's own time limit; intervals are 95 % Wilson.
Dense rewards are asked for with `env.reward=normalized_dense`
(ManiSkill) or `env.reward=dense` (robosuite). Every arm takes `joint_delta` and `joint_position`.
"""
ALL_KINDS: tuple[CommandKind, ...] = ("joint_position", "joint_delta", "ee_delta")
COLUMNS = "| task | instruction | success | horizon | cameras | robot | `ee_delta` | dense reward | expert |"


@dataclass(frozen=True)
class Row:
    """One task, as its simulator says it is."""

    task: str
    instruction: str
    success: str
    robot: str
    spec: EnvSpec
    kinds: tuple[CommandKind, ...]
    dense: bool


def main() -> None:
    asked = [x for x in sys.argv[1:] if x != "figures"] or ([] if sys.argv[1:] else list(SIMULATORS))
    if unknown := set(asked) - SIMULATORS.keys():
        sys.exit(f"no rows for {', '.join(sorted(unknown))}; there are for {', '.join(SIMULATORS)}")
    measured = read()
    page = sections(PAGE.read_text()) if PAGE.exists() else {}
    old = {name: with_figures(body, name, measured) for name, body in page.items()}
    new = {name: section(list(SIMULATORS[name]()), name, measured) for name in asked}
    write_atomically(PAGE, "\n".join([HEAD, *(f"## {name}\n\n{body}" for name, body in sorted((old | new).items()))]))


def sections(page: str) -> dict[str, str]:
    """The text below each heading of a page written before, by the heading."""
    parts = page.split("\n## ")[1:]
    return {name: body.strip("\n") + "\n" for name, _, body in (part.partition("\n") for part in parts)}


def section(rows: list[Row], simulator: str, measured: list[Measured]) -> str:
    """The table of one simulator's tasks."""
    lines = [COLUMNS, "|" + "---|" * COLUMNS.count(" | ") + "---|"]
    for row in rows:
        cells = [
            row.task,
            row.instruction,
            row.success,
            f"{row.spec.max_steps} at {row.spec.control_hz:g} Hz",
            ", ".join(camera.name for camera in row.spec.cameras),
            row.robot,
            "yes" if "ee_delta" in row.kinds else "no",
            "yes" if row.dense else "no",
            expert(simulator, row.task, measured),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_figures(body: str, simulator: str, measured: list[Measured]) -> str:
    """A section written before, with the experts' figures as they are now."""
    title, rule, *lines = body.splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines]
    new = [[*row[:-1], expert(simulator, row[0], measured)] for row in cells]
    return "\n".join([title, rule, *(f"| {' | '.join(row)} |" for row in new)]) + "\n"


def expert(simulator: str, task: str, measured: list[Measured]) -> str:
    """What is known of a task's expert."""
    found = next((x for x in measured if (x.simulator, x.task) == (simulator, task)), None)
    if found is None:
        return "yes, not measured" if task in PLANS else "no"
    known = rate(found.k, found.n)
    return f"{found.k}/{found.n} ({100 * known['low']:.0f}-{100 * known['high']:.0f} %)"


def maniskill() -> Iterator[Row]:
    from simulators.maniskill import ManiSkillEnv
    from simulators.maniskill_tasks import TASKS

    for name, task in TASKS.items():
        kinds = ALL_KINDS
        try:
            env = ManiSkillEnv(name, command="ee_delta")
        except ValueError:
            kinds = kinds[:2]
            env = ManiSkillEnv(name, command="joint_delta")
        dense = "dense" in env.sim.SUPPORTED_REWARD_MODES
        yield Row(name, task.instruction, task.success, env.sim.agent.uid, env.spec, kinds, dense)
        env.close()


def robosuite() -> Iterator[Row]:
    from simulators.robosuite import INSTRUCTIONS, SUCCESS
    from simulators.robosuite import robosuite as make

    for name, instruction in INSTRUCTIONS.items():
        env = make(name, 1)
        yield Row(name, instruction, SUCCESS[name], "Panda", env.spec, ALL_KINDS, dense=True)
        env.close()


def libero() -> Iterator[Row]:
    """One row for each suite; its tasks are many and alike."""
    from simulators.libero import libero as make
    from simulators.libero_files import SUITES, tasks_of

    for suite in SUITES:
        tasks = tasks_of(suite)
        env = make(suite, 1, task=0)
        said = f"{len(tasks)} tasks, as: {tasks[0].said}"
        yield Row(suite, said, "the task's goal predicates", "Panda", env.spec, ALL_KINDS, dense=False)
        env.close()


SIMULATORS: dict[str, Callable[[], Iterator[Row]]] = {"maniskill": maniskill, "robosuite": robosuite, "libero": libero}

if __name__ == "__main__":
    main()
