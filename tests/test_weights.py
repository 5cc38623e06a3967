"""Index, download and loading of checkpoints."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from torch import nn

from mmvit.errors import UserError
from mmvit.weights import (
    backbones,
    cache_dir,
    check_sha256,
    index,
    load_checkpoint,
    load_into,
    published,
    published_figures,
    resolve,
    save_safetensors,
)
from mmvit.weights import download as download_module
from mmvit.weights.catalogue import Published, backbone_url
from mmvit.weights.figures import SCORES, all_figures

DATASETS = ("coco", "ade20k", "cityscapes")
KINDS = {"pan": "panoptic", "ins": "instance", "sem": "semantic"}
BODY = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))


class Server(ThreadingHTTPServer):
    """Serves `body`; `cut_after` bytes it drops the connection, `cuts` times."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.status, self.content_type, self.etag = BODY, 200, "application/octet-stream", '"one"'
        self.ranges, self.cut_after, self.cuts, self.declared = True, 0, 0, None
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/net.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if server.ranges and wanted and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.body) > 0 and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.content_type)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(server.declared or len(server.body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.end_headers()
        piece = server.body[start:]
        if server.cuts:
            server.cuts -= 1
            piece = piece[: server.cut_after]
        self.wfile.write(piece)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "BACKOFF", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def only_file(cache: Path) -> Path:
    return next(path for path in cache.iterdir() if path.suffix == ".pth")


# ---- index


def test_index_is_complete_and_consistent() -> None:
    from mmvit.architectures import is_model

    entries = index()
    assert {
        "rtdetr_r18",
        "rtdetr_r34",
        "rtdetr_r50m",
        "rtdetr_r50",
        "rtdetr_r101",
        "rtdetr_r50_obj365",
        "rtdetrv2_r50_dsp",
        "rtdetrv2_r18_sp1",
        "rtdetrv2_hgnetv2_h",
        *(f"segformer_mit_b{i}_{data}" for i in range(6) for data in ("ade20k", "cityscapes")),
        *(f"upernet_swin_{size}_ade20k{made}" for size in ("tiny", "small", "base") for made in ("", "_mmseg")),
        *(f"upernet_convnext_{size}_ade20k" for size in ("tiny", "small", "base", "large", "xlarge")),
        "vwformer_swin_base_ade20k",
        "vwformer_convnext_tiny_cityscapes",
        *(f"mask2former_resnet_50_{data}_{kind}" for data in ("ade20k", "cityscapes") for kind in ("pan", "ins", "sem")),
        *(f"mask2former_swin_base_window12_coco_{kind}" for kind in ("pan", "ins", "pan_22k", "ins_22k")),
        *(f"kmax_{backbone}_{data}_pan" for backbone in ("resnet_50", "convnext_large") for data in DATASETS),
    } <= set(entries)
    for entry in entries.values():
        assert is_model(entry.architecture), entry.name
        kind = KINDS.get(entry.architecture.rpartition("_")[2], "semantic")
        assert entry.task == ("detection" if entry.architecture.startswith("rtdetr") else kind)
        assert [entry.packaged, entry.url, entry.page].count(None) == 2  # there is one way to get it
        if entry.packaged is None:
            assert (entry.url or entry.page).startswith("https://") and entry.file_name.endswith((".pth", ".pkl"))
            assert entry.source["arxiv"] and entry.source["code"].startswith("https://")
            assert (entry.dataset or "coco") in DATASETS and (
                kind not in entry.task or f"_{entry.dataset}" in entry.architecture
            )
        if entry.task == "semantic" and entry.packaged is None:
            assert 30 < entry.miou_ss < entry.miou_ms < 90
        assert entry.pq is None or entry.task == "panoptic"
        assert entry.mask_ap is None or entry.task in ("instance", "panoptic")
    files = {entry.url or entry.page: entry.file_name for entry in (*entries.values(), *backbones().values())}
    assert len(files) == len(set(files.values()))  # no clash in the cache folder
    assert (entries["rtdetr_r50"].box_ap, entries["rtdetr_r50_obj365"].box_ap) == (53.1, 55.3)
    assert published("rtdetrv2_m*").name == "rtdetrv2_r50m" and published("rtdetrv2_s").box_ap == 48.1
    assert published("segformer_mit_b0").name == "segformer_mit_b0_ade20k"
    assert published("segformer_mit_b0").sha256 == "8ffa8fda" and published("segformer_mit_b0").miou_ss == 37.41


def test_every_pretrained_backbone_is_one_of_ours() -> None:
    from mmvit.backbones import find_backbone

    names = {entry.backbone for entry in index().values() if entry.backbone}
    assert names <= set(backbones())
    for name, entry in backbones().items():
        plain, _, made = name.partition("_22k")
        assert find_backbone(plain) and made in ("", "_1k_384"), name
        assert [entry.url, entry.page].count(None) == 1 and (entry.url or entry.page).startswith("https://"), name
        assert entry.file_name.endswith((".pth", ".pth.tar")) and entry.source["arxiv"]
        assert "_22k" not in name or entry.pretrain == "ImageNet-22K"
    assert backbone_url("PResNet50vd") == backbone_url("presnet_50vd")
    assert backbone_url("SwinTiny") == backbones()["swin_tiny"].url
    assert backbone_url("resnet_1") is None
    assert backbones()["poolformer_s12"].file_name == "poolformer_s12.pth.tar"
    assert backbones()["hornet_tiny_gf"].file_name == "hornet_tiny_gf.pth"  # its address ends in "/?dl=1"


def test_families_have_weights_for_all_their_variants() -> None:
    from mmvit.backbones import list_backbones

    families = ("agent_pvt", "agent_swin", "crossformer", "crossformerpp", "cswin", "dinat", "dinat_s", "efficientformer")
    families += ("efficientformerv2", "hornet", "iformer", "metaformer", "nat", "nextvit", "poolformer", "shvit", "smt")
    families += ("unireplknet", "vit", "vit_comer")
    names = {name for family in families for name in list_backbones(f"{family}_*") if not name.endswith("_debug")}
    # ViT-CoMer's detectors started from DINOv2; the authors of ViT-L publish no file of PyTorch's
    assert names - set(backbones()) == {"vit_comer_b_det", "vit_comer_s_det", "vit_large_patch16"}


# ---- published figures


def test_published_figures_are_found_by_method_backbone_and_data() -> None:
    rows = published_figures("UPerNet", "Swin-Tiny", "ADE20K")
    assert [(row.miou_ss, row.miou_ms, row.source["code"].split()[0]) for row in rows] == [
        (44.51, 45.81, "microsoft/Swin-Transformer"),
        (44.41, 45.79, "open-mmlab/mmsegmentation"),
    ]
    assert rows[0].setting == "ImageNet-1K, 160k, 512x512, arXiv 2103.14030, microsoft/Swin-Transformer"
    (vw,) = published_figures("vwformer", "convnext_base", "cityscapes")
    assert (vw.miou_ss, vw.miou_ms, vw.size) == (83.2, 83.9, "512x1024")
    assert [row.box_ap for row in published_figures("mask_rcnn", "swin_tiny", schedule="3x")] == [46.0]
    (panoptic,) = published_figures("mask2former", "swin_large_window12", "coco", task="panoptic")
    assert (panoptic.pq, panoptic.mask_ap, panoptic.pretrain, panoptic.schedule) == (57.8, 48.6, "ImageNet-22K", "100e")
    assert published_figures("upernet", "mit_b0") == []
    assert {row.backbone for row in published_figures("rtdetr", variant="r50m")} == {"presnet_50vd"}
    with pytest.raises(UserError, match="method 'upernt'. Did you mean 'upernet'"):
        published_figures("upernt")
    with pytest.raises(UserError, match="data.* 'ade'"):
        published_figures(dataset="ade")


def test_published_figures_are_consistent() -> None:
    rows = all_figures()
    assert len(rows) > 500 and {row.dataset for row in rows} == {"coco", "ade20k", "cityscapes"}
    headline = {"detection": "box_ap", "instance": "mask_ap", "panoptic": "pq"}
    for row in rows:
        scores = [getattr(row, key) for key in SCORES]
        assert all(score is None or 5 < score < 100 for score in scores), row
        assert row.task == "semantic" or getattr(row, headline[row.task]) is not None, row
        assert row.task != "semantic" or row.miou_ss is not None or row.miou_ms is not None, row
        assert row.miou_ss is None or row.miou_ms is None or row.miou_ss <= row.miou_ms, row
        assert row.source["paper"] and row.source["code"], row
    assert len(set(map(repr, rows))) == len(rows)


def test_index_and_published_figures_agree() -> None:
    for entry in index().values():
        if entry.task == "semantic" and entry.packaged is None:
            method, _, rest = entry.architecture.partition("_")
            rows = published_figures(method, rest.removesuffix("_sem").removesuffix(f"_{entry.dataset}"), entry.dataset)
            assert (entry.miou_ss, entry.miou_ms) in [(row.miou_ss, row.miou_ms) for row in rows], entry.name
        elif entry.task in ("instance", "panoptic"):
            method, backbone = re.match(rf"(\w+?)_(\w+)_{entry.dataset}_(?:pan|ins)", entry.architecture).groups()
            rows = published_figures(method, backbone, entry.dataset, task=entry.task, schedule=entry.schedule)
            assert [
                (row.size, row.source["arxiv"])
                for row in rows
                if all(getattr(row, key) == getattr(entry, key) for key in ("pretrain", "pq", "mask_ap", "miou_ss"))
            ] == [(entry.crop, entry.source["arxiv"])], entry.name
        elif entry.box_ap and entry.pretrain is None:
            method, _, variant = entry.architecture.partition("_")
            (row,) = [row for row in published_figures(method, variant=variant) if row.pretrain is None]
            assert (row.box_ap, row.params_m or entry.params_m) == (entry.box_ap, entry.params_m), entry.name


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match="Did you mean 'rtdetr_r50'"):
        published("rtdetr_r5O")
    with pytest.raises(UserError, match="neither a file nor the name.*Did you mean 'rtdetr_r50m'"):
        resolve("rtdetr_50m")
    with pytest.raises(UserError, match="does not exist"):
        resolve("weights/mine.pth")


def test_packaged_weights_name_the_command_that_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "FILES", tmp_path)
    with pytest.raises(UserError, match="make quickstart"):
        resolve("rtdetr_shapes")
    (tmp_path / "rtdetr_shapes.safetensors").write_bytes(b"x")
    assert resolve("rtdetr_shapes") == tmp_path / "rtdetr_shapes.safetensors"


