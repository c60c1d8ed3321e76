"""A small byte-level BPE tokenizer with Qwen2-VL's special tokens, for models trained from scratch.

Pieces of text are learned twice: first inside words, as usual; then across words, but only where the
neighbours nearly always come together ("</think>" "<answer>" "("), so that the fixed parts of an answer cost
few tokens while a colour or a shape stays a token of its own. A digit never merges with anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = r"</?think>|</?answer>|\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]"
DIGITS = r"\p{N}"


def build_tokenizer(texts: Iterable[str], vocab_size: int = 512, cohesion: float = 0.5) -> PreTrainedTokenizerFast:
    """Learn a tokenizer of at most `vocab_size` tokens, specials included; the same texts give the same one.

    `cohesion`: two neighbouring pieces become one if they stand together in at least this fraction of the
    places where the more frequent of the two stands. ValueError if the vocabulary cannot hold the 256 bytes
    and the special tokens.
    """
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size: expected at least {least} (bytes and special tokens), got {vocab_size}")
    texts = list(texts)
    room = vocab_size - len(SPECIAL_TOKENS)
    vocab, merges = _word_merges(texts, room)
    _phrase_merges(texts, vocab, merges, room, cohesion)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(vocab, merges, DIGITS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    return fast


def _tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], pattern: str) -> Tokenizer:
    """The pattern's matches stand alone (digits), or are the pieces (words)."""
    tokenizer = Tokenizer(BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_merges(texts: list[str], room: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = _tokenizer({}, [], WORDS)
    trainer = BpeTrainer(
        vocab_size=room,
        min_frequency=max(2, len(texts) // 1000),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [(left, right) for left, right in state["merges"]]


def _phrase_merges(
    texts: list[str], vocab: dict[str, int], merges: list[tuple[str, str]], room: int, cohesion: float
) -> None:
    """Append merges of neighbouring pieces, most frequent first, to `vocab` and `merges`."""
    tokenizer = _tokenizer(vocab, merges, WORDS)
    # Digits cut a text into runs; equal runs are counted once, with their number.
    runs: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        run: list[str] = []
        for token in tokenizer.encode(text).tokens:
            if token.isdigit():
                runs[tuple(run)] += 1
                run = []
            else:
                run.append(token)
        runs[tuple(run)] += 1
    least = max(2, len(texts) // 100)
    while len(vocab) < room:
        pair = _best_pair(runs, cohesion, least)
        if pair is None:
            return
        merges.append(pair)
        vocab.setdefault(pair[0] + pair[1], len(vocab))
        joined: Counter[tuple[str, ...]] = Counter()
        for pieces, number in runs.items():
            joined[_join(pieces, pair)] += number
        runs = joined


def _best_pair(runs: Counter[tuple[str, ...]], cohesion: float, least: int) -> tuple[str, str] | None:
    singles: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for pieces, number in runs.items():
        for piece in pieces:
            singles[piece] += number
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += number
    tight = [
        (number, pair)
        for pair, number in pairs.items()
        if number >= least and number >= cohesion * max(singles[pair[0]], singles[pair[1]])
    ]
    return max(tight)[1] if tight else None  # ties: the later in the alphabet, so that the result is deterministic


def _join(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(pieces):
        if pieces[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(pieces[i])
            i += 1
    return tuple(out)
