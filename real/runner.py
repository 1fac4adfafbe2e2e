"""Playing trials under an operator: the scene is set, the policy plays, somebody says what came of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from real import session
from real.attended import Attended
from real.board import Message
from real.session import Result, Trial
from vla.data.episodes import EpisodeWriter
from vla.rollout import rollout
from vla.types import Actor, Rollout

TRIALS = "trials.jsonl"


class Runner:
    """`policies` by letter. What was labelled is on disk at once, in `directory`, and is not played again.

    `seconds` is the countdown before a robot moves by a policy; the pair of a scene's trials is told from `results`.
    """

    def __init__(
        self,
        directory: Path,
        attended: Attended,
        policies: Mapping[str, Actor],
        trials: Sequence[Trial],
        writer: EpisodeWriter,
        seconds: int = 3,
    ):
        self.directory, self.attended, self.board, self.writer = directory, attended, attended.board, writer
        self.policies, self.trials, self.seconds = policies, trials, seconds
        self.results = session.load(directory / TRIALS)

    def play(self, *, alpha: float | None = None) -> None:
        """All that is left; with `alpha` no more than is needed to tell two policies apart. Quit ends it early."""
        while waiting := session.left(self.trials, self.results):
            if alpha is not None and self._decided(alpha):
                return
            trial = waiting[0]
            labelled = sum(x.counts for x in self.results)
            self.board.show(trial=labelled + 1, trials=len(self.trials), labelled=labelled, fault="", step=0)
            if self._prepared(trial):
                self._keep(self._played(trial))

    def _decided(self, alpha: float) -> bool:
        letters = sorted(self.policies)
        outcomes = session.pairs(letters[0], letters[-1], self.results)
        return len(letters) == 2 and session.sequential(outcomes, alpha)["rejected_at"] is not None

    def _prepared(self, trial: Trial) -> bool:
        """The robot is out of the way, and the scene is as it is to be. False if the last label was changed instead."""
        if self.attended.goes_home:
            if not self._confirmed("clear", "clear"):
                return False
            self.attended.moved(self.attended.env.home)  # type: ignore[attr-defined]
        reference = self._reference(trial)
        self.board.picture({f"reference {name}": x for name, x in reference.items()})
        instruction = getattr(self.attended.env, "instruction", "")
        if not self._confirmed("scene", "ready", overlay=bool(reference), instruction=instruction):
            return False
        for left in range(self.seconds, 0, -1):
            self.board.show(phase="countdown", seconds=left)
            time.sleep(1)
        return True

    def _confirmed(self, phase: str, word: str, **shown: Any) -> bool:
        self.board.show(phase=phase, **shown)
        message = self.board.wait(word, "undo", meanwhile=self.attended.look)
        if message["say"] == word:
            return True
        if counted := [x for x in self.results if x.counts]:
            self._relabel(counted[-1])
        return False

    def _played(self, trial: Trial) -> Result:
        self.board.aborted.clear()
        began = datetime.now().astimezone().isoformat(timespec="seconds")
        self.board.show(phase="running")
        attended = self.attended
        try:
            self.attended.moved(lambda: rollout(attended, self.policies[trial.policy], seed=trial.seed))
        except (TimeoutError, ConnectionError) as error:
            attended.give_up(str(error))
        episode, fault = attended.episode(), attended.fault
        ended = "abort" if self.board.aborted.is_set() else "fault" if fault else _end(episode)
        self._first_frame(trial, episode)
        if fault:
            self.attended.attend(fault)
        known = getattr(attended.env, "judges", True)
        verdict = episode is not None and bool(episode.success.any()) if known else None
        label = self._label(verdict)
        rows = attended.rows
        result = Result(
            **vars(trial),
            **_labelled(label),
            ended="void" if label.get("void") else ended,
            verdict=verdict,
            fault=fault,
            steps=len(rows),
            late=sum(bool(x.get("robot.late")) for x in rows),
            cut=sum(bool(x.get("robot.cut")) for x in rows),
            decision_ms=round(1000 * max((x["decided"] - x["seen"] for x in rows), default=0.0), 1),
            began=began,
        )
        self._record(result, episode)
        return result

    def _label(self, verdict: bool | None, earlier: Result | None = None) -> Message:
        shown = {"progress": earlier.progress, "tag": earlier.tag, "note": earlier.note} if earlier else {}
        self.board.show(phase="label", verdict=verdict, earlier=shown)
        while True:
            message = self.board.wait("label")
            try:
                Result(
                    0,
                    0,
                    "",
                    ended="time",
                    verdict=None,
                    fault="",
                    steps=0,
                    late=0,
                    cut=0,
                    decision_ms=0.0,
                    began="",
                    **_labelled(message),
                )
                return message
            except (ValueError, TypeError) as error:
                self.board.show(notice=str(error))

    def _relabel(self, result: Result) -> None:
        label = self._label(result.verdict, result)
        ended = "void" if label.get("void") else result.ended
        changed = replace(result, **_labelled(label), ended=ended)
        self._keep(changed, instead_of=result)

    def _keep(self, result: Result, instead_of: Result | None = None) -> None:
        self.results = [x for x in self.results if x is not instead_of] + [result]
        session.save(self.directory / TRIALS, self.results)

    def _record(self, result: Result, episode: Rollout | None) -> None:
        """The steps as a table and the episode as data, whatever the label: nothing that was played is lost."""
        attempt = sum(x.number == result.number for x in self.results) + 1
        self.attended.save_steps(self.directory / "steps" / f"trial_{result.number:03d}_{attempt}.csv")
        if episode is not None:
            start, wall = self.attended.seen[0], self.attended.seen[: len(self.attended.rows)]
            times = torch.tensor([x - start for x in wall], dtype=torch.float64)
            self.writer.write(episode, seed=result.seed, source=f"policy {result.policy}", times=times)

    def _first_frame(self, trial: Trial, episode: Rollout | None) -> None:
        """Kept for the other trials of this scene, once."""
        if episode is None:
            return
        for name in (x.name for x in self.attended.spec.cameras):
            path = self._frame(trial, name)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.asarray(episode.obs.images[name][0])[..., ::-1])

    def _reference(self, trial: Trial) -> dict[str, np.ndarray]:
        names = [x.name for x in self.attended.spec.cameras]
        paths = {name: self._frame(trial, name) for name in names}
        read = {name: cv2.imread(str(path)) for name, path in paths.items() if path.exists()}
        return {name: x[..., ::-1] for name, x in read.items() if x is not None}

    def _frame(self, trial: Trial, camera: str) -> Path:
        return self.directory / "scenes" / f"{trial.seed}_{camera}.png"


def _end(episode: Rollout | None) -> str:
    return "verdict" if episode is not None and episode.terminated.any() else "time"


def _labelled(message: Message) -> dict[str, Any]:
    success = bool(message.get("success"))
    progress = message.get("progress", 100 if success else 0)
    if not isinstance(progress, int) or not 0 <= progress <= 100:
        raise ValueError(f"progress is a whole number from 0 to 100, got {progress!r}")
    return {
        "success": success,
        "progress": progress,
        "intervened": bool(message.get("intervened")),
        "tag": str(message.get("tag", ""))[:200],
        "note": str(message.get("note", ""))[:2000],
    }
