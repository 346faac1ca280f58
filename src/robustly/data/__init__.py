"""Images as uint8 tensors: sources, splits, augmentation and batches."""

from robustly.data.augmentation import Augmentation
from robustly.data.batches import Batch, batch_count, batches
from robustly.data.class_names import read_class_names
from robustly.data.config import HUB, DataConfig, hub_path
from robustly.data.digests import RowDigests, row_digests
from robustly.data.door import as_image_data
from robustly.data.fitting import fitted_to
from robustly.data.images import ImageData
from robustly.data.mixing import Extra, mixed_batches
from robustly.data.planes import make_planes
from robustly.data.sources import load_extra, load_splits, load_test
from robustly.data.splits import Splits

__all__ = [
    "HUB",
    "Augmentation",
    "Batch",
    "DataConfig",
    "Extra",
    "ImageData",
    "RowDigests",
    "Splits",
    "as_image_data",
    "batch_count",
    "batches",
    "fitted_to",
    "hub_path",
    "load_extra",
    "load_splits",
    "load_test",
    "make_planes",
    "mixed_batches",
    "read_class_names",
    "row_digests",
]
