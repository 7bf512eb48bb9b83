"""Two ways of training a generator, compared over trainings and not over data sets."""

from pathlib import Path

import numpy as np
import pytest
from reports import cells, frame, put
from scipy import stats

from dilm.core.errors import ConfigError
from tools import trainings

BEFORE = [[70.0, 72.0], [74.0, 76.0]], [[60.0, 62.0], [64.0, 66.0]], [[80.0, 80.0], [80.0, 80.0]]
AFTER = [[72.0, 74.0], [76.0, 78.0]], [[60.0, 62.0], [64.0, 66.0]], [[81.0, 81.0], [81.0, 81.0]]
ROWS = [
    row
    for seed in range(3)
    for name, values in (("dilm", BEFORE), ("dilm, pooled learners", AFTER))
    for row in cells(name, values[seed], source=f"{name}{seed}", protocol=f"seed {seed}")
]


def test_a_number_is_a_training() -> None:
    (found,) = trainings.compare(frame(ROWS), "dilm", "dilm, pooled learners").to_dict("records")
    differences = [2.0, 0.0, 1.0]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["difference"] == pytest.approx(1.0) and found["trainings"] == 3


def test_trainings_that_one_way_lacks_are_left_out() -> None:
    lacking = [row for row in ROWS if row.cell.protocol == "seed 0" or row.cell.method == "dilm"]
    (found,) = trainings.compare(frame(lacking), "dilm", "dilm, pooled learners").to_dict("records")
    assert found["trainings"] == 1 and found["difference"] == pytest.approx(2.0) and np.isnan(found["low"])


def test_it_prints_a_line_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, ROWS)
    trainings.main([str(tmp_path), "dilm", "dilm, pooled learners"])
    assert capsys.readouterr().out == (
        "toy, tiny (frozen), dpc 5: dilm, pooled learners − dilm = +1.00 [-1.48, +3.48], 3 trainings each; "
        "means 72.00 and 73.00\n"
    )


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    with pytest.raises(ConfigError, match=r"method 'dlim' has no cells\. Did you mean 'dilm'\?"):
        trainings.main([str(tmp_path), "dlim", "dilm"])
