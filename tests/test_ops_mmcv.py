"""mmcv, mmdet and mmseg on top of the stand-ins, through their own Python interfaces."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmvit.ops import MissingOpError, implementations, native, prepare_openmmlab, roi_align, stand_in
from mmvit.ops import deform_conv2d as own_deform_conv2d
from mmvit.ops import modulated_deform_conv2d as own_modulated_deform_conv2d
from mmvit.ops import ms_deform_attn as own_ms_deform_attn
from mmvit.ops import nms as own_nms
from mmvit.ops import sigmoid_focal_loss as own_sigmoid_focal_loss

prepare_openmmlab()

import mmcv.ops as ops  # noqa: E402
from mmcv.ops.carafe import carafe as mmcv_carafe  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

COMPILED = native.compiled_mmcv() is not None


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def boxes_and_scores(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 30], 1)
    return boxes, torch.rand(count, generator=generator)


def run(code: str, *path: Path) -> subprocess.CompletedProcess:
    """A fresh interpreter; `path` comes first on its module path."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in path]}\n" + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# ---- boxes


def test_nms_wrapper() -> None:
    boxes, scores = boxes_and_scores()
    dets, kept = ops.nms(boxes, scores, 0.5, score_threshold=0.2, max_num=10)
    assert len(kept) == 10 and bool((dets[:-1, 4] >= dets[1:, 4]).all()) and dets[:, 4].min() > 0.2
    torch.testing.assert_close(dets, torch.cat([boxes[kept], scores[kept, None]], 1))
    array_dets, array_kept = ops.nms(boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.2, max_num=10)
    np.testing.assert_array_equal(array_kept, kept.numpy())
    np.testing.assert_array_equal(array_dets, dets.numpy())
    assert [len(part) for part in ops.nms(boxes[:0], scores[:0], 0.5)] == [0, 0]


@pytest.mark.parametrize("split_thr", [10000, 20])
@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
def test_batched_nms_wrapper(kind: str, split_thr: int) -> None:
    boxes, scores = boxes_and_scores()
    labels = torch.arange(60) % 3
    dets, kept = ops.batched_nms(boxes, scores, labels, {"type": kind, "iou_threshold": 0.4, "split_thr": split_thr})
    alone = [getattr(ops, kind)(boxes[labels == label], scores[labels == label], 0.4) for label in range(3)]
    expected = torch.cat([(labels == label).nonzero()[:, 0][alone[label][1]] for label in range(3)])
    assert sorted(kept.tolist()) == sorted(expected.tolist())
    torch.testing.assert_close(dets[:, 4], torch.cat([part[0][:, 4] for part in alone]).sort(descending=True).values)


def test_soft_nms_wrapper_example_of_mmcv() -> None:
    boxes = np.array([[4, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]], dtype=np.float32)
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], dtype=np.float32)
    dets, kept = ops.soft_nms(boxes, scores, 0.6, sigma=0.5)
    assert len(dets) == len(kept) == 5
    assert sorted(kept.tolist()) == [0, 1, 2, 3, 4]


def test_nms_match_wrapper() -> None:
    boxes, scores = boxes_and_scores()
    groups = ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)
    assert sorted(torch.cat(groups).tolist()) == list(range(60))
    assert all(bool((scores[group[0]] >= scores[group]).all()) for group in groups)


def test_bbox_overlaps_wrapper_example_of_mmcv() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]])
    second = torch.tensor([[0.0, 0, 10, 20], [0, 10, 10, 19], [10, 10, 20, 20]])
    torch.testing.assert_close(ops.bbox_overlaps(first, second), torch.tensor([[0.5, 0, 0], [0, 0, 1], [0, 0, 0]]))


# ---- autograd functions: mmcv's backward with buffers against numerical gradients

