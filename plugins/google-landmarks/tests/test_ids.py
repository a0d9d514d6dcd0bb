"""Ids: the path rule, codes, positions, and membership by hashing."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork import DataError
from graftwork_google_landmarks.ids import IdIndex, codes_of, id_array, image_path, joint_codes
from graftwork_google_landmarks.membership import find_pairs


def drawn(count: int, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    return np.array([f"{number:016x}".encode() for number in numbers.tolist()], "S16")


def test_an_image_lies_under_the_first_three_characters_of_its_id() -> None:
    assert str(image_path("0123456789abcdef")) == "0/1/2/0123456789abcdef.jpg"
    with pytest.raises(ValueError, match="three characters"):
        image_path("ab")


def test_codes_are_the_hexadecimal_numbers_and_order_as_the_strings_do() -> None:
    ids = drawn(500)
    codes = codes_of(ids)
    assert codes.tolist() == [int(one, 16) for one in ids.tolist()]
    assert np.argsort(codes).tolist() == np.argsort(ids).tolist()


@pytest.mark.parametrize("odd", ["0123456789ABCDEF", "xyz", "0123456789abcde", "0123456789abcdef0"])
def test_ids_of_another_form_have_no_codes(odd: str) -> None:
    assert codes_of(id_array(["0123456789abcdef", odd])) is None


def test_joint_codes_of_any_ids_keep_equality_and_order_over_arrays() -> None:
    first, second = joint_codes(id_array(["b", "a", "long-one-of-more-than-sixteen"]), id_array(["a", "c"]))
    assert first[1] == second[0]
    assert first[1] < first[0] < second[1] < first[2]


def test_positions_are_found_and_missing_ones_are_named() -> None:
    ids = drawn(300)
    index = IdIndex(ids, "the table")
    assert index.find(ids[[5, 299, 0]]).tolist() == [5, 299, 0]
    other = id_array(["ffffffffffffffff", ids[3].decode(), "eeeeeeeeeeeeeeee"])
    assert index.find(other).tolist() == [-1, 3, -1]
    with pytest.raises(DataError, match=r"test.csv has image ffffffffffffffff, which the table lacks \(2 such\)"):
        index.require(other, "test.csv")


def test_an_id_that_stands_twice_or_is_none_is_refused() -> None:
    with pytest.raises(DataError, match=r"train.csv lists image 00000000000000aa twice"):
        IdIndex(id_array(["00000000000000aa", "00000000000000ab", "00000000000000aa"]), "train.csv")
    with pytest.raises(DataError, match="16 hexadecimal characters; found 'zz'"):
        IdIndex(id_array(["zz"]), "train.csv")


@pytest.mark.parametrize("seed", range(8))
def test_pairs_are_found_exactly_as_a_python_set_finds_them(seed: int) -> None:
    """4,000 wanted pairs with repetitions lose slots to one another: 1 in 64 goes by sorting."""
    generator = np.random.default_rng(seed)
    names = drawn(200, seed) if seed % 2 else id_array([f"name {n} that is longer than sixteen" for n in range(200)])
    wanted = generator.integers(0, 50, 4000), names[generator.integers(0, 200, 4000)]
    pairs = generator.integers(0, 60, 9000), names[generator.integers(0, 200, 9000)]
    found, answers = find_pairs(pairs, wanted)
    known = set(zip(wanted[0].tolist(), wanted[1].tolist(), strict=True))
    assert found.tolist() == [at for at, pair in enumerate(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)) if pair in known]
    assert (wanted[0][answers] == pairs[0][found]).all()
    assert (wanted[1][answers] == pairs[1][found]).all()
    canonical: dict[tuple[int, bytes], int] = {}
    for pair, answer in zip(zip(pairs[0][found].tolist(), pairs[1][found].tolist(), strict=True), answers.tolist(), strict=True):
        assert canonical.setdefault(pair, answer) == answer


def test_nothing_is_found_among_nothing() -> None:
    none = np.zeros(0, np.int64), np.zeros(0, "S16")
    some = np.zeros(1, np.int64), drawn(1)
    assert not len(find_pairs(none, some)[0])
    assert not len(find_pairs(some, none)[0])
