"""Recurrent layers over the rows of images, and over tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pairs.common import *

# fmt: off
LAYER, GATES = refused("layer"), refused("layer", "reset_after")
LSTM, GRU, RNN, BOTH = nn.LSTM, nn.GRU, nn.RNN, K.Bidirectional
SEQ = {"return_sequences": True}

def last(made: Any) -> Tensor:
    return made[0][:, -1]

def every(made: Any) -> Tensor:
    return made[0]

def final(made: Any) -> Tensor:
    states = made[1][0] if isinstance(made[1], tuple) else made[1]
    return torch.cat([states[-2], states[-1]], 1)

def rnn(kind: Any, read: Callable[[Any], Tensor] = last, **options: Any) -> Any:
    """Delay a layer of 5 units over the rows of an image, and a linear layer."""
    layer = getattr(T, kind.__name__)(8, 5, **{"batch_first": True, **options})
    return layer, read

def ours(made: Any) -> nn.Module:
    layer, read = made
    return Net(lambda m, x: m.fc(read(m.layer(x[:, 0])).flatten(1)), layer=layer.build(),
               fc=nn.LazyLinear(4))

def theirs(*layers: Any) -> Any:
    return sequential(*layers, L.Flatten(), L.Dense(4, name="fc"), shape=(8, 8))

TWO: dict[str, Any] = {"num_layers": 2}
BI: dict[str, Any] = {"bidirectional": True}
STATES = fails("layer", "flatten", "fc")
ROWS = [
    ("LSTM", rnn(LSTM), K.LSTM(5)),
    ("LSTM, all steps", rnn(LSTM, every), K.LSTM(5, **SEQ)),
    ("LSTM without unit_forget_bias", rnn(LSTM), K.LSTM(5, unit_forget_bias=False)),
    ("LSTM without biases", rnn(LSTM, bias=False), K.LSTM(5, use_bias=False)),
    ("LSTM, biases in PyTorch alone", rnn(LSTM), K.LSTM(5, use_bias=False), LAYER),
    ("LSTM, biases in Keras alone", rnn(LSTM, bias=False), K.LSTM(5), LAYER),
    ("LSTM with hard_sigmoid", rnn(LSTM), K.LSTM(5, recurrent_activation="hard_sigmoid"), FAILS),
    ("LSTM with ReLU", rnn(LSTM), K.LSTM(5, activation="relu"), FAILS),
    ("LSTM backwards in Keras", rnn(LSTM), K.LSTM(5, go_backwards=True), FAILS),
    ("LSTM, the first step", rnn(LSTM, lambda made: made[0][:, 0]), K.LSTM(5), STATES),
    ("LSTM, the cell's state", rnn(LSTM, lambda made: made[1][1][-1]), K.LSTM(5), STATES),
    ("LSTM that takes the batch for time", rnn(LSTM, batch_first=False), K.LSTM(5), FAILS),
    ("LSTM against GRU", rnn(LSTM), K.GRU(5), LAYER),
    ("LSTM of other units", rnn(LSTM), K.LSTM(6), LAYER),
    ("LSTM with a projection", rnn(LSTM, proj_size=3), K.LSTM(5), REFUSED),
    ("LSTM of a cell", rnn(LSTM), K.RNN(K.LSTMCell(5))),
    ("LSTM in both directions", rnn(LSTM, final, **BI), BOTH(K.LSTM(5))),
    ("LSTM in both directions, all steps", rnn(LSTM, every, **BI), BOTH(K.LSTM(5, **SEQ))),
    ("both directions, the backward one's first step", rnn(LSTM, **BI), BOTH(K.LSTM(5)), FAILS),
    ("both directions added up", rnn(LSTM, final, **BI), BOTH(K.LSTM(5), "sum"), REFUSED),
    ("both directions in PyTorch alone", rnn(LSTM, final, **BI), K.LSTM(5), REFUSED),
    ("GRU", rnn(GRU), K.GRU(5)),
    ("GRU without reset_after", rnn(GRU), K.GRU(5, reset_after=False), GATES),
    ("GRU without biases", rnn(GRU, bias=False), K.GRU(5, use_bias=False)),
    ("GRU without biases and reset_after", rnn(GRU, bias=False),
     K.GRU(5, use_bias=False, reset_after=False), GATES),
    ("GRU of a cell", rnn(GRU), K.RNN(K.GRUCell(5))),
    ("GRU in both directions", rnn(GRU, final, **BI), BOTH(K.GRU(5))),
    ("GRU, the mean of both directions",
     rnn(GRU, lambda made: made[1].mean(0), **BI), BOTH(K.GRU(5), "ave")),
    ("SimpleRNN", rnn(RNN), K.SimpleRNN(5)),
    ("SimpleRNN with ReLU in Keras", rnn(RNN), K.SimpleRNN(5, "relu"), FAILS),
    ("columns for rows", rnn(LSTM), [K.Permute((2, 1), name="layer"), K.LSTM(5)],
     fails("layer", "lstm")),
    ("two LSTM layers", rnn(LSTM, **TWO), [K.LSTM(5, **SEQ), K.LSTM(5)]),
    ("two LSTM layers, tanh for sigmoid in the second", rnn(LSTM, **TWO),
     [K.LSTM(5, **SEQ), K.LSTM(5, recurrent_activation="tanh", name="layer")], FAILS),
    ("two bidirectional GRU layers", rnn(GRU, every, **TWO, **BI),
     [BOTH(K.GRU(5, **SEQ)), BOTH(K.GRU(5, **SEQ))]),
    ("stacked cells", rnn(LSTM, **TWO), K.RNN([K.LSTMCell(5), K.LSTMCell(5)])),
    ("dropout is off", rnn(LSTM, dropout=0.5, **TWO),
     [K.LSTM(5, dropout=0.3, **SEQ), K.LSTM(5, recurrent_dropout=0.2)]),
]

def cell(kind: str) -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(8):
            state = m.cell(x[:, 0, t], state)
        return m.fc(state[0] if kind == "LSTM" else state)

    module = Net(forward, cell=getattr(nn, f"{kind}Cell")(8, 5), fc=nn.Linear(5, 4))
    return module, theirs(getattr(L, kind)(5))

def words(**options: Any) -> tuple[nn.Module, Any]:
    module = Net(lambda m, x: m.fc(m.rnn(m.emb(x))[1][0]), emb=nn.Embedding(12, 6),
                 rnn=nn.GRU(6, 5, batch_first=True), fc=nn.Linear(5, 4))
    return module, sequential(L.Embedding(12, 6, name="emb", **options), L.GRU(5, name="rnn"),
                              L.Dense(4, name="fc"), shape=(7,))

def in_time(activation: str) -> tuple[nn.Module, Any]:
    module = Net(lambda m, x: m.fc(m.each(x[:, 0]).relu().flatten(1)), each=nn.Linear(8, 3),
                 fc=nn.Linear(24, 4))
    return module, theirs(L.TimeDistributed(L.Dense(3, activation), name="each"))

def frames() -> tuple[nn.Module, Any]:
    def forward(m: Any, x: Tensor) -> Tensor:
        means = m.conv(x.flatten(0, 1)).relu().mean((2, 3))
        return m.fc(means.unflatten(0, (-1, 2)).sum(1))

    def network(x: Any) -> Any:
        y = L.TimeDistributed(L.Conv2D(3, 3, activation="relu"))(x)
        return L.Dense(4)(ops.sum(L.TimeDistributed(L.GlobalAveragePooling2D())(y), axis=1))

    return Net(forward, conv=nn.Conv2d(1, 3, 3), fc=nn.Linear(3, 4)), functional(network,
        (2, 8, 8, 1))

TOPICS = {
    "recurrent layers": [
        *table(ROWS, ours, theirs),
        Pair("a loop over LSTMCell", PASSED, lambda: cell("LSTM")),
        Pair("a loop over GRUCell", PASSED, lambda: cell("GRU")),
        Pair("of tokens", PASSED, words, batches=lambda: tokens(7)),
        Pair("of tokens, zeros masked in Keras", fails("rnn"), lambda: words(mask_zero=True),
             batches=lambda: tokens(7, 3)),
        Pair("TimeDistributed dense layer", PASSED, lambda: in_time("relu")),
        Pair("TimeDistributed with tanh", fails("each"), lambda: in_time("tanh")),
        Pair("TimeDistributed convolution", PASSED, frames, shape=(2, 1, 8, 8)),
    ]
}
