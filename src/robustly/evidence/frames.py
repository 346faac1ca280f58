"""The rows of an evaluation as a pandas table."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.schema import CERTIFICATE, EvidenceTable, Verdict

if TYPE_CHECKING:
    import pandas


def frame(table: EvidenceTable) -> "pandas.DataFrame":
    """One row per example, columns named as in `evidence.parquet`; verdicts of certificates are words.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas  # noqa: PLC0415
    except ImportError:
        raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from None
    columns = table.columns().items()
    return pandas.DataFrame({name: verdict_words(one) if is_verdict(name) else one for name, one in columns})


def is_verdict(column: str) -> bool:
    """Return True for the name of a column that holds verdicts of a certificate."""
    return column.startswith(f"{CERTIFICATE}.") and column.endswith(".verdict")


def verdict_words(codes: NDArray[Any]) -> NDArray[Any]:
    """Verdicts as the words of the file, `(N,)`."""
    return np.array([Verdict(code).word for code in codes.tolist()])
