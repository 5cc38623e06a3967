"""RT-DETR as a whole: gradients, deploy mode, decoder length, sizes, precision, weights of other code."""

import copy

import pytest
import torch
from mmengine.structures import InstanceData

from mmvit.architectures import create_model, list_models
from mmvit.architectures.rtdetr import RTDETR
from mmvit.check_golden import fill_values
from mmvit.data.structures import DataSample
from mmvit.errors import UserError
from mmvit.heads import RTDETRHead
from mmvit.losses import NonFiniteError


def batch(count=2, size=64, objects=3, classes=5):
    """A random batch as the data loader makes it."""
    generator = torch.Generator().manual_seed(1)
    samples, images = [], []
    for i in range(count):
        corner = torch.rand(objects, 2, generator=generator) * size / 2
        boxes = torch.cat([corner, corner + 8 + torch.rand(objects, 2, generator=generator) * (size / 2 - 8)], 1)
        sample = DataSample(
            gt_instances=InstanceData(bboxes=boxes, labels=torch.randint(classes, (objects,), generator=generator))
        )
        sample.set_metainfo(dict(img_id=10 + i, img_shape=(size, size), ori_shape=(2 * size, 3 * size)))
        samples.append(sample)
        images.append(torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8))
    return dict(inputs=images, data_samples=samples)


def debug(**overrides):
    return create_model("rtdetr_debug", num_classes=5, **overrides)


def filled(model):
    """Healthy, deterministic weights: every token and query differs."""
    model.load_state_dict({k: torch.from_numpy(fill_values(k, v.shape)).to(v.dtype) for k, v in model.state_dict().items()})
    return model


