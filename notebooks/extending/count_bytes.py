# %%dist_algorithm counted
# A collective hook that counts: whole gradients in fp32, and the bytes that each parameter's gradients were.
# Then: %dist_train ... --framework torch --plugin ddp --algorithm counted

import torch

from workbench.engine.communication.base import Compressor


class Counted(Compressor):
    """Averages whole gradients by one all-reduce for each bucket, and prints how many bytes a rank has given to it."""

    summed = True

    def __init__(self, number, *, feedback):
        super().__init__(number, feedback=feedback)
        self.sent, self.step = {}, -1

    def state(self, name, shape, draws):
        """In checkpoints as ``bytes/NAME``: a run that goes on counts on."""
        self.sent[name] = torch.zeros((), dtype=torch.int64)
        return {"bytes": self.sent[name]}

    def begin(self, gradients, group):
        """Count the bytes of a bucket, and begin its all-reduce, which goes on while the backward pass does."""
        step = gradients[0].draws.step
        if step != self.step:
            self.step, total = step, sum(int(count) for count in self.sent.values())
            print(f"{total} bytes of gradients before step {step + 1}")
        for each in gradients:
            self.sent[each.name] += each.value.nbytes
        return super().begin(gradients, group)

    def encode(self, gradient, draws):
        return (gradient,)

    def decode(self, code, length, draws):
        return code[0]