ROIS = torch.tensor([[0, 1.3, 2.1, 6.7, 7.4], [1, -3.2, -2.9, 4.8, 5.1], [1, 2.2, 3.7, 19.9, 16.3], [0, 2, 2, 3, 3]]).double()


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, False)])
def test_roi_align_module(mode: str, ratio: int, aligned: bool) -> None:
    layer = ops.RoIAlign((2, 3), 0.75, ratio, mode, aligned)
    x = rand(2, 3, 8, 9)
    torch.testing.assert_close(layer(x, ROIS), roi_align(x, ROIS, (2, 3), 0.75, ratio, mode, aligned))
    assert torch.autograd.gradcheck(lambda x: layer(x, ROIS), x.requires_grad_(), fast_mode=True)
    assert layer(x, ROIS[:0]).shape == (0, 3, 2, 3)


@pytest.mark.skipif(COMPILED, reason="mmcv's compiled RoIPool has no kernel for the CPU")
def test_roi_pool_module() -> None:
    layer = ops.RoIPool((2, 2), 0.8)
    assert torch.autograd.gradcheck(lambda x: layer(x, ROIS), rand(2, 3, 8, 9).requires_grad_(), fast_mode=True)


def test_deform_conv_pack() -> None:
    torch.manual_seed(0)
    layer = ops.DeformConv2dPack(4, 6, 3, padding=1, deform_groups=2).double()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = rand(2, 4, 5, 6)
    expected = own_deform_conv2d(x, layer.conv_offset(x), layer.weight, 1, 1, 1, 1, 2)
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), fast_mode=True)
    layer(x).square().sum().backward()
    reference = torch.autograd.grad(
        own_deform_conv2d(x, layer.conv_offset(x), layer.weight, 1, 1, 1, 1, 2).square().sum(), list(layer.parameters())
    )
    for parameter, gradient in zip(layer.parameters(), reference):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("bias", [True, False])
def test_modulated_deform_conv_pack(bias: bool) -> None:
    torch.manual_seed(0)
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias).double()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = rand(2, 4, 7, 6).requires_grad_()

    def own(x: Tensor) -> Tensor:
        vertical, horizontal, mask = layer.conv_offset(x).chunk(3, 1)
        return own_modulated_deform_conv2d(
            x, torch.cat([vertical, horizontal], 1), mask.sigmoid(), layer.weight, layer.bias, 2, 2, 2, 2, 1
        )

    torch.testing.assert_close(layer(x), own(x))
    parameters = [x, *layer.parameters()]
    gradients = torch.autograd.grad(layer(x).square().sum(), parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(own(x).square().sum(), parameters))


def test_attention_agrees_with_mmcv_reference_and_through_its_function() -> None:
    shapes = torch.tensor([[5, 7], [3, 4], [2, 2]])
    value = rand(2, 51, 2, 4).requires_grad_()
    locations = (torch.rand(2, 5, 2, 3, 4, 2, generator=torch.Generator().manual_seed(1)).double() * 1.4 - 0.2).requires_grad_()
    weights = rand(2, 5, 2, 3, 4, seed=2).requires_grad_()
    inputs = (value, locations, weights)
    reference = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(own_ms_deform_attn(value, shapes, locations, weights), reference)
    expected = torch.autograd.grad(reference.square().sum(), inputs)
    starts = torch.tensor([0, 35, 47])
    if not COMPILED:  # the compiled function has no kernel for the CPU
        output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
        torch.testing.assert_close(output, reference)
        torch.testing.assert_close(torch.autograd.grad(output.square().sum(), inputs), expected)
    module = ops.MultiScaleDeformableAttention(8, 2, 3, 4, batch_first=True, dropout=0.0).double()
    query = rand(2, 5, 8)
    points = torch.rand(2, 5, 3, 2, generator=torch.Generator().manual_seed(3)).double()
    output = module(query, value=rand(2, 51, 8), reference_points=points, spatial_shapes=shapes, level_start_index=starts)
    output.sum().backward()
    assert output.shape == (2, 5, 8) and module.value_proj.weight.grad.abs().sum() > 0


