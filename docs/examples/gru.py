"""A GRU over the rows of an image."""

import torch
from torch import nn

from digitlab import parity

keras = parity.import_keras()


class RowGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(28, 64, batch_first=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        _, last = self.gru(x[:, 0])  # images (N, 1, 28, 28): a row is a step
        return self.fc(last[-1])


theirs = keras.Sequential(
    [
        keras.Input((28, 28)),
        keras.layers.GRU(64, name="gru"),  # reset_after=True, the default, is PyTorch's formula
        keras.layers.Dense(10, name="fc"),
    ]
)

batches = [(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))]
report = parity.check(RowGRU(), theirs, batches)
print(report)
report.assert_passed()
