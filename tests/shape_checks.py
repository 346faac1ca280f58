"""The checker behind jaxtyping's shape annotations in tests: beartype, with whole numbers allowed for floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
