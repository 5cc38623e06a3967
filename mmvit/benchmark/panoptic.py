"""Panoptic quality against cityscapesscripts', on files of the size of Cityscapes."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.data.panoptic_files import read_panoptic, write_panoptic
from mmvit.errors import UserError
from mmvit.evaluation.panoptic import evaluate_panoptic, match_segments, with_labels

SIZE = (1024, 2048)
SEGMENTS = 60
OURS, PEER = "mmvit evaluate_panoptic", "cityscapesscripts evalPanopticSemanticLabeling"
MATCHING = "mmvit match_segments, maps in memory"


def benchmark_panoptic(rounds: int = 10, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Time of a picture in each tool, in one process, from the PNGs to the counts.

    The tools take turns over the same `rounds` files, so that all meet the same machine. One picture before them warms up.

    Returns:
        settings, ``gap`` (largest difference of PQ, SQ or RQ of a class to ours, as a fraction) and ``rows``: name ->
        ``seconds`` a picture (median) and ``ratio`` to ours.
    """
    try:
        from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as peer
    except ImportError:
        raise UserError("the comparison of panoptic quality needs its peer: pip install cityscapesscripts") from None
    times: dict[str, list[float]] = {OURS: [], PEER: [], MATCHING: []}
    gap = 0.0
    with tempfile.TemporaryDirectory(prefix="mmvit-panoptic-") as folder:
        for seed in range(rounds + 1):
            _write_scene(Path(folder), seed, size)
            files = [Path(folder) / name for name in ("gt.json", "gt", "pred.json", "pred")]
            start = time.perf_counter()
            ours = evaluate_panoptic(*files, processes=1)
            times[OURS].append(time.perf_counter() - start)
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                theirs = _peer_scores(peer, *files)
            times[PEER].append(time.perf_counter() - start)
            times[MATCHING].append(_time_matching(*files))
            gap = max(gap, _gap(ours, theirs))
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    return dict(
        size=list(size),
        segments=SEGMENTS,
        rounds=rounds,
        gap=gap,
        rows={name: dict(seconds=value, ratio=value / seconds[OURS]) for name, value in seconds.items()},
    )


def _write_scene(folder: Path, seed: int, size: tuple[int, int]) -> None:
    """Ground truth in convex cells, a sixth of them void or crowd, and a prediction that is off by some pixels."""
    from scipy.ndimage import zoom
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    centres = rng.random((SEGMENTS, 2)) * (height, width)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    cells = zoom(cKDTree(centres).query(grid)[1].astype(np.int32), 4, order=0)[: size[0], : size[1]] + 1
    truth = np.where(cells % 12 == 0, 0, cells)
    found = np.roll(cells, 9, axis=1)
    found[rng.random(size) < 0.01] = 0
    categories = [{"id": k, "name": f"class {k}", "isthing": int(k > 10)} for k in range(19)]
    for name, ids in (("gt", truth), ("pred", found)):
        segments = [
            {"id": int(k), "category_id": int(k) % 19, "iscrowd": int(name == "gt" and k % 12 == 1)}
            for k in np.unique(ids)
            if k
        ]
        map_of_scene = dict(image_id=seed, file_name=f"{seed}.png", ids=ids, segments_info=segments)
        write_panoptic(folder / name, folder / f"{name}.json", [map_of_scene], categories)


def _peer_scores(peer: Any, gt_json: Path, gt_dir: Path, pred_json: Path, pred_dir: Path) -> dict[str, float]:
    """PQ, SQ and RQ of the classes that occur, by cityscapesscripts in this process."""
    import json

    truth, found = (json.loads(path.read_text()) for path in (gt_json, pred_json))
    categories = {category["id"]: category for category in truth["categories"]}
    pairs = list(zip(truth["annotations"], found["annotations"]))
    counts = peer.pq_compute_single_core(0, pairs, gt_dir, pred_dir, categories)
    _, by_class = counts.pq_average(categories, isthing=None)
    return {
        f"{key.upper()}/{categories[identity]['name']}": value
        for identity, values in by_class.items()
        for key, value in values.items()
    }


def _time_matching(gt_json: Path, gt_dir: Path, pred_json: Path, pred_dir: Path) -> float:
    """Seconds of `match_segments` alone."""
    gt, pred = read_panoptic(gt_json, gt_dir), read_panoptic(pred_json, pred_dir)
    maps = []
    for source in (gt, pred):
        annotation = source.annotations[0]
        maps += [source.read_colours(annotation), with_labels(annotation["segments_info"], {k: k for k in range(19)}, "scene")]
    start = time.perf_counter()
    match_segments(*maps, 19)
    return time.perf_counter() - start


def _gap(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(abs(np.nan_to_num(ours[key]) - value) for key, value in theirs.items())  # absent classes: NaN here, 0 there


def panoptic_table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| panoptic quality | time of a picture | relative |", "|---|---|---|"]
    lines += [f"| {name} | {row['seconds'] * 1e3:.1f} ms | {row['ratio']:.2f}x |" for name, row in result["rows"].items()]
    height, width = result["size"]
    lines += [
        "",
        f"Pictures of {height}x{width} with {result['segments']} segments, one process, median of {result['rounds']}; the "
        f"scores differ by at most {result['gap']:.0e}.",
    ]
    return "\n".join(lines)
