"""Small networks for sequences: of tokens (n, length), or of measurements (n, length, features)."""

from __future__ import annotations

import torch
from torch import nn

from task.models.registry import MODELS, Shape, positive


def _entrance(sample_shape: Shape, vocabulary: int | None, num_classes: int, width: int) -> nn.Module:
    """Return what turns a sample into (length, width): an embedding of tokens, or a linear map."""
    if len(sample_shape) == 1:
        return nn.Embedding(num_classes if vocabulary is None else positive("vocabulary", vocabulary), width)
    if len(sample_shape) == 2:
        return nn.Linear(sample_shape[1], width)
    raise ValueError(
        f"samples of shape {sample_shape} are no sequences: (length) of tokens or (length, features) is "
        "expected"
    )


class _Lstm(nn.Module):
    def __init__(self, entrance: nn.Module, width: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.embedding = entrance
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)
        self.each_position = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, outputs), or (n, length, outputs) for each position."""
        states, _ = self.lstm(self.embedding(x))
        out: torch.Tensor = self.head(states if self.each_position else states[:, -1])
        return out


@MODELS.register("lstm")
def lstm(
    num_classes: int,
    sample_shape: Shape,
    *,
    vocabulary: int | None = None,
    width: int = 32,
    hidden: int = 64,
    layers: int = 1,
    each_position: bool = False,
) -> nn.Module:
    """A recurrent network (Hochreiter and Schmidhuber 1997) with a linear head.

    Args:
        num_classes: outputs.
        sample_shape: (length,) or (length, features).
        vocabulary: number of tokens; default: as many as classes.
        width: of a token's embedding.
        hidden: of the state.
        layers: of the recurrence.
        each_position: logits for each position instead of the last: predict the next token.
    """
    entrance = _entrance(sample_shape, vocabulary, num_classes, positive("width", width))
    model = _Lstm(entrance, width, positive("hidden", hidden), positive("layers", layers), num_classes)
    model.each_position = each_position
    return model


class _Transformer(nn.Module):
    def __init__(
        self, entrance: nn.Module, encoder: nn.Module, length: int, width: int, outputs: int
    ) -> None:
        super().__init__()
        self.embedding = entrance
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.encoder = encoder
        self.head = nn.Linear(width, outputs)
        self.each_position = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, outputs), or (n, length, outputs): each position sees those before it."""
        h = self.embedding(x) + self.position
        if self.each_position:
            mask = torch.full((h.shape[1], h.shape[1]), -torch.inf, device=h.device).triu(1)
            out: torch.Tensor = self.head(self.encoder(h, mask=mask))
            return out
        out = self.head(self.encoder(h).mean(1))
        return out


@MODELS.register("transformer")
def transformer(
    num_classes: int,
    sample_shape: Shape,
    *,
    vocabulary: int | None = None,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    dropout: float = 0.1,
    each_position: bool = False,
    tied: bool = False,
) -> nn.Module:
    """An encoder of self-attention (Vaswani et al. 2017) with a linear head.

    Args:
        num_classes: outputs.
        sample_shape: (length,) or (length, features).
        vocabulary: number of tokens; default: as many as classes.
        width: of the states; a multiple of `heads`.
        heads: of the attention.
        layers: of the encoder.
        dropout: share of entries that are left out in training, in [0, 1).
        each_position: logits for each position, which sees those before it: predict the next token.
        tied: the head's weights are the embedding's (Press and Wolf 2017); for tokens, with as many classes.
    """
    if positive("width", width) % positive("heads", heads):
        raise ValueError(f"model option width = {width} is no multiple of heads = {heads}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"model option dropout = {dropout}; it must be in [0, 1)")
    entrance = _entrance(sample_shape, vocabulary, num_classes, width)
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, positive("layers", layers), enable_nested_tensor=False)
    model = _Transformer(entrance, encoder, sample_shape[0], width, num_classes)
    model.each_position = each_position
    if tied:
        if not isinstance(entrance, nn.Embedding) or entrance.num_embeddings != num_classes:
            raise ValueError("model option tied = true needs tokens, and as many classes as tokens")
        nn.init.normal_(entrance.weight, std=width**-0.5)
        model.head.weight = entrance.weight
    return model
