"""Steps that are skipped because something is not finite: told, counted, and their batches kept for replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmvit.data.structures import DataSample
from mmvit.engine.checkpoint import atomic_save, plain, read_checkpoint
from mmvit.engine.optim import Failure
from mmvit.errors import UserError

FOLDER = "bad_batches"


def image_ids(data_batch: Any) -> tuple:
    """Ids of the images in a batch, as far as its data samples tell them."""
    samples = data_batch.get("data_samples", ()) if isinstance(data_batch, dict) else ()
    return tuple(sample.metainfo.get("img_id") for sample in samples if isinstance(sample, BaseDataElement))


class SkippedSteps:
    """Counts skipped steps of a run, logs each, saves the first batches and gives up after too many in a row.

    Args:
        folder: where ``iter_N.pth`` (``iter_N_rankR.pth`` on other processes) go.
        max_saved: how many batches are kept.
        max_in_row: consecutive skipped steps after which training stops with a `UserError`.
    """

    def __init__(self, folder: str | Path, max_saved: int = 5, max_in_row: int = 20) -> None:
        self.folder, self.max_saved, self.max_in_row = Path(folder), max_saved, max_in_row
        self.in_row = self.saved = 0

    def taken(self) -> None:
        """A step went through."""
        self.in_row = 0

    def skipped(self, logger: Any, failure: Failure, data_batch: Any, iteration: int, seed: int) -> None:
        """A step was skipped: log it, save its batch, stop after too many."""
        self.in_row += 1
        ids = list(failure.image_ids or image_ids(data_batch))
        if failure.overflow:
            logger.info(
                f"iteration {iteration}: step skipped, fp16 overflow in {failure.tensor_name}; the loss scale is lowered"
            )
        elif failure.remote:
            logger.info(f"iteration {iteration}: step skipped, {failure.tensor_name} is not finite")
        else:
            path = self._save(failure, data_batch, ids, iteration, seed)
            kept = f"; batch saved to {path}, run it again with tools/train.py CONFIG --replay {path}" if path else ""
            logger.error(f"iteration {iteration}: step skipped, {failure.tensor_name} is not finite (images {ids}){kept}")
        if self.in_row >= self.max_in_row:
            raise UserError(
                f"Training stopped at iteration {iteration}: {self.in_row} steps in a row were not finite, the last one in "
                f"{failure.tensor_name} (images {ids}). Lower the learning rate (--lr), use --amp bf16 instead of fp16, "
                f"or look at the batches in {self.folder}."
            )

    def _save(self, failure: Failure, data_batch: Any, ids: Sequence, iteration: int, seed: int) -> Path | None:
        if self.saved >= self.max_saved:
            return None
        self.saved += 1
        rank = get_rank()
        path = self.folder / (f"iter_{iteration}.pth" if rank == 0 else f"iter_{iteration}_rank{rank}.pth")
        atomic_save(
            dict(
                batch=_pack(data_batch),
                tensor_name=failure.tensor_name,
                image_ids=plain(list(ids)),
                iteration=iteration,
                seed=seed,
                rank=rank,
            ),
            path,
        )
        return path


#: Kinds of data elements, by the key under which `_pack` puts their fields.
_KINDS = {"_instances": InstanceData, "_pixels": PixelData, "_sample": DataSample}


def _pack(value: Any) -> Any:
    """A batch as tensors and plain containers; `_unpack` undoes it."""
    if isinstance(value, BaseDataElement):
        key = next((key for key, kind in _KINDS.items() if isinstance(value, kind)), "_sample")
        return {key: {name: _pack(item) for name, item in value.items()}, "_meta": plain(dict(value.metainfo_items()))}
    if isinstance(value, dict):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item) for item in value]
    return plain(value)


def _unpack(value: Any) -> Any:
    key = next((key for key in _KINDS if key in value), None) if isinstance(value, dict) else None
    if key is not None:
        element = _KINDS[key](metainfo=value["_meta"])
        for name, item in value[key].items():
            setattr(element, name.removeprefix("_"), _unpack(item))
        return element
    if isinstance(value, dict):
        return {key: _unpack(item) for key, item in value.items()}
    return [_unpack(item) for item in value] if isinstance(value, list) else value


def replay(model: torch.nn.Module, path: str | Path) -> dict[str, float]:
    """Run the forward pass of a saved bad batch again, in training mode and with the random state of its step.

    Args:
        model: an MMEngine model with the weights to try (for those of the run load its last checkpoint).
        path: ``WORK_DIR/bad_batches/iter_N.pth``.

    Returns:
        The losses. A model that checks itself raises `mmvit.losses.NonFiniteError` as it did in training.
    """
    from mmvit.engine.loops import seed_step

    saved = read_checkpoint(path)
    if "batch" not in saved:
        raise UserError(f"{path} is not a saved batch. Give a file of WORK_DIR/{FOLDER}/.")
    seed_step(saved["seed"], saved["iteration"], saved["rank"])
    model.train()
    with torch.no_grad():
        data = model.data_preprocessor(_unpack(saved["batch"]), True)
        losses = model._run_forward(data, mode="loss")
        total, parts = model.parse_losses(losses)
    return {name: float(value) for name, value in parts.items()}
