"""Looking through a dataset in a browser, cutting and relabelling it: `python -m real.review data=DIR`."""

import contextlib
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from omegaconf import DictConfig

from real.reviewing import Reviewing
from real.web import Web
from vla.program import Figures, program


class ReviewPage(Web):
    """Serves the review of one dataset, see `Web`."""

    def __init__(self, reviewing: Reviewing, **where: Any):
        self.reviewing = reviewing
        super().__init__(**where)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.include_router(self.reviewing.router(self.knows))

        @app.get("/")
        def first(request: Request) -> Response:
            return RedirectResponse(f"/review{self.asked}") if self.knows(request) else Response(status_code=403)

        return app


def review(cfg: DictConfig) -> Figures:
    """Until Ctrl-C. Raises FileNotFoundError and ValueError as `load_frames` does."""
    reviewing = Reviewing(Path(cfg.data))
    reviewing.load()
    with closing(ReviewPage(reviewing, **cfg.page)) as page, contextlib.suppress(KeyboardInterrupt):
        sys.stderr.write(f"review: open {page.url}, and end with Ctrl-C\n")
        threading.Event().wait()
    left = sum(not x["removed"] for x in reviewing.rows())
    return {"data": str(cfg.data), "episodes": len(reviewing.episodes), "left": left}


main = program("review", review)

if __name__ == "__main__":
    main()
