"""An algorithm that fails in one of the processes that learn together: importable where they start."""

import os
import signal

from vla.algorithms.grpo import GRPO
from vla.algorithms.together import rank_and_count


class Faulty(GRPO):
    """The second update in the process `rank` is `killed` or raises."""

    def __init__(self, policy, rank: int, fault: str, **options):
        super().__init__(policy, **options)
        self.rank, self.fault, self.begun = rank, fault, 0

    def update(self, rollout):
        self.begun += 1
        if self.begun == 2 and rank_and_count()[0] == self.rank:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("the sums do not add up")
        return super().update(rollout)
