"""COCO files and folders: what is read, and what is said about files that are wrong."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from mmvit.data import CocoDetection, check_dataset, find_coco_json, make_palette, palette_for, read_coco
from mmvit.data.classes import COCO_CATEGORY_IDS, COCO_CLASSES, COCO_PALETTE
from mmvit.errors import UserError

PIPELINE = [
    {"type": "mmvit.LoadImage"},
    {"type": "mmvit.LoadAnnotations"},
    {"type": "mmvit.PhotometricDistort"},
    {"type": "mmvit.ZoomOut"},
    {"type": "mmvit.IoUCrop"},
    {"type": "mmvit.SanitizeBoxes"},
    {"type": "mmvit.Flip"},
    {"type": "mmvit.Resize", "size": (64, 96)},
    {"type": "mmvit.PackDetInputs"},
]


def content(cat_ids=(1, 2, 3)) -> dict:
    """Three pictures of 60x40: two objects and a crowd, one object, none."""
    a, b, c = cat_ids
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (11, 5, 8)],
        "categories": [{"id": c, "name": "cow"}, {"id": a, "name": "ant"}, {"id": b, "name": "bee"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": c,
                "bbox": [10, 10, 20, 15],
                "area": 300,
                "iscrowd": 0,
                "segmentation": [[10, 10, 30, 10, 30, 25, 10, 25]],
            },
            {
                "id": 2,
                "image_id": 11,
                "category_id": a,
                "bbox": [1, 2, 10, 20],
                "area": 200,
                "iscrowd": 0,
                "segmentation": [[1, 2, 11, 2, 11, 22, 1, 22]],
            },
            {
                "id": 3,
                "image_id": 11,
                "category_id": b,
                "bbox": [0, 0, 60, 40],
                "area": 900,
                "iscrowd": 1,
                "segmentation": {"size": [40, 60], "counts": [0, 2400]},
            },
            {
                "id": 4,
                "image_id": 11,
                "category_id": c,
                "bbox": [30.5, 10, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "segmentation": [[30.5, 10, 50.5, 10, 50.5, 30, 30.5, 30]],
            },
        ],
    }


def write(folder, data, name="gt.json", images=True, image_dir="images"):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    if images and isinstance(data, dict):
        write_images(folder / image_dir, data)
    return path


def write_images(folder, data):
    for picture in data["images"]:
        target = folder / picture["file_name"]
        target.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (picture["width"], picture["height"]), (picture["id"], 50, 90)).save(target)


@pytest.fixture
def logged():
    lines: list[str] = []
    logger = MMLogger.get_current_instance()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


# --- what is read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cat_ids", [(0, 1, 2), (1, 2, 3), (4, 17, 90)])
def test_labels_follow_category_ids_with_any_start_and_gaps(tmp_path, cat_ids):
    dataset = CocoDetection(write(tmp_path, content(cat_ids)), tmp_path / "images")
    assert dataset.metainfo["classes"] == ("ant", "bee", "cow") and dataset.cat_ids == list(cat_ids)
    assert len(dataset.metainfo["palette"]) == 3
    samples = [dataset.get_sample(i) for i in range(3)]
    assert [sample["img_id"] for sample in samples] == [11, 5, 8]  # the file's order; pictures without boxes stay
    assert [[item["label"] for item in sample["instances"]] for sample in samples] == [[0, 2], [2], []]  # no crowd
    assert samples[0]["instances"][1]["bbox"].tolist() == [30.5, 10, 50.5, 30] and samples[0]["height"] == 40


def test_class_choice_fixes_the_label_order(tmp_path):
    dataset = CocoDetection(write(tmp_path, content((4, 17, 90))), tmp_path / "images", classes=["cow", "bee"])
    assert dataset.metainfo["classes"] == ("cow", "bee") and dataset.cat_ids == [90, 17]
    assert [[item["label"] for item in dataset.get_sample(i)["instances"]] for i in range(3)] == [[0], [0], []]


def test_filter_empty_is_for_training_only(tmp_path):
    path = write(tmp_path, content())
    assert len(CocoDetection(path, tmp_path / "images", filter_empty=True)) == 2
    assert len(CocoDetection(path, tmp_path / "images", filter_empty=True, classes=["ant"])) == 1
    assert len(CocoDetection(path, tmp_path / "images", filter_empty=True, test_mode=True)) == 3


def test_boxes_are_clipped_and_useless_ones_dropped_and_counted(tmp_path, logged):
    data = content()
    data["annotations"] += [
        {"id": 10 + k, "image_id": 8, "category_id": 1, "bbox": box}
        for k, box in enumerate(([-5, -5, 20, 20], [50, 30, 50, 50], [10, 10, 0, 5], [10, 10, 5, -3], [70, 10, 5, 5]))
    ]
    dataset = CocoDetection(write(tmp_path, data), tmp_path / "images")
    assert [item["bbox"].tolist() for item in dataset.get_sample(2)["instances"]] == [[0, 0, 15, 15], [50, 30, 60, 40]]
    assert [line for line in logged if "left out 3 of 9 boxes" in line and "annotation id 12" in line]


def test_sample_depends_on_index_and_seed_only(tmp_path):
    dataset = CocoDetection(write(tmp_path, content()), tmp_path / "images", PIPELINE)

    def same(a, b):
        return torch.equal(a["inputs"], b["inputs"]) and torch.equal(
            a["data_samples"].gt_instances.bboxes, b["data_samples"].gt_instances.bboxes
        )

    first = dataset[(0, 77)]
    dataset[(1, 3)], np.random.seed(1), torch.manual_seed(1)
    assert same(first, dataset[(0, 77)]) and same(dataset[1], dataset[(1, 1)])
    assert not all(same(first, dataset[(0, seed)]) for seed in range(5))
    assert first["inputs"].shape == (3, 64, 96) and first["data_samples"].img_id == 11


def test_masks_are_loaded_on_request(tmp_path):
    pipeline = [PIPELINE[0], {"type": "mmvit.LoadAnnotations", "with_mask": True}, PIPELINE[-1]]
    dataset = CocoDetection(write(tmp_path, content()), tmp_path / "images", pipeline, with_mask=True)
    masks = dataset[0]["data_samples"].gt_instances.masks
    assert masks.shape == (2, 40, 60) and masks[0].sum() == 200 and masks[0, 2:22, 1:11].all()
    assert dataset[2]["data_samples"].gt_instances.masks.shape == (0, 40, 60)


def test_runner_builds_batches(tmp_path):
    path = write(tmp_path, content())
    loader = Runner.build_dataloader(
        {
            "dataset": {
                "type": "mmvit.CocoDetection",
                "ann_file": str(path),
                "img_dir": str(tmp_path / "images"),
                "pipeline": PIPELINE,
            },
            "sampler": {"type": "mmvit.ResumableSampler", "shuffle": True},
            "batch_size": 2,
            "num_workers": 2,
            "persistent_workers": True,
        },
        seed=4,
    )
    assert ROOT_DATASETS.get("mmvit.CocoDetection") is CocoDetection
    batches = [batch for _ in range(2) for batch in loader]
    assert [len(batch["inputs"]) for batch in batches] == [2, 1, 2, 1]
    assert all(
        isinstance(batch["inputs"], list) and batch["data_samples"][0].gt_instances.labels.dtype == torch.int64
        for batch in batches
    )
    assert sorted(sample.img_id for batch in batches[:2] for sample in batch["data_samples"]) == [5, 8, 11]


def test_roboflow_group_category_is_ignored(tmp_path):
    data = content((1, 2, 3))
    for category in data["categories"]:
        category["supercategory"] = "animals"
    data["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    assert CocoDetection(write(tmp_path, data), tmp_path / "images").metainfo["classes"] == ("ant", "bee", "cow")


def test_file_is_read_again_after_a_change(tmp_path):
    path = write(tmp_path, content())
    assert read_coco(path) is read_coco(path)
    data = content()
    data["annotations"].pop()
    path.write_text(json.dumps(data))
    assert len(read_coco(path).boxes) == 3


def test_palettes():
    assert len(COCO_CLASSES) == len(COCO_PALETTE) == len(COCO_CATEGORY_IDS) == 80 and COCO_CATEGORY_IDS[-1] == 90
    assert palette_for(["dog", "person"]) == [COCO_PALETTE[16], COCO_PALETTE[0]]
    assert len(set(make_palette(60))) == 60 and palette_for(["dog", "ant"]) == make_palette(2)


# --- what is said about wrong files ------------------------------------------------------------------------------------------


def broken(change) -> dict:
    data = content()
    change(data)
    return data


def set_in(section, position, key, value):
    return broken(lambda data: data[section][position].__setitem__(key, value))


def drop(section, position, key):
    return broken(lambda data: data[section][position].pop(key))


def boxes(convert) -> dict:
    data = content()
    for annotation in data["annotations"]:
        annotation["bbox"] = convert(*annotation["bbox"])
    return data


WRONG = {
    "not json": ("hello", r"gt\.json: not valid json at line 1, column 1"),
    "empty file": ("", r"gt\.json: the file is empty"),
    "truncated": (json.dumps(content())[:-200], r"gt\.json: the json ends too early.*truncated"),
    "cut in a text": (json.dumps(content(), indent=1)[:60], "ends too early"),
    "results": ("[]", "a list of 0 entries, as in a file of detection results"),
    "number": ("3", "holds int, not a json object"),
    "no images": (broken(lambda d: d.pop("images")), "the key 'images' is missing"),
    "no annotations": (broken(lambda d: d.pop("annotations")), "the key 'annotations' is missing"),
    "no categories": (
        broken(lambda d: d.update(category=d.pop("categories"))),
        "'categories' is missing.*Did you mean 'category'",
    ),
    "images no list": (broken(lambda d: d.update(images={})), "'images' is not a list of objects"),
    "images empty": (broken(lambda d: d.update(images=[])), "'images' is empty"),
    "categories empty": (broken(lambda d: d.update(categories=[])), "'categories' is empty"),
    "panoptic": (broken(lambda d: d["annotations"][0].update(segments_info=[])), "a panoptic file"),
    "unknown image": (
        set_in("annotations", 1, "image_id", 99),
        r"annotation id 2 has image_id 99, which 'images' does not hold \(1 of 4",
    ),
    "unknown category": (
        set_in("annotations", 3, "category_id", 9),
        "annotation id 4 has category_id 9, which 'categories' does not hold",
    ),
    "image twice": (set_in("images", 1, "id", 8), "image id 8 appears twice"),
    "category twice": (set_in("categories", 1, "id", 3), "category id 3 appears twice"),
    "name twice": (set_in("categories", 1, "name", "cow"), r"class name 'cow' appears twice in 'categories' \(ids 3, 1\)"),
    "no name": (drop("categories", 0, "name"), "'name' of category id 3 is None"),
    "text id": (set_in("images", 1, "id", "5"), r"'id' of images\[1\] is '5', not an integer"),
    "no id": (drop("images", 2, "id"), r"images\[2\] has no 'id'"),
    "no width": (drop("images", 0, "width"), r"images\[0\] \(id 11\) has no 'width'"),
    "no height to speak of": (set_in("images", 0, "height", 0), "image id 11 has height 0 and width 60"),
    "no file name": (drop("images", 0, "file_name"), "'file_name' of image id 11 is None"),
    "no image_id": (drop("annotations", 0, "image_id"), r"annotations\[0\] \(id 1\) has no 'image_id'"),
    "no bbox": (drop("annotations", 0, "bbox"), r"annotation id 1 \(image id 5\) has no 'bbox'"),
    "three numbers": (set_in("annotations", 1, "bbox", [1, 2, 3]), r"'bbox' of annotation id 2 \(image id 11\) is \[1, 2, 3\]"),
    "texts": (set_in("annotations", 1, "bbox", ["1", "2", "3", "4"]), "annotation id 2 .*not four finite numbers"),
    "nan": (set_in("annotations", 1, "bbox", [1, 2, float("nan"), 4]), "annotation id 2 .*not four finite numbers"),
    "infinite": (set_in("annotations", 1, "bbox", [1, 2, float("inf"), 4]), "annotation id 2 .*not four finite numbers"),
    "null in box": (set_in("annotations", 1, "bbox", [1, 2, None, 4]), "annotation id 2 .*not four finite numbers"),
    "bad area": (set_in("annotations", 1, "area", "big"), "'area' of annotation id 2 is 'big'"),
    "normalised": (boxes(lambda x, y, w, h: [x / 60, y / 40, w / 60, h / 40]), "looks normalised.*multiply x and width"),
    "corners": (boxes(lambda x, y, w, h: [x + 9, y + 9, x + w + 9, y + h + 9]), "COCO boxes are x,y,width,height: subtract x1"),
    "other scale": (
        boxes(lambda x, y, w, h: [x * 9, y * 9, w * 9, h * 9]),
        "end outside their image.*check whether the pictures were resized",
    ),
    "nothing": (broken(lambda d: d.update(annotations=[])), "no usable annotation .0 in the file"),
    "only crowds": (
        broken(lambda d: [a.update(iscrowd=1) for a in d["annotations"]]),
        "no usable annotation .4 in the file, 4 of them crowds",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_is_explained(tmp_path, name):
    data, message = WRONG[name]
    path = write(tmp_path, data, images=False)
    write_images(tmp_path / "images", content())
    with pytest.raises(UserError, match=message) as caught:
        CocoDetection(path, tmp_path / "images")
    assert str(path) in str(caught.value)


def test_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, content(), "instances_train.json")
    with pytest.raises(
        UserError, match=r"no such annotation file\..* holds instances_train\.json\. Did you mean 'instances_train\.json'"
    ):
        CocoDetection(tmp_path / "instance_train.json", tmp_path)
    with pytest.raises(UserError, match="no such annotation file.*holds images, instances_train.json"):
        CocoDetection(tmp_path / "no" / "where.json", tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        CocoDetection(tmp_path, tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not a json text file"):
        CocoDetection(tmp_path / "binary.json", tmp_path)


def test_evaluation_accepts_a_file_without_annotations(tmp_path):
    path = write(tmp_path, broken(lambda d: d.update(annotations=[])))
    assert len(CocoDetection(path, tmp_path / "images", test_mode=True)) == 3


def test_unknown_classes_are_explained(tmp_path):
    path = write(tmp_path, content())
    with pytest.raises(
        UserError, match=r"class 'cwo' is not among the file's categories \(ant, bee, cow\)\. Did you mean 'cow'"
    ):
        CocoDetection(path, tmp_path / "images", classes=["ant", "cwo"])
    with pytest.raises(UserError, match="'ant' twice"):
        CocoDetection(path, tmp_path / "images", classes=["ant", "ant"])
    with pytest.raises(UserError, match="must be a list"):
        CocoDetection(path, tmp_path / "images", classes="ant")
    with pytest.raises(UserError, match="none of the chosen classes"):
        CocoDetection(
            write(tmp_path, content() | {"categories": [*content()["categories"], {"id": 7, "name": "elk"}]}),
            tmp_path / "images",
            classes=["elk"],
        )


def test_missing_pictures_are_listed_before_training(tmp_path):
    path = write(tmp_path, content())
    dataset = CocoDetection(path, tmp_path / "images")
    check_dataset(dataset)
    (tmp_path / "images" / "5.png").unlink()
    (tmp_path / "images" / "8.png").unlink()
    with pytest.raises(
        UserError,
        match=r"(?s)gt\.json: 2 of 3 pictures are missing in .*images, first:\n.*images/5\.png\n.*images/8\.png\n.*img_dir",
    ):
        check_dataset(dataset)
    with pytest.raises(UserError, match="nowhere: no such image folder"):
        CocoDetection(path, tmp_path / "nowhere")


def test_broken_pictures_stop_training_with_their_name(tmp_path):
    dataset = CocoDetection(write(tmp_path, content()), tmp_path / "images", PIPELINE)
    Image.new("RGB", (40, 60)).save(tmp_path / "images" / "5.png")
    with pytest.raises(
        UserError, match=r"5\.png: the picture is 40x60 pixels, but .*gt\.json says 60x40 .*image id 5\).*swapped"
    ):
        dataset[1]
    (tmp_path / "images" / "5.png").write_text("no picture")
    with pytest.raises(UserError, match=r"5\.png is not a picture"):
        dataset[1]
    with pytest.raises(UserError, match=r"5\.png is not a picture"):  # from a worker process as well
        list(DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=list))


# --- folders -----------------------------------------------------------------------------------------------------------------


def other(data: dict) -> dict:
    """The same with other file names, so that the split's folders can be told apart."""
    return json.loads(json.dumps(data).replace('.png"', 'v.png"'))


