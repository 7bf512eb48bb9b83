"""A real Slurm does what every scheduler must."""

import pytest
from scheduling import Contract

from dilm.scheduler import slurm as module
from dilm.scheduler.base import Scheduler
from dilm.scheduler.job import scheduler_named

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


class TestContract(Contract):
    """By its commands, with answers that are never kept."""

    @pytest.fixture
    def scheduler(self, slurm: object, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.001)
        return scheduler_named("slurm")
