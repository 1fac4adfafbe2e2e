"""An environment under an operator's eyes: shown as it goes, recorded step by step, ended when they say so."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from real.board import Board
from real.safety import Fault
from vla.rollout import UnderWay, execute
from vla.run import write_atomically
from vla.types import Action, Env, Observation, Rollout, Step


class Attended:
    """One copy of an environment. What it played is kept command by command, whatever chunks a policy decides in.

    `beside` tells what else to keep of the command that is being played, for each copy: the decision's latent.
    """

    def __init__(self, env: Env, board: Board, beside: Callable[[], Mapping[str, Tensor]] = dict):
        if env.spec.num_envs != 1:
            raise ValueError(
                f"an operator can attend to one environment, not to {env.spec.num_envs}: say env.num_envs=1"
            )
        self.env, self.board, self.spec, self.beside = env, board, env.spec, beside
        self.played: UnderWay | None = None
        self.rows: list[dict[str, Any]] = []
        self.seen: list[float] = []  # when each observation was there, host's monotonic seconds
        self.given_up = ""  # why this episode was

    def reset(self, seed: int) -> Observation:
        obs = self.env.reset(seed)
        self.rows, self.seen, self.given_up = [], [time.monotonic()], ""
        self.played = UnderWay(obs, seed)
        self._show(obs)
        return obs

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        """A step that ends the episode once the operator has said so."""
        assert self.played is not None  # `reset` begins it
        decided, beside = time.monotonic(), self.beside()
        step = execute(self.env, command[:, None], torch.ones(1, dtype=torch.bool))
        observed = time.monotonic()
        if self.board.aborted.is_set():
            rest: Callable[[], None] = getattr(self.env, "rest", lambda: None)
            rest()
            step = step.replace(truncated=~step.terminated)
        self.played.add(_decision(command, beside), step)
        self.rows.append(self._row(command, step, decided, observed))
        self.seen.append(observed)
        self._show(step.obs)
        return step.replace(executed=step.executed[:, 0])

    def close(self) -> None:
        self.env.close()

    @property
    def goes_home(self) -> bool:
        """Whether it is a robot, that people must be clear of before it goes where episodes begin."""
        return hasattr(self.env, "home")

    def look(self) -> None:
        """Show what the cameras see while people lay out a scene."""
        if hasattr(self.env, "pictures"):
            self.board.picture(self.env.pictures())

    def moved(self, motion: Callable[[], object]) -> None:
        """A motion that is tried again after a fault, once the operator has looked."""
        while True:
            try:
                motion()
                return
            except Fault as fault:
                self.attend(str(fault))

    def attend(self, fault: str) -> None:
        """Wait until the operator says that the robot may move again, and it can."""
        while fault:
            self.board.show(phase="fault", fault=fault)
            self.board.wait("recover", meanwhile=self.look)
            try:
                if hasattr(self.env, "recover"):
                    self.env.recover()
                fault = ""
            except Fault as still:
                fault = str(still)
        self.board.aborted.clear()
        self.board.show(fault="")

    def give_up(self, why: str) -> None:
        """End the episode as a fault that is not the robot's: its policy does not answer."""
        self.given_up = why
        if self.played is not None:
            self.played.alive = torch.zeros_like(self.played.alive)
        stop: Callable[[str], None] = getattr(self.env, "stop", lambda _: None)
        stop(why)

    def episode(self) -> Rollout | None:
        """What was played since `reset`, a decision per command; None if nothing was."""
        return None if self.played is None or not self.rows else self.played.rollout().episodes()[0]

    @property
    def fault(self) -> str:
        """Why a robot has stopped; empty where it has not, or there is none."""
        return self.given_up or next(iter(getattr(self.env, "faults", [])), "")

    def save_steps(self, path: Path) -> None:
        """A line per command: what was asked, what was done, when, and what the robot said."""
        text = io.StringIO()
        if self.rows:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue())

    def _row(self, command: Float[Tensor, "env action"], step: Step, decided: float, observed: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "step": len(self.rows),
            "seen": self.seen[-1],
            "decided": decided,
            "observed": observed,
            "requested": _numbers(command[0].tolist()),
            "executed": _numbers(step.executed[0, 0].tolist()),
            "reward": step.reward.item(),
            "success": step.success.item(),
        }
        record = next(iter(getattr(self.env, "records", [])), None)
        if record is not None:
            row |= {f"robot.{k}": _plain(v) for k, v in asdict(record).items() if k not in ("requested", "executed")}
        return row

    def _show(self, obs: Observation) -> None:
        self.board.picture({x.name: np.asarray(obs.images[x.name][0]) for x in self.spec.cameras})
        self.board.show(step=len(self.rows), fault=self.fault)


def _decision(command: Float[Tensor, "env action"], beside: Mapping[str, Tensor]) -> Action:
    n = len(command)
    latent = TensorDict(dict(beside), [n])
    return Action(commands=command[:, None], log_prob=torch.zeros(n, 0), latent=latent, batch_size=[n])


def _numbers(values: Any) -> str:
    return " ".join(f"{x:.6g}" for x in values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{k}={x:.6f}" for k, x in value.items())
    if isinstance(value, tuple):
        return _numbers(value) if value and isinstance(value[0], float) else " ".join(value)
    return value