# ---- download


def test_download_is_made_once_and_hash_recorded(server: Server, cache: Path) -> None:
    path = resolve(server.url, progress=False)
    assert path.read_bytes() == BODY and path.parent == cache == cache_dir()
    assert path.with_name(path.name + ".sha256").read_text().split() == [hashlib.sha256(BODY).hexdigest(), path.name]
    assert resolve(server.url) == path and len(server.requests) == 1
    assert not list(cache.glob("*.part*"))


def test_download_shows_a_progress_bar_on_stderr(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    resolve(server.url)
    captured = capsys.readouterr()
    assert "net.pth" in captured.err and captured.out == ""


def test_two_addresses_with_one_file_name_do_not_clash(server: Server) -> None:
    first = resolve(server.url, progress=False)
    server.body = b"\x80other"
    second = resolve(server.url.replace("files", "others"), progress=False)
    assert first.read_bytes() == BODY and second.read_bytes() == b"\x80other"


def test_a_cut_download_continues_where_it_stopped(server: Server) -> None:
    server.cuts, server.cut_after = 2, 100_000
    assert resolve(server.url, progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_run_continues_the_part_file(server: Server, cache: Path) -> None:
    server.cuts, server.cut_after = 1, 100_000
    server.ranges = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_module, "ATTEMPTS", 1)
        with pytest.raises(UserError, match="100000 of 300000 bytes arrived"):
            resolve(server.url, progress=False)
    assert next(cache.glob("*.part")).stat().st_size == 100_000 and not list(cache.glob("*.pth"))
    assert resolve(server.url, progress=False).read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-"]


def test_a_part_of_an_older_file_is_not_mixed_with_the_new_one(server: Server) -> None:
    server.cuts, server.cut_after = 1, 100_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download_module, "ATTEMPTS", 1)
        with pytest.raises(UserError):
            resolve(server.url, progress=False)
    server.body, server.etag = BODY[::-1], '"two"'
    assert resolve(server.url, progress=False).read_bytes() == BODY[::-1]


