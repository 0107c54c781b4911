"""mmsegmentation's heads import and work without compiled mmcv, quietly."""

import subprocess
import sys

import pytest
import torch

from cliptex.evaluation.probes.heads.segmentation import build_head
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.models import mmcv_ops


def test_heads_import_in_a_fresh_process_without_a_word():
    command = "from cliptex.models.mmcv_ops import import_heads; print(import_heads().PSPHead.__name__)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PSPHead"]
    assert "Fail to import" not in done.stderr


def test_stand_ins_say_what_is_missing_when_they_are_used():
    mmcv_ops.import_heads()
    module = sys.modules["mmcv.ops"]
    if not mmcv_ops.install():
        pytest.skip("compiled mmcv is installed")
    for name in mmcv_ops.NAMES:
        with pytest.raises(RuntimeError, match=rf"mmcv\.ops\.{name} needs compiled mmcv"):
            getattr(module, name)(1, 2)


def test_compiled_mmcv_is_left_alone(monkeypatch):
    monkeypatch.setattr(mmcv_ops, "find_spec", lambda name: object())
    monkeypatch.delitem(sys.modules, "mmcv.ops", raising=False)
    assert mmcv_ops.install() is False
    assert "mmcv.ops" not in sys.modules


@pytest.mark.parametrize(("name", "parameters"), [("linear", 768 * 21 + 21), ("deeplabv3", None), ("pspnet", None)])
def test_heads_give_logits_of_the_feature_maps_size(name, parameters):
    head = build_head(protocol_of("voc", {}).semantic_segmentation.heads[name], 768, 21).eval()
    assert head(torch.zeros(2, 768, 7, 7)).shape == (2, 21, 7, 7)
    if parameters:
        # the linear head is a 1x1 convolution and nothing else
        assert sum(parameter.numel() for parameter in head.parameters()) == parameters
    assert head.head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.1)
