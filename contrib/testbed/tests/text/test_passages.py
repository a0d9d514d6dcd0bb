from __future__ import annotations

import pytest

from graftwork_testbed.text.passages import cut, fill, first_sentence, prose_paragraphs

PAGE = """The "with" statement
********************

The "with" statement is used to wrap the
execution of a block with context man-
agers.

   with_stmt ::= "with" expression ":" suite and some more words.

   >>> with open("file") as handle: pass and so on.

+------+------+ a table of operations here.

cl(ear) [filename:lineno | bpnumber ...]

object.__enter__(self)

Too short a line.

      The return value is bound to the target, see
      section 3 (of the reference).

Lists of three names, such as a b c
"""


def test_prose_is_kept_on_one_line_and_code_tables_headings_and_signatures_are_not():
    assert prose_paragraphs(PAGE) == [
        'The "with" statement is used to wrap the execution of a block with context man-agers.',
        "The return value is bound to the target, see section 3 (of the reference).",
    ]


def test_shorter_paragraphs_count_if_asked_for():
    assert "Too short a line." in prose_paragraphs(PAGE, min_words=4)


def test_a_long_paragraph_is_cut_at_ends_of_sentences_and_keeps_its_brackets():
    text = 'One two three. (Four five six.) "Seven eight." Nine ten eleven twelve.'
    assert cut(text, 6) == ["One two three. (Four five six.)", '"Seven eight." Nine ten eleven twelve.']


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 100])
def test_cutting_loses_no_word_and_obeys_the_limit(most):
    text = "A b c d e f g. H i, e.g. J k l m n o p q r s t! U? V w x y z."
    pieces = cut(text, most)
    assert " ".join(pieces) == text
    assert all(len(piece.split()) <= most for piece in pieces)


def test_passages_are_filled_with_as_many_paragraphs_as_fit():
    assert fill(["a b c", "d e", "f g h i", "j"], 5) == ["a b c d e", "f g h i j"]


def test_a_paragraph_longer_than_a_passage_is_cut_into_several():
    assert fill(["a b.", "C d e f g h i."], 4) == ["a b.", "C d e f", "g h i."]


def test_the_first_sentence_is_taken_off():
    assert first_sentence(["One two. Three four. Five.", "Six."]) == ("One two.", ["Three four. Five.", "Six."])
    assert first_sentence(["Only one sentence.", "Six."]) == ("Only one sentence.", ["Six."])


def test_numbers_below_one_are_named():
    with pytest.raises(ValueError, match="min_words must be positive; found 0"):
        prose_paragraphs(PAGE, 0)
    with pytest.raises(ValueError, match="max_words must be positive; found 0"):
        fill(["a"], 0)