def test_a_part_that_is_already_whole_is_taken(server: Server, cache: Path) -> None:
    cache.mkdir()
    path = resolve(server.url, progress=False)
    path.rename(path.with_name(path.name + ".part"))
    path.with_name(path.name + ".part.json").write_text('{"validator": "\\"one\\"", "total": 300000}')
    assert resolve(server.url, progress=False).read_bytes() == BODY


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    server.ranges, server.cuts, server.cut_after = False, 2, 100_000
    assert resolve(server.url, progress=False).read_bytes() == BODY
    assert len(server.requests) == 3


def test_a_length_that_is_never_reached_is_an_error(server: Server, cache: Path) -> None:
    server.ranges, server.declared = False, 400_000
    with pytest.raises(UserError, match="300000 of 400000 bytes arrived") as error:
        resolve(server.url, progress=False)
    assert len(server.requests) == 3 and "\n" not in str(error.value)
    assert not list(cache.glob("*.pth"))


@pytest.mark.parametrize("status, attempts", [(404, 1), (403, 1), (503, 3)])
def test_http_errors(server: Server, status: int, attempts: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=f"HTTP {status}") as error:
        resolve(server.url, progress=False)
    assert len(server.requests) == attempts and server.url in str(error.value)


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_the_file(server: Server, cache: Path, content_type: str) -> None:
    server.body, server.content_type = b"\n<!DOCTYPE html><html>please sign in</html>", content_type
    with pytest.raises(UserError, match="web page instead of the file"):
        resolve(server.url, progress=False)
    assert not list(cache.glob("*.pth")) and not list(cache.glob("*.part"))


