"""Result files of the verification competition: the word, and the counterexample."""

from decimal import Decimal

from torch import Tensor

from robustly.certification.vnnlib.query import Query


def result_word(word: str, version: int) -> str:
    """The word of a result in a version of VNN-LIB: version 2 has "timed-out" for "timeout"."""
    return "timed-out" if version == 2 and word == "timeout" else word


def witness_text(query: Query, x: Tensor, y: Tensor) -> str:
    """A counterexample as the competition reads it.

    Numbers are the exact decimals of the float32 values, so that what is printed is in the box as written.

    Args:
        query: the property.
        x: the input, `(inputs,)` float32.
        y: outputs of the network, `(outputs,)`.
    """
    if query.version == 1:
        pairs = [
            (kind, index, value)
            for kind, values in (("X", x), ("Y", y))
            for index, value in enumerate(values.tolist())
        ]
        return "(" + "\n".join(f"({kind}_{index} {_digits(value)})" for kind, index, value in pairs) + ")\n"
    lines = []
    for tensor, values in zip(query.tensors, (x, y), strict=True):
        lines.append(f"{tensor.name} {tensor.type} [{','.join(map(str, tensor.shape))}]")
        lines += [_digits(value) for value in values.tolist()]
    return "\n".join(lines) + "\n"


def _digits(value: float) -> str:
    return str(Decimal(value)).lower()
