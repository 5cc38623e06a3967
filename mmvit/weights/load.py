"""Reading and writing checkpoint files without running code from them."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvit.errors import UserError

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

_SHOWN = 3  # keys named in an error
_COUNTERS = "*.num_batches_tracked"
#: Among the first bytes of files that `torch.save` wrote before it zipped them; other pickles do not have it there.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class _Ignored:
    """Stands for an object of a checkpoint that is not read: its contents are dropped and nothing of it is called."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _ignored(*args: Any) -> _Ignored:
    return _Ignored()


# What training frameworks put beside the tensors: log histories (MMEngine), argument lists, NumPy numbers. None of it is
# needed here, so nothing of it is built: `getattr`, for one, is only ever answered with a blank object.
_IGNORED_CLASSES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "argparse.Namespace",
    "collections.Counter",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.slice",
    *(
        f"numpy.dtypes.{kind}DType"
        for kind in ("Bool", "Int32", "Int64", "UInt8", "UInt32", "UInt64", "Float16", "Float32", "Float64")
    ),
)
_IGNORED_FUNCTIONS = (
    "builtins.getattr",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.random._pickle.__randomstate_ctor",
)


@contextlib.contextmanager
def _only_tensors() -> Iterator[None]:
    import torch

    allowed = [(_Ignored, name) for name in _IGNORED_CLASSES] + [(_ignored, name) for name in _IGNORED_FUNCTIONS]
    with torch.serialization.safe_globals(allowed):
        yield


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[StateDict, dict[str, Any]]:
    """Read the weights to evaluate, and what is said about them, from a checkpoint file.

    Reads safetensors, PyTorch files with ``weights_only=True``, and detectron2's pickles of arrays: no code in a file is ever
    run. Weights are taken from, in this order: ``ema.module`` (official RT-DETR), ``state_dict_ema`` (timm's averages),
    ``state_dict`` (MMEngine, where `EMAHook` has put the averaged weights on saving; the raw ones are then under
    ``ema_state_dict``), ``model``, the file itself. A ``module.`` before every key goes.

    Returns:
        The state dict (tensors on the CPU), and a dict: the file's own meta entries, ``classes`` (tuple of names) where
        known, ``weights_key`` (which of the above was taken).

    Raises:
        UserError: missing, damaged or foreign file, or one that holds more than data.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "safetensors":
        state, meta = _read_safetensors(path)
    else:
        state, meta = _unwrap(_read_pickle(path) if kind == "pickle" else _read_torch(path), path)
    state = _strip(state, "module.")
    classes = _classes(meta)
    if classes:
        meta["classes"] = classes
    return state, meta


def _kind(path: Path) -> str:
    """'safetensors', 'torch' or 'pickle' by the first bytes, whatever the suffix says."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"checkpoint {path} is empty: delete it and get it again")
    if path.suffix == ".pdparams":
        raise UserError(f"{path} is a Paddle file: use the authors' PyTorch file (.pth)")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if head.startswith(b"PK\x03\x04") or _TORCH_MAGIC in head[:32]:
        return "torch"
    if head.startswith(b"\x80"):
        return "pickle"
    raise UserError(
        f"{path} is not a checkpoint (it starts with {head[:8]!r}): expected a PyTorch file or safetensors; if it "
        "was downloaded, delete it and get it again"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    detail = str(error).strip().split("\n")[0][:200]
    return UserError(
        f"checkpoint {path} is damaged or not a checkpoint ({detail or type(error).__name__}): delete it and get it again"
    )


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not iterable
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return state, {**{key: _decoded(value) for key, value in metadata.items()}, "weights_key": ""}


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _read_pickle(path: Path) -> Any:
    from mmvit.weights.pickles import ForeignObject, read_pickle

    try:
        with path.open("rb") as file:
            return read_pickle(file)
    except ForeignObject as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # as below
        raise _damaged(path, error) from error


def _refused(path: Path, name: str) -> UserError:
    return UserError(
        f"checkpoint {path} holds more than tensors ({name}) and could run code, so it is refused: get a file of tensors only "
        "(where you trust its origin, load it in a place of your own and save `model.state_dict()` with torch.save or "
        "safetensors)"
    )


def _read_torch(path: Path) -> Any:
    import pickle

    import torch

    try:
        with _only_tensors():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)|(?:but got|unrecognized function) (.+)", str(error))
        if foreign is None:
            raise _damaged(path, error) from error
        raise _refused(path, next(group for group in foreign.groups() if group)) from error
    except Exception as error:  # bytes from anywhere: the unpickler fails in every way there is
        raise _damaged(path, error) from error


