"""Tokenizers for clinical notes that read phrases instead of spelling words.

An ordinary byte-level BPE with one choice that makes everything after it cheap: text is cut at clauses, not at words,
before merges are counted, so a phrase that occurs often ("conductive hearing impairment", a disease's name, the
sentence that asks for the list) becomes one token or two. A note of 150 words is then some thirty tokens, a list of ten
diseases some fifty, and a small model reads symptoms instead of spelling them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# Text between two of these is a candidate for one token; a comma belongs to the phrase after it.
BREAKS, COMMAS = Regex(r"\n\d+\. |\n+|[;:] |\. "), Regex(r", (and |or )?")


def train_phrases(
    texts: Iterable[str], vocabulary: int, control: Sequence[str], form: str, words: bool = False
) -> Tokenizer:
    """A byte-level BPE of at most ``vocabulary`` entries over the clauses of ``texts``, control tokens included.

    form: how a single text is wrapped, "$A" between control tokens ("[CLS] $A [SEP]"). words: no token is longer than a
    word, for models whose single words are rewarded.
    """
    tokenizer = Tokenizer(models.BPE())
    by_clause = [
        pre_tokenizers.Split(BREAKS, "isolated"),
        pre_tokenizers.Split(COMMAS, "merged_with_next"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    by_word = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_word if words else by_clause)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(control), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    used = [(token, tokenizer.token_to_id(token)) for token in control if token in form]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=used)
    return tokenizer
