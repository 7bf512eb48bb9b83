"""This machine, and a batch system that is added by one class, do what every scheduler must."""

import pytest
from scheduling import Contract

from dilm.scheduler.base import Scheduler
from dilm.scheduler.job import scheduler_named


class TestContract(Contract):
    """Slurm's own is in `tests/cluster/test_slurm_contract.py`, where a cluster is up."""

    @pytest.fixture(params=["local", "toy"])
    def scheduler(self, request: pytest.FixtureRequest) -> Scheduler:
        return scheduler_named(request.param)
