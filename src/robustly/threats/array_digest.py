"""Digest by which the text of a threat names a tensor that belongs to it."""

import hashlib

from torch import Tensor


def array_digest(values: Tensor) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a tensor's shape and numbers."""
    content = f"{tuple(values.shape)}".encode() + values.cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