def losses_of(model, data):
    return model(**model.data_preprocessor(copy.deepcopy(data), training=True), mode="loss")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        dict(head=dict(version=2)),
        dict(head=dict(query_select="one2many")),
        dict(head=dict(query_select="agnostic")),
        dict(head=dict(num_points=[1, 2, 3])),
        dict(backbone="hgnetv2_debug"),
        dict(head=dict(criterion=dict(share_matches=True, box_weight="iou"))),
    ],
)
@pytest.mark.parametrize("objects", [3, 0])
def test_gradients_reach_every_parameter(overrides, objects):
    model = filled(debug(**overrides)).train()
    losses = losses_of(model, batch(objects=objects))
    sum(losses.values()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert not without, without  # distributed training needs this in every step
    if objects:
        zero = {n for n, p in model.named_parameters() if not p.grad.abs().max() > 0}
        assert not zero, zero


def test_discrete_sampling_trains_all_but_its_offsets():
    model = filled(debug(head=dict(version=2, sampling="discrete"))).train()
    sum(losses_of(model, batch()).values()).backward()
    frozen = {n for n, p in model.named_parameters() if p.grad is None}
    assert frozen and all("sampling_offsets" in n for n in frozen)


def test_loss_names_and_reproducibility():
    model = debug().train()
    torch.manual_seed(3)
    first = losses_of(model, batch())
    assert set(first) == {f"loss_{n}{s}" for n in ("vfl", "bbox", "giou") for s in ("", "_aux_0", "_enc_0", "_dn_0", "_dn_1")}
    torch.manual_seed(3)
    model.load_state_dict(model.state_dict())
    second = losses_of(model, batch())
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_predictions_are_in_pixels_of_the_original_image():
    model = filled(debug()).eval()
    data = batch()
    results = model.test_step(copy.deepcopy(data))
    logits, boxes = model(model.data_preprocessor(data)["inputs"])
    best = logits[0].sigmoid().flatten().topk(10).indices // 5
    cx, cy, w, h = boxes[0][best].unbind(-1)
    expected = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * torch.tensor([192, 128, 192, 128])
    torch.testing.assert_close(results[0].pred_instances.bboxes[:10], expected)
    scores = results[0].pred_instances.scores
    assert torch.equal(scores, scores.sort(descending=True).values)


def test_sides_that_are_no_multiple_of_32_are_padded():
    model = filled(debug()).eval()
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    padded = torch.zeros(3, 64, 96, dtype=torch.uint8)
    padded[:, :50, :70] = image

    def predict(image, ori_shape):
        sample = DataSample(metainfo=dict(img_shape=tuple(image.shape[1:]), ori_shape=ori_shape))
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances

    torch.testing.assert_close(predict(image, (50, 70)).bboxes, predict(padded, (64, 96)).bboxes)
    torch.testing.assert_close(
        predict(image, (100, 210)).bboxes, predict(image, (50, 70)).bboxes * torch.tensor([3.0, 2, 3, 2])
    )


def test_images_of_different_sizes_are_an_error():
    data = batch()
    data["inputs"][1] = data["inputs"][1][:, :32]
    with pytest.raises(UserError, match="different sizes"):
        debug().data_preprocessor(data)


def test_multi_scale_changes_the_input_in_training_only():
    model = debug(data_preprocessor=dict(multi_scale=[32, 96]))
    sizes = {tuple(model.data_preprocessor(batch(), training=True)["inputs"].shape[-2:]) for _ in range(20)}
    assert sizes == {(32, 32), (96, 96)}
    assert model.data_preprocessor(batch())["inputs"].shape[-2:] == (64, 64)
    model.data_preprocessor.use_multi_scale = False
    assert model.data_preprocessor(batch(), training=True)["inputs"].shape[-2:] == (64, 64)
    with pytest.raises(UserError, match="multiples of 32"):
        debug(data_preprocessor=dict(multi_scale=[33]))


@pytest.mark.parametrize(
    "overrides", [{}, dict(backbone="hgnetv2_debug"), dict(head=dict(num_layers=3, eval_idx=1)), dict(neck=dict(expansion=1.0))]
)
def test_deploy_gives_the_same_boxes(overrides):
    model = filled(debug(**overrides)).eval()
    merged = copy.deepcopy(model).deploy()
    names = [n for n, _ in merged.named_parameters()]
    assert not any(".norm.running" in k for k in merged.state_dict()) and not any("bottlenecks.0.conv1" in n for n in names)
    assert not any(p.requires_grad for p in merged.parameters())
    for size in (64, 96):
        x = torch.rand(2, 3, size, size)
        for got, want in zip(merged(x), model(x)):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_fewer_decoder_layers_at_inference():
    model = filled(debug(head=dict(num_layers=3))).eval()
    x = torch.rand(1, 3, 64, 64)
    every = model.detect(x, all_layers=True).layers
    assert len(every) == 3
    for count in (1, 2, 3):
        model.set_eval_layers(count)
        logits, boxes = model(x)
        torch.testing.assert_close(logits, every[count - 1][0])
        torch.testing.assert_close(boxes, every[count - 1][1])
    with pytest.raises(UserError, match="3 layers"):
        model.set_eval_layers(4)


def test_training_goes_on_after_inference_mode():
    model = filled(debug())
    data = batch(1, size=416)  # large enough for proposals at the border that are not valid
    with torch.inference_mode():
        model.eval()(model.data_preprocessor(copy.deepcopy(data))["inputs"])
    sum(losses_of(model.train(), data).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_images_of_a_batch_do_not_influence_each_other():
    model = filled(debug()).eval()
    x = torch.rand(2, 3, 64, 64)
    for together, alone in zip(model(x), model(x[1:])):
        torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_losses_are_float32_under_amp_and_close(dtype):
    model = debug().train()
    torch.manual_seed(0)
    full = losses_of(model, batch())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        half = losses_of(model, batch())
    assert all(v.dtype == torch.float32 for v in half.values())
    total_full, total_half = sum(full.values()), sum(half.values())
    assert abs(total_half - total_full) < 0.1 * total_full  # bf16 holds 8 bits
    total_half.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_nan_names_tensor_and_image():
    model = debug().train()
    with torch.no_grad():
        model.head.dec_bbox_head[1].layers[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="boxes of decoder layer 1") as caught:
        losses_of(model, batch())
    assert caught.value.image_ids == [10, 11]


def test_state_dict_round_trip_and_official_names():
    model, other = filled(debug()), debug()
    other.load_state_dict(other.convert(model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    official = {}
    for key, value in model.state_dict().items():
        part, _, name = key.partition(".")
        name = name.replace("enc_output.proj", "enc_output.0").replace("enc_output.norm", "enc_output.1")
        name = f"decoder.{name}" if part == "head" and name.startswith("layers.") else name
        if part == "neck" and name.startswith("input_proj"):
            name = name.replace(".conv.", ".0.").replace(".norm.", ".1.")
        official[f"{dict(backbone='backbone', neck='encoder', head='decoder')[part]}.{name}"] = value
    official |= {
        "decoder.anchors": torch.zeros(1, 84, 4),
        "decoder.valid_mask": torch.zeros(1, 84, 1),
        "decoder.decoder.layers.0.cross_attn.num_points_scale": torch.zeros(12),
    }
    assert set(other.convert(official)) == set(model.state_dict())


def test_variants_are_wired_and_wrong_names_help():
    assert {"rtdetr_r50", "rtdetrv2_s", "rtdetrv2_m*", "rtdetrv2_hgnetv2_x", "rtdetrv2_r50_dsp", "rtdetrv2_r18_sp1"} <= set(
        list_models()
    )
    with pytest.raises(UserError, match="Did you mean 'rtdetr_r50'"):
        create_model("rtdert_r50")
    with pytest.raises(UserError, match="Did you mean 'r50vd'"):
        RTDETR("r50v")
    with pytest.raises(UserError, match="query_select"):
        RTDETRHead([8, 8, 8], query_select="best")
    model = create_model("rtdetr_debug", backbone=dict(name="presnet_debug", out_indices=(2, 3)), head=dict(num_points=[2, 2]))
    assert [c.conv.in_channels for c in model.neck.input_proj] == [32, 32]


def transformers_model():
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        depths=[2, 1, 1, 1], hidden_sizes=[16, 24, 32, 32], embedding_size=8, out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[24, 32, 32],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        d_model=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=2,
        num_queries=10,
        num_labels=5,
    )
    return filled(RTDetrForObjectDetection(config)).eval()


def test_weights_of_transformers():
    """The same weights give the same boxes in `transformers`' RT-DETR and in ours."""
    peer = transformers_model()
    model = debug(backbone=dict(name="presnet_debug", depths=(2, 1, 1, 1), freeze_norm=True), neck=dict(expansion=1.0)).eval()
    model.load_state_dict(model.convert(peer.state_dict()))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        theirs, (logits, boxes) = peer(pixel_values=x), model(x)
    torch.testing.assert_close(logits, theirs.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes, theirs.pred_boxes, atol=1e-5, rtol=1e-4)


def test_weights_under_the_older_names_of_transformers():
    """Hub checkpoints name some parts as earlier releases did."""
    state = transformers_model().state_dict()
    older = {
        k.replace(".aifi.", ".encoder.").replace(".mlp.fc", ".fc").replace(".o_proj.", ".out_proj."): v
        for k, v in state.items()
    }
    model = debug(backbone=dict(name="presnet_debug", depths=(2, 1, 1, 1), freeze_norm=True), neck=dict(expansion=1.0))
    new, old = model.convert(state), model.convert(older)
    assert set(new) == set(old) == set(model.state_dict()) | {k for k in new if k.endswith("num_batches_tracked")}
    assert all(torch.equal(new[k], old[k]) for k in new)
