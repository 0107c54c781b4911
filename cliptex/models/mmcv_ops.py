"""mmsegmentation's heads without compiled mmcv.

mmsegmentation imports four names of `mmcv.ops`, none of which its FCN, ASPP and PSP heads or its IoU metric use.
mmcv-lite does not have the compiled part, so importing mmsegmentation fails. `install` puts stand-ins for these four
in place that say so when they are used; where compiled mmcv is installed, it is left alone.
"""

import importlib.machinery
import sys
import types
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

NAMES = ("point_sample", "sigmoid_focal_loss", "CrissCrossAttention", "PSAMask")


class Heads(NamedTuple):
    """mmsegmentation's classes that the probes use."""

    FCNHead: type
    ASPPHead: type
    PSPHead: type
    IoUMetric: type


def _stand_in(name: str) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"mmcv.ops.{name} needs compiled mmcv; install mmcv 2.1 in place of mmcv-lite")

    return type(name, (), {"__init__": __init__, "__doc__": f"Stand-in for mmcv.ops.{name}: an error when used."})


def install() -> bool:
    """Put the stand-in for `mmcv.ops` into `sys.modules`; return False where compiled mmcv is there instead.

    Call it before anything imports mmsegmentation.
    """
    if find_spec("mmcv._ext") is not None:
        return False
    if "mmcv.ops" not in sys.modules:
        module = types.ModuleType("mmcv.ops", "Stand-ins of cliptex.models.mmcv_ops for what mmcv-lite lacks.")
        # some libraries ask for the spec of whatever is in sys.modules
        module.__spec__ = importlib.machinery.ModuleSpec("mmcv.ops", loader=None)
        for name in NAMES:
            setattr(module, name, _stand_in(name))
        sys.modules["mmcv.ops"] = module
    return True


def import_heads() -> Heads:
    """Import mmsegmentation (with the stand-ins if need be) and return its head and metric classes."""
    with warnings.catch_warnings():
        # mmcv-lite says that it has no compiled operators each time it is imported
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
        install()
        from mmseg.evaluation import IoUMetric
        from mmseg.models.decode_heads import ASPPHead, FCNHead, PSPHead
    return Heads(FCNHead, ASPPHead, PSPHead, IoUMetric)
