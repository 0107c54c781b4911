"""The miniature: rendered synthetic replacements for the real data sets, in their official layouts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliptex.data.miniature.layouts import render_benchmark
    from cliptex.data.miniature.sets import render_captions, render_expert_set, render_pairs, scene_for_key

__all__ = ["render_benchmark", "render_captions", "render_expert_set", "render_pairs", "scene_for_key"]


def __getattr__(name: str) -> Any:
    """Import the renderer only when it is used, since h5py and Embree are slow to import."""
    if name == "render_benchmark":
        from cliptex.data.miniature.layouts import render_benchmark

        return render_benchmark
    if name in __all__:
        from cliptex.data.miniature import sets

        return getattr(sets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
