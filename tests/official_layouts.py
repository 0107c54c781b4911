"""Small data sets in the official layouts, for tests: rectangles whose colour depends on their class.

Their text files, tables and headers have the publishers' own bytes: blanks, tabs, columns, order and further files.
Each writer names its source. Each data set has the mark of rendered data, since they are not the official data.
"""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.benchmarks.nyuv2_normals import CENTRE, FOCAL

VOC_PALETTE = [
    sum((((index >> (3 * bit + channel)) & 1) << (7 - bit)) for bit in range(8))
    for index in range(256)
    for channel in range(3)
]


def colour(label: int) -> np.ndarray:
    """The colour of a label."""
    return np.array([37 * label + 40, 91 * label + 80, 151 * label + 120]) % 256


def scene(seed: int, classes: list[int], height: int = 48, width: int = 48) -> dict:
    """Rectangles of random classes: `image`, `mask` (0 = none), `boxes` (x0, y0, x1, y1, class), back to front."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    image = np.empty((height, width, 3))
    image[:] = 128
    boxes = []
    for _ in range(rng.integers(1, 4)):
        label = int(rng.choice(classes))
        w, h = rng.integers(width // 4, width // 2), rng.integers(height // 4, height // 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        mask[y : y + h, x : x + w] = label
        image[y : y + h, x : x + w] = colour(label)
        boxes.append((int(x), int(y), int(x + w), int(y + h), label))
    image += rng.normal(0, 6, image.shape)
    return {"image": np.clip(image, 0, 255).astype(np.uint8), "mask": mask, "boxes": boxes}


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def marked(root: Path) -> Path:
    """`root`, with the mark of a rendered data set."""
    (root / "miniature.json").write_text(json.dumps({"source": "miniature"}))
    return root


def write_voc(root: Path, train: int, val: int, sbd: int = 0, **size: int) -> Path:
    """VOCdevkit/VOC2012 with palette masks and 255 in the first and last row.

    The lists in Main are those of object classes: a name, blanks, and 1 or -1 (devkit_doc of VOC2012, section 4.1).
    sbd: number of images that are only in SBD; as in the original, SBD also annotates some of VOC's train and val.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    listing = folder / "ImageSets" / "Segmentation"
    listing.mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("val", val)):
        names = []
        for _ in range(count):
            number += 1
            name = f"2007_{number:06d}"
            one = scene(number, [1, 7, 15, 20], **size)
            save(folder / "JPEGImages" / f"{name}.jpg", one["image"], quality=95)
            one["mask"][[0, -1]] = 255
            mask = Image.fromarray(one["mask"])
            mask.putpalette(VOC_PALETTE)
            (folder / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(folder / "SegmentationClass" / f"{name}.png")
            names.append(name)
        (listing / f"{split}.txt").write_text("\n".join(names) + "\n")
        (listing.parent / "Main").mkdir(exist_ok=True)
        signs = "".join(f"{name} {1 - 2 * (index % 2):2d}\n" for index, name in enumerate(names))
        (listing.parent / "Main" / f"aeroplane_{split}.txt").write_text(signs)
    if sbd:
        _write_sbd(root, train, val, sbd, **size)
    return marked(root)


def _write_sbd(root: Path, train: int, val: int, more: int, **size: int) -> None:
    """benchmark_RELEASE/dataset: cls/*.mat without borders, train.txt and val.txt; compressed, with the outlines of the
    20 classes as sparse matrices in a cell (README of SBD)."""
    dataset = root / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    own = [*range(train + val + 1, train + val + 1 + more)]
    numbers = [1, *own, train + 1]  # one of VOC's train and one of its val among them
    for number in numbers:
        name = f"2007_{number:06d}"
        one = scene(number, [1, 7, 15, 20], **size)
        if number in own:
            save(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg", one["image"], quality=95)
        kind = [("Boundaries", "O"), ("Segmentation", "O"), ("CategoriesPresent", "O")]
        present = np.unique(one["mask"])[1:, None]
        outlines = np.empty((20, 1), object)
        outlines[:, 0] = [csc_matrix(one["mask"] == label + 1) for label in range(20)]
        classes = np.array([[(outlines, one["mask"], present)]], dtype=kind)
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": classes}, do_compression=True)
    half = len(numbers) // 2
    for split, part in (("train", numbers[:half]), ("val", numbers[half:])):
        (dataset / f"{split}.txt").write_text("".join(f"2007_{number:06d}\n" for number in part))


def write_ade20k(root: Path, train: int, val: int, **size: int) -> Path:
    """ADEChallengeData2016: 0 is "other", 1..150 are the classes.

    objectInfo150.txt as in github.com/CSAILVision/sceneparsing: five columns, a blank after the number in rows 22 and
    24 to 27, and at the end of rows 8, 9 and 128. The first image is grey, as some are.
    """
    folder, scenes = root / "ADEChallengeData2016", []
    for split, prefix, count, first in (("training", "train", train, 1), ("validation", "val", val, 10_001)):
        for number in range(1, count + 1):
            one = scene(first + number, [1, 2, 4, 77, 150], **size)
            name = f"ADE_{prefix}_{number:08d}"
            image = one["image"][..., 0] if number == 1 else one["image"]
            save(folder / "images" / split / f"{name}.jpg", image, quality=95)
            save(folder / "annotations" / split / f"{name}.png", one["mask"])
            scenes.append(f"{name} airport_terminal\n")
    names = {1: "wall", 2: "building, edifice", 8: "bed ", 9: "windowpane, window ", 22: "water", 25: "shelf"}
    names |= {128: "bicycle, bike, wheel, cycle ", 150: "flag"}
    rows = ["Idx\tRatio\tTrain\tVal\tName"]
    for number in range(1, 151):
        blank = " " if number in (22, 24, 25, 26, 27) else ""
        rows.append(f"{number}{blank}\t0.0074\t709\t75\t{names.get(number, f'thing {number}')}")
    (folder / "objectInfo150.txt").write_text("".join(f"{row}\n" for row in rows))
    (folder / "sceneCategories.txt").write_text("".join(scenes))
    return marked(root)


def write_coco(root: Path, train: int, val: int, **size: int) -> Path:
    """{train,val}2017 and instances_*.json with polygons, one crowd (RLE), and one image without objects a split.

    The keys are those of the official files, and the fourth image has an object like annotation 918 of train2017, whose
    height and area are 0 (github.com/cocodataset/cocoapi/issues/355). Images are in no order.
    """
    categories = [{"id": n, "name": name, "supercategory": group} for n, name, group in coco_categories()]
    for split, count, first in (("train", train, 1), ("val", val, 10_001)):
        images, annotations = [], []
        for index in range(count):
            number = first + index
            one = scene(number, [1, 13, 90], **size)
            if index == 1:
                one["image"][:], one["boxes"] = 128, []
            height, width = one["image"].shape[:2]
            name = f"{number:012d}.jpg"
            save(root / f"{split}2017" / name, one["image"], quality=95)
            url = f"http://images.cocodataset.org/{split}2017/{name}"
            images.append({"license": 3, "file_name": name, "coco_url": url, "height": height, "width": width})
            images[-1] |= {"date_captured": "2013-11-14 11:18:45", "flickr_url": url, "id": number}
            if index == 3:
                flat = {"segmentation": [[6.65, 8.33, 6.65, 8.33, 7.68, 8.33, 7.68, 8.33]], "area": 0.0, "iscrowd": 0}
                flat |= {"image_id": number, "bbox": [6.65, 8.33, 1.03, 0.0], "category_id": 13, "id": 918 + first}
                annotations.append(flat)
            for x0, y0, x1, y1, label in one["boxes"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1 + first * 100,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                )
            if index == 2:
                # column-major runs: 8 pixels off, then 4 on, the rest off
                counts = [8, 4, height * width - 12]
                crowd = {"segmentation": {"size": [height, width], "counts": counts}, "iscrowd": 1}
                annotations.append(
                    crowd | {"id": 1, "image_id": number, "category_id": 1, "bbox": [0, 8, 1, 4], "area": 4}
                )
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        # the official files list categories by id; a reader must not rely on it
        info = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
        licence = {"url": "http://creativecommons.org/licenses/by-nc-nd/2.0/", "id": 3, "name": "Attribution"}
        head = {"info": info, "licenses": [licence], "images": images[::-1]}
        path.write_text(json.dumps({**head, "annotations": annotations, "categories": categories[::-1]}))
        texts = [{"image_id": image["id"], "id": image["id"] + 9, "caption": " A scene.\n"} for image in images]
        path.with_name(f"captions_{split}2017.json").write_text(json.dumps({**head, "annotations": texts}))
    return marked(root)


def write_panoptic(root: Path, images: dict[str, tuple[int, int]]) -> Path:
    """panoptic_val2017.json and its PNGs, as https://cocodataset.org/#format-data describes them. images: id -> height
    and width. Each has a thing, two regions of stuff, a crowd of stuff, and pixels of no segment."""
    categories = [{"supercategory": "person", "isthing": 1, "id": 1, "name": "person"}]
    categories += [{"supercategory": "plant", "isthing": 0, "id": 193, "name": "grass-merged"}]
    categories += [{"supercategory": "sky", "isthing": 0, "id": 187, "name": "sky-other-merged"}]
    kinds = ((3_937_500, 187, 0), (70_000, 193, 0), (500, 1, 0), (600, 187, 1))
    folder, annotations = root / "annotations" / "panoptic_val2017", []
    for image_id, (height, width) in images.items():
        ids, name = np.zeros((height, width), np.int64), f"{int(image_id):012d}.png"
        ends = [height * twelfths // 12 for twelfths in (0, 5, 10, 11, 12)]
        for (number, *_), start, end in zip(kinds, ends, ends[1:], strict=False):
            ids[start:end, 1:] = number
        save(folder / name, np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))
        segments = [
            {"id": number, "category_id": kind, "iscrowd": crowd, "area": 9, "bbox": [0, 0, 3, 3]}
            for number, kind, crowd in kinds
        ]
        annotations.append({"segments_info": segments, "file_name": name, "image_id": int(image_id)})
    content = {"info": {}, "licenses": [], "images": [], "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return root


def zip_panoptic(root: Path, target: Path) -> Path:
    """panoptic_annotations_trainval2017.zip of a tree: the PNGs are in zips inside of it. As the publishers' it has the
    training split, which nothing reads, and files of the Finder."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("panoptic_val2017/", "")
        for path in sorted((root / "annotations/panoptic_val2017").iterdir(), reverse=True):
            file.write(path, f"panoptic_val2017/{path.name}")
        file.writestr("__MACOSX/panoptic_val2017/._000000000139.png", b"x")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("annotations/", "")
        file.writestr("annotations/panoptic_train2017.json", "{}")
        file.writestr("annotations/panoptic_train2017.zip", b"PK")
        file.write(root / "annotations/panoptic_val2017.json", "annotations/panoptic_val2017.json")
        file.writestr("annotations/panoptic_val2017.zip", inner.getvalue())
        file.writestr("__MACOSX/annotations/._panoptic_val2017.json", b"x")
    return target


def room(index: int, height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Exact normals (ours) and depth of a floor, a ceiling and three walls, which is another room for each index."""
    rng = np.random.default_rng(index)
    scale = width / 640
    x = (np.arange(width) - CENTRE[0] * scale) / (FOCAL[0] * scale)
    y = (np.arange(height)[:, None] - CENTRE[1] * scale) / (FOCAL[1] * scale)
    rays = np.stack(np.broadcast_arrays(x, y, 1.0), axis=-1)
    turn = rng.uniform(-0.6, 0.6)
    planes = np.array([[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1]], float)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    planes, distances = planes @ rotation.T, rng.uniform(1, 3, 5)
    along = rays @ planes.T
    depths = np.where(along > 1e-3, distances / np.maximum(along, 1e-3), np.inf)
    which = depths.argmin(-1)
    return planes[which].astype(np.float32), depths.min(-1).astype(np.float32)


def write_nyuv2(
    root: Path,
    train: int,
    test: int,
    height: int = 36,
    width: int = 48,
    variant: str = "bae",
    rooms: bool = False,
    noise: float = 0.0,
) -> Path:
    """nyu_depth_v2_labeled.mat with MATLAB's axes reversed, 1-based splits.mat, normals in one of the published forms,
    which count from 0 (but for Ladicky's, whose names count from 1). rooms: depth and normals that fit together. noise:
    deviation of Ladicky's normals, without which they compress far better than estimates do.

    MATLAB 7.3 writes its header into a block of 512 bytes before the HDF5 file, compressed chunks, and cells of text as
    references; splits.mat has compressed doubles (cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html lists the variables).
    """
    count = train + test
    published = np.empty((count, height, width, 3), np.float32)
    images, depths = np.empty((count, height, width, 3), np.uint8), np.empty((count, height, width), np.float32)
    order = np.random.default_rng(0).permutation(count) + 1
    for index in range(count):
        one = scene(index, [1, 2, 3], height, width)
        images[index] = one["image"]
        depths[index] = 2 + one["mask"] + np.linspace(0, 1, height)[:, None]
        depths[index, 0, 0] = 0
        normals = np.full((height, width, 3), (127, 127, 255), np.uint8)
        normals[one["mask"] == 1] = (127, 255, 127)
        normals[one["mask"] == 2] = (255, 127, 127)
        if rooms:
            exact, depths[index] = room(index, height, width)
            normals = np.round((exact + 1) / 2 * 255).astype(np.uint8)
        normals[0, :] = 0
        split = "train" if index + 1 in order[:train] else "test"
        published[index] = normals.astype(np.float32) / 255 * 2 - 1
        published[index] += noise * np.random.default_rng(index).standard_normal(normals.shape, np.float32)
        if variant == "bae":
            save(root / "nyu_dataset" / split / "norm" / f"{index:06d}.png", normals)
        elif variant == "dsine":
            save(root / "dsine_eval" / "nyuv2" / split / f"{index:06d}_normal.png", normals)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, array in (("images", images.transpose(0, 3, 2, 1)), ("depths", depths.transpose(0, 2, 1))):
            chunks = (min(2, count), *(1,) * (array.ndim - 3), *array.shape[-2:])
            file.create_dataset(name, data=array, chunks=chunks, compression="gzip", compression_opts=3)
            file[name].attrs["MATLAB_class"] = np.bytes_("uint8" if name == "images" else "single")
        file["rawDepths"], file["accelData"] = file["depths"][:], np.zeros((4, count), np.float32)
        file["#refs#/a"] = np.array([[ord(letter)] for letter in "kitchen"], np.uint16)
        file["sceneTypes"] = np.array([[file["#refs#/a"].ref] * count], h5py.ref_dtype)
    with (root / "nyu_depth_v2_labeled.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    splits = {"trainNdxs": np.sort(order[:train])[:, None], "testNdxs": np.sort(order[train:])[:, None]}
    splits = {name: numbers.astype(float) for name, numbers in splits.items()}
    savemat(root / "splits.mat", splits, do_compression=True)
    if variant == "ladicky":
        content = {"all_normals": published, "all_filenames": [f"{number + 1:06d}" for number in range(count)]}
        content["all_valid_depth_masks"] = np.arange(height)[None, :, None].repeat(count, 0).repeat(width, 2) > 0
        (root / "surfacenormal_metadata").mkdir()
        with gzip.open(root / "surfacenormal_metadata" / "all_normals.pklz", "wb") as file:
            pickle.dump(content, file)
    return marked(root)


WNIDS = ["n02084071", "n02121808", "n02958343"]


def write_imagenet(
    root: Path, train: int, val: int, flat: bool = True, classes: int = 3, odd: bool = False, **size: int
) -> Path:
    """train/<wnid>/ and val, flat with the devkit (whose ids are NOT in the order of the wnids) or in folders.

    meta.mat has the eight fields of the devkit's readme.txt, numbers as doubles. odd: the second to fourth image are
    CMYK (github.com/cytsai/ilsvrc-cmyk-image-list lists 23), a PNG (as n02105855_2933.JPEG is), and grey.
    """
    wnids = WNIDS + [f"n9{number:07d}" for number in range(classes - 3)]
    ids = {wnid: classes - index for index, wnid in enumerate(wnids)}
    for number in range(train):
        label = number % classes
        image = Image.fromarray(scene(number, [label + 1], **size)["image"])
        (root / "train" / wnids[label]).mkdir(parents=True, exist_ok=True)
        form, mode = {1: ("JPEG", "CMYK"), 2: ("PNG", "RGBA"), 3: ("JPEG", "L")}.get(number * odd, ("JPEG", "RGB"))
        path = root / "train" / wnids[label] / f"{wnids[label]}_{number}.JPEG"
        image.convert(mode).save(path, form, quality=95)
    truth = []
    for number in range(1, val + 1):
        label = int(np.random.default_rng(number).integers(classes))
        image = scene(10_000 + number, [label + 1], **size)["image"]
        folder = root / "val" if flat else root / "val" / wnids[label]
        save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", image, quality=95)
        truth.append(ids[wnids[label]])
    if flat:
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)) + "\n")
        fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
        rows = [(float(ids[wnid]), wnid, "words", "a gloss", 0.0, np.zeros((1, 0)), 0.0, 1300.0) for wnid in wnids]
        rows.append((classes + 1.0, "n00001740", "entity", "that", 3.0, np.array([[1.0, 2.0, 3.0]]), 19.0, 0.0))
        synsets = np.empty((len(rows), 1), [(name, "O") for name in (*fields, "num_train_images")])
        synsets[:, 0] = sorted(rows, key=lambda row: row[0])
        savemat(data / "meta.mat", {"synsets": synsets}, do_compression=True)
        (data.parent / "readme.txt").write_text("ILSVRC2012 development kit\n")
    words = ["dog, domestic dog", "cat, true cat", "car, auto", *(f"thing {n}, odd" for n in range(classes - 3))]
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids, words, strict=True)]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return marked(root)


