"""RoIAlign (Mask R-CNN, arXiv:1703.06870) and RoIPool (Fast R-CNN, arXiv:1504.08083).

A bin of RoIAlign samples a regular grid, so its average factorises: (weights of rows) × (weights of columns). The
weights of one axis are added up first, then the bin is one weighted sum over its few rows × columns of pixels. Bins
differ in their number of samples; everything below works on flat lists of the entries of all bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import native
from .sampling import at_least_float32, bilinear_taps, weighted_rows

_TAPS = 1 << 22  # (bin, pixel) pairs handled at once
_VALUES = 1 << 25  # sampled values held in memory at once by max pooling


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Each RoI's features, resampled bilinearly to a fixed size.

    Args:
        features: (B, C, H, W).
        rois: (R, 5): image index, x1, y1, x2, y2 in image pixels; no gradient flows to them.
        output_size: bins (height, width) of a RoI.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0: ceil(bin size), for each RoI its own.
        pool_mode: ``"avg"`` or ``"max"`` over the samples of a bin. A sample more than one pixel outside the map is zero.
        aligned: shift by half a pixel so that pixel centres lie at half-integers; if false, also let no RoI be smaller
            than one feature pixel (the older definition).

    Returns:
        (R, C, height, width). A RoI without area (`aligned` and `sampling_ratio` 0) gives zeros, as does one that is
        not finite (a compiled kernel may raise there).
    """
    if pool_mode not in ("avg", "max"):
        raise ValueError(f"pool_mode must be 'avg' or 'max', got {pool_mode!r}")
    size = _pair(output_size)
    _check(features, rois)
    rois = rois.detach().to(features.dtype)
    if pool_mode == "max":
        return roi_align_argmax(features, rois, size, spatial_scale, sampling_ratio, aligned)[0]
    found = native.find("roi_align", features.device) if native.takes(features) and len(rois) else None
    if found is not None:
        return found.function(features, rois, size, float(spatial_scale), int(sampling_ratio), "avg", bool(aligned))
    wide = at_least_float32(features)
    grid = _sampling_grid(rois.to(wide.dtype), size, spatial_scale, sampling_ratio, aligned)
    return _average(wide, grid, size).to(features.dtype)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check(features: Tensor, rois: Tensor) -> None:
    if features.dim() != 4 or rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            "features must be (B, C, H, W) and rois (R, 5) as (image index, x1, y1, x2, y2), got "
            f"{tuple(features.shape)} and {tuple(rois.shape)}"
        )


class Axis(NamedTuple):
    """Where the samples of one axis lie: sample i of bin b is at start + (b + (i + 0.5) / count) * bin_size."""

    start: Tensor  # (R,) pixels
    bin_size: Tensor  # (R,) pixels
    count: Tensor  # (R,) int64, samples per bin


class Grid(NamedTuple):
    image: Tensor  # (R,) int64
    y: Axis
    x: Axis

    def part(self, rois: Tensor) -> Grid:
        y, x = (Axis(*(field[rois] for field in axis)) for axis in (self.y, self.x))
        return Grid(self.image[rois], y, x)


def _sampling_grid(rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool) -> Grid:
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    axes = []
    for axis, bins in ((1, size[0]), (0, size[1])):
        bin_size = extent[:, axis] / bins
        # in float32 for every dtype, as the compiled kernel: a bin of 2 + 1e-15 pixels has two samples
        count = bin_size.float().ceil() if sampling_ratio <= 0 else torch.full_like(bin_size, sampling_ratio)
        finite = corners.isfinite().all(1)
        axes.append(Axis(corners[:, axis], bin_size, torch.where(finite, count, 0).clamp(min=0).long()))
    return Grid(rois[:, 0].long(), *axes)


