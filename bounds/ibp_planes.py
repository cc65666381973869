"""The IBP-inspired linear bounds of thesis section 3.3.1: planes for the price of interval propagation.

Hidden intervals are those of interval propagation (Algorithm 3.2: the dual norm in the first layer, then (3.8)); activations are replaced by
the parallel planes of (3.4) and (3.5), and one backward walk gives the linear bounds of the objective. `CrownIbp` differs in the planes alone:
it lets the two slopes of an activation differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bounds.crown import LinearEngine
from bounds.ops.base import Slopes


@dataclass(frozen=True)
class IbpPlanes(LinearEngine):
    """Parallel planes over intervals from interval propagation, one backward walk for the objective. See `LinearEngine` for the fields.

    Property: sound; neither tighter nor looser than `Ibp` in general. Numerics: outward rounded. Reference: thesis section 3.3.1.
    """

    slopes: ClassVar[Slopes] = "parallel"
    walks_hidden: ClassVar[bool] = False
