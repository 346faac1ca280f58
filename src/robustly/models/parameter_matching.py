"""Widths at which two networks have the same number of parameters, for comparisons at equal capacity."""

from dataclasses import replace

from robustly.models.registry import WIDEST, ModelConfig, new_network
from robustly.models.without_values import without_values


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of a configured network; its weights are not created.

    Raises:
        ValueError: the settings do not fit together, or the name is code of the user's own.
    """
    network = without_values(lambda: new_network(config, allow_code=False))
    return sum(parameter.numel() for parameter in network.parameters())


def matched_width(config: ModelConfig, count: int) -> float:
    """The width, in thousandths, at which a network has nearly a given number of parameters.

    Args:
        config: settings of the network; its width does not matter.
        count: the number of parameters to reach, at least 1.

    Returns:
        The width whose count is nearest. How near it is, `parameter_count` states.

    Raises:
        ValueError: the network has fewer parameters at its largest width.
    """

    def at(thousandths: int) -> int:
        return parameter_count(replace(config, width=thousandths / 1000))

    low, high = 1, 1
    while at(high) < count:
        if high == WIDEST * 1000:
            raise ValueError(f"{config.name} has fewer than {count} parameters at its largest width, {WIDEST}")
        low, high = high, min(2 * high, WIDEST * 1000)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < count else (low, middle)
    return min((low, high), key=lambda width: abs(at(width) - count)) / 1000
