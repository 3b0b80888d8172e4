# %%dist_train -n 2 --framework torch --plugin fsdp --tp 2 --steps 20 --batch-size 8
# A layout for a module of one's own: which of its layers are cut over tensor-parallel ranks, and along what.

import torch
from torch import nn

torch.manual_seed(0)
WIDTH, HEADS, WORDS = 32, 4, 40


class Mixer(nn.Module):
    """Attention and a gated MLP. Between a colwise and a rowwise layer a rank sees its own heads and features."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v")})
        self.out = nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x):
        q, k, v = (self.qkv[name](x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for name in ("q", "k", "v"))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Mixer() for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


model = Own()
tp_plan = {
    "embed": "vocabulary",  # cut along its rows
    "layers.*.qkv.*": "colwise",  # each rank has the outputs of its own heads
    "layers.*.gate": "colwise",
    "layers.*.up": "colwise",
    "layers.*.out": "rowwise",  # each rank has the inputs of its own heads, and outputs are added up
    "layers.*.down": "rowwise",
    "head": "gathered",
}
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
dataset = [(torch.arange(12) * n % WORDS, (torch.arange(12) + 1) * n % WORDS) for n in range(64)]
criterion = lambda outputs, target: nn.functional.cross_entropy(outputs.flatten(0, 1), target.flatten())  # noqa: E731
