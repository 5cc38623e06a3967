"""Training raises the score: a few pictures in seconds, the quickstart's recipe in full (slow)."""

import json

import pytest
import torch
from engine_tools import CONFIGS, train

from mmvit.data import ensure_shapes
from mmvit.data.shapes import SEGMENTED_ODD_COLOURS
from mmvit.engine import assemble, load_config
from mmvit.engine import test as evaluate


def scores(work_dir, metric="coco/bbox_mAP"):
    """The metric at each validation of a run."""
    records = [json.loads(line) for line in (work_dir / "scalars.json").read_text().splitlines()]
    return [r[metric] for r in records if r.get(metric) is not None]


@pytest.mark.parametrize("arch", ["debug", "v2_debug"])
def test_a_small_network_learns_a_few_pictures(tmp_path, arch):
    data = ensure_shapes(tmp_path / "shapes", train=16, val=2, size=96, seed=3)
    json_file = data / "annotations" / "instances_train.json"
    cfg = load_config(CONFIGS / "rtdetr_shapes.py")
    cfg.model.arch = arch
    cfg.model.head = dict(hidden_dim=64, num_heads=4, feedforward=128, num_layers=2, num_queries=20, num_denoising=16)
    cfg.model.neck = dict(hidden_dim=64, feedforward=128, num_heads=4)
    cfg.model.backbone = "presnet_shapes"
    cfg = assemble(
        cfg,
        data=json_file,
        work_dir=tmp_path / "run",
        size=96,
        batch_size=8,
        workers=0,
        epochs=120,
        val_interval=20,
        no_augment=True,
        lr=2e-3,
        seed=1,
        device="cpu",
    )
    train(cfg)
    found = scores(tmp_path / "run")
    assert found[0] < 0.1 and found[-1] > 0.5, found
    assert evaluate(cfg, tmp_path / "run" / "best.pth")["scores"]["coco/bbox_mAP"] == pytest.approx(max(found), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vwformer_shapes", "upernet_shapes"])
def test_the_small_segmenters_reach_their_score(tmp_path, recipe):
    data = ensure_shapes(tmp_path / "shapes", layouts=("ade20k",), odd_colours=SEGMENTED_ODD_COLOURS)
    cfg = assemble(load_config(CONFIGS / f"{recipe}.py"), data=data / "ade20k", work_dir=tmp_path / "run", seed=0, device="cpu")
    threads = torch.get_num_threads()
    train(cfg)
    torch.set_num_threads(threads)
    assert scores(tmp_path / "run", "mIoU")[-1] >= 0.8
    assert (tmp_path / "run" / "worst.png").is_file() and (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.slow
def test_the_quickstart_recipe_reaches_its_score(tmp_path):
    data = ensure_shapes(tmp_path / "shapes", train=800, val=200, size=160)
    cfg = assemble(load_config(CONFIGS / "rtdetr_shapes.py"), data=data, work_dir=tmp_path / "run", seed=0, device="cpu")
    torch.set_num_threads(2)
    from mmvit.engine import Runner

    Runner.from_cfg(cfg).train()
    assert scores(tmp_path / "run")[-1] >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["kmax_shapes", "pem_shapes"])
def test_the_small_panoptic_segmenters_reach_their_score(tmp_path, recipe):
    data = ensure_shapes(tmp_path / "shapes", layouts=("coco", "panoptic"), odd_colours=SEGMENTED_ODD_COLOURS)
    cfg = assemble(load_config(CONFIGS / f"{recipe}.py"), data=data, work_dir=tmp_path / "run", seed=0, device="cpu")
    threads = torch.get_num_threads()
    train(cfg)
    torch.set_num_threads(threads)
    found = scores(tmp_path / "run", "PQ")
    assert found[-1] >= 0.6 and found[0] < found[-1]
