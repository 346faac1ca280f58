"""Random pictures, and tables of them as Parquet files hold them."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("cat", "dog", "owl")
HF_SCHEMA = {b"huggingface": b'{"info": {"features": {"label": {"names": ["cat", "dog", "owl"]}}}}'}


def pictures(count: int, side: int = 6, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def encoded(array: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, kind)
    return stream.getvalue()


def table(images: NDArray[np.uint8], named: bool = True, **changes: Any) -> pa.Table:
    columns = {
        "image": pa.array([{"bytes": encoded(image), "path": None} for image in images]),
        "label": pa.array([row % 3 for row in range(len(images))], pa.int64()),
    }
    made = pa.table({**columns, **changes})
    return made.replace_schema_metadata(HF_SCHEMA) if named else made
