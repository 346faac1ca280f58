"""Label sources by the names that recipes use.

A name is never an import path, so a configuration file cannot run code. A new label source adds a line here.
"""

from robustly.training.labels.data import DataLabels, SmoothedLabels
from robustly.training.labels.guide import GuideLabels
from robustly.training.parts import LabelSource

LABEL_SOURCES: dict[str, type[LabelSource]] = {
    "data": DataLabels,
    "guide": GuideLabels,
    "smoothed": SmoothedLabels,
}
