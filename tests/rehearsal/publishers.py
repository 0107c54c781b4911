"""What the publishers have: weights of the full networks, of random numbers, and archives of a few images each, under
the published names and in the published forms."""

import hashlib
import json
import math
import tarfile
from io import BytesIO
from pathlib import Path

import open_clip
import torch
import torchvision
from hosts import Hosts, sha256
from official_layouts import (
    scene,
    write_ade20k,
    write_coco,
    write_imagenet,
    write_nyuv2,
    write_places365,
    write_voc,
)
from PIL import Image
from safetensors.torch import save_file
from test_fetch import pack
from test_weights import save_depth_anything
from torch import nn
from transformers import DPTConfig, DPTForDepthEstimation

from cliptex.data.official.archives import archives
from cliptex.experts.dpt import UNUSED
from cliptex.experts.nll_angmf import NLLAngMF

TRAIN, EVAL, SBD = 3, 2, 1
COUNTS = {
    "voc": {"train": TRAIN, "eval": EVAL},
    "ade20k": {"train": TRAIN, "eval": EVAL},
    "coco": {"train": TRAIN, "eval": EVAL},
    "nyuv2": {"train": TRAIN, "eval": EVAL},
    "imagenet": {"train": 2 * TRAIN, "eval": 2 * EVAL},
    "places365": {"train": 2 * TRAIN, "eval": 2 * EVAL},
}
"""Benchmark -> part -> number of images; VOC has `SBD` more with SBD's masks."""
VARIANTS = {"voc": "trainaug", "ade20k": None, "coco": None, "nyuv2": "ladicky", "imagenet": None, "places365": "small"}
VGA = {"height": 480, "width": 640}

# config.json and preprocessor_config.json of Intel/dpt-large, written by transformers 4.18: a feature extractor, whose
# size is a number, without rescaling (its files at huggingface.co)
DPT_LARGE = {
    "architectures": ["DPTForDepthEstimation"],
    "attention_probs_dropout_prob": 0.0,
    "auxiliary_loss_weight": 0.4,
    "backbone_out_indices": [5, 11, 17, 23],
    "fusion_hidden_size": 256,
    "head_in_index": -1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "model_type": "dpt",
    "neck_hidden_sizes": [256, 512, 1024, 1024],
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 16,
    "qkv_bias": True,
    "readout_type": "project",
    "reassemble_factors": [4, 2, 1, 0.5],
    "semantic_classifier_dropout": 0.1,
    "semantic_loss_ignore_index": 255,
    "torch_dtype": "float32",
    "transformers_version": "4.18.0.dev0",
    "use_auxiliary_head": True,
    "use_batch_norm_in_fusion_residual": False,
}
DPT_PREPROCESSING = {
    "do_normalize": True,
    "do_resize": True,
    "ensure_multiple_of": 1,
    "feature_extractor_type": "DPTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "keep_aspect_ratio": False,
    "resample": 2,
    "size": 384,
}


def numbers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Random weights for a network on the meta device, with which signals neither vanish nor explode."""
    state = {}
    for name, empty in module.state_dict().items():
        if empty.ndim > 1:
            state[name] = torch.randn(empty.shape) * math.sqrt(2 / math.prod(empty.shape[1:]))
        else:  # of norms the weights are 1
            state[name] = torch.full(empty.shape, float(name.endswith("weight")))
    return state


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_weights(hub: Path, pytorch: Path) -> str:
    """Repositories of the hub in a folder, and torchvision's file, whose name ends in its digest. Returns that name."""
    torch.manual_seed(0)
    for repository in ("CLIP-ViT-B-16-laion2B-s34B-b88K", "CLIP-ViT-B-16-DataComp.XL-s13B-b90K"):
        clip = hub / "laion" / repository
        state = open_clip.create_model("ViT-B-16").state_dict()
        write_json(clip / "open_clip_config.json", {"model_cfg": open_clip.get_model_config("ViT-B-16")})
        save_file(state, clip / "open_clip_model.safetensors")

    large = hub / "Intel/dpt-large"
    write_json(large / "config.json", DPT_LARGE)
    write_json(large / "preprocessor_config.json", DPT_PREPROCESSING)
    with torch.device("meta"):
        module = DPTForDepthEstimation(DPTConfig(**DPT_LARGE))
    state = {name: tensor for name, tensor in numbers(module).items() if not name.startswith(UNUSED)}
    state["head.head.4.bias"].fill_(3)  # the last layer is a ReLU
    save_file(state, large / "model.safetensors", metadata={"format": "pt"})

    save_depth_anything(hub / "depth-anything/Depth-Anything-V2-Small-hf")

    state = {f"module.{name}": tensor for name, tensor in NLLAngMF(architecture="BN").state_dict().items()}
    scannet = hub / "shikunl/prismer/expert_weights/scannet.pt"
    scannet.parent.mkdir(parents=True)
    torch.save({"model": state, "iter": 0}, scannet)

    network = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    with torch.no_grad():  # some objects of some class
        network.roi_heads.box_predictor.cls_score.weight.mul_(300)
    file = pytorch / "maskrcnn.pth"
    pytorch.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    return file.rename(pytorch / f"maskrcnn_resnet50_fpn_v2_coco-{sha256(file)[:8]}.pth").name