def _within(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For lists of the given lengths laid end to end: the list of each entry, and the entry's place in its list."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    starts = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - starts[owner]


def _parts(work: Tensor, limit: int) -> list[Tensor]:
    """RoIs in order, split so that the work of a part stays near `limit`; one empty part where there are no RoIs."""
    if len(work) == 0:
        return [work.long()]
    part = (work.cumsum(0) - work) // limit
    return list(torch.arange(len(work), device=work.device).split(part.unique_consecutive(return_counts=True)[1].tolist()))


class Entries(NamedTuple):
    """What the bins of one axis hold, laid end to end: samples, or weighted pixels."""

    value: Tensor  # (entries,) pixel or position
    weight: Tensor  # (entries,)
    first: Tensor  # (R, bins) where the entries of a bin begin
    count: Tensor  # (R, bins)


def _combine(y: Entries, x: Entries) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs (entry of the row bin, entry of the column bin) of every two-dimensional bin.

    Returns:
        counts (R·height·width,) pairs of each bin, and for each pair: its bin, its entry in `y`, its entry in `x`.
    """
    rows, columns = y.count.shape[1], x.count.shape[1]
    counts = (y.count[:, :, None] * x.count[:, None, :]).flatten()
    bin_, place = _within(counts)
    roi, row_bin, column_bin = bin_ // (rows * columns), bin_ // columns % rows, bin_ % columns
    across = x.count[roi, column_bin]
    return counts, bin_, y.first[roi, row_bin] + place // across, x.first[roi, column_bin] + place % across


def _samples(axis: Axis, bins: int, length: int) -> Entries:
    """Positions of the samples of each bin along one axis, but for those more than one pixel outside the map.

    Positions are not yet moved onto the map; a weight is 1 / (number of samples of the bin, those outside included).
    """
    owner, sample = _within(axis.count[:, None].expand(-1, bins).flatten())  # owner = RoI·bins + bin
    roi = owner // bins
    size = axis.bin_size[roi]
    position = axis.start[roi] + owner % bins * size + (sample + 0.5) * size / axis.count[roi]
    inside = (position >= -1.0) & (position <= length)
    count = owner[inside].bincount(minlength=len(axis.count) * bins)
    weight = axis.count[roi[inside]].to(position.dtype).reciprocal()
    return Entries(position[inside], weight, (count.cumsum(0) - count).view(-1, bins), count.view(-1, bins))


def _pixels(axis: Axis, bins: int, length: int) -> Entries:
    """Pixels that the samples of each bin touch along one axis, with the sums of their interpolation weights."""
    samples = _samples(axis, bins, length)
    owner = torch.repeat_interleave(torch.arange(samples.count.numel(), device=axis.count.device), samples.count.flatten())
    position = samples.value.clamp(0, length - 1)
    low = position.floor()
    fraction = position - low  # 0 on the last pixel, whose upper neighbour would be in the next bin's row
    flat = owner * length + low.long()
    weights = position.new_zeros(samples.count.numel(), length)
    weights.view(-1).index_add_(0, flat, (1 - fraction) * samples.weight)
    weights.view(-1).index_add_(0, (flat + 1).clamp(max=weights.numel() - 1), fraction * samples.weight)
    bin_, pixel = weights.nonzero(as_tuple=True)
    count = bin_.bincount(minlength=len(weights))
    return Entries(pixel, weights[bin_, pixel], (count.cumsum(0) - count).view(-1, bins), count.view(-1, bins))


def _bins_last(bins: Tensor, size: tuple[int, int]) -> Tensor:
    """(R·height·width, C) -> (R, C, height, width)."""
    return bins.view(-1, *size, bins.shape[-1]).permute(0, 3, 1, 2).contiguous()


def _average(features: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    _, channels, height, width = features.shape
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    work, taps = 0, 1  # of a RoI: entries and weights of its axes, pixels of its bins
    for axis, bins, length in ((grid.y, size[0], height), (grid.x, size[1], width)):
        taps = taps * torch.minimum(2 * axis.count, axis.count + 2).clamp(max=length) * bins
        work = work + bins * (axis.count + length)
    parts = _parts(work + taps, _TAPS)
    pooled = [_average_part(table, grid.part(part), size, height, width) for part in parts]
    return _bins_last(torch.cat(pooled) if len(pooled) > 1 else pooled[0], size)


def _average_part(table: Tensor, grid: Grid, size: tuple[int, int], height: int, width: int) -> Tensor:
    y, x = _pixels(grid.y, size[0], height), _pixels(grid.x, size[1], width)
    counts, bin_, row, column = _combine(y, x)
    index = (grid.image[bin_ // (size[0] * size[1])] * height + y.value[row]) * width + x.value[column]
    return weighted_rows(table, index, y.weight[row] * x.weight[column], counts.cumsum(0) - counts)


def roi_align_argmax(
    features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Max over the samples of each bin and channel: the value, and y and x of its sample, each (R, C, height, width).

    Arguments as in `roi_align`. A bin without samples, or whose best sample lies outside the map, gives 0 at (-1, -1).
    """
    dtype, features = features.dtype, at_least_float32(features)
    _, channels, height, width = features.shape
    grid = _sampling_grid(rois.to(features.dtype), size, spatial_scale, sampling_ratio, aligned)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    work, samples = 0, channels + 16
    for axis, bins in zip((grid.y, grid.x), size):
        samples = samples * (axis.count * bins)
        work = work + bins * axis.count
    parts = [_max_part(table, grid.part(part), size, height, width) for part in _parts(work + samples, _VALUES)]
    return tuple(_bins_last(torch.cat(outputs), size).to(dtype) for outputs in zip(*parts))


def _max_part(table: Tensor, grid: Grid, size: tuple[int, int], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    y, x = _samples(grid.y, size[0], height), _samples(grid.x, size[1], width)
    counts, bin_, row, column = _combine(y, x)
    y_raw, x_raw = y.value[row], x.value[column]
    index, weight = bilinear_taps(y_raw.clamp(0, height - 1), x_raw.clamp(0, width - 1), height, width)
    index = index + (grid.image[bin_ // (size[0] * size[1])] * height * width)[:, None]
    best, which = _bag_max(weighted_rows(table, index, weight), counts, bin_)
    beyond = (grid.y.count * grid.x.count)[:, None] > counts.view(-1, size[0] * size[1])  # some samples are outside: zeros
    beaten = beyond.flatten()[:, None] & (best < 0)
    best, which = best.masked_fill(beaten, 0.0), which.masked_fill(beaten, -1)
    y_best, x_best = (torch.cat([raw, raw.new_full((1,), -1.0)])[which] for raw in (y_raw, x_raw))  # [-1] is the last one
    return best, y_best, x_best


def _bag_max(values: Tensor, counts: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Max of the entries (entries, C) of each bag: (bags, C), and the entry it came from (0 and -1 for an empty bag)."""
    longest = max(1, int(counts.max())) if len(counts) else 1
    first = counts.cumsum(0) - counts
    padded = values.new_full((len(counts), longest, values.shape[1]), -torch.inf)
    padded = padded.index_put((owner, torch.arange(len(values), device=values.device) - first[owner]), values)
    best, position = padded.max(1)
    filled = (counts > 0)[:, None]
    entry = first[:, None] + position
    return torch.where(filled, best, 0.0), torch.where(filled, entry, -1)


def roi_align_max_backward(
    grad_output: Tensor, image: Tensor, argmax_y: Tensor, argmax_x: Tensor, shape: tuple[int, int, int, int]
) -> Tensor:
    """Gradient of max pooling to features of `shape`, from the positions that `roi_align_argmax` returned."""
    batch, channels, height, width = shape
    inside = (argmax_y >= -1) & (argmax_y <= height) & (argmax_x >= -1) & (argmax_x <= width)
    inside &= (argmax_y != -1) | (argmax_x != -1)  # (-1, -1) marks an empty bin
    index, weight = bilinear_taps(argmax_y.clamp(0, height - 1), argmax_x.clamp(0, width - 1), height, width)
    plane = image[:, None] * channels + torch.arange(channels, device=image.device)  # (R, C)
    index = index + (plane * height * width)[:, :, None, None, None]
    gradient = grad_output.new_zeros(batch * channels * height * width)
    gradient.index_add_(0, index.flatten(), (weight * (inside * grad_output)[..., None]).flatten())
    return gradient.view(shape)


def roi_pool(features: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """Max over the pixels of each bin of each RoI.

    Arguments and result as in `roi_align`; RoI corners are inclusive pixels (x2 and y2 count in), bins are rounded
    outwards to whole pixels, an empty bin gives zero.
    """
    _check(features, rois)
    rois = rois.detach().to(features.dtype)
    found = native.find("roi_pool", features.device) if native.takes(features) and len(rois) else None
    if found is not None:
        return found.function(features, rois, _pair(output_size), float(spatial_scale))
    return roi_pool_with_argmax(features, rois, _pair(output_size), spatial_scale)[0]


def roi_pool_with_argmax(features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float) -> tuple[Tensor, Tensor]:
    """The pooled features (R, C, height, width) and the pixel y·W + x that each came from (int64, -1 for none)."""
    batch, channels, height, width = features.shape
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    rois = at_least_float32(rois)
    low, high = rois[:, 1:3] * spatial_scale, (rois[:, 3:5] + 1) * spatial_scale
    valid = ((high > low) & low.isfinite() & high.isfinite()).all(1)
    y = _pixel_bins(low[:, 1], high[:, 1], size[0], height, valid)
    x = _pixel_bins(low[:, 0], high[:, 0], size[1], width, valid)
    image = rois[:, 0].long()
    outputs = []
    for part in _parts(y.count.amax(1) * x.count.amax(1) * size[0] * size[1] * channels, _VALUES):
        rows, columns = (axis._replace(first=axis.first[part], count=axis.count[part]) for axis in (y, x))
        counts, bin_, row, column = _combine(rows, columns)
        pixel = row * width + column
        best, which = _bag_max(table[image[part][bin_ // (size[0] * size[1])] * height * width + pixel], counts, bin_)
        outputs.append((best, torch.cat([pixel, pixel.new_full((1,), -1)])[which]))  # [-1] is the last one
    return tuple(_bins_last(torch.cat(parts), size) for parts in zip(*outputs))


def _pixel_bins(low: Tensor, high: Tensor, bins: int, length: int, valid: Tensor) -> Entries:
    """The pixels of each bin along one axis: an entry is a pixel, so `first` is the first pixel of a bin."""
    size = ((high - low) / bins)[:, None]
    step = torch.arange(bins, device=low.device)
    first = (step * size + low[:, None]).floor().nan_to_num(0.0).clamp(0, length).long()
    last = ((step + 1) * size + low[:, None]).ceil().nan_to_num(0.0).clamp(0, length).long()
    pixels = torch.arange(length, device=low.device)
    return Entries(pixels, torch.ones_like(pixels), first, (last - first).clamp(min=0) * valid[:, None])


def roi_pool_backward(grad_output: Tensor, image: Tensor, argmax: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Gradient of `roi_pool` to features of `shape`, from the pixels that `roi_pool_with_argmax` returned."""
    batch, channels, height, width = shape
    plane = image[:, None] * channels + torch.arange(channels, device=image.device)
    index = (plane * height * width)[:, :, None, None] + argmax.clamp(min=0)
    gradient = grad_output.new_zeros(batch * channels * height * width)
    gradient.index_add_(0, index.flatten(), (grad_output * (argmax >= 0)).flatten())
    return gradient.view(shape)
