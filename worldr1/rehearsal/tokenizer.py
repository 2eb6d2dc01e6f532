"""A byte-level tokenizer: any text, a token a byte, and the special tokens of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BYTES = 256


def save_byte_tokenizer(folder: Path, special_tokens: Sequence[str]) -> dict[str, int]:
    """Write it in the form that AutoTokenizer reads.

    Args:
      folder: Where tokenizer.json goes; made if missing.
      special_tokens: They take the ids from BYTES on, in this order.
    Returns:
      Special token -> id.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(special_tokens))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=list(special_tokens))
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(list(special_tokens))
    assert ids == list(range(BYTES, BYTES + len(special_tokens)))
    return dict(zip(special_tokens, ids, strict=True))
