"""A commit names its contributors once, and those who are not in a part; both forms say the same."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from potluck.wire.codec import digest
from potluck.wire.records import Commit, PartInfo

WEIGHTS = st.dictionaries(st.integers(0, 40), st.floats(1, 1e6), min_size=1)


def commit(*parts: tuple[tuple[int, float], ...]) -> Commit:
    infos = tuple(PartInfo(n, digest(b"%d" % n), 8, named) for n, named in enumerate(parts))
    return Commit(3, 0, infos, 100, None, "all parts held")


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    """Some are in all parts and some in a few; now and then one has another weight in a part."""
    weights = draw(WEIGHTS)
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        inside = draw(st.sets(st.sampled_from(sorted(weights)), min_size=1))
        odd = draw(st.sampled_from([1.0, 1.0, 1.0, 2.0]))
        parts.append(tuple((index, odd * weights[index]) for index in sorted(inside)))
    return commit(*parts)


@given(commits())
def test_spelt_out_it_says_what_it_said(whole: Commit) -> None:
    assert whole.abridged().spelt_out() == whole
    assert whole.spelt_out() == whole


def test_a_thousand_members_in_a_thousand_parts_fit_a_record() -> None:
    everyone = tuple((index, 1000.5) for index in range(1000))
    parts = [everyone[:n] + everyone[n + 1 :] for n in range(1000)]
    short = commit(*parts).abridged()
    assert all(info.contributors == () and info.without == (n,) for n, info in enumerate(short.parts))
    assert len(msgspec.msgpack.encode(short)) < 150_000


def test_parts_that_all_are_in_share_one_tuple() -> None:
    long = commit(*[((0, 60.0), (1, 40.0))] * 3).abridged().spelt_out()
    assert len({id(info.contributors) for info in long.parts}) == 1


def test_a_weight_that_is_another_in_one_part_is_spelt_out_there() -> None:
    short = commit(((0, 60.0), (1, 40.0)), ((0, 61.0), (1, 40.0))).abridged()
    assert [info.contributors for info in short.parts] == [((0, 60.0), (1, 40.0)), ()]
    assert short.weights == ((0, 61.0), (1, 40.0))