@pytest.mark.skipif(COMPILED, reason="mmcv's compiled focal losses have no kernel for the CPU")
def test_focal_loss_modules() -> None:
    logits, target = rand(6, 4) * 3, torch.tensor([0, 3, 4, 1, 2, 4])
    layer = ops.SigmoidFocalLoss(2.0, 0.3)
    torch.testing.assert_close(layer(logits, target), own_sigmoid_focal_loss(logits, target, 2.0, 0.3))
    assert torch.autograd.gradcheck(lambda x: layer(x, target), logits.requires_grad_())
    weighted = ops.SoftmaxFocalLoss(2.0, 0.3, torch.tensor([1.0, 2, 3, 0.5]).double())
    assert torch.autograd.gradcheck(lambda x: weighted(x, target % 4), logits.requires_grad_())


@pytest.mark.skipif(COMPILED, reason="mmcv's compiled CARAFE and masked convolution have no kernel for the CPU")
@pytest.mark.filterwarnings("ignore:This overload of addmm")  # mmcv calls it so
def test_carafe_and_masked_convolution() -> None:
    x, masks = rand(1, 4, 3, 4).requires_grad_(), rand(1, 18, 6, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: mmcv_carafe(*t, 3, 2, 2), (x, masks), fast_mode=True)
    layer = ops.MaskedConv2d(4, 5, 3, padding=1).double()
    mask = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    dense = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x, mask), dense * mask)


def test_psa_mask_module() -> None:
    layer = ops.PSAMask("collect", (3, 5))
    assert torch.autograd.gradcheck(layer, rand(1, 15, 4, 3).requires_grad_(), fast_mode=True)


# ---- the module itself


@pytest.mark.skipif(COMPILED, reason="mmcv is compiled here: nothing is missing")
def test_missing_op_names_itself_and_the_command() -> None:
    with pytest.raises(MissingOpError, match=r"'border_align_forward'.*mim install \"mmcv>=2.0.0\"") as caught:
        ops.border_align(torch.rand(1, 4, 3, 3), torch.rand(1, 9, 4), 2)
    assert isinstance(caught.value, NotImplementedError)


def test_implementations_cover_everything_mmcv_asks_for() -> None:
    used = implementations("cpu")
    assert set(used.values()) <= {"compiled mmcv", "torchvision", "PyTorch", "missing"}
    assert used["ms_deform_attn"] == used["soft_nms"] == "PyTorch" or COMPILED
    assert used["border_align"] == used["nms_rotated"] == ("compiled mmcv" if COMPILED else "missing")
    sources = [file.read_text() for file in Path(ops.__file__).parent.glob("*.py")]
    wanted = {name for source in sources for name in stand_in.requested_functions(source)}
    unused = {name for names in stand_in._OPS.values() for name in names} - wanted
    assert len(wanted) > 100 and not unused


def test_import_of_ops_needs_only_torch() -> None:
    result = run("import mmvit.ops; print(sorted({'mmcv', 'mmengine', 'mmdet', 'cv2', 'torchvision'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_imports_are_silent_and_filters_survive() -> None:
    result = run("""
        import warnings
        warnings.filterwarnings("error", "the user's own")
        before = list(warnings.filters)
        from mmvit.ops import prepare_openmmlab
        prepare_openmmlab()
        import mmdet.models, mmdet.datasets, mmseg.models, mmseg.datasets, mmcv.ops
        from mmcv.utils import ext_loader
        warnings.simplefilter("ignore", DeprecationWarning)
        assert ext_loader.check_ops_exist()
        assert mmcv.ops.get_compiler_version() and mmdet.models.MaskRCNN and mmseg.models.EncoderDecoder
        assert all(entry in warnings.filters for entry in before)
        print("Could not import OneDL")
        try:
            warnings.warn("the user's own")
        except UserWarning:
            print("filters survive")
        warnings.warn("and a warning")
    """)
    assert result.stdout.splitlines() == ["Could not import OneDL", "filters survive"], result.stdout + result.stderr
    assert result.returncode == 0 and result.stderr.count("\n") <= 2 and "and a warning" in result.stderr, result.stderr


def test_real_import_errors_and_other_output_come_through(tmp_path: Path) -> None:
    package = tmp_path / "mmseg"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import warnings\nprint('Could not import OneDL')\nprint('something', 'else', end='!')\n"
        "warnings.warn('old', DeprecationWarning, stacklevel=1)\nwarnings.warn('real')\nraise RuntimeError('broken')\n"
    )
    result = run("from mmvit.ops import prepare_openmmlab\nprepare_openmmlab()\nimport mmseg", tmp_path)
    assert result.stdout == "something else!"
    assert "RuntimeError: broken" in result.stderr and "UserWarning: real" in result.stderr and "old" not in result.stderr


