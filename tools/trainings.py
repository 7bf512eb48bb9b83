"""Do two ways of training a generator differ? `python tools/trainings.py runs "dilm" "dilm, pooled learners"`.

The tables' intervals are over data sets of one generator. Here a number is a training: the mean score of all data sets
of one `seed`, which both ways must have. For each size: the mean of second minus first, and its 95% t interval.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dilm.artifacts.rows import read_table
from dilm.cli import run_tool
from dilm.core.errors import ConfigError, did_you_mean

SAME = ["task", "evaluator", "model", "dpc"]  # within which trainings are compared
TRAINING = "protocol"  # has the seed in it


def main(arguments: list[str]) -> None:
    """Print a line for every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that the commands wrote to")
    parser.add_argument("first", help="a method as tables call it, with its variant")
    parser.add_argument("second", help="another one")
    options = parser.parse_args(arguments)
    cells = read_table(options.root).to_pandas()
    for name in (options.first, options.second):
        if name not in set(cells["method"]):
            raise ConfigError(f"method {name!r} has no cells.{did_you_mean(name, set(cells['method']))}")
    for place, found in compare(cells, options.first, options.second).iterrows():
        task, evaluator, model, dpc = place
        print(
            f"{task}, {model} ({evaluator}), dpc {dpc}: {options.second} − {options.first} = "
            f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}], "
            f"{found['trainings']:.0f} trainings each; means {found['first']:.2f} and {found['second']:.2f}"
        )


def compare(cells: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Differences of trainings, by what is the same. With one training alone the interval is not known (NaN)."""
    from scipy import stats  # slow to import, and needed only here

    done = cells[cells["status"] == "done"]
    means = done.groupby([*SAME, TRAINING, "method"])["value"].mean().unstack("method")
    paired = means[[first, second]].dropna()
    rows = {}
    for place, pair in paired.groupby(level=SAME):
        differences = (pair[second] - pair[first]).to_numpy()
        low = high = np.nan
        if len(differences) > 1:
            low, high = stats.t.interval(
                0.95, len(differences) - 1, loc=differences.mean(), scale=max(stats.sem(differences), 1e-300)
            )
        rows[place] = {
            "first": pair[first].mean(),
            "second": pair[second].mean(),
            "difference": differences.mean(),
            "low": low,
            "high": high,
            "trainings": len(differences),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


if __name__ == "__main__":
    run_tool(main)
