"""Properties in VNN-LIB 1 and 2: reading, normal form, and result files."""

from robustly.certification.vnnlib.formulas import UnsupportedQueryError, VnnlibError
from robustly.certification.vnnlib.query import Case, Query
from robustly.certification.vnnlib.reading import read_vnnlib
from robustly.certification.vnnlib.witness import result_word, witness_text

__all__ = ["Case", "Query", "UnsupportedQueryError", "VnnlibError", "read_vnnlib", "result_word", "witness_text"]
