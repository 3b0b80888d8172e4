"""Weights the losses of pieces and replicas, so that together they are the loss of the whole batch in one process.

A piece that averages over n of the N labels (or samples) of the global batch counts n / N. N is known only when every
piece was computed, so a loss is divided by an estimate of N first: what the first pieces of all replicas hold, times
the number of pieces. Without gradient accumulation this is N itself; else ``finish`` returns the factor that corrects
the gradients. A pipeline runs backward before all micro-batches went forward: its estimate is what it expects in them.

Where a step has one piece on each replica, N is known for every term of a loss before the backward pass, so each is
weighted by what it is about itself: terms of labels, of chosen elements, sums, and others, which count by samples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.mesh import Mesh
from workbench.engine.base.batch import Batch, contents
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.losses.calls import Number
from workbench.engine.frameworks.torch_common.losses.remarks import (
    FACTOR,
    MIXED_TERMS,
    TOO_MANY_TERMS,
    UNNAMED_TERMS,
)
from workbench.engine.frameworks.torch_common.losses.terms import MOST_PARTS, Division, Factor, LossTerm

#: steps in which a loss is looked at for what a person should know of its average
_TOLD_STEPS = 3
#: numbers that stand for what a loss is made of: sums over ranks of their squares are exact
_KEYS = 2**16
#: where the sums over ranks have: how many terms lack a place, what tells whether factors differ, and whether keys do
_WITHOUT_PLACE, _FACTORS, _KEY_SUMS = -9, slice(-8, -3), slice(-3, None)
#: of the square of a factor: below it, factors are equal
_TOLERANCE = 1e-10


class LossAverage:
    """The weights of one step after another. Every rank makes the same calls in the same order.

    ``expected``: what the loss of a batch is likely to be an average over; only a pipeline asks. ``tell(name, text)``
    learns where ranks and pieces hold losses that do not make that of one process.
    """

    def __init__(
        self,
        mesh: Mesh,
        device: torch.device,
        tell: Callable[[str, str], object],
        expected: Callable[[Batch], Number] = lambda batch: 1.0,
    ) -> None:
        self._mesh = mesh
        self._device = device
        self._tell = tell
        self._expected = expected
        self._replicas = mesh.dp
        self._parts = 1
        self._estimate: Number | None = None
        self._used: Number | None = None
        self._factor: Number | None = None
        #: over the ranks, the mean numbers of samples and of what each term of a loss counts, in its place
        self._agreed: list[Number] | None = None
        self._places: dict[int, int] = {}
        self._first_factor: Factor | None = None
        self._first_key: int | None = None
        self._is_empty: bool | torch.Tensor = False
        self._counts: list[Number] = []
        self._steps = 0

    @property
    def is_new(self) -> bool:
        """Whether this is one of the first steps."""
        return self._steps <= _TOLD_STEPS

    @property
    def division(self) -> Division:
        """How the batch of a step is divided into pieces."""
        is_one = self._parts == 1
        return Division(self._replicas > 1 or not is_one, is_one and self._replicas > 1 and self._mesh.pp == 1)

    def begin(self, pieces: Sequence[Batch], micro_batches: int = 1) -> None:
        """Begin a step over ``pieces``, each of which a pipeline cuts into ``micro_batches``.

        Collective in a pipeline.
        """
        self._steps += 1
        self._parts = len(pieces) * micro_batches
        self._counts = []
        self._estimate = None
        self._agreed = None
        self._first_factor = None
        self._first_key = None
        if self._mesh.pp > 1:
            (total,) = self._summed([sum(self._expected(contents(piece)) for piece in pieces)])
            self._estimate = _nonzero(total / self._mesh.world_size / self._parts, 1.0)

    def weighted(self, term: LossTerm, samples: float, waits: Callable[[], object] = lambda: None) -> torch.Tensor:
        """What ``term``, of ``samples`` samples (0: a stand-in), adds to the loss of this replica: an fp32 scalar.

        The mean over replicas of the sum over pieces is the loss of the global batch. ``waits`` is called before ranks
        wait for each other, at the first piece of a step.
        """
        count = _count(term, samples)
        if self._estimate is None:
            waits()
            summed = self._agree(term, count, samples)
            agreed, *self._agreed = (total / self._mesh.world_size for total in summed[: 2 + MOST_PARTS])
            self._is_empty = agreed == 0 if self._parts == 1 else False
            self._estimate = _nonzero(agreed, 1.0)  # alike on all ranks, also where their shares differ in size
            self._tell_if(self.is_new and _differ(summed[_FACTORS]), "loss_factor", FACTOR)
            self._tell_of_keys(_have_several_keys(summed[_KEY_SUMS]))
        elif self._first_factor is not None and term.factor is not None:
            self._tell_if(_is_another(self._first_factor, term.factor), "loss_factor", FACTOR)
        key = self._key(term) if samples else None
        self._tell_of_keys(key is not None and self._first_key not in (None, key))
        self._first_key = key if self._first_key is None else self._first_key
        self._first_factor = self._first_factor or term.factor
        self._used = self._estimate
        self._counts.append(self._estimate if term.form == "sum" else count)  # a sum is right whatever the counts are
        return self._divided(term, samples, count)

    def again(self, term: LossTerm, samples: float) -> torch.Tensor:
        """``weighted`` for a term of the last step that is computed once more, with the final weight. No rank waits."""
        count = _count(term, samples)
        loss = self._divided(term, samples, count)
        return loss if self._factor is None else loss * self._factor

    def state(self) -> dict[str, Any]:
        """What ``again`` needs in another process, as plain numbers."""
        factor = None if self._factor is None else float(self._factor)
        used = None if self._used is None else float(self._used)
        agreed = None if self._agreed is None else [float(number) for number in self._agreed]
        numbers = {"estimate": used, "factor": factor, "replicas": self._replicas, "parts": self._parts}
        return {**numbers, "agreed": agreed, "places": list(self._places)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``. Without an estimate, as earlier versions kept none, all pieces weigh the same."""
        self._used, self._factor = state["estimate"], state["factor"]
        self._replicas, self._parts = state["replicas"], state["parts"]
        self._agreed = state.get("agreed")
        self._places = {site: place for place, site in enumerate(state.get("places", ()))}

    def _divided(self, term: LossTerm, samples: float, count: Number) -> torch.Tensor:
        value, used = term.value.float(), count if self._used is None else self._used
        if term.form == "sum":
            return value * (self._replicas if samples else 0.0)
        if term.form == "total":
            return (value if samples else value * 0.0) / _fp32(used * self._parts)
        if self.division.by_terms and self._agreed is not None:
            return self._by_terms(term, samples, self._agreed)
        return self._without_nan(term, count) * _fp32(count / used / self._parts)

    def _agree(self, term: LossTerm, count: Number, samples: float) -> list[Number]:
        """Over ranks, the sums of what they count, of samples and of each term in its place, and the moments of the
        factors. Where a rank has terms without a place, all ranks give them one first. Collective."""
        counts = _counts_of_parts(term, samples) if self.division.by_terms else {}
        placed: list[Number] = [0.0] * MOST_PARTS
        new = [site for site in counts if site not in self._places] if len(self._places) < MOST_PARTS else []
        for site in counts.keys() & self._places.keys():
            placed[self._places[site]] = counts[site]
        without_place = float(len([site for site in counts if site not in self._places]))
        keys = [1.0, float(self._key(term)), float(self._key(term) ** 2)] if samples else [0.0] * 3
        summed = self._summed([count, samples, *placed, without_place, *_moments(term.factor), *keys])
        # the host waits for a device in the first steps only
        lacking = summed[_WITHOUT_PLACE]
        is_known = self.is_new or isinstance(lacking, float)
        if is_known and lacking and len(self._places) == MOST_PARTS:
            self._tell("loss_by_samples", TOO_MANY_TERMS)
        elif is_known and lacking:
            self._give_places(new)
            return self._agree(term, count, samples)
        return summed

    def _key(self, term: LossTerm) -> int:
        """A number that is alike where ranks and pieces hold terms that can be averaged."""
        if self.division.by_terms:
            return zlib.crc32(repr(term.repeated).encode()) % _KEYS if term.repeated else 0
        if term.form == "mean":
            return 0 if term.count is None else 3 + term.site % _KEYS
        return 1 if term.form == "sum" else 2

    def _tell_of_keys(self, differ: bool) -> None:
        by_terms = self.division.by_terms
        self._tell_if(differ, "loss_terms", UNNAMED_TERMS if by_terms else MIXED_TERMS)

    def _tell_if(self, holds: bool, name: str, text: str) -> None:
        if holds:
            self._tell(name, text)

    def _give_places(self, new: Sequence[int]) -> None:
        """Give the terms that are ``new`` on any rank a place each, the same on all ranks. Collective."""
        rank = self._rank()
        rows = [[0.0] * MOST_PARTS for _ in range(self._mesh.world_size)]
        rows[rank] = [*map(float, new[:MOST_PARTS]), *[0.0] * (MOST_PARTS - len(new))]
        for number in self._summed([each for row in rows for each in row]):
            if number and int(number) not in self._places and len(self._places) < MOST_PARTS:
                self._places[int(number)] = len(self._places)

    @staticmethod
    def _rank() -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    def _by_terms(self, term: LossTerm, samples: float, agreed: Sequence[Number]) -> torch.Tensor:
        """The mean over replicas is the loss of the batch: its ``parts`` count by themselves, the rest by samples."""
        by_samples, *by_parts = agreed
        if not term.parts:
            is_counted = term.count is not None and samples and term.site in self._places
            count: Number = term.count if is_counted else samples  # type: ignore[assignment]
            used = by_parts[self._places[term.site]] if is_counted else by_samples
            self._is_empty = used == 0
            return self._without_nan(term, count) * _fp32(count / _nonzero(used, 1.0))
        share = samples / by_samples
        loss = term.value.float() * _fp32(share)
        for part in term.parts:
            weight: Number = share
            if part.count is None:
                weight = self._replicas if samples else 0.0
            elif part.site in self._places:
                used = by_parts[self._places[part.site]]
                weight = (part.count if samples else 0.0) / _nonzero(used, math.nan)  # NaN, as in one process
            if isinstance(weight, torch.Tensor) or weight != share:
                loss = loss + _fp32(weight - share) * _fp32(part.scale) * part.value.float()
        return loss

    def _without_nan(self, term: LossTerm, count: Number) -> torch.Tensor:
        """A mean over no label is NaN: 0 instead, with gradient 0, unless the whole batch has no label."""
        value = term.value.float()
        if isinstance(count, float | int):
            if count:
                return value
            if self._is_empty is True:
                return value + math.nan  # which is 0 where a mean over nothing was filled
            # the gradient of a quotient by 0 is NaN, also where it is multiplied by 0
            value = value if term.numerator is None else term.numerator.float()
        is_filled = torch.as_tensor(count, device=value.device) > 0
        kept = torch.where(is_filled, value, torch.zeros_like(value))
        is_empty = torch.as_tensor(self._is_empty, device=value.device)
        return torch.where(is_empty, torch.full_like(value, math.nan), kept)

    def finish(self) -> Number | None:
        """The factor by which this step's gradients and losses are to be multiplied; None: they are right.

        Collective where a step has several pieces or stages.
        """
        self._factor = None
        if self._parts == 1 or self._estimate is None:
            return None
        counted: Number = sum(self._counts) if self._counts else 0.0
        (total,) = self._summed([counted])
        mean = total / (self._mesh.dp * self._mesh.peers * self._parts)
        factor = self._estimate / mean if not isinstance(mean, float) or mean else math.nan
        is_right = isinstance(factor, float) and math.isclose(factor, 1.0, rel_tol=1e-12)
        self._factor = None if is_right else _fp32(factor)
        return self._factor

    @property
    def factor(self) -> Number:
        """What ``finish`` returned in the last step; 1 for None."""
        return 1.0 if self._factor is None else self._factor

    def _summed(self, counts: Sequence[Number]) -> list[Number]:
        """The sums over all ranks; scalars on the device unless that is the host. Collective."""
        if self._mesh.world_size == 1:
            return list(counts)
        if any(isinstance(each, torch.Tensor) for each in counts):
            total = torch.stack([torch.as_tensor(each, dtype=torch.float64, device=self._device) for each in counts])
        else:
            total = torch.tensor(counts, dtype=torch.float64, device=self._device)
        self._sum(total)
        return total.tolist() if total.device.type == "cpu" else [*total]

    def _sum(self, total: torch.Tensor) -> None:
        """Sum over all ranks, in place. Collective."""
        all_reduce_uncounted(total)


