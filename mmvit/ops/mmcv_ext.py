"""The functions of mmcv's compiled extension ``mmcv._ext``, on the PyTorch kernels.

Names, order of the arguments and output buffers are those with which ``mmcv/ops/*.py`` call the extension, so mmcv's
own autograd functions, modules and wrappers run unchanged on top of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .deform_attn import ms_deform_attn
from .deform_conv import deform_conv2d, image_parts, modulated_deform_conv2d
from .focal import sigmoid_focal, softmax_focal_from_probabilities
from .rearrange import carafe, masked_columns, psa_mask
from .roi import roi_align, roi_align_argmax, roi_align_max_backward, roi_pool_backward, roi_pool_with_argmax
from .suppression import bbox_overlaps, nms, nms_match, soft_nms

FUNCTIONS: dict[str, Callable] = {}  # by the name that mmcv uses


def _stand_in(function: Callable) -> Callable:
    FUNCTIONS[function.__name__.removeprefix("_ext_")] = function
    return function


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


def _add(buffers: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    for buffer, gradient in zip(buffers, gradients):
        buffer.add_(gradient)


@_stand_in
def _ext_get_compiler_version() -> str:
    return "n/a"


@_stand_in
def _ext_get_compiling_cuda_version() -> str:
    return "n/a"


@_stand_in
def _ext_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return nms(boxes, scores, iou_threshold, offset)


@_stand_in
def _ext_softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> Tensor:
    kept_dets, kept = soft_nms(boxes, scores, iou_threshold, sigma, min_score, ("naive", "linear", "gaussian")[method], offset)
    dets[: len(kept)] = kept_dets
    return kept


@_stand_in
def _ext_nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    return [group.tolist() for group in nms_match(dets[:, :4], dets[:, 4], iou_threshold)]


@_stand_in
def _ext_bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    ious.copy_(bbox_overlaps(bboxes1, bboxes2, ("iou", "iof")[mode], aligned, offset))


@_stand_in
def _ext_roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    size = (aligned_height, aligned_width)
    if pool_mode == 1:
        output.copy_(roi_align(input, rois, size, spatial_scale, sampling_ratio, "avg", aligned))
        return
    values, y, x = roi_align_argmax(input, rois, size, spatial_scale, sampling_ratio, aligned)
    for buffer, result in ((output, values), (argmax_y, y), (argmax_x, x)):
        buffer.copy_(result)


@_stand_in
def _ext_roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    if pool_mode == 0:
        grad_input += roi_align_max_backward(grad_output, rois[:, 0].long(), argmax_y, argmax_x, tuple(grad_input.shape))
        return

    def forward(features: Tensor) -> Tensor:
        return roi_align(features, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, "avg", aligned)

    _add([grad_input], _gradients(forward, [torch.zeros_like(grad_input)], grad_output))  # linear: any features will do


@_stand_in
def _ext_roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    values, pixels = roi_pool_with_argmax(input, rois, (pooled_height, pooled_width), spatial_scale)
    output.copy_(values)
    argmax.copy_(pixels)


@_stand_in
def _ext_roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    grad_input += roi_pool_backward(grad_output, rois[:, 0].long(), argmax.long(), tuple(grad_input.shape))


@_stand_in
def _ext_ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


@_stand_in
def _ext_ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    def forward(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, value_spatial_shapes, locations, weights)

    gradients = _gradients(forward, [value, sampling_locations, attention_weights], grad_output)
    _add([grad_value, grad_sampling_loc, grad_attn_weight], gradients)


@_stand_in
def _ext_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    output.copy_(deform_conv2d(input, offset, weight, (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group))


@_stand_in
def _ext_deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    def forward(x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)

    for part in image_parts(input, offset, weight):
        gradients = _gradients(forward, [input[part], offset[part]], gradOutput[part])
        _add([gradInput[part], gradOffset[part]], gradients)


@_stand_in
def _ext_deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    for part in image_parts(input, offset, gradWeight):

        def forward(weight: Tensor, part: slice = part) -> Tensor:
            return deform_conv2d(
                input[part], offset[part], weight, (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
            )

        gradients = _gradients(forward, [torch.zeros_like(gradWeight)], scale * gradOutput[part])  # linear in the weight
        _add([gradWeight], gradients)


@_stand_in
def _ext_modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    output.copy_(
        modulated_deform_conv2d(
            input,
            offset,
            mask,
            weight,
            bias if with_bias else None,
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            group,
            deformable_group,
        )
    )


@_stand_in
def _ext_modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    def forward(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return modulated_deform_conv2d(
            x,
            offset,
            mask,
            weight,
            None,
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            group,
            deformable_group,
        )

    for part in image_parts(input, offset, weight):
        gradients = _gradients(forward, [input[part], offset[part], mask[part], weight], grad_output[part])
        _add([grad_input[part], grad_offset[part], grad_mask[part], grad_weight], gradients)
    if with_bias:
        grad_bias += grad_output.sum((0, 2, 3))


@_stand_in
def _ext_sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(sigmoid_focal(input, target, gamma, alpha, weight))


@_stand_in
def _ext_sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    def forward(logits: Tensor) -> Tensor:
        return sigmoid_focal(logits, target, gamma, alpha, weight)

    _add([grad_input], _gradients(forward, [input], torch.ones_like(input)))


@_stand_in
def _ext_softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(softmax_focal_from_probabilities(input, target, gamma, alpha, weight)[0])


@_stand_in
def _ext_softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    buff.copy_(softmax_focal_from_probabilities(input, target, gamma, alpha, weight)[1])
    hit = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(buff[:, None] * (hit.to(input.dtype) - input))


@_stand_in
def _ext_carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    output.copy_(carafe(features, masks, kernel_size, group_size, scale_factor))


@_stand_in
def _ext_carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    def forward(features: Tensor, masks: Tensor) -> Tensor:
        return carafe(features, masks, kernel_size, group_size, scale_factor)

    _add([bottom_grad, mask_grad], _gradients(forward, [features, masks], top_grad))


@_stand_in
def _ext_carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    rfeatures.copy_(features)  # mmcv hands only this buffer to the backward function
    output.copy_(carafe(features, masks, kernel_size, group_size, scale_factor))


@_stand_in
def _ext_carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    _ext_carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


@_stand_in
def _ext_masked_im2col_forward(
    im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int, kernel_w: int, pad_h: int, pad_w: int
) -> None:
    col.copy_(masked_columns(im, mask_h_idx, mask_w_idx, (kernel_h, kernel_w), (pad_h, pad_w)))


@_stand_in
def _ext_masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    im[0, :, mask_h_idx, mask_w_idx] = col


@_stand_in
def _ext_psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    output.copy_(psa_mask(input, psa_type == 1, (h_mask, w_mask)))


@_stand_in
def _ext_psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    def forward(x: Tensor) -> Tensor:
        return psa_mask(x, psa_type == 1, (h_mask, w_mask))

    _add([grad_input], _gradients(forward, [torch.zeros_like(grad_input)], grad_output))  # linear: any input will do