def test_a_changed_file_is_refused_with_both_hashes(server: Server) -> None:
    path = resolve(server.url, progress=False)
    path.write_bytes(BODY[:-1] + b"!")
    changed = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"{changed}.*{hashlib.sha256(BODY).hexdigest()}.*delete {path}"):
        resolve(server.url, progress=False)


def test_a_file_put_there_by_hand_is_used_and_recorded(server: Server, cache: Path) -> None:
    path = resolve(server.url, progress=False)
    path.with_name(path.name + ".sha256").unlink()
    assert check_sha256(path) is None
    assert resolve(server.url, progress=False) == path and len(server.requests) == 1
    assert check_sha256(path) == hashlib.sha256(BODY).hexdigest()
    path.with_name(path.name + ".sha256").unlink()
    path.write_bytes(b"<html>no</html>")
    with pytest.raises(UserError, match="is a web page"):
        resolve(server.url, progress=False)


def listed(monkeypatch: pytest.MonkeyPatch, **facts: object) -> Published:
    """An entry ``net`` of the index, as `resolve` sees it."""
    entry = Published(name="net", architecture="rtdetr_r18", **facts)
    monkeypatch.setattr(download_module, "is_published", lambda name: name == "net")
    monkeypatch.setattr(download_module, "published", lambda name: entry)
    return entry