def _count(term: LossTerm, samples: float) -> Number:
    """What a term counts: labels where it knows them, else samples; a stand-in counts nothing."""
    return samples if term.form == "sum" or term.count is None or not samples else term.count


def _counts_of_parts(term: LossTerm, samples: float) -> dict[int, Number]:
    """What each part of a loss counts, by its site: a loss of one term is its own part."""
    parts: dict[int, Number | None] = {part.site: part.count for part in term.parts}
    if term.form == "mean" and not parts:
        parts[term.site] = term.count
    return {site: count if samples else 0.0 for site, count in parts.items() if count is not None}


def _moments(factor: Factor | None) -> list[float]:
    """What summed over ranks tells whether their factors differ."""
    if factor is None:
        return [0.0] * 5
    return [1.0, factor.total, factor.total**2, factor.terms, factor.terms**2]


def _differ(moments: Sequence[Number]) -> bool:
    """Whether ranks with as many means hold them by different factors. Waits for the device in the first steps."""
    ranks, total, squares, terms, squared_terms = map(float, moments)
    has_one_form = ranks > 0 and ranks * squared_terms == terms**2
    return has_one_form and squares - total**2 / ranks > _TOLERANCE * squares


def _have_several_keys(moments: Sequence[Number]) -> bool:
    """Whether ranks have different keys; not asked of a device, which the host would have to wait for."""
    if not all(isinstance(each, float) for each in moments):
        return False
    holders, total, squares = map(float, moments)
    return holders * squares != total**2


def _is_another(first: Factor, factor: Factor) -> bool:
    return first.terms == factor.terms and not math.isclose(first.total, factor.total, rel_tol=_TOLERANCE**0.5)


def _nonzero(number: Number, otherwise: float) -> Number:
    if isinstance(number, torch.Tensor):
        return torch.where(number > 0, number, otherwise)
    return number or otherwise


def _fp32(number: Number) -> Number:
    return number.float() if isinstance(number, torch.Tensor) else number
