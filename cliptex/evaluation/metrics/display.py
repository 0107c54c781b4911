"""Metrics as the report shows them: title, unit, decimals, and whether higher or lower is better."""

from collections.abc import Mapping
from typing import NamedTuple

ALIGNED = "affine_"
"""Prefix of metrics computed after fitting scale and shift."""


class Metric(NamedTuple):
    """better: +1 if higher is better, -1 if lower is, 0 if neither."""

    title: str
    better: int = 1
    unit: str = "%"
    decimals: int = 1

    def format(self, value: float) -> str:
        """A value with the metric's decimals, without unit."""
        return f"{value:.{self.decimals}f}"


METRICS = {
    "mIoU": Metric("mIoU"),
    "mAcc": Metric("mAcc"),
    "aAcc": Metric("aAcc"),
    "AP": Metric("AP"),
    "AP50": Metric("AP50"),
    "AP75": Metric("AP75"),
    "APs": Metric("APs"),
    "APm": Metric("APm"),
    "APl": Metric("APl"),
    "box_AP": Metric("box AP"),
    "box_AP50": Metric("box AP50"),
    "mask_AP": Metric("mask AP"),
    "mask_AP50": Metric("mask AP50"),
    "top1": Metric("Top-1"),
    "top5": Metric("Top-5"),
    "mean_top1": Metric("Mean top-1 over classes"),
    "mean_top5": Metric("Mean top-5 over classes"),
    "rmse": Metric("RMSE", -1, "m", 3),
    "log10": Metric("log10", -1, "", 3),
    "absrel": Metric("AbsRel", -1, "", 3),
    "silog": Metric("silog", -1),
    "delta1": Metric("δ < 1.25"),
    "delta2": Metric("δ < 1.25²"),
    "delta3": Metric("δ < 1.25³"),
    "mean": Metric("Mean angle", -1, "°"),
    "median": Metric("Median angle", -1, "°"),
    "within_5": Metric("within 5°"),
    "within_7_5": Metric("within 7.5°"),
    "within_11_25": Metric("within 11.25°"),
    "within_22_5": Metric("within 22.5°"),
    "within_30": Metric("within 30°"),
    "error_kappa_q1": Metric("Mean angle, the quarter of the pixels it is least sure of", 0, "°"),
    "error_kappa_q2": Metric("Mean angle, the second quarter", 0, "°"),
    "error_kappa_q3": Metric("Mean angle, the third quarter", 0, "°"),
    "error_kappa_q4": Metric("Mean angle, the quarter it is surest of", 0, "°"),
}


def direction(name: str) -> int:
    """+1 if a higher value of the metric is better, -1 if a lower one is, 0 for an unknown metric."""
    return lookup(name).better


def is_known(name: str) -> bool:
    """Whether the report knows the metric's title and unit."""
    return name.removeprefix(ALIGNED) in METRICS or "R@" in name


def lookup(name: str, overrides: Mapping[str, Metric] | None = None) -> Metric:
    """A metric by its name in the results; an unknown one keeps its name and has no direction.
    overrides: a task's own form of some metrics. The prefix `affine_` is put into words."""
    plain = name.removeprefix(ALIGNED)
    metric = (overrides or {}).get(plain) or METRICS.get(plain) or Metric(plain, 1 if "R@" in plain else 0)
    return metric if plain == name else metric._replace(title=f"{metric.title}, scale and shift fitted")
