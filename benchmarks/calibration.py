"""What to calibrate `p` on: python -m benchmarks.calibration CONFIG --as-of T [--set text.epochs=0 ...].

Out-of-fold scores of the ranker's window, of the kind that ships; each map is fitted on the users of two folds and judged
on the third. Prints log-loss and expected calibration error (20 bins of equal size) of a pair, a row per map.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from features import pairs
from features.activity import activity
from features.dataset import Dataset
from features.ingest import load_tables
from recsys.calibration import Logistic, Reliability, _pair_inputs
from recsys.config import load_config
from recsys.progress import Reporter
from recsys.types import BoolArray, FloatArray, IntArray
from training.moments import Moment, cut
from training.pipeline import fit_text, fit_towers
from training.ranker import FOLDS, cross_validate, draw_users, pairs_of

N_BINS = 20


def main() -> None:
    """Parses, computes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--as-of", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    asked = parser.parse_args()
    config, moment = load_config(asked.config, asked.overrides), pd.Timestamp(asked.as_of, tz="UTC")
    dataset = Dataset.from_tables(load_tables(config.data, moment), moment)
    windows, stage = cut(dataset, config), Reporter().stage
    early = Moment.of(dataset, windows, 1)
    space = fit_text(dataset, early, windows, config, stage).at(early.exists, config.seed)
    snapshot, targets = fit_towers(early, space, config, stage), early.countable(config)
    users, fold = draw_users(targets, config, np.random.default_rng([config.seed, 3]))
    group = pairs_of(snapshot, users, targets)
    columns = tuple(pairs.NAMES.index(name) for name in pairs.FUSED)
    tried = cross_validate(group, fold, np.diff(targets[users].indptr), config, columns)
    chosen = tried.chosen
    print(f"{chosen}, {len(users):,} users, {len(group[1]):,} pairs")
    for line in rows(tried.scores[chosen], group[1] > 0, group[2], activity(snapshot.histories)[users], fold):
        print(line)


def rows(
    scores: FloatArray, is_taken: BoolArray, indptr: IntArray, active: FloatArray, fold: IntArray
) -> Iterator[str]:
    """The table, a line per map."""
    base = Reliability.measure(np.full(len(scores), is_taken.mean()), is_taken, 1)
    yield f"{'base rate':28} {base.log_loss:.5f}"
    pair_fold = np.repeat(fold, np.diff(indptr))
    for name, inputs in inputs_of(scores, indptr, active).items():
        for on_top in ("", "isotonic"):
            p = np.zeros(len(scores))
            for f in range(FOLDS):
                train = pair_fold != f
                p[~train] = mapped(inputs, is_taken, train, bool(on_top))
            found = Reliability.measure(p, is_taken, N_BINS)
            yield f"{name + ' ' + on_top:28} {found.log_loss:.5f} {found.error:.5f}"


def inputs_of(scores: FloatArray, indptr: IntArray, active: FloatArray) -> dict[str, FloatArray]:
    """What each map sees of the pairs, (n_pairs, n_inputs)."""
    user, sizes = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), np.maximum(np.diff(indptr), 1)
    centred = scores - (np.bincount(user, scores, minlength=len(sizes)) / sizes)[user]
    spread = np.sqrt(np.bincount(user, centred**2, minlength=len(sizes)) / sizes)
    softmax, events = _pair_inputs(scores, indptr, active).T
    single = {"raw": scores, "standardised": centred / np.maximum(spread, 1e-9)[user], "softmax": softmax}
    found = {name: values[:, None] for name, values in single.items()}
    found |= {f"{name} + events": np.stack([values, events], axis=1) for name, values in single.items()}
    return found | {"raw + level + events": np.stack([scores, scores - softmax, events], axis=1)}


def mapped(inputs: FloatArray, is_taken: BoolArray, train: BoolArray, is_isotonic: bool) -> FloatArray:
    """Probabilities of the pairs that are not for training."""
    odds = Logistic.fit(inputs[train], is_taken[train]).odds(inputs)
    if not is_isotonic:
        return np.asarray(expit(odds[~train]))
    steps = IsotonicRegression(out_of_bounds="clip", y_min=1e-6).fit(odds[train], is_taken[train])
    return np.asarray(steps.predict(odds[~train]))


if __name__ == "__main__":
    main()
