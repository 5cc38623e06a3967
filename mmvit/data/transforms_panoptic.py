"""Loading, augmentation and packing of panoptic samples, and of the semantic samples that mask classifiers train on.

As in `transforms`, every transform is a callable ``sample -> sample``; random ones draw from ``sample["rng"]`` only. The map
``pan_ids`` is int32 (H, W): the number, counted from 1, of the segment in ``segments`` that each pixel shows, 0 = void. It
stays on the pixels of ``img``; a segment of which nothing is left stays in the list until it is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from mmvit.data.base import apply, build_steps
from mmvit.data.instance_masks import InstanceMasks
from mmvit.data.masks import IGNORE
from mmvit.data.panoptic_files import check_segments, read_colours, rgb_to_ids, segment_positions, semantic_map
from mmvit.data.structures import DataSample
from mmvit.data.transforms import probability
from mmvit.data.transforms_semantic import PackSegInputs
from mmvit.data.transforms_sizes import pad_sample
from mmvit.errors import UserError
from mmvit.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadPanoptic:
    """Reads ``pan_path`` into ``pan_ids`` and numbers the ``segments``, ``dict(label, iscrowd)``, accordingly.

    Segments of classes that are not in use become void. Needs `LoadImage` before it. A map of another size than the stored
    picture, or with ids that are no segment, is a `UserError`.
    """

    def __call__(self, sample: dict) -> dict:
        where = f"{sample['ann_file']}: image id {sample['img_id']!r}"
        segments = sample["segments"]
        known = check_segments(segments, where)
        ids = rgb_to_ids(read_colours(sample["pan_path"], where))
        if ids.shape != tuple(sample["ori_shape"]):
            (height, width), (map_height, map_width) = sample["ori_shape"], ids.shape
            raise UserError(
                f"{where}: the map {sample['pan_path']} is {map_width}x{map_height} pixels, its picture {sample['img_path']} "
                f"{width}x{height} (width x height). Get the map that belongs to the picture"
            )
        numbers, stray = _numbered(ids, known)
        if stray is not None:
            raise UserError(
                f"{where}: {sample['pan_path']} has pixels of id {stray}, which is no segment of the picture. Get the map that "
                "belongs to the file"
            )
        used = [segment["label"] >= 0 for segment in segments]
        sample["segments"] = [
            {"label": segment["label"], "iscrowd": segment["iscrowd"]} for segment, use in zip(segments, used) if use
        ]
        sample["pan_ids"] = np.append(0, np.cumsum(used) * used).astype(np.int32)[numbers]
        return sample


def _numbered(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The position in `known` of every id, from 1, int32 (H, W), 0 for id 0; and the first id that is not there, or None."""
    flat = ids.reshape(-1)
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # of runs of one id
    values = flat[starts]
    position = segment_positions(values, known)
    stray = values[position > len(known)]
    if len(stray):
        return ids, int(stray[0])
    numbers = np.where(position == len(known), 0, position + 1).astype(np.int32)
    return np.repeat(numbers, np.diff(np.append(starts, len(flat)))).reshape(ids.shape), None


@TRANSFORMS.register_module()
class RequireSegments:
    """Rejects samples with at most `min_pixels` labelled pixels: the dataset then draws another picture."""

    def __init__(self, min_pixels: int = 0) -> None:
        if not (isinstance(min_pixels, Real) and min_pixels >= 0):
            raise UserError(f"RequireSegments: min_pixels must be 0 or more, got {min_pixels!r}")
        self.min_pixels = min_pixels

    def __call__(self, sample: dict) -> dict | None:
        labelled = np.array([False, *(not segment["iscrowd"] for segment in sample["segments"])])
        return sample if np.count_nonzero(labelled[sample["pan_ids"]]) > self.min_pixels else None


@TRANSFORMS.register_module()
class PanopticCopyPaste:
    """With probability `p`, lays segments of a second picture over the sample: all its things, and each kind of stuff with
    probability `stuff` (kMaX-DeepLab's augmentation).

    The second picture is drawn from the same dataset, goes through `transforms` on its own, and is laid on with its upper left
    corner on that of the sample. Where its segments reach beyond the sample, the sample is padded with grey and void. Crowds
    are not copied.

    Args:
        transforms: the steps of the second picture, as config dicts or callables; they begin with `LoadImage` and
            `LoadPanoptic`.
        p, stuff: probabilities.
    """

    def __init__(self, transforms: Sequence[dict | Callable], p: float = 1.0, stuff: float = 0.5) -> None:
        self.steps = build_steps(transforms)
        self.p, self.stuff = probability(p), probability(stuff)

    def __call__(self, sample: dict) -> dict:
        rng, dataset = sample["rng"], sample["dataset"]
        if rng.random() >= self.p:
            return sample
        start = {**dataset.get_sample(int(rng.integers(len(dataset)))), "rng": rng, "dataset": dataset}
        second = apply(self.steps, start)
        if second is None:
            return sample
        things = set(dataset.metainfo["things"])
        chosen = [
            not segment["iscrowd"] and (segment["label"] in things or rng.random() < self.stuff)
            for segment in second["segments"]
        ]
        return _pasted(sample, second, np.array([False, *chosen]))