CATEGORIES = ["apartment_building-outdoor", "beach", "living_room"]


def write_places365(root: Path, train: int, val: int, variant: str = "easyformat", **size: int) -> Path:
    """places365_standard/{train,val}/<category>/, or data_256/, val_256/ and lists; names repeat over categories.

    The lists are as in github.com/CSAILVision/places365: paths of the training list begin with "/a/"; the list of the
    categories has no line end after its last line.
    """
    paths = [f"/{name[0]}/{name.replace('-', '/')}" for name in CATEGORIES]
    lines = [f"{path} {number}" for number, path in enumerate(paths)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "categories_places365.txt").write_text("\n".join(lines))  # no line end, as in the original
    for split, count, first in (("train", train, 0), ("val", val, 10_000)):
        listed = []
        for number in range(count):
            label = number % 3
            image = scene(first + number, [label + 1], **size)["image"]
            name = f"{number // 3 + 1:08d}.jpg" if split == "train" else f"Places365_val_{number + 1:08d}.jpg"
            if variant == "easyformat":
                save(root / "places365_standard" / split / CATEGORIES[label] / name, image, quality=95)
                continue
            place = f"{paths[label]}/{name}" if split == "train" else name
            save(root / ("data_256" if split == "train" else "val_256") / place.lstrip("/"), image, quality=95)
            listed.append(f"{place} {label}\n")
        if variant == "small":
            list_name = "places365_train_standard.txt" if split == "train" else "places365_val.txt"
            (root / list_name).write_text("".join(listed))
    return marked(root)


