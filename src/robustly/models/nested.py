"""State dicts inside the dictionaries of checkpoints."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from robustly.models.foreign_pickles import Placeholder, module_state
from robustly.output_text import listed

_PLAIN_NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "params")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|averag", re.IGNORECASE)
_OTHER_STATE = re.compile(
    r"optim|sched|scaler|callback|loops|rng|hyper|config|args|criterion|loss|history|_extra_state$", re.IGNORECASE
)
_DEEPEST = 4


class NestedError(ValueError):
    """Content of a checkpoint without a state dict, or with several; the message is a clause without the file."""


def state_dict_in(loaded: object, key: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict in the content of a checkpoint, and a remark for the user, or an empty one.

    Args:
        loaded: a mapping of tensors; or mappings around it, beside numbers, texts and states of optimisers; or a
            pickled module.
        key: its keys joined by dots, or a prefix of names; None if it is to be found.

    Raises:
        NestedError: there is no state dict, there are several, or the key does not exist.
    """
    remark = ""
    if key is not None:
        inner = (_at(tensors, key) for _, tensors in _state_dicts(loaded))
        below = _at(loaded, key) or next((one for one in inner if one is not None), None)
        if below is None:
            raise NestedError(f"has nothing under the key {key!r}; {_what_it_holds(loaded)}")
        loaded = below
    found = dict(_state_dicts(loaded))
    if not found:
        raise NestedError(_refusal(loaded))
    path = next(iter(found))
    if len(found) > 1:
        path, remark = _chosen(found)
    tensors = found[path]
    foreign = _foreign_in(loaded if path == "" else _at(loaded, path))
    if foreign:
        raise NestedError(
            f"{listed(foreign)} hold no tensors; put the state dict alone in the file, or under one of the keys "
            f"{', '.join(_PLAIN_NAMES[:4])}"
        )
    return tensors, remark


def _state_dicts(value: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dotted keys and tensors of every state dict, the outermost first."""
    if isinstance(value, Placeholder):
        state = module_state(value)
        if state:
            yield path, state
        return
    if not isinstance(value, Mapping) or depth > _DEEPEST or "param_groups" in value:
        return
    below = [
        found
        for name, inner in value.items()
        if not isinstance(inner, Tensor) and not _OTHER_STATE.search(str(name))
        for found in _state_dicts(inner, f"{path}.{name}" if path else str(name), depth + 1)
    ]
    # beside nested state dicts, single tensors are numbers of the training, such as the best accuracy
    if below:
        yield from below
        return
    tensors = {str(name): inner for name, inner in value.items() if isinstance(inner, Tensor)}
    if tensors:
        yield path, tensors


def _chosen(found: Mapping[str, dict[str, Tensor]]) -> tuple[str, str]:
    """The key of one of several state dicts, and a remark if both trained and averaged weights exist.

    Averaged weights are those that papers report and that timm loads, so they are taken if they belong to the same
    network.
    """
    plain = _main([path for path in found if not _AVERAGED.search(path)])
    averaged = _main([path for path in found if _AVERAGED.search(path)])
    if len(plain) == 1 and len(averaged) == 1 and _shapes(found[plain[0]]) == _shapes(found[averaged[0]]):
        remark = (
            f"holds trained weights ({plain[0]}) and averaged ones ({averaged[0]}): the averaged ones are taken; "
            f"--model.weights_key {plain[0]} takes the others"
        )
        return averaged[0], remark
    if len(plain) == 1:
        return plain[0], ""
    if not plain and len(averaged) == 1:
        return averaged[0], ""
    paths = [path or "(top)" for path in found]
    raise NestedError(f"holds several state dicts ({listed(paths)}): choose one with --model.weights_key KEY")


def _main(paths: list[str]) -> list[str]:
    """The path under the usual name of a model; all paths if there is none, or there are several."""
    for name in _PLAIN_NAMES:
        usual = [path for path in paths if path.split(".")[0] == name]
        if len(usual) == 1:
            return usual
    return paths


def _shapes(state: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return sorted(tuple(value.shape) for value in state.values() if value.dim())


def _at(value: object, key: str) -> object:
    """The value under dotted keys, or the tensors whose names begin with them; None if there are none."""
    if not isinstance(value, Mapping):
        state = module_state(value)
        return _at(state, key) if state else None
    for name, inner in value.items():
        if key == str(name):
            return inner
        if key.startswith(f"{name}."):
            below = _at(inner, key[len(str(name)) + 1 :])
            if below is not None:
                return below
    start = key if key.endswith(".") else f"{key}."
    return {str(name)[len(start) :]: inner for name, inner in value.items() if str(name).startswith(start)} or None


def _foreign_in(value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    return [
        str(name)
        for name, inner in value.items()
        if not isinstance(inner, Tensor) and not str(name).endswith("_extra_state")
    ]


def _refusal(loaded: object) -> str:
    if isinstance(loaded, Mapping) and _foreign_in(loaded):
        return f"holds no tensors under names (a state dict); {_what_it_holds(loaded)}"
    kind = "a pickled object" if isinstance(loaded, Placeholder) else type(loaded).__name__
    return f"holds {kind} instead of named tensors (a state dict)"


def _what_it_holds(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return f"it holds {type(loaded).__name__}"
    return f"it holds {listed([path for path, _ in _state_dicts(loaded) if path] or [str(key) for key in loaded])}"
