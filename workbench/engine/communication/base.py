"""What an algorithm is on a rank: how the gradients of some parameters become their mean over the ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers for one gradient in one step: the same in whatever bucket it is sent.

    ``shared``: alike on all ranks; ``own``: another sequence on each rank. Each call begins the sequence anew.
    """

    seed: int
    rank: int
    step: int
    place: int
    device: torch.device

    def shared(self) -> torch.Generator:
        """A generator that is alike on all ranks."""
        return self._generator(0)

    def own(self) -> torch.Generator:
        """A generator of this rank."""
        return self._generator(self.rank + 1)

    def _generator(self, stream: int) -> torch.Generator:
        mixed = hash((self.seed, stream, self.step, self.place)) & (2**63 - 1)
        return torch.Generator(self.device).manual_seed(mixed)


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a rank has to send of one parameter: ``value``, shaped like it, in fp32, with what was left over before."""

    name: str
    value: torch.Tensor
    draws: Draws


@dataclass(frozen=True, slots=True)
class Averaged:
    """``mean``: what the update uses. ``sent``: what this rank's gradient counted as, the rest of it is left over; None
    where nobody asks for it."""

    mean: torch.Tensor
    sent: torch.Tensor | None


#: waits for the collective that was begun, and gives the means of the gradients that were asked for
Finish = Callable[[], list[Averaged]]


class Exchange(ABC):
    """One algorithm on one rank. ``number``: of ``NAME:NUMBER``. ``feedback``: ``Averaged.sent`` is asked for."""

    def __init__(self, number: float, *, feedback: bool) -> None:
        self.number = number
        self.feedback = feedback

    def state(self, name: str, shape: Sequence[int], draws: Draws) -> dict[str, torch.Tensor]:
        """What it keeps of a parameter from step to step, for checkpoints: tensors that it changes in place."""
        return {}

    @abstractmethod
    def begin(
        self, gradients: Sequence[Gradient], group: dist.ProcessGroup | None
    ) -> tuple[torch.futures.Future[object] | None, Finish]:
        """Begin to exchange. Returns what is awaited before the function that finishes may be called; None: nothing,
        all collectives are over. On all ranks with the same gradients, in the same order. ``group``: None: all ranks.
        """


class Compressor(Exchange):
    """Encodes each gradient by itself and sends all codes in one collective.

    ``summed``: the codes are numbers whose sum over the ranks is the code of the sum of the gradients, and one
    all-reduce adds them up; else each rank gets those of all ranks.
    """

    summed = False

    def __init__(self, number: float, *, feedback: bool) -> None:
        super().__init__(number, feedback=feedback)
        self._forms: dict[int, list[tuple[torch.Size, torch.dtype]]] = {}

    @abstractmethod
    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """The code of a flat gradient: tensors whose shapes and types depend on its length only; one if ``summed``."""

    @abstractmethod
    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """The flat gradient, of ``length`` elements in fp32, that a code stands for."""

    def combined(self, mean: torch.Tensor) -> torch.Tensor:
        """What the update uses, given the mean over the ranks of what their codes stand for."""
        return mean

    def begin(
        self, gradients: Sequence[Gradient], group: dist.ProcessGroup | None
    ) -> tuple[torch.futures.Future[object] | None, Finish]:
        """As ``Exchange.begin``: one collective, which goes on while the backward pass does."""
        codes = [self._coded(each) for each in gradients]
        ranks = dist.get_world_size(group)
        if self.summed:
            sums = torch.cat([code / ranks for (code,) in codes])
            work = dist.all_reduce(sums, group=group, async_op=True)
        else:
            packed = torch.cat([_bytes(part) for code in codes for part in code])
            gathered = packed.new_empty(ranks * len(packed))
            # before torch 2.13 it has another name
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            work = gather(gathered, packed, group=group, async_op=True)

        @torch.no_grad()
        def finish() -> list[Averaged]:
            parts = [sums] if self.summed else gathered.chunk(ranks)
            received, own = [_unpacked(part, codes) for part in parts], dist.get_rank(group)
            found = []
            for number, each in enumerate(gradients):
                decoded = [self._decoded(each, one[number]) for one in received]
                sent = None
                if self.feedback:
                    sent = self._decoded(each, codes[number]) if self.summed else decoded[own]
                found.append(self._averaged(each, decoded, sent))
            return found

        return work.get_future(), finish

    def _coded(self, gradient: Gradient) -> tuple[torch.Tensor, ...]:
        """Codes of one length have one form, so that all ranks send as much: else they would wait for each other."""
        code = self.encode(gradient.value.flatten(), gradient.draws)
        form = [(part.shape, part.dtype) for part in code]
        first = self._forms.setdefault(gradient.value.numel(), form)
        if form != first:
            raise RuntimeError(
                f"{type(self).__name__}.encode made a code of {[list(shape) for shape, _ in form]} of {gradient.name}, "
                f"and one of {[list(shape) for shape, _ in first]} of as many elements before: sizes depend on the "
                "length only"
            )
        return code

    def _decoded(self, gradient: Gradient, code: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.decode(code, gradient.value.numel(), gradient.draws)

    def _averaged(self, gradient: Gradient, decoded: list[torch.Tensor], sent: torch.Tensor | None) -> Averaged:
        shape = gradient.value.shape
        mean = decoded[0] if len(decoded) == 1 else torch.stack(decoded).mean(0)
        return Averaged(self.combined(mean).view(shape), None if sent is None else sent.view(shape))


def _bytes(part: torch.Tensor) -> torch.Tensor:
    return part.contiguous().view(-1).view(torch.uint8)


def _unpacked(flat: torch.Tensor, like: Sequence[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
    """Codes of the types and shapes of ``like``, one behind the other in ``flat``: in their own type, or as bytes."""
    found, at = [], 0
    for code in like:
        parts = []
        for part in code:
            size = part.numel() * (part.element_size() if flat.dtype == torch.uint8 else 1)
            # copied, as bytes of another type must begin where a value of that type may
            parts.append(flat[at : at + size].clone().view(part.dtype).view(part.shape))
            at += size
        found.append(tuple(parts))
    return found