@pytest.mark.skipif(COMPILED, reason="compiled mmcv goes before torchvision")
@pytest.mark.parametrize(
    ("body", "source"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "PyTorch"),
        ("def nms(boxes, scores, threshold):\n    return scores.argsort()", "PyTorch"),
        ("def nms(boxes, scores, threshold):\n    return scores.argsort(descending=True)[:2]", "torchvision"),
    ],
    ids=["broken", "wrong", "works"],
)
def test_torchvision_is_used_when_it_works(tmp_path: Path, body: str, source: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ops.py").write_text(body)
    result = run(
        """
        import torch
        from mmvit.ops import implementations, nms
        kept = nms(torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]), torch.tensor([.5, .9, .7]), 0.5)
        print(kept.tolist(), implementations("cpu")["nms"])
    """,
        tmp_path,
    )
    assert result.stdout.strip() == f"[1, 2] {source}", result.stderr


def test_a_compiled_extension_that_does_not_load_is_replaced(tmp_path: Path) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_ext.py").write_text("raise ImportError('undefined symbol: _ZN2at4_ops')")
    result = run(
        """
        import types
        sys.modules["mmdet.models"] = types.ModuleType("mmdet.models")  # imported too early
        from mmvit.ops import install_stand_ins
        install_stand_ins()
        import mmcv._ext, importlib.util
        print(mmcv._ext.__spec__.origin, importlib.util.find_spec("mmcv._ext") is mmcv._ext.__spec__)
    """,
        tmp_path,
    )
    assert result.stdout.strip() == "mmvit.ops.stand_in True", result.stderr
    assert "RuntimeWarning: mmdet.models was imported before mmvit.ops.prepare_openmmlab()" in result.stderr


def native_calls() -> dict[str, tuple]:
    """Functions of `mmvit.ops` with inputs of some size."""
    boxes, scores = boxes_and_scores(500)
    x, offset = rand(2, 4, 9, 9, dtype=torch.float32), rand(2, 36, 9, 9, dtype=torch.float32)
    weight, mask = rand(6, 2, 3, 3, dtype=torch.float32), torch.rand(2, 18, 9, 9)
    return {
        "nms": (own_nms, boxes, scores, 0.4),
        "roi_align": (roi_align, x, ROIS.float(), (3, 2), 0.8, 0, "avg", True),
        "deform_conv2d": (own_deform_conv2d, x, offset, weight, 1, 1, 1, 2, 2),
        "modulated_deform_conv2d": (own_modulated_deform_conv2d, x, offset, mask, weight, None, 1, 1, 1, 2, 2),
    }


def test_native_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {op: call for op, call in native_calls().items() if native.find(op, torch.device("cpu")) is not None}
    if not calls:
        pytest.skip("neither compiled mmcv nor a working torchvision is installed")
    results = {op: function(*arguments) for op, (function, *arguments) in calls.items()}
    monkeypatch.setattr(native, "find", lambda op, device: None)
    for op, (function, *arguments) in calls.items():
        torch.testing.assert_close(results[op], function(*arguments), atol=1e-4, rtol=1e-4)


def test_registries_bring_the_stand_ins_silently():
    result = run(
        "from mmvit.registry import MODELS\n"
        "import mmdet.models\n"
        "from mmcv.ops import nms\n"
        "import torch\n"
        "boxes, kept = nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.1, 0.9]), 0.5)\n"
        "assert kept.tolist() == [1]\n"
        "neck = MODELS.build(dict(type='mmdet.FPN', in_channels=[4, 8], out_channels=4, num_outs=2))\n"
        "assert type(neck).__name__ == 'FPN'\n"
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")