def _pasted(sample: dict, second: dict, chosen: np.ndarray) -> dict:
    """`sample` under the pixels of `second` whose number is `chosen`, bool (n + 1,)."""
    pixels = chosen[second["pan_ids"]]
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return sample
    height, width = int(rows[-1]) + 1, int(columns[-1]) + 1
    sample = pad_sample(sample, (height, width), (128, 128, 128))
    pixels = pixels[:height, :width]
    numbers = (np.cumsum(chosen) * chosen).astype(np.int32)
    offset = len(sample["segments"])
    for key, values in (("img", second["img"]), ("pan_ids", numbers[second["pan_ids"]] + offset)):
        under = sample[key].copy()
        under[:height, :width][pixels] = values[:height, :width][pixels]
        sample[key] = under
    sample["segments"] = sample["segments"] + [segment for segment, use in zip(second["segments"], chosen[1:]) if use]
    return sample


@TRANSFORMS.register_module()
class PackPanoptic(PackSegInputs):
    """The sample as the model takes it: ``inputs`` uint8 tensor (3, h, w) RGB (a list of them after `TestTimeAug`) and
    ``data_samples``, a `DataSample` with the meta information (also ``pan_path``) and, where a map was loaded, what is asked
    for.

    Args:
        segments: ``gt_segments``, an `InstanceData` with ``labels`` int64 (n,) and ``masks`` bool (n, h, w): each thing, and
            each kind of stuff as one, as far as something of it is left; crowds are left out. And ``gt_void``: `PixelData` with
            bool data (1, h, w), the pixels of none of them.
        semantic: ``gt_sem_seg``: `PixelData` with uint8 data (1, h, w), the class of every pixel, 255 = none. In crowds it is
            that of the crowd.
    """

    META = ("pan_path",)

    def __init__(self, segments: bool = True, semantic: bool = False) -> None:
        self.segments, self.semantic = segments, semantic

    def annotate(self, data_sample: DataSample, sample: dict) -> None:
        if "pan_ids" not in sample:
            return
        ids, segments = sample["pan_ids"], sample["segments"]
        if self.semantic:
            data_sample.gt_sem_seg = PixelData(data=torch.from_numpy(semantic_map(ids, segments))[None])
        if self.segments:
            _add_segments(data_sample, ids, *_targets(segments, set(sample["dataset"].metainfo["things"])))


def _targets(segments: Sequence[dict], things: set[int]) -> tuple[np.ndarray, list[int]]:
    """(the position in the targets, from 1, of each number in ``pan_ids``, 0 = void; the targets' labels)."""
    positions, labels, stuff = [0], [], {}
    for segment in segments:
        label = segment["label"]
        if segment["iscrowd"]:
            positions.append(0)
        elif label in stuff:
            positions.append(stuff[label])
        else:
            labels.append(label)
            positions.append(len(labels))
            if label not in things:
                stuff[label] = len(labels)
    return np.array(positions), labels


def _add_segments(data_sample: DataSample, ids: np.ndarray, positions: np.ndarray, labels: Sequence[int]) -> None:
    """Adds ``gt_segments`` and ``gt_void``: number k of the map `ids` (H, W) belongs to target ``positions[k]``, from 1."""
    numbers = positions.astype(np.uint16)[ids]
    present = np.flatnonzero(np.bincount(numbers.reshape(-1), minlength=len(labels) + 1)[1:])
    masks = np.empty((len(present), *ids.shape), dtype=bool)
    for mask, target in zip(masks, present):
        np.equal(numbers, target + 1, out=mask)
    data_sample.gt_segments = InstanceData(
        labels=torch.tensor([labels[target] for target in present], dtype=torch.int64), masks=torch.from_numpy(masks)
    )
    data_sample.gt_void = PixelData(data=torch.from_numpy(numbers == 0)[None])


@TRANSFORMS.register_module()
class PackInstanceSegments(PackSegInputs):
    """As `PackPanoptic`, for the instance training of mask classifiers: ``gt_segments`` are the objects that `LoadAnnotations`
    read with their masks.
    """

    META = ()

    def annotate(self, data_sample: DataSample, sample: dict) -> None:
        if "gt_masks" in sample:
            masks = InstanceMasks.of(sample["gt_masks"]).pixels
            data_sample.gt_segments = InstanceData(
                labels=torch.from_numpy(sample["gt_labels"]), masks=torch.from_numpy(np.ascontiguousarray(masks))
            )


@TRANSFORMS.register_module()
class PackSemanticSegments(PackSegInputs):
    """As `PackPanoptic`, for the semantic training of mask classifiers: ``gt_segments`` has one mask for each class of
    ``gt_sem_seg``, or of a panoptic map, that is present, and ``gt_void`` the pixels without a class.
    """

    META = ("mask_path", "pan_path")

    def annotate(self, data_sample: DataSample, sample: dict) -> None:
        if "gt_sem_seg" in sample:
            labels = sample["gt_sem_seg"]
        elif "pan_ids" in sample:
            labels = semantic_map(sample["pan_ids"], sample["segments"])
        else:
            return
        positions = np.arange(1, 257)
        positions[IGNORE] = 0
        _add_segments(data_sample, labels, positions, range(IGNORE))
