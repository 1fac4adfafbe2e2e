"""A new dataset of what a review leaves: `python -m vla.recipes.apply_review data=DIR out=NEW`."""

from pathlib import Path

from omegaconf import DictConfig

from vla.data.rewrite import rewrite
from vla.program import Figures, program


def apply_review(cfg: DictConfig) -> Figures:
    """Without removed episodes and cut ends, relabelled; for programs that do not read `review.json` as ours do."""
    return {"data": str(cfg.data), "out": str(cfg.out), "episodes": rewrite(Path(cfg.data), Path(cfg.out))}


main = program("apply_review", apply_review)

if __name__ == "__main__":
    main()
