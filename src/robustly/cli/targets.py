"""Files that commands are to write."""

from pathlib import Path


def check_new_file(option: str, target: Path, suffix: str, overwrite: bool) -> None:
    """Refuse a file that an option must not write.

    Args:
        option: name of the option, such as "onnx".
        target: the file.
        suffix: the ending that its name must have, such as ".onnx".
        overwrite: whether a file that exists may be replaced; a folder never is.

    Raises:
        ValueError: another ending, or a path that is taken.
    """
    if target.suffix != suffix:
        raise ValueError(f"--{option} takes the name of a file that ends in {suffix}, got {target}")
    if target.is_dir() or (target.exists() and not overwrite):
        raise ValueError(f"{target} exists already: --overwrite replaces it")
