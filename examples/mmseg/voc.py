# Train a linear head together with the encoder in mmsegmentation's runner, on the miniature's VOC. README.md describes
# the changes for the official VOC.
custom_imports = dict(imports=["cliptex.models.mmseg_backbone"], allow_failed_imports=False)
default_scope = "mmseg"

encoder = "results/models/cliptex/seed0"
voc = "resources/voc/VOCdevkit/VOC2012"
side = 96  # side of the square crop; any multiple of the encoder's patch size
crop = (side, side)
iterations = 400

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        # CLIP's, times 255; for other weights see the attributes of `CliptexBackbone`
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321375, 70.32316425],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop,
        test_cfg=dict(size=crop),
    ),
    backbone=dict(type="CliptexBackbone", model=encoder, frozen=False, out_indices=(-1,)),
    decode_head=dict(
        type="FCNHead",
        in_channels=128,
        channels=128,
        num_convs=0,
        concat_input=False,
        kernel_size=1,
        num_classes=21,
        dropout_ratio=0,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

dataset = dict(
    type="PascalVOCDataset",
    data_root=voc,
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        ann_file="ImageSets/Segmentation/train.txt",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomResize", scale=crop, ratio_range=(1.0, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        ann_file="ImageSets/Segmentation/val.txt",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=crop, keep_ratio=False),
            # loaded after Resize, so that masks keep their resolution; predictions are resized to it
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [dict(type="PolyLR", power=0.9, begin=0, end=iterations, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=iterations),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
