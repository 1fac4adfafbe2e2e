"""Collecting episodes: the scene is set, a person acts, they say what came of it, and it is kept, or played again."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from real.attended import Attended
from real.board import Message
from real.person import HUMAN, IDLE, INPUT, POLICY, Person
from vla.data.episodes import EpisodeWriter
from vla.rollout import require_no_test_seed, rollout
from vla.types import Env, EnvSpec, Observation, Rollout, Step

SOURCES = (HUMAN, POLICY, IDLE)
WINDOW = 30  # steps that the rate shown is of


class Paced:
    """A simulator that keeps time as a robot does: a step takes a period, or longer if it must."""

    def __init__(self, env: Env):
        self.env, self.spec, self.due = env, env.spec, 0.0

    def reset(self, seed: int) -> Observation:
        obs = self.env.reset(seed)
        self.due = time.monotonic()
        return obs

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        step = self.env.step(command)
        self.due = max(self.due + 1 / self.spec.control_hz, time.monotonic())  # what is late is not caught up with
        time.sleep(max(0.0, self.due - time.monotonic()))
        return step

    def close(self) -> None:
        self.env.close()


def beside(spec: EnvSpec, *, policy: bool) -> dict[str, tuple[str, ...]]:
    """What is kept of each step beside what every dataset has: see `EpisodeWriter`."""
    kept = {"operator.input": INPUT, "capture.cameras": tuple(x.name for x in spec.cameras), "capture.robot": ("time",)}
    kept = {name: numbers for name, numbers in kept.items() if numbers}
    return kept | ({"policy.action": tuple(f"command_{i}" for i in range(spec.action_dim))} if policy else {})


@dataclass(frozen=True)
class About:
    """Who collects what, for `meta/armature.json`: beside each episode's label.

    `paraphrases` are other ways to say the instruction, whichever it is, or by instruction.
    """

    operator: str = ""
    scene: str = ""
    paraphrases: Sequence[str] | Mapping[str, Sequence[str]] = ()

    def also(self, instruction: str) -> list[str]:
        known = self.paraphrases
        return list(known.get(instruction, ()) if isinstance(known, Mapping) else known)


class Recorder:
    """Plays until the dataset has `episodes`. What was kept is on disk at once; a simulator's episodes begin at `seed`.

    Quit ends it early. Raises ValueError where the seeds reach episodes to test on.
    """

    def __init__(
        self, attended: Attended, person: Person, writer: EpisodeWriter, episodes: int, seed: int, about: About
    ):
        self.attended, self.board, self.person, self.writer = attended, attended.board, person, writer
        self.episodes, self.about = episodes, about
        self.seed = max(seed, writer.next_seed or 0)
        self.first: dict[str, np.ndarray] = {}  # pictures that the last episode began with
        attended.beside = self._beside

    def play(self) -> None:
        while self.writer.num_episodes < self.episodes:
            require_no_test_seed(range(self.seed, self.seed + 1), "collect from another seed")
            self._show_progress()
            if self._prepared():
                self._keep(*self._played())
        self._show_progress()

    def _show_progress(self) -> None:
        done = [x.label or {} for x in self.writer.attempts if x.kept]
        self.board.show(
            recorded=len(done),
            episodes=self.episodes,
            tasks=dict(Counter(x.get("instruction", "") for x in done)),
            successes=sum(bool(x.get("success")) for x in done),
            step=0,
            fault="",
        )

    def _prepared(self) -> bool:
        """Whether an episode is to begin now."""
        attended = self.attended
        if attended.goes_home:
            if not self._confirmed("clear", "clear"):
                return False
            attended.moved(attended.env.home)  # type: ignore[attr-defined]
            self.board.picture({f"reference {name}": x for name, x in self.first.items()})
        else:
            attended.reset(self.seed)  # it is shown what the episode will begin with
        instruction = getattr(attended.env, "instruction", "") or self._instruction()
        return self._confirmed("scene", "record", instruction=instruction, overlay=bool(self.first))

    def _instruction(self) -> str:
        return self.attended.played.obs.instruction[0] if self.attended.played is not None else ""

    def _confirmed(self, phase: str, word: str, **shown: Any) -> bool:
        self.board.show(phase=phase, **shown)
        message = self.board.wait(word, "undo", "skip", meanwhile=self.attended.look)
        if message["say"] == "undo":
            self._undo()
        if message["say"] == "skip":
            self.seed += 1
        return message["say"] == word

    def _undo(self) -> None:
        try:
            taken = self.writer.undo()
        except ValueError as error:
            self.board.show(notice=str(error))
            return
        self.seed = taken.seed
        self.board.show(notice="the last episode is taken back; play it again or skip it")

    def _played(self) -> tuple[Rollout | None, str]:
        """What was played, and how it ended."""
        attended, board = self.attended, self.board
        board.aborted.clear()
        board.show(phase="running", notice="")
        try:
            attended.moved(lambda: rollout(attended, self.person, seed=self.seed))
        except (TimeoutError, ConnectionError) as error:
            attended.give_up(str(error))
        fault, episode = attended.fault, attended.episode()
        verdict = episode is not None and bool(episode.terminated.any())
        ended = "fault" if fault else "end" if board.aborted.is_set() else "verdict" if verdict else "time"
        if fault:
            attended.attend(fault)
        return episode, f"{ended}: {fault}" if fault else ended

    def _keep(self, episode: Rollout | None, ended: str) -> None:
        """Ask what came of it, and keep it unless it is to be thrown away; then the same scene comes again."""
        if episode is None:
            self.board.show(notice="nothing was played")
            return
        judges = getattr(self.attended.env, "judges", True)
        verdict = bool(episode.success.any()) if judges else None
        self.board.show(phase="label", verdict=verdict, ended=ended, length=len(self.attended.rows))
        label = self.board.wait("label")
        while not label.get("discard"):
            try:
                self._write(episode, verdict, ended, label)
                return
            except OSError as error:
                self.board.show(phase="label", notice=f"it is not on disk yet: {error}. Make room, then say it again")
                label = self.board.wait("label")
            except ValueError as error:
                self.board.show(notice=f"it cannot be kept: {error}")
                return
        self.board.show(notice="thrown away; the same scene again, or skip it")

    def _write(self, episode: Rollout, verdict: bool | None, ended: str, label: Message) -> None:
        success = bool(label.get("success"))
        who = [SOURCES[int(x)] for x in episode.action.latent["source"][:-1].flatten().tolist()]
        said = {
            "success": success,
            "verdict": verdict,
            "ended": ended,
            "tag": str(label.get("tag", ""))[:200],
            "note": str(label.get("note", ""))[:2000],
            "instruction": episode.obs.instruction[0],
            "paraphrases": self.about.also(episode.obs.instruction[0]),
            "operator": self.about.operator,
            "scene": self.about.scene,
            "steps": len(who),
            "human": who.count(HUMAN),
            "interventions": sum(a == POLICY and b != POLICY for a, b in pairwise(who)),
            "recorded": time.time(),
        }
        if verdict is None:  # nobody else knows
            episode = episode.clone()
            episode.success[-2] = success
        seen = torch.tensor(self.attended.seen[: len(self.attended.rows)], dtype=torch.float64)
        self.writer.write(episode, seed=self.seed, source=who, times=seen - seen[0], label=said)
        self.first = {x.name: np.asarray(episode.obs.images[x.name][0]) for x in self.attended.spec.cameras}
        self.seed += 1

    def _beside(self) -> Mapping[str, Tensor]:
        """Of the step that is about to be taken; and what the page shows of how it goes."""
        seen, env = self.attended.seen, self.attended.env
        captured: Mapping[str, float] = next(iter(getattr(env, "captured", [])), {})
        told = next(iter(getattr(env, "told", [])), None)
        cameras = [captured.get(x.name, seen[-1]) for x in self.attended.spec.cameras]
        kept = {
            **self.person.beside(),
            "capture.robot": torch.tensor([[told.state.time if told is not None else seen[-1]]], dtype=torch.float64),
            "source": torch.tensor([[SOURCES.index(self.person.source)]]),
        }
        if cameras:
            kept["capture.cameras"] = torch.tensor([cameras], dtype=torch.float64)
        self._show_pace()
        return kept

    def _show_pace(self) -> None:
        periods = np.diff(self.attended.seen[-WINDOW:])
        last: Mapping[str, Any] = self.attended.rows[-1] if self.attended.rows else {}
        self.board.show(
            source=self.person.source,
            gripper=self.person.opening,
            hz=round(1 / periods.mean(), 1) if len(periods) else 0.0,
            jitter_ms=round(1000 * float(periods.std()), 1) if len(periods) else 0.0,
            cut=str(last.get("robot.cut", "")) or ("a limit" if _differs(last) else ""),
        )


def _differs(row: Mapping[str, Any]) -> bool:
    """Whether what was executed is not what was asked for."""
    asked, done = ([float(x) for x in str(row.get(k, "")).split()] for k in ("requested", "executed"))
    return len(asked) == len(done) and bool(asked) and not np.allclose(asked, done, atol=1e-4)
