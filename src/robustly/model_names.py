"""Forms of the names of models in settings; no PyTorch, so that command lines are read at once."""

TIMM, HUGGING_FACE, TORCHSCRIPT = "timm:", "hf:", "torchscript:"


def is_published(name: str) -> bool:
    """True for `timm:NAME`, `hf:FOLDER` and `hf:HUB_NAME`, which run no code of the user's or of a file."""
    return name.startswith((TIMM, HUGGING_FACE))
