"""CTC on the LLM's own tokens: audio positions of a middle layer are to spell what is said, in order.

An addition of ours, off by default. The answer's loss has to find by itself which position a word of the answer comes from;
CTC (Graves et al., 2006) sums over all monotonic alignments, so that every position learns where the words are. Nothing is
learnt besides LoRA and the audio embedding: the classes are directions of the LLM's token embeddings, whose tokens its upper layers
know how to copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SHARPNESS = 20.0  # of the cosines' softmax. Our choice
TABLE_SAMPLE = 4096  # rows whose mean is taken off the embeddings: they share one large direction


class SpellingLoss(nn.Module):
    """Cosines of standardised hidden states and centred token embeddings, scored by CTC.

    Args:
        table_VD: token embeddings of the LLM, which stay as they are.
        blank: row that stands for no token, e.g. the end of a text.
        layer: 1-based, whose outputs are scored.
    """

    mean_D: torch.Tensor

    def __init__(self, table_VD: torch.Tensor, *, blank: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.blank = blank
        self._table: tuple[torch.Tensor, ...] = (
            table_VD.detach(),
        )  # in a tuple: the LLM's parameter, and no part of ours
        rows = torch.linspace(0, len(table_VD) - 1, min(TABLE_SAMPLE, len(table_VD)), device=table_VD.device).long()
        self.register_buffer("mean_D", self._table[0][rows].float().mean(0), persistent=False)

    def forward(
        self, hidden_BSD: torch.Tensor, is_audio_BS: torch.Tensor, spelled: Sequence[Sequence[int] | None]
    ) -> tuple[torch.Tensor, int]:
        """Sum of the CTC losses (nats) and the number of tokens spelled.

        Args:
            hidden_BSD: outputs of the layer.
            is_audio_BS: True at audio positions; one recording a row where `spelled` is not None.
            spelled: tokens of each row's transcript; None where it is not known. Rows too short for their tokens count nothing.
        """
        rows = [row for row, tokens in enumerate(spelled) if tokens is not None and bool(is_audio_BS[row].any())]
        tokens = sorted({token for row in rows for token in spelled[row] or ()} - {self.blank})
        if not rows:
            return hidden_BSD.new_zeros((), dtype=torch.float32), 0
        index = {token: number for number, token in enumerate(tokens, start=1)}
        classes = torch.tensor([self.blank, *tokens], device=hidden_BSD.device)
        directions_CD = nn.functional.normalize(self._table[0][classes].float() - self.mean_D, dim=-1)
        lengths = is_audio_BS[rows].sum(1)
        # Over all positions of the batch: an LLM's few huge channels would be all there is to see.
        standard_PD = nn.functional.batch_norm(hidden_BSD[rows][is_audio_BS[rows]].float(), None, None, training=True)
        scores_PC = SHARPNESS * nn.functional.normalize(standard_PD, dim=-1) @ directions_CD.T
        padded_BTC = nn.utils.rnn.pad_sequence(list(scores_PC.split(lengths.tolist())), batch_first=True)
        targets = [[index[token] for token in spelled[row] or () if token in index] for row in rows]
        counts = torch.tensor([len(target) for target in targets])
        loss = nn.functional.ctc_loss(
            padded_BTC.log_softmax(-1).transpose(0, 1),
            torch.tensor(
                [number for target in targets for number in target], dtype=torch.long, device=hidden_BSD.device
            ),
            lengths.cpu(),
            counts,
            reduction="sum",
            zero_infinity=True,
        )
        return loss, int(counts.sum())
