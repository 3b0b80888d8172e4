"""What a plugin of a framework keeps on each rank, declared once: the planner computes from it. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

#: ``Shares.bucket_bytes``: the buffers of the reduction hold the whole gradient
WHOLE = -1
#: ``Shares.casts``: in bf16 and fp16 the model is kept in that type, or its fp32 parts are gathered in it
KEPT, GATHERED = "kept", "gathered"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What the data-parallel ranks of a plugin split among them, and what they send.

    ``parameters``, ``gradients``, ``state``: whether each data-parallel rank holds a part only. Parameters of which
    ranks hold parts are gathered block by block for each pass. ``by_rows``: parts are chunks of dim 0, as
    ``torch.chunk`` cuts them; else flat slices of every parameter, padded to equal lengths. ``copies``: when the
    optimizer updates a copy in fp32 in place of the parameter: "never", "mixed" (in bf16 and fp16) or "always".
    ``casts``: ``KEPT`` or ``GATHERED``, or "" where the model is fp32 under autocast. ``bucket_bytes``: the largest
    size of the buffers in which gradients are reduced (``WHOLE``: as large as the gradient). ``stages_reduce_apart``:
    pipeline stages reduce one gradient after another, in place. ``gathers``: how often a
    step gathers the parameters that its ranks updated.
    """

    parameters: bool = False
    gradients: bool = False
    state: bool = False
    by_rows: bool = False
    copies: str = "never"
    casts: str = ""
    bucket_bytes: int = 0
    stages_reduce_apart: bool = False
    gathers: int = 0

    def has_copies(self, precision: str) -> bool:
        """Whether the optimizer updates fp32 copies at this precision."""
        return self.copies == "always" or (self.copies == "mixed" and precision != "fp32")
