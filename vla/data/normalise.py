"""The statistics by which policies normalise proprio and commands, exact over the data they were taken from."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Per dimension: mean, standard deviation (of the population), extremes and the 1st and 99th percentile.

    The percentiles are those of all frames together. LeRobot's own are averages over episodes, too narrow where
    episodes differ.
    """

    mean: Float[Tensor, " size"]
    std: Float[Tensor, " size"]
    low: Float[Tensor, " size"]
    high: Float[Tensor, " size"]
    q01: Float[Tensor, " size"]
    q99: Float[Tensor, " size"]

    @classmethod
    def of(cls, values: Float[Tensor, "n size"]) -> "Statistics":
        """Those of the rows of `values`, computed in float64; ValueError if there are none or one is not finite."""
        rows = values.detach().double().cpu().numpy()
        if not len(rows):
            raise ValueError("statistics need at least one row, got none: is the dataset empty?")
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise ValueError(f"row {row}, column {column} is {rows[row, column]}: mend or drop that episode first")
        q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
        low, high = rows.min(0), rows.max(0)
        plain = (rows.mean(0), rows.std(0), low, high, q01, q99)
        return cls(*(torch.from_numpy(np.asarray(x)).float() for x in plain))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for JSON; `from_dict` reads them back exactly."""
        return {name: value.tolist() for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, list[float]]) -> "Statistics":
        return cls(**{name: torch.tensor(value, dtype=torch.float32) for name, value in plain.items()})
