"""The one check against NaN and infinity: of weights, features, predictions and metrics."""

from typing import Any

from cliptex.core.errors import CliptexError


def require_finite(values: Any, subject: str, remedy: str) -> None:
    """Raise CliptexError if a number, an array or a tensor has a NaN or an infinity.

    values: a float, a NumPy array or a torch tensor; integers pass. subject: the file, and the key or tensor in it.
    """
    if hasattr(values, "isfinite"):  # a tensor; torch is not imported for the others
        if values.sum().isfinite():  # 25 times faster; NaN and infinity never vanish in a sum, but it may overflow
            return
        finite = values.isfinite()
    else:
        import numpy as np

        finite = np.isfinite(values)
    if not finite.all():
        raise CliptexError(f"{subject}: has {int((~finite).sum())} NaN or infinite values; {remedy}")