def test_coco_layout(tmp_path):
    for name in ("captions_train2017.json", "person_keypoints_train2017.json", "image_info_test-dev2017.json"):
        write(
            tmp_path / "annotations",
            {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]},
            name,
            images=False,
        )
    write(tmp_path, content(), "annotations/instances_train2017.json", image_dir="train2017")
    write(tmp_path, other(content()), "annotations/instances_val2017.json", image_dir="val2017")
    found = find_coco_json(tmp_path)
    assert [path.name for path in found[:2]] == ["instances_train2017.json", "instances_val2017.json"]
    assert [path.name for path in found.img_dirs] == ["train2017", "val2017"]
    check_dataset(CocoDetection(found.val_json))  # finds its folder itself


def test_roboflow_layout_with_the_same_names_in_both_splits(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / split, content(), "_annotations.coco.json", image_dir=".")
    found = find_coco_json(tmp_path)
    assert [path.parent.name for path in found[:2]] == ["train", "valid"] and [path.name for path in found.img_dirs] == [
        "train",
        "valid",
    ]


@pytest.mark.parametrize(
    "train,val,folder",
    [
        ("train.json", "val.json", "images"),
        ("my_train_v2.json", "my-validation.json", "."),
        ("training.json", "test.json", "images"),
        ("labels/train.json", "labels/val.json", "images"),
        ("train.json", "val.json", "images/train"),
    ],
)
def test_plain_layouts(tmp_path, train, val, folder):
    write(tmp_path, content(), train, image_dir=folder)
    write(tmp_path, other(content()), val, image_dir=folder.replace("train", "val"))
    found = find_coco_json(tmp_path)
    assert (found.train_json, found.val_json) == (tmp_path / train, tmp_path / val)
    for path, images in zip(found[:2], found.img_dirs):
        check_dataset(CocoDetection(path, images))