def _unwrap(loaded: Any, path: Path) -> tuple[StateDict, dict[str, Any]]:
    if not isinstance(loaded, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(loaded).__name__}, not a dict of tensors: save `model.state_dict()`")
    ema = loaded.get("ema")
    if isinstance(ema, Mapping) and isinstance(ema.get("module"), Mapping):
        key, state = "ema.module", ema["module"]
    else:
        key = next((key for key in ("state_dict_ema", "state_dict", "model") if isinstance(loaded.get(key), Mapping)), "")
        state = loaded[key] if key else loaded
    return _tensors(state, path), {**_meta(loaded, bool(key)), "weights_key": key}


def _tensors(state: Mapping[Any, Any], path: Path) -> StateDict:
    import torch

    other = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if len(other) == len(state):
        raise UserError(
            f"checkpoint {path} holds no weights (its keys: {_listed(map(str, state))}): name a file with the "
            "state dict of a model"
        )
    if other:
        raise UserError(
            f"checkpoint {path} has entries that are not tensors among its weights: {_listed(other)}; save "
            "`model.state_dict()` alone"
        )
    return {str(key): value.detach() for key, value in state.items()}


def _meta(loaded: Mapping[Any, Any], wrapped: bool) -> dict[str, Any]:
    if not wrapped:
        return {}
    plain = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, (str, int, float, bool))}
    meta = loaded.get("meta")
    return {**plain, **(meta if isinstance(meta, Mapping) else {})}


def _classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names, from our own files or from MMEngine's `dataset_meta` (upper case in old ones)."""
    dataset = meta.get("dataset_meta")
    for place in (meta, dataset if isinstance(dataset, Mapping) else {}):
        for key in ("classes", "CLASSES"):
            if isinstance(place.get(key), (list, tuple)):
                return tuple(map(str, place[key]))
    return None


def _strip(state: StateDict, prefix: str) -> StateDict:
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key[len(prefix) :]: value for key, value in state.items()}


def save_safetensors(path: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and `meta` (values that JSON can hold) to a safetensors file; it appears whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # Cloned: safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state_dict.items()}
    try:
        save_file(tensors, temporary, {key: json.dumps(value) for key, value in meta.items()})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_into(
    model: torch.nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    source: str = "the checkpoint",
) -> None:
    """Copy `state_dict` into `model`; every key has to match, in name and shape.

    Batch norms' counters (``num_batches_tracked``) may be absent or left over: not every converter of weights kept them.

    Args:
        allow_missing: shell patterns (``decoder.denoising_class_embed.*``) of model keys that may keep their values.
        allow_unexpected: shell patterns of checkpoint keys that may be ignored.
        source: the checkpoint's name in errors.

    Raises:
        UserError: names the keys at fault; the model is then unchanged.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and not _matches(key, (*allow_missing, _COUNTERS))]
    unexpected = [key for key in state_dict if key not in own and not _matches(key, (*allow_unexpected, _COUNTERS))]
    shapes = {
        key: (tuple(state_dict[key].shape), tuple(own[key].shape))
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    }
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(own)} keys are missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} keys are unexpected: {_listed(unexpected)}")
    if shapes:
        problems.append(
            f"{len(shapes)} keys have another shape: "
            + _listed(f"{key} {theirs} (the model has {ours})" for key, (theirs, ours) in shapes.items())
        )
    if problems:
        counts = None if missing or unexpected else _class_counts(list(shapes.values()), getattr(model, "num_classes", None))
        hint = (
            (
                f". Only the class count differs: {source} has {counts[0]} classes, the model {counts[1]}; build the model "
                f"with num_classes={counts[0]}"
            )
            if counts
            else ". Is it a checkpoint of another model?"
        )
        raise UserError(f"{source} does not fit the model: " + "; ".join(problems) + hint)
    model.load_state_dict({key: value for key, value in state_dict.items() if key in own}, strict=False)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _class_counts(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], ours: int | None) -> tuple[int, int] | None:
    """(theirs, ours) if all shapes differ in one side only, as class counts do.

    A side may be the count, one more (a class "none"), or, where the model says what its count is, a multiple of it (of four
    box sides, or of anchors).
    """
    sides = set()
    for theirs, own in shapes:
        different = [pair for pair in zip(theirs, own) if pair[0] != pair[1]]
        if len(theirs) != len(own) or len(different) != 1:
            return None
        sides.add(different[0])
    if ours is None:
        ours = min(sides)[1]
    counts = {theirs - 1 if own == ours + 1 else theirs * ours / own for theirs, own in sides}
    count = counts.pop()
    return None if counts or count != int(count) or any(own % ours > 1 for _, own in sides) else (int(count), ours)


def _listed(words: Iterator[str] | Sequence[str] | Any) -> str:
    words = list(words)
    rest = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
