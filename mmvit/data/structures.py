"""The container in which a picture's annotations, predictions and facts travel through the runner."""

from __future__ import annotations

from mmengine.structures import BaseDataElement, InstanceData


class DataSample(BaseDataElement):
    """One picture's facts (`metainfo`), annotations and predictions.

    Meta: ``img_id``, ``img_path``, ``ori_shape`` (h, w), ``img_shape`` (h, w), ``scale_factor`` (w, h), ``flip``.
    ``gt_instances``: `InstanceData` with ``bboxes`` float32 (n, 4), xyxy in pixels of the network input, and ``labels``
    int64 (n,); with masks also ``masks`` bool (n, H, W). ``pred_instances``: `InstanceData` with ``bboxes`` float32 (k, 4),
    xyxy in pixels of the original picture, ``scores`` (k,), ``labels`` (k,).
    """

    @property
    def gt_instances(self) -> InstanceData:
        return self._gt_instances

    @gt_instances.setter
    def gt_instances(self, value: InstanceData) -> None:
        self.set_field(value, "_gt_instances", dtype=InstanceData)

    @gt_instances.deleter
    def gt_instances(self) -> None:
        del self._gt_instances

    @property
    def pred_instances(self) -> InstanceData:
        return self._pred_instances

    @pred_instances.setter
    def pred_instances(self, value: InstanceData) -> None:
        self.set_field(value, "_pred_instances", dtype=InstanceData)

    @pred_instances.deleter
    def pred_instances(self) -> None:
        del self._pred_instances