def test_names_with_folders_in_them(tmp_path):
    data = json.loads(json.dumps(content()).replace('"file_name": "', '"file_name": "pics/day1/'))
    write(tmp_path, data, "annotations/all.json", image_dir=".")
    found = find_coco_json(tmp_path)
    assert found.img_dirs[0] == tmp_path
    check_dataset(CocoDetection(found.train_json, found.img_dirs[0]))


def test_one_file_serves_both_and_panoptic_is_passed_over(tmp_path):
    write(tmp_path, content(), "instances.json")
    write(
        tmp_path,
        broken(lambda d: d.update(annotations=[{"image_id": 5, "file_name": "5.png", "segments_info": []}])),
        "panoptic.json",
    )
    found = find_coco_json(tmp_path)
    assert found.train_json == found.val_json == tmp_path / "instances.json" and found.img_dirs == (tmp_path / "images",) * 2
    assert find_coco_json(tmp_path / "instances.json") == found


def test_a_json_file_may_be_given_itself(tmp_path):
    path = write(tmp_path, content(), "annotations/instances_train.json", image_dir="train")
    assert find_coco_json(path) == (path, path, (tmp_path / "train", tmp_path / "train"))


def test_a_folder_of_label_files_is_passed_over(tmp_path):
    write(tmp_path, content(), "all.json")
    for number in range(60):
        write(tmp_path / "labels", content(), f"{number}.json", images=False)
    assert find_coco_json(tmp_path).train_json.name == "all.json"


