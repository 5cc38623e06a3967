"""Instance AP of Cityscapes, computed by cityscapesscripts (``pip install cityscapesscripts``)."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image

from mmvit.errors import UserError, did_you_mean
from mmvit.registry import METRICS

_TRUTH = "_gtFine_instanceIds.png"


def evaluate_cityscapes_instances(predictions: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Instance AP as Cityscapes' own tool computes it from files; only one picture's masks are on disk at a time.

    Args:
        predictions: of each picture ``dict(truth, masks, names, scores)``: its ``*_gtFine_instanceIds.png``, COCO RLE of the
            picture's size, names of Cityscapes' classes, and scores. Classes without instances are passed over.

    Returns:
        ``AP`` (mean over IoU 0.5, 0.55 .. 0.95), ``AP50`` and ``AP/<class>``, fractions 0..1; NaN for classes without instances
        in the ground truth.

    Raises:
        UserError: cityscapesscripts is not installed, a file is missing, a class unknown or a mask of another size.
    """
    matches: dict[str, Any] = {}
    for item in predictions:
        matches[os.path.abspath(item["truth"])] = match_instances(item["truth"], item["masks"], item["names"], item["scores"])
    return average_precision(matches)


def match_instances(
    truth: str | Path, masks: Sequence[Mapping[str, Any]], names: Sequence[str], scores: Sequence[float]
) -> dict[str, Any]:
    """What cityscapesscripts keeps of one picture: its instances and predictions with their overlaps. Arguments as above."""
    tool = _tool()
    truth = Path(truth)
    if not truth.is_file():
        raise UserError(f"{truth}: no such ground truth. Give the folder gtFine/val of Cityscapes with its *{_TRUTH}")
    with Image.open(truth) as image:
        size = (image.height, image.width)
    ids = {name: label.id for name, label in tool.name2label.items()}
    with tempfile.TemporaryDirectory(prefix="mmvit-cityscapes-") as folder, _quiet():
        listing = _write(Path(folder), size, masks, [_label_id(name, ids, truth) for name in names], scores, truth)
        arguments = _arguments(tool, folder)
        instances = tool.instances2dict([str(truth)])
        (found,) = tool.matchGtWithPreds([str(listing)], [str(truth)], instances, arguments).values()
    return found


def average_precision(matches: Mapping[str, Any]) -> dict[str, float]:
    """The figures of `evaluate_cityscapes_instances` from the matches of all pictures."""
    tool = _tool()
    arguments = _arguments(tool, "")
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of classes that do not occur
        averages = tool.computeAverages(tool.evaluateMatches(matches, arguments), arguments)
    by_class = {f"AP/{name}": float(np.mean(values["ap"])) for name, values in averages["classes"].items()}
    return {"AP": float(averages["allAp"]), "AP50": float(averages["allAp50%"]), **by_class}


def _tool() -> ModuleType:
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling
    except ImportError:
        raise UserError("the instance AP of Cityscapes needs its own tool: pip install cityscapesscripts") from None
    return evalInstanceLevelSemanticLabeling


