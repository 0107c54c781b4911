"""Use mmsegmentation's heads without compiled mmcv.

Importing mmsegmentation needs four names of `mmcv.ops`, which mmcv-lite lacks; its FCN, ASPP and PSP heads and its IoU
metric do not use them. `install` registers a stand-in module with these names, which raise an error when used. If
compiled mmcv is installed, nothing is replaced.

What breaks it: an mmsegmentation that imports more names of `mmcv.ops` (add them to `NAMES`), or an mmcv-lite with its
own module of that name (tested with mmcv 2.1 and mmsegmentation 1.2).
"""

import importlib.machinery
import sys
import types
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

NAMES = ("point_sample", "sigmoid_focal_loss", "CrissCrossAttention", "PSAMask")


class Heads(NamedTuple):
    """Classes of mmsegmentation that the probes use."""

    FCNHead: type
    ASPPHead: type
    PSPHead: type
    IoUMetric: type


def _stand_in(name: str) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"mmcv.ops.{name} needs compiled mmcv; install mmcv 2.1 in place of mmcv-lite")

    return type(name, (), {"__init__": __init__, "__doc__": f"Stand-in for mmcv.ops.{name}; raises an error."})


def install() -> bool:
    """Put the stand-in for `mmcv.ops` into `sys.modules`; return False if compiled mmcv is installed instead.

    Must be called before mmsegmentation is imported.
    """
    if find_spec("mmcv._ext") is not None:
        return False
    if "mmcv.ops" not in sys.modules:
        module = types.ModuleType("mmcv.ops", "Stand-in by cliptex.models.mmcv_ops for the part that mmcv-lite lacks.")
        # some libraries read the spec of all entries of sys.modules
        module.__spec__ = importlib.machinery.ModuleSpec("mmcv.ops", loader=None)
        for name in NAMES:
            setattr(module, name, _stand_in(name))
        sys.modules["mmcv.ops"] = module
    return True


def import_heads() -> Heads:
    """Import mmsegmentation (with the stand-ins if need be) and return its head and metric classes."""
    with warnings.catch_warnings():
        # mmcv-lite warns at every import that it has no compiled operators
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
        install()
        from mmseg.evaluation import IoUMetric
        from mmseg.models.decode_heads import ASPPHead, FCNHead, PSPHead
    return Heads(FCNHead, ASPPHead, PSPHead, IoUMetric)
