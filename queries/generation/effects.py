"""The table `effects`: how strongly each metric of a sweep's texts moves with the dose, from the table `scores`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ...analyze.stats.effects import dose_correlation, effect_size
from ...store.format.parquet import read_parquet
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.context import Context, Scope
from ..engine.job import TableJob
from .scores import Scores
from .sweeps import Setting

REASONING = ("reasoning", "answer", "CONTENT-REASON")  # a further metric: that of one category alone
COLUMNS = ("arm", "dose", "prompt", "category", "metric", "value")
Line = tuple[str, str, str, float | None, str, float, float, float, int]


class Effects(TableJob):
    """Effect sizes of every dose and rank correlations of every arm of a sweep, once its scores are made."""

    def __init__(self, kit: Context, scope: Scope, sweep: str):
        scores = Scores(kit, scope, sweep)
        self._settings = scores.settings
        self._named = {name: value for name, value in scores.named.items() if name != "variant"}
        self._same = scores.same
        recipe = {**self._same, "from": scores.path.stem, "version": TABLES["effects"].version}
        super().__init__(kit.layout, "effects", recipe)
        self.before, self._layout, self._scores = (scores,), kit.layout, scores.path

    def finish(self) -> None:
        """Compute and write the rows."""
        drop_tables(self._layout, "effects", self._same, keep=self.path)
        lines = [line for metric, values in self._values() for line in self._lines(metric, values)]
        names = ("variant", "metric", "arm", "dose", "name", "value", "low", "high", "n")
        columns: dict[str, Any] = {
            name: list(found) for name, found in zip(names, zip(*lines, strict=True), strict=True)
        }
        self.add(self._named | columns | {"dose": np.array(columns["dose"], np.float64)})

    def _values(self) -> Iterator[tuple[str, np.ndarray]]:
        """Metric -> its values [prompts, settings], NaN where a prompt is not scored."""
        frame = read_parquet(self._scores, TABLES["scores"].schema, columns=COLUMNS).to_pandas()
        places = {(each.arm, _dose(each.dose)): place for place, each in enumerate(self._settings)}
        doses = [None if pd.isna(dose) else float(dose) for dose in frame["dose"]]
        frame["place"] = [places[key] for key in zip(frame["arm"], doses, strict=True)]
        name, of, category = REASONING
        part = frame[(frame["metric"] == of) & (frame["category"] == category)].assign(metric=name)
        for metric, group in pd.concat([frame, part]).groupby("metric", observed=True):
            wide = group.pivot(index="prompt", columns="place", values="value")
            yield str(metric), wide.reindex(columns=range(len(self._settings))).to_numpy(np.float64)

    def _lines(self, metric: str, values: np.ndarray) -> Iterator[Line]:
        for place, setting in enumerate(self._settings):
            base = self._baseline(setting)
            if base is not None and setting.dose is not None:
                found = effect_size(values[:, place], values[:, base])
                line = (setting.variant, metric, setting.arm, setting.dose, "cohens_d")
                yield (*line, found.estimate, found.low, found.high, found.n)
        arms = dict.fromkeys((setting.variant, setting.arm) for setting in self._settings)
        for variant, arm in arms:
            chosen = [i for i, s in enumerate(self._settings) if s.arm == arm and s.dose is not None]
            if len(chosen) >= 3:
                doses = np.array([self._settings[place].dose for place in chosen])
                found, p = dose_correlation(doses, values[:, chosen])
                yield variant, metric, arm, None, "spearman", found.estimate, found.low, found.high, found.n
                yield variant, metric, arm, None, "spearman_p", p, np.nan, np.nan, len(chosen)

    def _baseline(self, setting: Setting) -> int | None:
        """The place of the setting that changes nothing in the same model under the same template."""
        same = (setting.variant, setting.template)
        alike = [i for i, s in enumerate(self._settings) if not s.edits and (s.variant, s.template) == same]
        return alike[0] if alike else None


def _dose(dose: float | None) -> float | None:
    """A dose as the table has it, in float32."""
    return None if dose is None else float(np.float32(dose))
