"""Check of a run's training attack against its threats, before any work."""

from robustly.experiments.configuration import RunConfig
from robustly.settings import SettingsError
from robustly.training import INNER_MAXIMISERS
from robustly.training.inner import SEVERAL


def check_training_threats(config: RunConfig) -> None:
    """Refuse several threats for a training attack that uses the first only, and threats that a part cannot use.

    A method without training attack may have several: they are those of its evaluation.

    Args:
        config: settings of a run that is to be trained.

    Raises:
        SettingsError: an inner maximisation under one threat, with several threats.
        MethodError: threats that a part is not defined for.
    """
    inner = config.method.inner
    if inner is not None and len(config.threats) > 1 and type(inner) not in SEVERAL:
        names = ", ".join(name for name, part in INNER_MAXIMISERS.items() if part in SEVERAL)
        raise SettingsError(
            f"method.inner {config.method_settings['inner']['name']!r} attacks under one threat, the settings have "
            f"{config.threats_text}: set threat in place of threats, or method.inner to one of {names}"
        )
    config.method.check_threats(config.threats)