def write_spair71k(root: Path, trn: int, test: int, **size: int) -> Path:
    """SPair-71k/ with pairs of two categories; the target of a pair is the source, moved by 3 columns and 2 rows.

    Keys and values of PairAnnotation, the names of its files and the lists are as github.com/juhongm999/hpflow and
    others read them: widths before heights, ids of keypoints as text, no line end after the last pair.
    """
    folder, number = root / "SPair-71k", 0
    for split, count in (("trn", trn), ("test", test)):
        names = []
        for _ in range(count):
            number += 1
            category = ("aeroplane", "tvmonitor")[number % 2]
            content = scene(number, [3], **{"height": 60, "width": 80} | size)
            left, top, right, bottom, _ = content["boxes"][-1]
            points = [[left, top], [right, bottom], [(left + right) // 2, (top + bottom) // 2]]
            images = [f"2008_{2 * number:06d}", f"2008_{2 * number + 1:06d}"]
            moved = np.roll(content["image"], (2, 3), (0, 1))
            for name, image in zip(images, (content["image"], moved), strict=True):
                save(folder / "JPEGImages" / category / f"{name}.jpg", image, quality=95)
            names.append(f"{number:06d}-{images[0]}-{images[1]}:{category}")
            height, width = content["image"].shape[:2]
            pair = {"filename": names[-1], "pair_id": number, "category": category}
            pair |= {"src_imname": f"{images[0]}.jpg", "trg_imname": f"{images[1]}.jpg"}
            pair |= {"src_imsize": [width, height, 3], "trg_imsize": [width, height, 3]}
            pair |= {"src_bndbox": [left, top, right, bottom]}
            pair |= {"trg_bndbox": [left + 3, top + 2, right + 3, bottom + 2]}
            pair |= {"src_pose": "Unspecified", "trg_pose": "Left", "src_kps": points}
            pair |= {"trg_kps": [[x + 3, y + 2] for x, y in points], "kps_ids": ["0", "7", "11"], "mirror": 0}
            pair |= {"viewpoint_variation": 0, "scale_variation": 0, "truncation": 2, "occlusion": 2}
            path = folder / "PairAnnotation" / split / f"{names[-1]}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(pair))
        for layout in ("large", "small"):
            (folder / "Layout" / layout).mkdir(parents=True, exist_ok=True)
            (folder / "Layout" / layout / f"{split}.txt").write_text("\n".join(names))
    return marked(root)


def write_davis2017(root: Path, train: int, val: int, frames: int = 4, **size: int) -> Path:
    """DAVIS/ at 480p: objects that move by two columns in a frame; names with hyphens, and palette PNGs, as in
    DAVIS-2017-trainval-480p.zip (davischallenge.org/davis2017/code.html). A list ends with a line end."""
    folder = root / "DAVIS"
    (folder / "ImageSets" / "2017").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}-car-roundabout{number}" for number in range(count)]
        for number, name in enumerate(names):
            content = scene(number + 50 * (split == "val"), [1, 2], **{"height": 54, "width": 96} | size)
            mask = content["mask"].copy()
            mask[2:14, 3:17] = 1  # so that there is an object, also where only the second one was drawn
            for frame in range(frames):
                image = np.roll(content["image"], 2 * frame, 1)
                save(folder / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg", image, quality=95)
                labels = Image.fromarray(np.roll(mask, 2 * frame, 1))
                labels.putpalette(VOC_PALETTE)
                path = folder / "Annotations" / "480p" / name / f"{frame:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                labels.save(path)
        (folder / "ImageSets" / "2017" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return marked(root)


def write_scannet1500(root: Path, pairs: int, height: int = 48, width: int = 64, inside: bool = True) -> Path:
    """scannet_test_1500/ with up to 15 pairs of a scene, as the tar that LoFTR links, and the two files of LoFTR's
    assets/scannet_test_1500. inside: whether these are in the folder, or next to it.

    Arrays, types and names are those of test.npz and intrinsics.npz themselves. ScanNet's SensorData.py writes poses
    with "%f" and a blank, and millimetres as 16-bit PNG. The cameras look at a wall 2 m away, each 4 pixels to the
    right of the one before; every fifth row has no depth.
    """
    folder = root / "scannet_test_1500"
    focal, centre = 577.6 * width / 640, ((width - 1) / 2, (height - 1) / 2)
    matrix = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    names, relative, intrinsics = [], [], {}
    for scene in range(-(-pairs // 15)):
        name = f"scene{707 + scene:04d}_00"
        intrinsics[name] = matrix
        wall = one_wall(scene, height, width + 4 * 16)
        own = min(15, pairs - 15 * scene)
        for frame in range(own + 1):
            save(folder / name / "color" / f"{15 * frame}.jpg", wall[:, 4 * frame : 4 * frame + width], quality=95)
            depth = np.full((height, width), 2000, np.uint16)
            depth[::5] = 0
            save(folder / name / "depth" / f"{15 * frame}.png", depth)
            pose = np.eye(4)
            pose[0, 3] = 4 * frame * 2 / focal
            (folder / name / "pose").mkdir(exist_ok=True)
            np.savetxt(folder / name / "pose" / f"{15 * frame}.txt", pose, fmt="%f")
        (folder / name / "intrinsic").mkdir()
        for kind in ("intrinsic_color", "intrinsic_depth", "extrinsic_color", "extrinsic_depth"):
            np.savetxt(folder / name / "intrinsic" / f"{kind}.txt", np.eye(4), fmt="%f")
        for second in range(1, own + 1):
            names.append([707 + scene, 0, 0, 15 * second])
            relative.append([1, 0, 0, -4 * second * 2 / focal, 0, 1, 0, 0, 0, 0, 1, 0])
    lists = folder if inside else root
    np.savez_compressed(lists / "test.npz", name=np.array(names, np.uint16), rel_pose=np.array(relative, np.float32))
    np.savez_compressed(lists / "intrinsics.npz", **intrinsics)
    return marked(root)


def one_wall(seed: int, height: int, width: int) -> np.ndarray:
    """A wall with a smooth random texture, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