def test_published_hash_digits_are_checked_after_download(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    listed(monkeypatch, url=server.url, sha256=digest[:8])
    path = resolve("net", progress=False)
    assert path == cache / "net.pth" and check_sha256(path) == digest
    server.body = BODY[:-1]
    path.unlink()
    path.with_name("net.pth.sha256").unlink()
    wrong = hashlib.sha256(server.body).hexdigest()
    with pytest.raises(UserError, match=f"{wrong}, that of the published file begins with {digest[:8]}"):
        resolve("net", progress=False)
    assert not list(cache.glob("net.pth")) and not list(cache.glob("*.part*"))
    path.write_bytes(server.body)  # by hand
    with pytest.raises(UserError, match=f"not the published file.*{digest[:8]}.*delete it and save {server.url}"):
        resolve("net")
    path.write_bytes(BODY)
    assert resolve("net") == path and len(server.requests) == 2


def test_a_checkpoint_without_address_names_its_page(cache: Path) -> None:
    entry = published("vwformer_convnext_tiny")
    target = cache / "vwformer_convnext_tiny_ade20k.pth"
    with pytest.raises(UserError) as error:
        resolve("vwformer_convnext_tiny")
    assert entry.page in str(error.value) and str(target) in str(error.value) and entry.url is None
    cache.mkdir()
    target.write_bytes(b"<html>sign in</html>")
    with pytest.raises(UserError, match=f"is a web page.*save the checkpoint of {entry.page}"):
        resolve("vwformer_convnext_tiny")
    target.write_bytes(BODY)
    assert resolve("vwformer_convnext_tiny") == target and check_sha256(target) == hashlib.sha256(BODY).hexdigest()


def test_a_backbone_without_address_names_its_page(cache: Path) -> None:
    target = cache / "stdc_1.pth"
    with pytest.raises(UserError, match=f"weights of stdc_1 have no address .*by hand from https://drive.google.com.*{target}"):
        resolve("stdc_1")
    cache.mkdir()
    target.write_bytes(BODY)
    assert resolve("stdc_1") == target and backbone_url("stdc_1") is None


def test_without_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(UserError) as error:
        resolve("rtdetr_r50", progress=False)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "cannot download rtdetr_r50vd_6x_coco_from_paddle.pth",
        published("rtdetr_r50").url,
        "--model rtdetr_shapes",
        str(cache / "rtdetr_r50vd_6x_coco_from_paddle.pth"),
    ):
        assert part in message
    with pytest.raises(UserError) as error:
        resolve("presnet_18vd", progress=False)
    assert "--model" not in str(error.value)


def test_a_cache_that_cannot_be_written(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot write.*MMVIT_CACHE"):
        resolve(server.url, progress=False)


def test_a_full_disk_is_noticed_before_the_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="disk is full"):
        resolve(server.url, progress=False)


def test_concurrent_users_share_one_download(server: Server) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(server.url, progress=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and len(found) == 4 and found[0].read_bytes() == BODY


# ---- loading


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, classes))


def assert_same(a: dict, b: dict) -> None:
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def test_official_layout_prefers_the_average(tmp_path: Path) -> None:
    raw, average = net().state_dict(), net().state_dict()
    torch.save(
        {
            "model": raw,
            "ema": {"module": average, "updates": 7},
            "last_epoch": 71,
            "lr_scheduler": {"milestones": Counter([1000])},
        },
        tmp_path / "a.pth",
    )
    state, meta = load_checkpoint(tmp_path / "a.pth")
    assert_same(state, average)
    assert meta["weights_key"] == "ema.module" and meta["last_epoch"] == 71
    torch.save({"model": raw, "ema": None}, tmp_path / "b.pth")
    assert_same(load_checkpoint(tmp_path / "b.pth")[0], raw)
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "c.pth")  # as timm saves it
    assert_same(load_checkpoint(tmp_path / "c.pth")[0], average)


