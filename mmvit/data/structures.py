"""The container in which a picture's annotations, predictions and facts travel through the runner."""

from __future__ import annotations

from mmengine.structures import BaseDataElement, InstanceData, PixelData


def _field(name: str, kind: type) -> property:
    """A data field of a `BaseDataElement` that accepts values of one type only; others are a `TypeError`."""
    private = f"_{name}"

    def put(self: BaseDataElement, value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(
                f"DataSample.{name} must be {kind.__name__}, got {type(value).__name__}: wrap it in {kind.__name__}"
            )
        self.set_field(value, private, dtype=kind)

    return property(lambda self: getattr(self, private), put, lambda self: delattr(self, private))


class DataSample(BaseDataElement):
    """One picture's facts (`metainfo`), annotations and predictions.

    Meta: ``img_id``, ``img_path``, ``ori_shape`` (h, w), ``img_shape`` (h, w), ``scale_factor`` (w, h), ``flip``.
    ``gt_instances``: `InstanceData` with ``bboxes`` float32 (n, 4), xyxy in pixels of the network input, and ``labels``
    int64 (n,); with masks also ``masks`` bool (n, H, W). ``pred_instances``: `InstanceData` with ``bboxes`` float32 (k, 4),
    xyxy in pixels of the original picture, ``scores`` (k,), ``labels`` (k,).
    ``pred_instances`` of a segmenter also hold ``masks``: a list of COCO RLEs, ``dict(size, counts)``, of the original picture.
    ``gt_segments``: `InstanceData` with ``labels`` int64 (n,) and ``masks`` bool (n, h, w), the segments of a panoptic or
    semantic map; ``gt_void``: `PixelData` with ``data`` bool (1, h, w), the pixels of none of them that do not count.
    ``pred_panoptic_seg``: `PixelData` with ``data`` int32 (1, H, W), the segment of every pixel of the original picture, 0 =
    void; the meta information ``segments_info`` holds ``dict(id, label, score)`` of each.
    ``gt_sem_seg``: `PixelData` with ``data`` uint8 (1, h, w), the class of every pixel, 255 = none. ``pred_sem_seg``: the same
    (1, H, W) at the size of the original picture.
    """

    gt_instances = _field("gt_instances", InstanceData)
    pred_instances = _field("pred_instances", InstanceData)
    gt_segments = _field("gt_segments", InstanceData)
    gt_void = _field("gt_void", PixelData)
    pred_panoptic_seg = _field("pred_panoptic_seg", PixelData)
    gt_sem_seg = _field("gt_sem_seg", PixelData)
    pred_sem_seg = _field("pred_sem_seg", PixelData)