def write_archives(folder: Path) -> dict[str, dict[str, Path]]:
    """Benchmark -> name of an archive -> file, with the further names of all variants that are used."""
    trees = {name: folder / "trees" / name for name in COUNTS}
    for tree in trees.values():
        tree.mkdir(parents=True)
    write_voc(trees["voc"], TRAIN, EVAL, sbd=SBD, height=375, width=500)
    write_ade20k(trees["ade20k"], TRAIN, EVAL, height=256, width=341)
    write_coco(trees["coco"], TRAIN, EVAL, **VGA)
    write_nyuv2(trees["nyuv2"], TRAIN, EVAL, **VGA, variant="ladicky", rooms=True, noise=0.02)
    write_imagenet(trees["imagenet"], 2 * TRAIN, 2 * EVAL, odd=True, height=375, width=500)
    write_places365(trees["places365"], 2 * TRAIN, 2 * EVAL, variant="small", height=256, width=256)
    easy = folder / "trees" / "easyformat"
    easy.mkdir()
    write_places365(easy, 2 * TRAIN, 2 * EVAL, variant="easyformat", height=256, width=256)
    for name, variant in VARIANTS.items():
        pack(trees[name], name, variant, folder / name)
    pack(easy, "places365", "easyformat", folder / "easyformat")
    file = "places365standard_easyformat.tar"
    (folder / "easyformat" / file).rename(folder / "places365" / file)
    return {name: {path.name: path for path in sorted((folder / name).iterdir())} for name in COUNTS}


def write_mirrors(path: Path, files: dict[str, dict[str, Path]], url: str) -> None:
    """The user's table of archives: the addresses and digests of these files. There is no digest where none is
    published, and no address where the publisher asks to accept terms."""
    lines = ["benchmark\tfile\tbytes\tdigest\turl"]
    for name, by_file in files.items():
        published = {row.file: row for variant in (VARIANTS[name], "easyformat") for row in archives(name, variant)}
        for file, row in published.items():
            data = by_file[file].read_bytes()
            algorithm = row.digest.partition(":")[0]
            digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" if algorithm else ""
            address = f"{url}/{name}/{file}" if row.url else ""
            lines.append(f"{name}\t{file}\t{len(data)}\t{digest}\t{address}")
    path.write_text("\n".join(lines) + "\n")


CAPTIONS = (
    "a very typical bus station",
    "sierra looked stunning in this top and this skirt while performing with person at their former university",
    'author : " i was never going to be a model "',
    "young confused girl standing in front of a wardrobe ",
    'the sign reads " closed',
    "cybernetic scene isolated on white background .",
    "the jetty : different types of plants to establish a variety of ecosystems .",
    "# of the sports team skates against sports team during their game .",
    "by geographical feature category or in the city - a dream house .",
)
"""In the manner of CC3M: lower case, blanks around punctuation, quotation marks that do not match."""
DEAD = {2: "/404.jpg", 5: "/page.jpg", 7: "/stall.jpg"}
"""Row of the list -> what is at its address instead of an image."""


def photograph(number: int, height: int, width: int) -> bytes:
    out = BytesIO()
    Image.fromarray(scene(number, [1, 2, 4, 77], height, width)["image"]).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_list(path: Path, server: Hosts) -> None:
    """Train_GCC-training.tsv: caption, tab, address; no header."""
    lines = []
    for row, caption in enumerate(CAPTIONS):
        place = DEAD.get(row, f"/photographs/{row}.jpg")
        server.files[f"/photographs/{row}.jpg"] = photograph(row, 400, 600)
        lines.append(f"{caption}\t{server.url}{place}\n")
    path.parent.mkdir(parents=True)
    path.write_text("".join(lines))


def write_tars(folder: Path, shards: int, pairs: int) -> None:
    """cc3m-train-0000.tar and further ones, as img2dataset writes them: .jpg, .json and .txt of each sample, sorted."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"cc3m-train-{shard:04d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * pairs, (shard + 1) * pairs):
                caption = CAPTIONS[number % len(CAPTIONS)]
                record = {"caption": caption, "key": f"{number:09d}", "status": "success", "error_message": None}
                record |= {"width": 683, "height": 512, "original_width": 800, "original_height": 600, "exif": "{}"}
                files = {"jpg": photograph(1000 + number, 512, 683), "json": json.dumps(record, indent=4).encode()}
                for suffix, data in {**files, "txt": caption.encode()}.items():
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
