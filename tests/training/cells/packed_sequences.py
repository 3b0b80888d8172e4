"""An LSTM over packed sequences: ranks compute the gradients of its weights in different orders."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)
    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
lengths = [3, 7, 2, 5, 6, 1, 4, 8] * 4
samples = [((torch.arange(n) * (i + 3)) % 19 + 1, (torch.arange(n) * i) % 5) for i, n in enumerate(lengths)]
def collate(samples):
    tokens, labels = zip(*samples)
    lengths = torch.tensor([len(row) for row in tokens])
    return pad_sequence(tokens, batch_first=True), lengths, pad_sequence(labels, batch_first=True, padding_value=-1)
dataloader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate, shuffle=True)
def loss_fn(model, batch):
    tokens, lengths, labels = batch
    scores = model(tokens, lengths)
    labels = labels[:, : scores.shape[1]]
    return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-1)
""",
    plans=("ddp", "zero1", "zero2", "accumulate 2"),
)