def test_plain_and_distributed_state_dicts(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(OrderedDict((f"module.{key}", value) for key, value in state.items()), tmp_path / "ddp.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("plain", "ddp", "legacy"):
        assert_same(load_checkpoint(tmp_path / f"{name}.pth")[0], state)


class FakeRunner:
    """What `EMAHook` touches of a runner."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.iter, self.epoch, self.max_iters, self.max_epochs = model, 0, 0, 10, 10


def test_mmengine_layout_gives_the_averaged_weights(tmp_path: Path) -> None:
    model = net()
    hook, runner = EMAHook(momentum=0.5), FakeRunner(model)
    hook.before_run(runner)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    hook.after_train_iter(runner, 0)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    hook.after_train_iter(runner, 1)
    average = {key: value.clone() for key, value in hook.ema_model.module.state_dict().items()}
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = {
        "meta": {"epoch": 3, "dataset_meta": {"classes": ("cat", "dog", "owl"), "cat_ids": [1, 5, 9]}},
        "state_dict": model.state_dict(),
        "message_hub": {"log_scalars": {"train/loss": history}, "x": np.float64(1)},
    }
    hook.before_save_checkpoint(runner, checkpoint)
    torch.save(checkpoint, tmp_path / "epoch_3.pth")

    state, meta = load_checkpoint(tmp_path / "epoch_3.pth")
    assert_same(state, average)
    assert not torch.equal(state["0.weight"], model[0].weight)
    assert meta["classes"] == ("cat", "dog", "owl") and meta["epoch"] == 3 and meta["weights_key"] == "state_dict"


def test_safetensors_round_trip(tmp_path: Path) -> None:
    model = net()
    state = model.state_dict()
    state["tied"] = state["0.weight"]
    path = tmp_path / "deep" / "net.safetensors"
    save_safetensors(path, state, {"classes": ["cat", "dog"], "epoch": 3, "note": "hello"})
    loaded, meta = load_checkpoint(path)
    assert {key: value.tolist() for key, value in loaded.items()} == {key: value.tolist() for key, value in state.items()}
    assert meta["classes"] == ("cat", "dog") and meta["epoch"] == 3 and meta["note"] == "hello"
    assert list(path.parent.iterdir()) == [path]
    path.rename(tmp_path / "renamed.pth")  # known by its contents
    assert load_checkpoint(tmp_path / "renamed.pth")[1]["epoch"] == 3


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save(
        {"state_dict": net().state_dict(), "extra": Payload(tmp_path / "harm")}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError, match=f"{path} holds more than tensors .*mkdir.* refused"):
        load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


class GetattrPayload:
    """Reaches for a method through the `getattr` that MMEngine's log histories are stored with."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return getattr, (self.target, "mkdir")


def test_getattr_in_a_checkpoint_fetches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"epoch": GetattrPayload(HistoryBuffer)}}, path)
    assert type(load_checkpoint(path)[1]["epoch"]).__name__ == "_Ignored"


# ---- detectron2's pickles


