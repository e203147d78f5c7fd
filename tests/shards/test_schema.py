from __future__ import annotations

from vlm2vec.shards.schema import SUBSET_NAME, content_hash, sample_key


def test_content_hash_is_pinned() -> None:
    # Stored in every index: another value would make old and new shards disagree about what is the same.
    assert content_hash("seven") == 4_238_841_880_666_012_145
    assert content_hash("seven", b"pixels") == -623_240_802_958_030_367


def test_content_hash_distinguishes_items() -> None:
    items: list[tuple[str, list[bytes]]] = [("", []), ("", [b""]), ("a", []), ("a", [b""]), ("ab", [b"c"])]
    items += [("a", [b"bc"]), ("", [b"abc"]), ("abc", [])]
    items += [("a", [b"b", b"c"]), ("a", [b"c", b"b"]), ("a", [b"", b""]), ("", [b"a", b"bc"])]
    hashes = [content_hash(text, *images) for text, images in items]
    assert len(set(hashes)) == len(items)
    assert all(-(2**63) <= value < 2**63 for value in hashes)
    assert any(value < 0 for value in hashes)


def test_names_are_safe_in_tars_and_for_webdataset() -> None:
    for bad in ("", ".", "..", "a/b", "a.b", "-a", "a b", "ä", "a\n", "x" * 61):
        assert not SUBSET_NAME.fullmatch(bad)
    longest = "x" * 60
    assert SUBSET_NAME.fullmatch(longest)
    member = f"{sample_key(longest, 99_999_999)}.qry.webp"
    assert len(member) <= 100
    assert "." not in sample_key("OK-VQA", 7)
