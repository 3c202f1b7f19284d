"""Reports as states of a frozen text encoder."""

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def encode_text(
    texts: Sequence[str | None], text_encoder: Any, tokenizer: Any, device: torch.device | None = None
) -> dict[str, torch.Tensor]:
    """The entries `text_states` and `text_mask` of a `ConditionEncoder`'s fields.

    The text encoder is not trained: no gradient reaches it.

    Args:
        texts: one a scan; None is unknown.
        text_encoder: of `transformers`, with `last_hidden_state` in its output (BERT, CLIP, T5 encoder ...).
        tokenizer: its tokenizer.
        device: where the encoder runs; None is where its weights are, which is elsewhere while it is offloaded.

    Returns:
        text_states (batch, length, hidden size) float32 and text_mask (batch, length) bool, False for padding and
        everywhere in an unknown text.

    Raises:
        ValueError: if a text is longer than the encoder takes; a report is never cut off silently.
    """
    device = device or text_encoder.device
    known = [i for i, text in enumerate(texts) if text is not None]
    if not known:
        states = torch.zeros(len(texts), 1, text_encoder.config.hidden_size, device=device)
        return {"text_states": states, "text_mask": torch.zeros(len(texts), 1, dtype=torch.bool, device=device)}
    tokens = tokenizer([texts[i] for i in known], padding=True, truncation=False, return_tensors="pt").to(device)
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    # An encoder with relative positions (T5) states no limit of its own.
    positions = text_encoder.config.to_dict().get("max_position_embeddings")
    limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    if too_long := [f"text {i} has {n}" for i, n in zip(known, lengths) if n > limit]:
        raise ValueError(f"The text encoder takes {limit} tokens and {', '.join(too_long)}: shorten it.")
    output = text_encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    states = torch.zeros(len(texts), *output.shape[1:], device=device)
    mask = torch.zeros(len(texts), output.shape[1], dtype=torch.bool, device=device)
    states[known], mask[known] = output.float(), tokens["attention_mask"].bool()
    return {"text_states": states, "text_mask": mask}
