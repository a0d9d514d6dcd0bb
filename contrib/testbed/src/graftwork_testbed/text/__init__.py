"""Text without a network: prose that ships with CPython, sentences of a grammar whose labels are known, tokenizers, a sentence encoder."""