def _arguments(tool: ModuleType, folder: str) -> Any:
    """The tool's settings for predictions that lie in `folder`."""
    arguments = copy.copy(tool.args)
    arguments.quiet, arguments.predictionPath = True, os.path.abspath(folder)
    tool.setInstanceLabels(arguments)
    return arguments


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets the tool run under every NumPy, without its output; it ends the process on errors, which becomes a `UserError`."""
    lacking = not hasattr(np, "in1d")  # gone since NumPy 2.4
    if lacking:
        np.in1d = np.isin
    text = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(text):
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except SystemExit:
        raise UserError(f"cityscapesscripts stopped: {text.getvalue().strip() or 'without a message'}") from None
    finally:
        if lacking:
            del np.in1d


def _label_id(name: str, ids: Mapping[str, int], truth: Path) -> int:
    if name not in ids:
        raise UserError(f"{truth}: {name!r} is no class of Cityscapes.{did_you_mean(name, ids)} Evaluate a model of Cityscapes")
    return ids[name]


def _write(
    folder: Path,
    size: tuple[int, int],
    masks: Sequence[Mapping[str, Any]],
    label_ids: Sequence[int],
    scores: Sequence[float],
    truth: Path,
) -> Path:
    """One picture's predictions in the tool's format: a PNG for each mask and a text file, which is returned."""
    from faster_coco_eval.core import mask as mask_api

    if not len(masks) == len(label_ids) == len(scores):
        raise UserError(f"{truth}: {len(masks)} masks, {len(label_ids)} classes and {len(scores)} scores. Give as many of each")
    lines = []
    for number, (mask, label_id, score) in enumerate(zip(masks, label_ids, scores)):
        if tuple(mask["size"]) != size:
            raise UserError(
                f"{truth}: the picture has (height, width) {size}, a predicted mask {tuple(mask['size'])}. Predict masks at "
                "the original size"
            )
        if not math.isfinite(score):
            raise UserError(f"{truth}: a predicted score is {score}: the model has diverged")
        Image.fromarray(mask_api.decode(dict(mask)) * 255).save(folder / f"{number}.png", compress_level=1)
        lines.append(f"{number}.png {label_id} {float(score)!r}\n")
    listing = folder / "predictions.txt"
    listing.write_text("".join(lines), encoding="utf-8")
    return listing


@METRICS.register_module()
class CityscapesInstanceMetric(BaseMetric):
    """Cityscapes' instance AP by its own tool: ``cityscapes/instance_AP``, ``_AP50`` and ``_AP/<class>``, fractions 0..1.

    Samples carry ``img_path`` and ``pred_instances`` with ``masks`` (COCO RLE of the original picture), ``scores`` and
    ``labels``; label k is the class ``dataset_meta["classes"][k]``. What is kept of a picture is a list of overlaps.

    Args:
        gt_dir: Cityscapes' folder ``gtFine/val`` (with a folder for each city), or one with the ``*_gtFine_instanceIds.png``
            themselves.
        collect_device, prefix, collect_dir: see `BaseMetric`.
    """

    default_prefix = "cityscapes"

    def __init__(
        self,
        gt_dir: str | Path,
        collect_device: str = "cpu",
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        _tool()
        self.truths = {path.name.removesuffix(_TRUTH): path for path in sorted(Path(gt_dir).rglob(f"*{_TRUTH}"))}
        if not self.truths:
            raise UserError(f"{gt_dir}: holds no *{_TRUTH}. Give the folder gtFine/val of Cityscapes")

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Matches the predictions of a batch: `DataSample`s, or the dicts that the runner makes of them."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError("CityscapesInstanceMetric: the dataset does not say what its classes are")
        for sample in data_samples:
            sample = sample if isinstance(sample, Mapping) else sample.to_dict()
            instances = sample["pred_instances"]
            picture = Path(sample["img_path"]).stem.removesuffix("_leftImg8bit")
            if picture not in self.truths:
                raise UserError(
                    f"{sample['img_path']}: there is no {picture}{_TRUTH} in the ground truth's folder. Correct gt_dir"
                )
            if instances.get("masks") is None:
                raise UserError(f"{sample['img_path']}: the model predicts no masks. Evaluate another task, or another model")
            labels, scores = (np.asarray(instances[key].tolist()) for key in ("labels", "scores"))
            names = [classes[int(label)] for label in labels]
            self.results.append((picture, match_instances(self.truths[picture], instances["masks"], names, scores.tolist())))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The figures from what `process` kept on all ranks."""
        matches = dict(reversed(results))  # samplers may repeat a picture to fill the last round
        if len(matches) < len(self.truths):
            print_log(
                f"{self.prefix}: {len(matches)} of {len(self.truths)} pictures were evaluated; only they count",
                "current",
                logging.WARNING,
            )
        scores = average_precision(dict(sorted(matches.items())))
        return {f"instance_{name}": value for name, value in scores.items()}
