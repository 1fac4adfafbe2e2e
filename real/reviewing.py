"""What a browser asks of a dataset to look through it, and what is said of its episodes: below `/review`."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Body, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from real.web import same_origin
from vla.data.checks import Episode, flags
from vla.data.frames import Frames, load_column, load_frames
from vla.data.review import Review, Said, relabelled
from vla.data.signals import episodes_of
from vla.data.tables import read_description
from vla.statistics import rate

PAGE = Path(__file__).with_name("review.html")
QUALITY = 85  # of pictures
BINS = 21


class Reviewing:
    """The dataset in `directory`, read at the first request and again when it has grown."""

    def __init__(self, directory: Path):
        self.directory, self.lock, self.read = directory, threading.RLock(), -1.0

    def router(self, knows: Callable[[Request], bool]) -> APIRouter:
        """Requests that `knows` refuses get status 403, what is not understood 400 and a sentence."""
        router = APIRouter(prefix="/review")

        def asked(request: Request, answer: Callable[[], Any]) -> Any:
            if not knows(request) or (request.method == "POST" and not same_origin(request)):
                raise HTTPException(403)
            try:
                with self.lock:
                    self.load()
                    return answer()
            except (ValueError, OSError) as error:
                raise HTTPException(400, str(error)) from error

        @router.get("")
        def page(request: Request) -> Response:
            return HTMLResponse(PAGE.read_text()) if knows(request) else Response(status_code=403)

        @router.get("/dataset")
        def dataset(request: Request) -> dict[str, Any]:
            return asked(request, self._dataset)

        @router.get("/episode/{number}")
        def episode(request: Request, number: int) -> dict[str, Any]:
            return asked(request, lambda: self._signals(self._known(number)))

        @router.get("/pictures/{number}/{camera}")
        def pictures(request: Request, number: int, camera: str) -> Response:
            data = asked(request, lambda: self._pictures(self._known(number), camera))
            return Response(data, media_type="application/octet-stream")

        @router.post("/say/{number}")
        def say(request: Request, number: int, said: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
            return asked(request, lambda: self._say(self._known(number), said))

        @router.post("/undo")
        def undo(request: Request) -> dict[str, Any]:
            return asked(request, lambda: {"episode": self.review.undo(), "episodes": self.rows()})

        return router

    def load(self) -> None:
        changed = (self.directory / "meta" / "info.json").stat().st_mtime if self._is_there() else -1.0
        if changed == self.read and changed >= 0:
            return
        self.frames: Frames = load_frames(self.directory, as_recorded=True)
        self.episodes: list[Episode] = list(episodes_of(self.directory, self.frames, as_recorded=True))
        self.flags = flags(self.episodes, self.frames.spec)
        described = read_description(self.directory)
        self.labels = [x.get("label") or {} for x in described.get("attempts", []) if x["kept"]]
        self.labels += [{}] * (len(self.episodes) - len(self.labels))
        self.sources = described.get("sources", [])
        codes = load_column(self.directory, "source", as_recorded=True)
        self.source = np.zeros(len(self.frames), int) if codes is None else codes[:, 0].astype(int)
        self.review, self.read = Review(self.directory), changed

    def _is_there(self) -> bool:
        return (self.directory / "meta" / "info.json").exists()

    def _known(self, number: int) -> int:
        if not 0 <= number < len(self.episodes):
            raise ValueError(f"there is no episode {number}: they are 0 to {len(self.episodes) - 1}")
        return number

    def rows(self) -> list[dict[str, Any]]:
        """What the list shows of each episode."""
        said = self.review.by_episode()
        return [self._row(i, said.get(i, Said())) for i in range(len(self.episodes))]

    def _row(self, i: int, said: Said) -> dict[str, Any]:
        x = self.episodes[i]
        begin, end = said.part(len(x.action))
        recorded = {"success": bool(x.success.any()), "instruction": x.instruction, **self.labels[i]}
        return {
            "number": i,
            "length": len(x.action),
            "begin": begin,
            "end": end,
            "removed": bool(said.removed),
            "changed": said != Said(),
            "flags": self.flags[i],
            "human": float((self.source[self._slice(i)] == self._human()).mean()) if self._human() >= 0 else None,
            **relabelled(recorded, said),
        }

    def _human(self) -> int:
        """The code of a person where somebody else acts too; -1 otherwise."""
        mixed = "human" in self.sources and "policy" in self.sources and len(set(self.source.tolist())) > 1
        return self.sources.index("human") if mixed else -1

    def _slice(self, i: int) -> slice:
        first, end = self.frames.episode_start[i : i + 2].tolist()
        return slice(first, end)

    def _dataset(self) -> dict[str, Any]:
        """The rows, and statistics of what is left."""
        rows = self.rows()
        left = [x for x in rows if not x["removed"]]
        hz = self.frames.spec.control_hz
        count = sum(x["end"] - x["begin"] for x in left)
        actions = [self.episodes[x["number"]].action[x["begin"] : x["end"]] for x in left]
        return {
            "episodes": rows,
            "name": self.directory.name,
            "hz": hz,
            "cameras": [x.name for x in self.frames.spec.cameras],
            "left": len(left),
            "frames": count,
            "minutes": round(count / hz / 60, 1),
            "success": rate(sum(bool(x["success"]) for x in left), len(left)),
            "tasks": dict(Counter(str(x["instruction"]) for x in left)),
            "tags": dict(Counter(str(x["tag"]) for x in left if x.get("tag"))),
            "commands": _histograms(np.concatenate(actions) if actions else np.zeros((0, 0)), self._names()),
            "paths": [self._path(x) for x in left],
            "changes": len(self.review.history),
        }

    def _names(self) -> list[str]:
        size = self.frames.spec.action_dim
        full = ["x", "y", "z", "turn x", "turn y", "turn z", "gripper"]
        return full if size == 7 and self.frames.spec.command.kind == "ee_delta" else [str(i) for i in range(size)]

    def _path(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Where the tool went, seen from above: metres."""
        x = self._position(self.episodes[row["number"]])[row["begin"] : row["end"]]
        return {"success": bool(row["success"]), "xy": np.round(x[:: max(1, len(x) // 60), :2], 4).tolist()}

    def _position(self, episode: Episode) -> np.ndarray:
        spec = self.frames.spec
        part = "position" if "position" in dict(spec.proprio) else next(iter(dict(spec.proprio)), "")
        return episode.state[:, spec.proprio_slice(part)][:, :3] if part else np.zeros((len(episode.action), 0))

    def _signals(self, i: int) -> dict[str, Any]:
        """Everything of the episode that is drawn over time."""
        x, spec = self.episodes[i], self.frames.spec
        times = np.arange(len(x.action)) / spec.control_hz if x.times is None else x.times - x.times[0]
        fingers = x.state[:, spec.proprio_slice("gripper")][:, :1] if "gripper" in dict(spec.proprio) else None
        return {
            **self._row(i, self.review.of(i)),
            "times": _rounded(times),
            "names": self._names(),
            "action": _rounded(x.action.T),
            "requested": None if x.requested is None else _rounded(x.requested.T),
            "position": _rounded(self._position(x).T),
            "gripper": None if fingers is None else _rounded(fingers[:, 0]),
            "succeeds": x.success.tolist(),
            "source": [self.sources[k] if k < len(self.sources) else "" for k in self.source[self._slice(i)].tolist()],
        }

    def _pictures(self, i: int, camera: str) -> bytes:
        """Each picture as a JPEG, its length before it in four bytes."""
        if camera not in self.episodes[i].pictures:
            raise ValueError(f"there is no camera {camera!r}: they are {sorted(self.episodes[i].pictures)}")
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        seen = self.episodes[i].pictures[camera]
        coded = [cv2.imencode(".jpg", x[..., ::-1], options)[1].tobytes() for x in seen]
        return b"".join(len(x).to_bytes(4) + x for x in coded)

    def _say(self, i: int, said: Mapping[str, Any]) -> dict[str, Any]:
        self.review.say(i, Said.read(said), len(self.episodes[i].action))
        return {"episodes": self.rows()}


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(float), 5).tolist()


def _histograms(actions: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    told = []
    for name, x in zip(names, actions.T, strict=False):
        most = float(np.abs(x).max(initial=0.0)) or 1.0
        told.append({"name": name, "most": most, "counts": np.histogram(x, BINS, (-most, most))[0].tolist()})
    return told