def test_nothing_found_and_ambiguity_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_coco_json(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"(?s)no COCO-style detection json found \(the folder is empty\).*Expected one of.*_annotations\.coco"
    ):
        find_coco_json(tmp_path)
    write_images(tmp_path / "pics", content())
    with pytest.raises(UserError, match=r"found: pics/"):
        find_coco_json(tmp_path)
    write(tmp_path, content(), "a.json")
    write(tmp_path, content(), "b.json")
    with pytest.raises(UserError, match=r"(?s)cannot tell which of these.*\n  a\.json\n  b\.json\nExpected.*Rename"):
        find_coco_json(tmp_path)


def test_pictures_nowhere_are_explained(tmp_path):
    path = write(tmp_path, content(), "train.json", images=False)
    with pytest.raises(UserError, match=r"found none of its pictures \(11\.png, 5\.png, 8\.png, \.\.\.\) in .*or give img_dir"):
        find_coco_json(tmp_path)
    with pytest.raises(UserError, match="found none of its pictures"):
        CocoDetection(path)


def test_a_broken_split_file_is_named(tmp_path):
    write(tmp_path, content(), "train.json")
    write(tmp_path, json.dumps(content())[:-99], "val.json")
    with pytest.raises(UserError, match=r"val\.json: the json ends too early"):
        find_coco_json(tmp_path)