def arrays() -> dict[str, np.ndarray]:
    return {
        "backbone.stem.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "swapped": np.arange(4, dtype=">i4"),
        "half": np.float16([1.5, -2]),
        "flag": np.array(True),
        "empty": np.zeros((0, 3), np.int64),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(arrays()), "__author__": "torchvision", "matching_heuristics": True, "lr": np.float64(0.5)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state, meta = load_checkpoint(path)
    assert list(state) == list(arrays()) and meta["weights_key"] == "model"
    assert meta["__author__"] == "torchvision" and meta["matching_heuristics"] is True and meta["lr"] == 0.5
    for key, value in arrays().items():
        assert np.array_equal(state[key].numpy(), value) and state[key].is_contiguous()
    assert state["swapped"].dtype == torch.int32 and state["half"].dtype == torch.float16 and state["flag"].dtype == torch.bool


def test_an_array_of_python_2_is_read(tmp_path: Path) -> None:
    python2 = (  # what pickle.dump({"w": numpy.array([1, 2], "f4")}, protocol=2) wrote there
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\n"
        b"dtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    (tmp_path / "old.pkl").write_bytes(python2)
    assert load_checkpoint(tmp_path / "old.pkl")[0]["w"].tolist() == [1, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_anything_else_are_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "evil.pkl"
    refused = {
        "mkdir": Payload(tmp_path / "harm"),
        "builtins.getattr|__builtin__.getattr": GetattrPayload(HistoryBuffer),
        "NumPy type O8": np.array([Payload(tmp_path / "harm")], dtype=object),
        "NumPy type V": np.zeros(2, [("x", "f4")]),
        "_rebuild_tensor": torch.ones(1),
    }
    for name, value in refused.items():
        path.write_bytes(pickle.dumps({"model": {**arrays(), "extra": value}}, protocol=protocol))
        with pytest.raises(UserError, match=f"{path} holds more than tensors .*({name}).*refused"):
            load_checkpoint(path)
    assert not (tmp_path / "harm").exists()


def test_names_of_the_oldest_mask2former_checkpoints() -> None:
    from mmvit.architectures import create_model

    model, value = create_model("mask2former_resnet_debug"), torch.ones(1)
    old = ["sem_seg_head.adapter_1.weight", "sem_seg_head.predictor.static_query.weight", "criterion.empty_weight"]
    new = ["sem_seg_head.pixel_decoder.adapter_1.weight", "sem_seg_head.predictor.query_feat.weight"]
    expected = {"neck.adapter_1.conv.weight", "head.query_feat.weight"}
    assert set(model.convert(dict.fromkeys(old, value))) == set(model.convert(dict.fromkeys(new, value))) == expected


def test_damaged_pickles_are_called_so(tmp_path: Path) -> None:
    whole = pickle.dumps({"model": arrays()}, protocol=2)
    path = tmp_path / "model_final.pkl"
    for content in (whole[:-40], whole.replace(b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"), whole[:200] + whole[210:]):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} (is damaged|holds more)"):
            load_checkpoint(path)


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pth")
    with pytest.raises(UserError, match="holds more than tensors .*Sequential"):
        load_checkpoint(tmp_path / "model.pth")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "whole.pth")
    save_safetensors(tmp_path / "whole.safetensors", net().state_dict(), {})
    contents = {
        "cut.pth": (tmp_path / "whole.pth").read_bytes()[:-300],
        "cut.safetensors": b"",
        "half.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:-100],
        "page.pth": b"<html>404</html>",
        "pickle.pth": pickle.dumps({"a": 1}),
        "protocol4.pth": pickle.dumps([1, 2], protocol=4),
        "net.pdparams": b"\x80\x02",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(path)) as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3, "lr": 0.1}, "holds no weights"),
        ({}, "holds no weights"),
        ([1, 2], "holds a list"),
        ({"a": torch.ones(1), "b": 2}, "entries that are not tensors.*: b;"),
    ],
)
def test_dicts_without_weights(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "a.pth")


def test_load_into_is_strict_and_leaves_the_model_alone_on_error() -> None:
    model, source = net(), net().state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other_shape = {"0.weight": torch.ones(4, 3, 3, 3)}
    for change, message in (
        (lambda s: s.pop("0.bias"), "1 of 9 keys are missing: 0.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "1 keys are unexpected: extra"),
        (lambda s: s.update(other_shape), r"0.weight \(4, 3, 3, 3\) .*\(4, 3, 1, 1\)"),
    ):
        state = dict(source)
        change(state)
        with pytest.raises(UserError, match=message):
            load_into(model, state, source="x.pth")
        assert_same(dict(model.state_dict()), before)
    state = dict(source, extra=torch.ones(1))
    del state["0.bias"]
    load_into(model, state, allow_missing=["0.*"], allow_unexpected=["extra"])
    torch.testing.assert_close(model.state_dict()["2.weight"], source["2.weight"])
    torch.testing.assert_close(model.state_dict()["0.bias"], before["0.bias"])


def test_load_into_names_both_class_counts() -> None:
    with pytest.raises(UserError, match="x.pth has 80 classes, the model 3; build the model with num_classes=80"):
        load_into(net(3), net(80).state_dict(), source="x.pth")
    with pytest.raises(UserError, match="checkpoint of another model"):
        load_into(nn.Linear(4, 3), nn.Linear(5, 7).state_dict(), source="x.pth")


def test_counters_of_batch_norms_may_be_absent_or_left_over() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    state = {key: value + 1 for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    load_into(model, {**state, "1.num_batches_tracked": torch.tensor(7)})
    assert bool((model[0].running_var == 2).all()) and int(model[0].num_batches_tracked) == 0
    with pytest.raises(UserError, match=r"1 of 5 keys are missing: 0\.bias"):
        load_into(model, {key: value for key, value in state.items() if key != "0.bias"})
