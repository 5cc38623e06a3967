"""The list of backbones is complete, its figures are today's, and README shows it."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mmvit
from mmvit import cli
from mmvit.backbones import Backbone, BackboneInfo, backbone_info, catalogue, list_backbones
from mmvit.backbones.base import named_variants
from mmvit.benchmark import collection
from mmvit.errors import UserError
from mmvit.layers.flops import count_flops
from mmvit.registry import MODELS

META = torch.device("meta")
STALE = f"the recorded figures are stale: run `{collection.UPDATE}`"
#: those of mmvit itself: other tests register backbones of their own
NAMES = {name: cls.family for name, (cls, _) in named_variants().items() if cls.__module__.startswith("mmvit.")}
FAMILIES = sorted(set(NAMES.values()))


def names_of(family):
    return [name for name in NAMES if NAMES[name] == family]


def test_every_backbone_is_recorded():
    assert set(catalogue.costs()) == set(NAMES), STALE


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_sizes_are_those_of_the_networks(family):
    for name in names_of(family):
        recorded = catalogue.costs()[name]
        now = catalogue.size(catalogue.build(name, META))
        assert now == {key: recorded[key] for key in now}, f"{name}: {STALE}"


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_flops_are_those_of_the_networks(family):
    """Of the cheapest variants: the debug size, which has the code of all, or the smallest."""
    name = min(names_of(family), key=lambda name: catalogue.costs()[name]["flops"])
    assert catalogue.measure(name) == catalogue.costs()[name], f"{name}: {STALE}"


@pytest.mark.parametrize("name", ["swin_debug", "hornet_gf_debug", "slab_pvt_debug", "vit_debug"])
def test_flops_do_not_depend_on_the_device(name):
    assert catalogue._measure(name, torch.device("cpu")) == catalogue.costs()[name]


def test_flops_are_those_of_the_papers():
    """Two per multiply-add; papers count multiply-adds, in 1e9, with the classifier."""
    for name, published in (
        ("resnet_50", 4.1),
        ("swin_tiny", 4.5),
        ("convnext_tiny", 4.5),
        ("pvt_small", 3.8),
        ("cswin_tiny", 4.3),
    ):
        assert backbone_info(name).flops / 2e9 == pytest.approx(published, rel=0.02), name


def test_flops_of_known_calls():
    query, key = torch.rand(2, 3, 7, 4), torch.rand(2, 3, 5, 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(query, key, key)) == 2 * 2 * (2 * 3 * 7 * 5 * 4)
    assert count_flops(lambda: F.linear(key, torch.rand(9, 4))) == 2 * 2 * 3 * 5 * 4 * 9


def test_every_family_names_its_paper():
    for cls in {cls for name, (cls, _) in named_variants().items() if name in NAMES}:
        assert re.fullmatch(r"\d{4}\.\d{5}", cls.arxiv), cls
        assert cls.arxiv in sys.modules[cls.__module__].__doc__, f"{cls}: the paper of another file"
        assert catalogue.paper_title(cls), cls


def test_what_is_known_of_a_backbone():
    assert backbone_info("swin_tiny") == BackboneInfo(
        name="swin_tiny",
        family="swin",
        variant="tiny",
        parameters=27_520_698,
        flops=8_979_597_312,
        strides=(4, 8, 16, 32),
        channels=(96, 192, 384, 768),
        paper="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        arxiv="2103.14030",
        weights="yes",
    )
    assert backbone_info("pvt_v2_b2li").name == "pvt_v2_b2_li"  # underscores do not matter
    assert backbone_info("nextvit_small").weights == "page" and backbone_info("swin_debug").weights == "none"
    assert backbone_info("swin_debug").debug and not backbone_info("swin_tiny").debug
    with pytest.raises(UserError, match="Did you mean 'swin_tiny'"):
        backbone_info("swin_tny")


def test_the_list():
    assert mmvit.list_backbones("swin_*_window12") == ["swin_base_window12", "swin_large_window12"]
    assert [info.name for info in mmvit.list_backbones("swin*", details=True)] == mmvit.list_backbones("swin*")
    assert mmvit.list_backbones("nonsense*") == [] == mmvit.list_backbones("nonsense*", details=True)
    assert set(mmvit.list_backbones()) >= set(NAMES)


def test_a_backbone_of_ones_own_is_counted(monkeypatch):
    class Own(Backbone):
        family = "own_list"
        variants = {"a": dict(width=5)}

        def __init__(self, arch="a", *, out_indices=(0,), with_cp=False):
            super().__init__(out_indices, with_cp)
            self.width = int(torch.full((), 5.0).item())  # needs real numbers
            self.conv = torch.nn.Conv2d(3, self.width, 4, 4, bias=False)
            self._set_features([self.width], [4])

        def forward(self, x):
            return (self.conv(x),)

    monkeypatch.setitem(MODELS._module_dict, "OwnList", Own)
    (info,) = list_backbones("own_list*", details=True)
    assert info == BackboneInfo(
        "own_list_a", "own_list", "a", 5 * 48, 2 * 56 * 56 * 5 * 48, (4,), (5,), paper="", arxiv="", weights="none"
    )


def test_readme_shows_the_list():
    readme = collection.README.read_text()
    assert collection.with_table(readme) == readme, f"README's table is stale: run `{collection.UPDATE}`"
    table = readme.partition(collection.BEGIN)[2].partition(collection.END)[0]
    assert "debug" not in table
    rows = re.findall(r"^\| `(\w+)` \|.*?\| (`.*?) \| [\d ;]+ \|", table, re.M)
    shown = {f"{family}_{variant}" for family, cell in rows for variant in re.findall(r"`(\w+)`", cell)}
    assert shown == {name for name in NAMES if not name.endswith("debug")}


def test_a_readme_without_markers():
    with pytest.raises(UserError, match="put them where"):
        collection.with_table("# mmvit\n")


def test_an_update_mends_stale_records(tmp_path, monkeypatch, capsys):
    """Figures of the named backbones and missing ones are computed, all others kept; what is gone goes."""
    right, readme = catalogue.COSTS.read_text(), collection.README.read_text()
    costs = json.loads(right)
    costs["swin_debug"]["flops"] += 1
    costs["gone_debug"] = costs.pop("vit_debug")
    files = tmp_path / "costs.json", tmp_path / "README.md"
    files[0].write_text(json.dumps(costs))
    files[1].write_text(re.sub(f"(?s){collection.BEGIN}.*{collection.END}", f"{collection.BEGIN}\n{collection.END}", readme))
    monkeypatch.setattr(catalogue, "COSTS", files[0])
    monkeypatch.setattr(collection, "README", files[1])
    registered = {name: value for name, value in named_variants().items() if name in NAMES}
    monkeypatch.setattr(catalogue, "named_variants", lambda: registered)
    catalogue.costs.cache_clear()
    try:
        assert cli.main(["backbones", "swin_debug", "--update"]) == 0
    finally:
        catalogue.costs.cache_clear()
    assert [file.read_text() for file in files] == [right, readme]
    assert re.findall(r"^(\w+): ", capsys.readouterr().out, re.M) == ["swin_debug", "vit_debug", "written"]


def test_the_command(capsys):
    assert cli.main(["backbones"]) == 0
    out = capsys.readouterr().out
    assert "debug" not in out and "cswin_tiny" in out and max(map(len, out.splitlines())) <= 120
    assert cli.main(["backbones", "mit_b[01]", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in shown] == ["mit_b0", "mit_b1"] and shown[0]["channels"] == [32, 64, 160, 256]
    assert cli.main(["backbones", "mit_debug"]) == 0
    assert re.search(r"mit_debug +0.04 +0.03 +4 8 16 32 +8 16 20 32 +none +2105.15203", capsys.readouterr().out)
    assert cli.main(["backbones", "swin-tiny"]) == 2
    assert "no backbone matches 'swin-tiny'. Did you mean 'swin_tiny'?" in capsys.readouterr().err


def test_an_update_needs_a_checkout(monkeypatch, capsys):
    monkeypatch.setattr(collection, "README", Path("/nowhere/README.md"))
    assert cli.main(["backbones", "--update"]) == 2
    assert "call it in a checkout" in capsys.readouterr().err
